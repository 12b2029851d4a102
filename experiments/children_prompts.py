"""Networks from prompts of few images: codes of changes since an ancestor, search in them, and prediction of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from datasets.table import InMemoryTable
from torch import Tensor

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layout import Layout
from hf_sane.networks._images import ImageData
from hf_sane.networks._shifts import KINDS, STRENGTHS, Shift, StackedShifts
from hf_sane.networks._stacked import StackedNetworks, example_losses
from hf_sane.sampling._generation import NetworkCodec, networks_from_tokens
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._records import CHILD_FEATURES, ModelRecord, record_table

UNLABELLED = 20  # images of a prompt without labels
STEPS = (5, 15, 30)  # of a search; the best is chosen on validation combinations
WEIGHT_RATES, CODE_RATES = (1e-3, 3e-3, 1e-2), (0.1, 0.3)  # the latter in standard deviations of training children
NEIGHBOURS = (1, 3, 5, 10)
STARTS = ("ancestor", "nearest")
WIDTHS, RIDGES = (0.5, 1.0, 2.0), (1e-2, 1e-1, 1.0)  # of the kernel
PROMPTS_PER_CHILD = 3  # that kernel ridge is fitted to


def children_of(split: ZooSplit) -> ZooSplit:
    """The children of a split at their last epoch."""
    last = split.final_epochs()
    return last.select(np.array([ancestor is not None for ancestor in last.column("ancestor")]))


def shift_of(row: Mapping[str, Any]) -> Shift:
    """The shift that a row of a zoo describes, see [`Shift.properties`]."""
    classes = row["shift_classes"]
    strengths = {kind: float(row[f"shift_{kind}"]) for kind in STRENGTHS}
    return Shift(**strengths, classes=None if classes is None else tuple(map(int, classes.split())))


@dataclass(frozen=True)
class Children:
    """Children of one split, aligned.

    Attributes:
        changes: `[M, N, D]` raw tokens, less those of the ancestors.
        ancestor: `[M]` number of the ancestor.
        shifts: What each was trained on.
    """

    changes: Tensor
    ancestor: Tensor
    shifts: tuple[Shift, ...]

    def __len__(self) -> int:
        return len(self.shifts)

    def select(self, rows: Sequence[int] | Tensor) -> "Children":
        """Some of them."""
        index = torch.as_tensor(rows)
        return Children(self.changes[index], self.ancestor[index], tuple(self.shifts[i] for i in index.tolist()))

    def spread(self, per_combination: int) -> "Children":
        """The first few of each combination."""
        taken: dict[str, list[int]] = {}
        for i, shift in enumerate(self.shifts):
            taken.setdefault(shift.combination, []).append(i)
        return self.select(sorted(i for members in taken.values() for i in members[:per_combination]))


@dataclass(frozen=True)
class Family:
    """Ancestors and their children.

    Attributes:
        layout: Layout of all networks.
        config: Their architecture.
        ancestors: `[A, N, D]` raw tokens.
        splits: Children of each split.
    """

    layout: Layout
    config: ZooConfig
    ancestors: Tensor
    splits: dict[str, Children]

    @classmethod
    def open(cls, zoo: Zoo) -> "Family":
        """The children of a zoo at their last epoch."""
        train = zoo.splits["train"]
        layout, config = train.layout_and_config()
        if not isinstance(config, ZooConfig):
            raise TypeError(f"expected networks of the library, got {type(config).__name__}")
        is_ancestor = np.array([name is None for name in train.column("ancestor")])
        first = train.select(is_ancestor).final_epochs()
        ancestors, place = aligned_tokens(first), {run_id: i for i, run_id in enumerate(first.run_ids)}
        splits = {}
        for name, split in zoo.splits.items():
            part = children_of(split)
            index = torch.tensor([place[ancestor] for ancestor in part.column("ancestor")])
            columns = {f"shift_{kind}": part.column(f"shift_{kind}") for kind in KINDS}
            rows = ({key: column[i] for key, column in columns.items()} for i in range(len(part)))
            shifts = tuple(map(shift_of, rows))
            splits[name] = Children(aligned_tokens(part) - ancestors[index], index, shifts)
        return cls(layout, config, ancestors, splits)

    def networks(self, ancestor: Tensor, changes: Tensor) -> StackedNetworks:
        """Networks that are so far from their ancestors."""
        return networks_from_tokens(self.ancestors[ancestor] + changes, self.layout, self.config)


@dataclass(frozen=True)
class Examples:
    """Images of each of `M` networks, as it sees them.

    Attributes:
        images: `[M, B, C, H, W]`.
        labels: `[M, B]`.
        weights: `[M, B]`, 0 for images that are not there.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor

    def select(self, rows: Tensor) -> "Examples":
        """Those of some networks."""
        return Examples(self.images[rows], self.labels[rows], self.weights[rows])

    def losses(self, networks: StackedNetworks) -> Tensor:
        """Mean cross-entropy of each network, `[M]`."""
        losses = example_losses(networks.logits(self.images), self.labels)
        return (losses * self.weights).sum(dim=1) / self.weights.sum(dim=1)

    @torch.no_grad()
    def predictions(self, networks: StackedNetworks) -> Tensor:
        """Predicted classes `[M, B]`."""
        return networks.logits(self.images).argmax(dim=2)

    def accuracy(self, networks: StackedNetworks) -> Tensor:
        """Accuracy of each network, `[M]`; all images must be there."""
        return (self.predictions(networks) == self.labels).float().mean(dim=1)


