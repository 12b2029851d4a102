"""Forests of small networks that were fine-tuned, adapted, pruned, quantised, averaged, reordered and rescaled.

All networks are actually trained, on tasks derived from scikit-learn's digits (other labels, rotated images).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import functional_call

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import build_model, cnn_digits, mlp
from hf_sane.core._types import StateDict
from hf_sane.screening._scaling import canonical_scales, scalable_axes
from hf_sane.symmetry import PermutationSpec, permutation_spec

CONFIGS: dict[str, Callable[[], ZooConfig]] = {
    "mlp": lambda: mlp(image_size=8, hidden_sizes=(48, 32), activation="relu"),
    "wide mlp": lambda: mlp(image_size=8, hidden_sizes=(96,), activation="relu"),
    "deep mlp": lambda: mlp(image_size=8, hidden_sizes=(40, 40, 40), activation="relu"),
    "cnn": cnn_digits,
}
BATCH = 64
KINDS = ("full", "lora", "pruned", "quantised", "cast", "soup", "snake", "copy")


@dataclass
class Forest:
    """Networks and their origins.

    Attributes:
        config: Their architecture.
        tensors: Published weights by name, some of which are reordered or rescaled.
        parents: Names of the parents of each network; empty for roots.
        kinds: Kind of operation that created each network.
        hidden: Names of networks that are not published.
        plain: Weights before reordering and rescaling.
    """

    config: ZooConfig
    tensors: dict[str, StateDict] = field(default_factory=dict)
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    plain: dict[str, StateDict] = field(default_factory=dict)

    @property
    def spec(self) -> PermutationSpec:
        """Permutation symmetries."""
        return permutation_spec(self.config)

    def add(self, kind: str, state: StateDict, *parents: str) -> str:
        """A new network."""
        name = f"{len(self.plain)}"
        self.plain[name], self.parents[name], self.kinds[name] = state, parents, kind
        return name

    def same(self, name: str) -> str:
        """The original of a copy, or the network itself."""
        while self.kinds[name] == "copy":
            (name,) = self.parents[name]
        return name

    def given_parents(self, name: str) -> set[str]:
        """The nearest published ancestors."""
        found: set[str] = set()
        for parent in map(self.same, self.parents[self.same(name)]):
            found |= self.given_parents(parent) if parent in self.hidden else {parent}
        return found


class Gardener:
    """Creates forests.

    Args:
        kind: Kind of architecture.
        seed: Random seed.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self.forest = Forest(CONFIGS[kind]())
        self.generator = np.random.default_rng([seed, list(CONFIGS).index(kind)])
        self.noise = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model = build_model(self.forest.config)
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16 - 0.3, dtype=torch.float32).view(-1, 1, 8, 8)
        self.labels = torch.tensor(labels)

    def chance(self, share: float) -> bool:
        """Draw an event with a probability."""
        return bool(self.generator.random() < share)

    def _task(self) -> tuple[Tensor, Tensor]:
        """Images and labels of a new task: rotated images of some classes, with new labels."""
        images = torch.rot90(self.images, int(self.generator.integers(4)), (2, 3))
        images = images * (-1 if self.chance(0.3) else 1)
        names = torch.tensor(self.generator.permutation(10)) if self.chance(0.5) else torch.arange(10)
        rows = torch.tensor(self.generator.permutation(len(images))[: self.generator.choice([300, 800, 1700])])
        return images[rows], names[self.labels[rows]]

    def _fit(self, state: StateDict, epochs: int, *, rank: int = 0, is_root: bool = False) -> list[StateDict]:
        """Train all weights, or factors of a rank; returns the weights after each epoch, with factors merged."""
        images, labels = self._task()
        start = {name: x.clone() for name, x in state.items()}
        rate = 10 ** self.generator.uniform(-3.2, -2.3) * (1 if is_root else self.generator.choice([0.1, 0.3, 1.0]))
        decay = 0.01 if is_root else float(self.generator.choice([0, 0.01, 0.1], p=[0.3, 0.5, 0.2]))
        if rank:
            pairs = {
                name: (
                    torch.randn(rank, x[0].numel(), generator=self.noise) / math.sqrt(x[0].numel()),
                    torch.zeros(len(x), rank),
                )
                for name, x in start.items()
                if x.ndim > 1
            }
            trained = [x.requires_grad_() for pair in pairs.values() for x in pair]
            rate *= 3
        else:
            trained = [x.requires_grad_() for x in start.values()]

        def weights() -> StateDict:
            if not rank:
                return start
            return start | {name: start[name] + (b @ a).view_as(start[name]) for name, (a, b) in pairs.items()}

        if self.chance(0.7) or rank:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay)
        else:
            optimizer = torch.optim.SGD(trained, lr=20 * rate, momentum=0.9, weight_decay=decay / 100)
        kept = []
        for _ in range(epochs):
            for rows in torch.tensor(self.generator.permutation(len(images))).split(BATCH):
                optimizer.zero_grad()
                logits = functional_call(self.model, weights(), (images[rows],)).logits
                torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
            kept.append({name: x.detach().clone() for name, x in weights().items()})
        return kept

    def root(self) -> str:
        """Add a network that is trained from scratch."""
        fresh = {name: x.detach().clone() for name, x in build_model(self.forest.config).state_dict().items()}
        return self.forest.add("root", self._fit(fresh, int(self.generator.integers(4, 9)), is_root=True)[-1])

    def child(self, kind: str, *parents: str) -> str:
        """Add a network made from others; for a snake of checkpoints, returns the last one."""
        forest, state = self.forest, self.forest.plain[parents[0]]
        if kind == "full":
            return forest.add(kind, self._fit(state, int(self.generator.integers(1, 5)))[-1], *parents)
        if kind == "lora":
            rank = int(self.generator.choice([1, 2, 4]))
            return forest.add(kind, self._fit(state, int(self.generator.integers(1, 5)), rank=rank)[-1], *parents)
        if kind == "snake":
            last = parents[0]
            for checkpoint in self._fit(state, 3):
                last = forest.add(kind, checkpoint, last)
            return last
        if kind == "soup":
            shares = self.generator.dirichlet(np.full(len(parents), 20.0))
            states = [forest.plain[parent] for parent in parents]
            mean = {
                name: torch.stack([s * x[name] for s, x in zip(shares, states, strict=True)]).sum(0) for name in state
            }
            return forest.add(kind, {name: x.float() for name, x in mean.items()}, *parents)
        return forest.add(kind, self._pressed(kind, state), *parents)

    def _pressed(self, kind: str, state: StateDict) -> StateDict:
        if kind == "pruned":
            share = self.generator.uniform(0.2, 0.6)
            return {n: torch.where(x.abs() > x.abs().flatten().quantile(share), x, 0.0) for n, x in state.items()}
        if kind == "quantised":
            levels = float(self.generator.choice([127, 127, 7]))
            steps = {name: x.abs().flatten(1).amax(1) / levels for name, x in state.items() if x.ndim > 1}
            return state | {
                name: (state[name] / step.view(-1, *[1] * (state[name].ndim - 1))).round()
                * step.view(-1, *[1] * (state[name].ndim - 1))
                for name, step in steps.items()
            }
        if kind == "cast":
            dtype = torch.bfloat16 if self.chance(0.5) else torch.float16
            return {name: x.to(dtype).float() for name, x in state.items()}
        return dict(state)

    def dress(self, share: float = 0.5) -> Forest:
        """Reorder a share of the networks, and rescale half of those if their activation allows it."""
        forest, spec = self.forest, self.forest.spec
        for name, state in forest.plain.items():
            moved = state
            if self.chance(share):
                moved = spec.apply(state, spec.random(generator=self.noise))
                if forest.config.activation == "relu" and scalable_axes(spec) and self.chance(0.5):
                    like = {
                        key: x * (torch.rand(len(x), generator=self.noise) * 1.5 + 0.5).view(-1, *[1] * (x.ndim - 1))
                        for key, x in moved.items()
                    }
                    scaled = canonical_scales(spec, moved, like=like)
                    moved = {key: x.float() for key, x in scaled.items()}
            if name not in forest.hidden:
                forest.tensors[name] = moved
        order = self.generator.permutation(list(forest.tensors))
        forest.tensors = {str(name): forest.tensors[str(name)] for name in order}
        return forest


