"""A few labelled images of a new task: search of latents against fine-tuning of weights, from the same networks.

    python experiments/paper_few_shot.py --zoo ../zoos --images ../shared/data/images --work ../few_shot \
        --output runs/paper/few_shot/usps_0.json

The best training networks of a zoo on USPS are adapted to 10, 20 and 50 images of another data set (MNIST), of rotated
images, and of other labels. All methods have the same starts, images, optimizer and choice: rate and number of steps
are chosen by cross-validation within the few images. Test images are used once. About half an hour on one CPU core.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from autoencoders import RECONSTRUCTION, RECONSTRUCTION_MODEL, train_sane
from script_options import ScriptParser
from torch import Tensor

from hf_sane.networks._images import ImageData, load_images, load_zoo_images
from hf_sane.networks._shifts import Shift, StackedShifts
from hf_sane.networks._stacked import StackedNetworks, example_losses
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._outputs import check_may_replace
from hf_sane.records._progress import tracked
from hf_sane.records._run_record import RUN_RECORD, RunRecord
from hf_sane.sampling import NetworkCodec
from hf_sane.sampling._anchors import choose_anchors
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo

SIZES = (10, 20, 50)
STEPS = (0, 2, 5, 10, 20, 40)
WEIGHT_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
CODE_RATES = (0.03, 0.1, 0.3)  # in standard deviations of training networks
FOLDS = 4
NUM_STARTS = 4
NUM_DIRECTIONS = 64
ROTATION = 45.0  # degrees
TEST_IMAGES = 1000
BEHAVIOR = {"behavior_weight": 1.0, "batch_size": 32}


class Space(Protocol):
    """A space of coordinates of networks to search in."""

    rates: Sequence[float]

    def encode(self, tokens: Tensor) -> Tensor:
        """Networks `[M, N, D]` as coordinates `[M, ...]`."""

    def decode(self, coordinates: Tensor) -> Tensor:
        """Coordinates as networks; differentiable."""


@dataclass(frozen=True)
class Weights:
    """The weights themselves: fine-tuning."""

    rates: Sequence[float] = WEIGHT_RATES

    def encode(self, tokens: Tensor) -> Tensor:
        """Nothing to do."""
        return tokens

    def decode(self, coordinates: Tensor) -> Tensor:
        """Nothing to do."""
        return coordinates


@dataclass(frozen=True)
class Latents:
    """Latents of an autoencoder, in standard deviations of training networks."""

    codec: NetworkCodec
    scale: Tensor
    rates: Sequence[float] = CODE_RATES

    @classmethod
    def of(cls, codec: NetworkCodec, tokens: Tensor) -> "Latents":
        """Latents, with the scale of training networks `[T, N, D]`."""
        return cls(codec, codec.encode(tokens).std(dim=0).clamp(min=1e-6))

    def encode(self, tokens: Tensor) -> Tensor:
        """Latents, rescaled."""
        return self.codec.encode(tokens) / self.scale

    def decode(self, coordinates: Tensor) -> Tensor:
        """Networks."""
        return self.codec.decode_tokens(coordinates * self.scale, with_gradient=True)


@dataclass(frozen=True)
class Directions:
    """Principal directions of whole networks."""

    mean: Tensor
    directions: Tensor
    deviations: Tensor
    shape: torch.Size
    rates: Sequence[float] = CODE_RATES

    @classmethod
    def fit(cls, tokens: Tensor, size: int) -> "Directions":
        """The leading directions of training networks `[T, N, D]`."""
        flat = tokens.flatten(1)
        _, deviations, directions = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
        return cls(flat.mean(dim=0), directions[:size], deviations[:size] / len(flat) ** 0.5, tokens.shape[1:])

    def encode(self, tokens: Tensor) -> Tensor:
        """Coordinates, in standard deviations."""
        return (tokens.flatten(1) - self.mean) @ self.directions.T / self.deviations

    def decode(self, coordinates: Tensor) -> Tensor:
        """Points of the subspace."""
        flat = self.mean + coordinates * self.deviations @ self.directions
        return flat.view(len(coordinates), *self.shape)


@dataclass(frozen=True)
class Task:
    """Images of a shift: of training, to draw few from, and of testing."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def of(cls, data: ImageData) -> "Task":
        """All training images, and the first test images."""
        images, labels = data.split("test")
        return cls(*data.split("train"), images[:TEST_IMAGES], labels[:TEST_IMAGES])

    def draw(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random images, as equally many of each class as possible, in random order."""
        generator = torch.Generator().manual_seed(1000 * size + seed)
        order = torch.randperm(len(self.labels), generator=generator)
        place = torch.zeros_like(order)
        for label in self.labels.unique():
            members = self.labels[order] == label
            place[members] = torch.arange(int(members.sum()))
        few = order[place.argsort(stable=True)][:size]
        few = few[torch.randperm(size, generator=generator)]
        return self.images[few], self.labels[few]


def shifts(data: ImageData, images: Path) -> dict[str, Task]:
    """The new tasks: another data set, rotated images, other labels."""
    task = Task.of(data)
    mnist = Task.of(load_images(images / "mnist.npz", image_size=data.image_size, train_limit=len(data.train_labels)))
    turn = StackedShifts([Shift(rotation=ROTATION)], *data.train_images.shape[2:])
    rotated = replace(task, images=turn(task.images)[0], test_images=turn(task.test_images)[0])
    other = replace(
        task,
        labels=(3 * task.labels + 1) % data.num_classes,
        test_labels=(3 * task.test_labels + 1) % data.num_classes,
    )
    return {"other_data": mnist, "rotation": rotated, "other_labels": other}


@dataclass(frozen=True)
class Searched:
    """Accuracies of the found networks on test images, and what was chosen."""

    accuracy: list[float]
    rate: float
    steps: int


def search(
    space: Space, codec: NetworkCodec, starts: Tensor, few: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> Searched:
    """Adam on the coordinates of each start, with rate and steps chosen by cross-validation.

    What a code leaves out of a start is kept as it is, so that all searches begin with the same networks.

    Args:
        space: Space to search in.
        codec: Makes networks of tokens.
        starts: `[S, N, D]` raw tokens.
        few: Images and labels to adapt to.
        test: Images and labels of the report.
    """
    images, labels = few
    fold = torch.arange(len(labels)) % FOLDS
    held = torch.stack([*(fold == number for number in range(FOLDS)), torch.zeros_like(fold, dtype=torch.bool)])
    held = held.repeat_interleave(len(starts), dim=0).float()  # the last ones are fitted to all images
    repeated = starts.repeat(FOLDS + 1, 1, 1)
    with torch.no_grad():
        first = space.encode(repeated)
        rest = repeated - space.decode(first)
    losses, final = {}, {}
    for rate in space.rates:
        moved = torch.zeros_like(first).requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=rate)
        for step in range(max(STEPS) + 1):
            tokens = space.decode(first + moved) + rest
            each = example_losses(codec.networks(tokens).logits(images), labels[None])
            if step in STEPS:
                tested = (each.detach() * held)[: FOLDS * len(starts)].sum() / held.sum()
                losses[rate, step] = tested.item() if tested.isfinite() else float("inf")
                final[rate, step] = tokens.detach()[FOLDS * len(starts) :]
            objective = ((each * (1 - held)).sum(dim=1) / (1 - held).sum(dim=1)).sum()
            (moved.grad,) = torch.autograd.grad(objective, [moved])
            optimizer.step()
    rate, steps = min(losses, key=lambda key: losses[key])
    accuracy = codec.networks(final[rate, steps]).evaluate(*test)[1]
    return Searched(accuracy.tolist(), rate, steps)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train the autoencoders, and measure all methods on all tasks."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--zoo", dest="zoos", type=Path, required=True, help="folder of paper_zoos.py")
    parser.add_argument("--zoo-config", default="usps_seed", help="zoo, of networks on USPS")
    parser.add_argument("--images", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--work", type=Path, required=True, help="folder of the autoencoders")
    parser.add_argument("--output", type=Path, required=True, help="run record")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    parser.add_argument("--draws", type=int, default=5, help="draws of the images")
    parser.add_argument("--epochs", type=int, default=30, help="windows per training network")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    check_may_replace(options.output, RUN_RECORD)
    named = {key: getattr(options, key) for key in ("zoo_config", "sizes", "draws", "epochs", "hidden_size")}
    record = RunRecord.start(seed=options.seed, arguments=named)
    tune_allocator()
    zoo = Zoo.load(options.zoos, options.zoo_config)
    data = load_zoo_images(zoo.facts, path=options.images / "usps16.npz")
    results = run(zoo, data, options)
    record.finish(results, data={"images": data.describe()}).save(options.output)
    return results


def run(zoo: Zoo, data: ImageData, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracies by task, number of images, method, draw and start."""
    train = zoo.splits["train"]
    layout, config = train.layout_and_config()
    tokens = aligned_tokens(train.final_epochs())
    starts = aligned_tokens(train.select(choose_anchors(train, num_anchors=NUM_STARTS)))
    spaces, codec = make_spaces(zoo, tokens, options)
    tasks = shifts(data, options.images)
    fresh = StackedNetworks.initialize(config, [9000 + options.seed + i for i in range(NUM_STARTS)])
    begun = dict.fromkeys(spaces, starts) | {"scratch": layout.tokens(fresh.tensors, batch_dims=1)}
    spaces["scratch"] = Weights()
    unchanged = {
        name: codec.networks(starts).evaluate(task.test_images, task.test_labels)[1].tolist()
        for name, task in tasks.items()
    }
    found: dict[str, Any] = {}
    cells = [(name, size) for name in tasks for size in options.sizes]
    for name, size in tracked(cells, desc="tasks", unit="cell"):
        task = tasks[name]
        cell: dict[str, list[dict[str, Any]]] = {method: [] for method in spaces}
        for draw in range(options.draws):
            few = task.draw(size, options.seed + draw)
            for method, space in spaces.items():
                made = search(space, codec, begun[method], few, (task.test_images, task.test_labels))
                cell[method].append({"accuracy": made.accuracy, "rate": made.rate, "steps": made.steps})
        found.setdefault(name, {})[str(size)] = cell
        print(name, size, summary(cell), flush=True)
    return {"accuracy": found, "unchanged": unchanged, "num_starts": NUM_STARTS, "chance": 1 / data.num_classes}


def make_spaces(zoo: Zoo, tokens: Tensor, options: argparse.Namespace) -> tuple[dict[str, Space], NetworkCodec]:
    """Spaces to search in, by name, and a codec of the networks."""
    train = zoo.splits["train"]
    layout, config = train.layout_and_config()
    spaces: dict[str, Space] = {"weights": Weights()}
    latent_dim = round(layout.num_weights / layout.num_tokens)  # one latent per weight
    for name in ("sane", "sane_behavior"):
        folder = options.work / f"{options.zoo_config}_{name}_{options.seed}"
        training: dict[str, Any] = {**RECONSTRUCTION, "views": ["aligned"], "model": dict(RECONSTRUCTION_MODEL)}
        if name == "sane_behavior":
            training |= {**BEHAVIOR, "behavior_data": str(options.images / "usps16.npz")}
        sane = train_sane(zoo, train.layout(0), latent_dim, folder, options, **training)
        codec = NetworkCodec(sane.model, sane.extractor, layout, config)
        spaces[name] = Latents.of(codec, tokens)
    spaces["linear"] = Latents.of(codec.linear(tokens), tokens)
    spaces["directions"] = Directions.fit(tokens, NUM_DIRECTIONS)
    return spaces, codec


def summary(cell: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Mean accuracy of each method."""
    means = {}
    for method, draws in cell.items():
        values = [value for draw in draws for value in draw["accuracy"]]
        means[method] = f"{sum(values) / len(values):.3f}"
    return means


if __name__ == "__main__":
    run_script(main, name="paper_few_shot.py")