def draw_examples(
    data: ImageData,
    split: str,
    shifts: Sequence[Shift],
    *,
    count: int | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Examples:
    """Random images of the classes of each network: `count` of all, or so many of each class."""
    images, labels = data.split(split)
    generator = np.random.default_rng([seed, len(shifts)])
    stacked = StackedShifts(shifts, *images.shape[2:])
    chosen, weights = [], []
    for seen in stacked.sees(labels):
        if count is not None:
            known = seen.nonzero().flatten().numpy()
            chosen.append(generator.choice(known, count, replace=len(known) < count))
            weights.append(np.ones(count))
            continue
        assert per_class is not None
        rows = np.zeros((data.num_classes, per_class), dtype=np.int64)
        there = np.zeros((data.num_classes, per_class))
        for number in range(data.num_classes):
            known = (seen & (labels == number)).nonzero().flatten().numpy()
            if len(known):
                rows[number] = generator.choice(known, per_class, replace=len(known) < per_class)
                there[number] = 1
        chosen.append(rows.ravel())
        weights.append(there.ravel())
    index = torch.from_numpy(np.stack(chosen))
    return Examples(stacked(images[index]), labels[index], torch.from_numpy(np.stack(weights)).float())


class Code(Protocol):
    """Latents of changes."""

    def encode(self, changes: Tensor, ancestor: Tensor) -> Tensor:
        """Changes `[M, N, D]` as latents `[M, T, Z]`."""

    def decode(self, latents: Tensor, ancestor: Tensor) -> Tensor:
        """Latents as changes; differentiable."""


@dataclass(frozen=True)
class TokenCode:
    """SANE, or the linear code of tokens, of changes."""

    codec: NetworkCodec

    def encode(self, changes: Tensor, ancestor: Tensor) -> Tensor:
        """Token by token."""
        return self.codec.encode(changes)

    def decode(self, latents: Tensor, ancestor: Tensor) -> Tensor:
        """Token by token."""
        return self.codec.decode_tokens(latents, with_gradient=True)


@dataclass(frozen=True)
class WholeCode:
    """Principal components of whole networks, for each ancestor its own.

    Attributes:
        mean: `[A, P]`.
        directions: `[A, k, P]`.
        token_dim: `D`.
    """

    mean: Tensor
    directions: Tensor
    token_dim: int

    @classmethod
    def fit(cls, children: Children, num_ancestors: int, size: int) -> "WholeCode":
        """The leading components of the changes of each ancestor's children."""
        means, directions = [], []
        for number in range(num_ancestors):
            own = children.changes[children.ancestor == number].flatten(1)
            means.append(own.mean(dim=0))
            found = torch.linalg.svd(own - means[-1], full_matrices=False).Vh[:size]
            directions.append(torch.cat([found, found.new_zeros(size - len(found), found.shape[1])]))
        return cls(torch.stack(means), torch.stack(directions), children.changes.shape[2])

    def encode(self, changes: Tensor, ancestor: Tensor) -> Tensor:
        """Coordinates, as one token."""
        return (self.directions[ancestor] @ (changes.flatten(1) - self.mean[ancestor]).unsqueeze(2)).mT

    def decode(self, latents: Tensor, ancestor: Tensor) -> Tensor:
        """Points of the subspaces."""
        flat = self.mean[ancestor] + (latents @ self.directions[ancestor]).squeeze(1)
        return flat.view(len(latents), -1, self.token_dim)


class Weights:
    """The changes themselves."""

    def encode(self, changes: Tensor, ancestor: Tensor) -> Tensor:
        """Nothing to do."""
        return changes

    def decode(self, latents: Tensor, ancestor: Tensor) -> Tensor:
        """Nothing to do."""
        return latents


def search(
    family: Family,
    code: Code,
    ancestor: Tensor,
    start: Tensor,
    examples: Examples,
    *,
    rate: float,
    scale: Tensor | float,
    steps: Sequence[int] = STEPS,
) -> list[Tensor]:
    """Adam on latents, network by network, to lower the loss on its images; the changes after some steps.

    Args:
        family: Ancestors.
        code: What is searched in.
        ancestor: `[M]`.
        start: Changes to start from, `[M, N, D]`; as the code has them.
        examples: Labelled images.
        rate: Learning rate, in units of `scale`.
        scale: Of latents.
        steps: When to look.
    """
    with torch.no_grad():
        first = code.encode(start, ancestor)
    moved = torch.zeros_like(first).requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=rate)
    found = []
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        changes = code.decode(first + scale * moved, ancestor)
        examples.losses(family.networks(ancestor, changes)).sum().backward()
        optimizer.step()
        if step in steps:
            with torch.no_grad():
                found.append(code.decode(first + scale * moved, ancestor))
    return found