def mixed_forest(kind: str, seed: int, *, roots: int = 3, children: int = 12, hidden: float = 0.1) -> Forest:
    """A forest of all kinds of changes, some of whose inner networks are missing."""
    gardener = Gardener(kind, seed)
    forest, choose = gardener.forest, gardener.generator
    for _ in range(roots):
        family = [gardener.root()]
        for _ in range(children):
            kind_of_child = str(choose.choice(KINDS, p=[0.34, 0.16, 0.09, 0.09, 0.06, 0.12, 0.06, 0.08]))
            parents = [str(choose.choice(family))]
            if kind_of_child == "soup":
                trained = [x for x in family if forest.kinds[x] in ("full", "lora")]
                count = min(len(trained), int(choose.integers(2, 5)))
                parents = [str(x) for x in choose.permutation(trained)[:count]]
            if not parents or (kind_of_child == "soup" and len(parents) < 2):
                continue
            family.append(gardener.child(kind_of_child, *parents))
    _hide(gardener, hidden)
    return gardener.dress()


def _hide(gardener: Gardener, share: float) -> None:
    """Hide some networks that others were made from, except ingredients of averages and originals of copies."""
    forest = gardener.forest
    kept = {p for name, parents in forest.parents.items() if forest.kinds[name] in ("soup", "copy") for p in parents}
    inner = {p for parents in forest.parents.values() for p in parents} - kept
    forest.hidden = {name for name in sorted(inner) if forest.kinds[name] != "copy" and gardener.chance(share)}


def mother_forest(kind: str, seed: int, *, change: str, trees: int = 5, fan: int = 4) -> Forest:
    """As in MoTHer (Horwitz et al. 2025): trees of 1, 4 and 16 networks, all fine-tuned fully or all with LoRA.

    Args:
        kind: Kind of architecture.
        seed: Random seed.
        change: `"full"` or `"lora"`.
        trees: Number of roots.
        fan: Number of children of the root, and of each child.
    """
    gardener = Gardener(kind, seed)
    for _ in range(trees):
        root = gardener.root()
        for _ in range(fan):
            child = gardener.child(change, root)
            for _ in range(fan):
                gardener.child(change, child)
    return gardener.dress(0.0)


def atlas_forest(kind: str, seed: int, *, fan: int = 12) -> Forest:
    """As in the model atlas (Horwitz et al. 2025): a fan of tuned networks, snakes of checkpoints, quantised leaves.

    A base, a fan of networks fine-tuned from it, runs with all their checkpoints, averages, and quantised and copied
    networks as leaves; none are reordered or rescaled.
    """
    gardener = Gardener(kind, seed)
    choose: np.random.Generator = gardener.generator
    for _ in range(2):
        root = gardener.root()
        tuned = [gardener.child("full" if gardener.chance(0.6) else "lora", root) for _ in range(fan)]
        ends = [gardener.child("snake", root) for _ in range(3)]
        for _ in range(3):
            parents = [str(x) for x in choose.permutation(tuned)[: int(choose.integers(2, 4))]]
            ends.append(gardener.child("soup", *parents))
        for parent in choose.choice([root, *tuned, *ends], 8, replace=False):
            gardener.child(str(choose.choice(["quantised", "quantised", "cast", "copy"])), str(parent))
    return gardener.dress(0.0)


def right_edges(forest: Forest, edges: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each pair of a child and its parent is correct; for copies, in either direction."""
    return [
        forest.same(parent) == forest.same(child)
        or forest.same(parent) in {forest.same(x) for x in forest.given_parents(child)}
        for child, parent in edges
    ]


def true_edges(forest: Forest) -> set[tuple[str, str]]:
    """Pairs of a child and its parent, where copies count as one network and are children of themselves."""
    found = set()
    for name in forest.tensors:
        if forest.kinds[name] == "copy":
            found.add((name, forest.same(name)))
        else:
            found |= {(name, parent) for parent in forest.given_parents(name)}
    return found