@torch.no_grad()
def statistics(family: Family, ancestor: Tensor, examples: Examples, *, labelled: bool) -> list[Tensor]:
    """Inputs of kernel ridge for a prompt, as blocks `[M, F]`: pixels, answers of the ancestor, classes if known."""
    share = (examples.weights / examples.weights.sum(dim=1, keepdim=True)).unsqueeze(2)
    pixels = examples.images.flatten(2)
    mean = (share * pixels).sum(dim=1)
    std = (share * (pixels - mean.unsqueeze(1)).square()).sum(dim=1).sqrt()
    networks = family.networks(ancestor, torch.zeros_like(family.ancestors[ancestor]))
    answers = (share * networks.logits(examples.images).softmax(dim=2)).sum(dim=1)
    blocks = [mean, std, answers]
    if labelled:
        classes = torch.zeros(len(ancestor), family.config.num_classes)
        blocks.append(classes.scatter_reduce(1, examples.labels, examples.weights, "amax"))
    return blocks


@dataclass(frozen=True)
class Prompts:
    """Prompts of training children, for prediction from their statistics.

    Attributes:
        blocks: Statistics of `PROMPTS_PER_CHILD` prompts of every child.
        children: The children, repeated.
    """

    blocks: list[Tensor]
    children: Children

    @classmethod
    def draw(cls, family: Family, data: ImageData, per_class: int | None) -> "Prompts":
        """Prompts of the kind that will be given."""
        children = family.splits["train"]
        many = children.select(torch.arange(len(children)).repeat(PROMPTS_PER_CHILD))
        size: dict[str, Any] = {"count": UNLABELLED} if per_class is None else {"per_class": per_class}
        examples = draw_examples(data, "train", many.shifts, **size, seed=1)
        return cls(statistics(family, many.ancestor, examples, labelled=per_class is not None), many)

    def distances(self, blocks: list[Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances of prompts `[Q, F]` to those in `rows`, `[Q, n]`, and among these `[n, n]`."""
        across, within = torch.zeros(len(blocks[0]), len(rows)), torch.zeros(len(rows), len(rows))
        for block, known in zip(blocks, self.blocks, strict=True):
            inner = torch.cdist(known[rows], known[rows]).square()
            scale = inner[inner > 0].median()
            within += inner / scale / len(blocks)
            across += torch.cdist(block, known[rows]).square() / scale / len(blocks)
        return across, within

    def predict(
        self, blocks: list[Tensor], ancestor: Tensor, targets: Tensor, *, width: float, ridge: float
    ) -> Tensor:
        """Kernel ridge from statistics to what belongs to the children of the same ancestor, `[Q, ...]`.

        Args:
            blocks: Statistics of prompts.
            ancestor: Ancestor of each prompt, `[Q]`.
            targets: Targets of the training children, `[M, ...]`.
            width: Width of the Gaussian kernel, in medians of distances.
            ridge: Penalty.
        """
        found = torch.empty(len(ancestor), *targets.shape[1:])
        every = targets.repeat(PROMPTS_PER_CHILD, *[1] * (targets.ndim - 1))
        for number in ancestor.unique():
            rows = (self.children.ancestor == number).nonzero().flatten()
            asked = ancestor == number
            across, within = self.distances([block[asked] for block in blocks], rows)
            mean = every[rows].mean(dim=0)
            kernel = (-within / (2 * width**2)).exp() + ridge * torch.eye(len(rows))
            weights = torch.linalg.solve(kernel, (every[rows] - mean).flatten(1))
            values = (-across / (2 * width**2)).exp() @ weights
            found[asked] = mean + values.view(-1, *targets.shape[1:])
        return found

    def nearest(self, blocks: list[Tensor], ancestor: Tensor) -> Tensor:
        """Changes of the child whose prompt is nearest."""
        found = torch.empty(len(ancestor), *self.children.changes.shape[1:])
        for number in ancestor.unique():
            rows = (self.children.ancestor == number).nonzero().flatten()
            asked = ancestor == number
            across, _ = self.distances([block[asked] for block in blocks], rows)
            found[asked] = self.children.changes[rows[across.argmin(dim=1)]]
        return found


@torch.no_grad()
def best_relatives(family: Family, ancestor: Tensor, examples: Examples) -> dict[int, Tensor]:
    """Averages of the children of the same ancestor (itself included) that fit labelled images best, by number."""
    train, count = family.splits["train"], max(NEIGHBOURS)
    found = {number: torch.empty(len(ancestor), *train.changes.shape[1:]) for number in NEIGHBOURS}
    for number in ancestor.unique():
        own = train.changes[train.ancestor == number]
        candidates = torch.cat([torch.zeros_like(own[:1]), own])
        networks = family.networks(torch.full((len(candidates),), int(number)), candidates)
        for row in (ancestor == number).nonzero().flatten():
            images = examples.images[row]
            losses = example_losses(networks.logits(images), examples.labels[row].unsqueeze(0))
            order = (losses * examples.weights[row]).sum(dim=1).argsort()[:count]
            for size in NEIGHBOURS:
                found[size][row] = candidates[order[:size]].mean(dim=0)
    return found


@dataclass(frozen=True)
class Choice:
    """A method with settings, and its accuracy on validation combinations."""

    settings: dict[str, Any]
    accuracy: float


def best(choices: Iterable[Choice]) -> Choice:
    """The first of the best."""
    return max(choices, key=lambda choice: choice.accuracy)


@dataclass
class Prompting:
    """All methods of one kind of prompt.

    Attributes:
        family: Networks.
        data: Images.
        codes: By name.
        per_class: Labelled images of each class; `None` for images without labels.
        seed: Of new networks.
    """

    family: Family
    data: ImageData
    codes: dict[str, Code]
    per_class: int | None
    seed: int = 0

    def __post_init__(self) -> None:
        self.prompts = Prompts.draw(self.family, self.data, self.per_class)
        train = self.family.splits["train"]
        self.latents = {name: code.encode(train.changes, train.ancestor) for name, code in self.codes.items()}
        self.scales: dict[str, Tensor | float] = {
            name: 1.0 if name == "weights" else latents.std(dim=0) for name, latents in self.latents.items()
        }

    def draw(self, children: Children, seed: int) -> Examples:
        """Images of validation, which no network was trained on."""
        size: dict[str, Any] = {"count": UNLABELLED} if self.per_class is None else {"per_class": self.per_class}
        return draw_examples(self.data, "validation", children.shifts, **size, seed=seed)

    def kernel(self, children: Children, prompt: Examples, code: str, *, width: float, ridge: float) -> Tensor:
        """Changes that kernel ridge predicts, by way of a code."""
        blocks = statistics(self.family, children.ancestor, prompt, labelled=self.per_class is not None)
        latents = self.prompts.predict(blocks, children.ancestor, self.latents[code], width=width, ridge=ridge)
        with torch.no_grad():
            return self.codes[code].decode(latents, children.ancestor)

    def scratch(self, children: Children) -> Tensor:
        """New networks, as changes."""
        seeds = [self.seed + 7000 + i for i in range(len(children))]
        fresh = StackedNetworks.initialize(self.family.config, seeds)
        tokens = self.family.layout.tokens(fresh.tensors, batch_dims=1)
        return tokens - self.family.ancestors[children.ancestor]

    def starts(self, children: Children, nearest: Tensor) -> dict[str, Tensor]:
        """Where a search may begin."""
        unchanged = torch.zeros_like(children.changes)
        return {"ancestor": unchanged, "nearest": nearest, "scratch": self.scratch(children)}

    def searched(
        self, children: Children, prompt: Examples, starts: dict[str, Tensor], code: str, settings: dict[str, Any]
    ) -> list[Tensor]:
        """Changes after every number of steps."""
        return search(
            self.family,
            self.codes[code],
            children.ancestor,
            starts[settings["start"]],
            prompt,
            rate=settings["rate"],
            scale=self.scales[code],
            steps=settings.get("steps", STEPS),
        )

    def choose(self, children: Children, examples: Examples) -> dict[str, Choice]:
        """Settings of every method, by accuracy on `examples` of validation children."""
        prompt = self.draw(children, seed=100)

        def accuracy(changes: Tensor) -> float:
            return examples.accuracy(self.family.networks(children.ancestor, changes)).mean().item()

        found: dict[str, Choice] = {}
        grid = [{"width": width, "ridge": ridge} for width in WIDTHS for ridge in RIDGES]
        for code in self.codes:
            found[f"kernel_{code}"] = best(
                Choice(settings, accuracy(self.kernel(children, prompt, code, **settings))) for settings in grid
            )
        if self.per_class is None:
            return found
        relatives = best_relatives(self.family, children.ancestor, prompt)
        found["average_nearest"] = best(
            Choice({"neighbours": size}, accuracy(changes)) for size, changes in relatives.items()
        )

        starts = self.starts(children, relatives[found["average_nearest"].settings["neighbours"]])

        def paths(code: str, start: str) -> list[Choice]:
            choices = []
            for rate in WEIGHT_RATES if code == "weights" else CODE_RATES:
                settings = {"start": start, "rate": rate}
                path = self.searched(children, prompt, starts, code, settings)
                for step, changes in zip(STEPS, path, strict=True):
                    choices.append(Choice({**settings, "steps": [step]}, accuracy(changes)))
            return choices

        for code in self.codes:
            either = {start: paths(code, start) for start in STARTS}
            if code == "weights":
                found["finetuned"] = best(either["ancestor"])
            found[f"search_{code}"] = best(choice for choices in either.values() for choice in choices)
        found["scratch"] = best(paths("weights", "scratch"))
        return found

    def apply(self, children: Children, seed: int, chosen: dict[str, Choice]) -> dict[str, Tensor]:
        """Changes that each method makes of one draw of images."""
        prompt = self.draw(children, seed)
        found = {
            name: self.kernel(children, prompt, name.partition("_")[2], **choice.settings)
            for name, choice in chosen.items()
            if name.startswith("kernel_")
        }
        if self.per_class is None:
            blocks = statistics(self.family, children.ancestor, prompt, labelled=False)
            return {**found, "nearest": self.prompts.nearest(blocks, children.ancestor)}
        relatives = best_relatives(self.family, children.ancestor, prompt)
        averaged = relatives[chosen["average_nearest"].settings["neighbours"]]
        found |= {"nearest": relatives[1], "average_nearest": averaged}
        starts = self.starts(children, averaged)
        for name, choice in chosen.items():
            if name not in found:
                code = name.partition("_")[2] or "weights"
                (found[name],) = self.searched(children, prompt, starts, code, choice.settings)
        return found


def references(family: Family, children: Children) -> dict[str, Tensor]:
    """Changes that need no images: none, those of the average sibling, and what was trained on thousands."""
    train = family.splits["train"]
    count = range(len(family.ancestors))
    mean = torch.stack([train.changes[train.ancestor == number].mean(dim=0) for number in count])
    return {
        "ancestor": torch.zeros_like(children.changes),
        "mean_child": mean[children.ancestor],
        "child": children.changes,
    }


def zoo_of_changes(zoo: Zoo, family: Family) -> Zoo:
    """The zoo of children whose tokens are their changes, for training a SANE on them."""
    facts, splits = replace(zoo.facts, name=f"{zoo.facts.name}, changes"), {}
    for name, split in zoo.splits.items():
        part = children_of(split)
        columns = {key: part.column(key) for key in part.table.scalar_columns}
        records = [
            ModelRecord(changes, {}, {key: column[i] for key, column in columns.items()})
            for i, changes in enumerate(family.splits[name].changes)
        ]
        table = datasets.Dataset(InMemoryTable(record_table(records, CHILD_FEATURES)))
        splits[name] = ZooSplit(table, facts)
    return Zoo(splits, facts)
