"""Measure how often scans call trained networks untrained, and miss fresh ones, by budget.

    python benchmarks/untrained.py --output runs/benchmarks/untrained.json

Perceptrons, convolutional networks and transformers with four initialisations are saved fresh, and again after they
were trained on the digits of scikit-learn. A network is called untrained if the rule `untrained` finds anything in it.
About two minutes on one core.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from running import finish, new_parser, start
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hf_sane.records._failures import run_script
from hf_sane.screening._scan import SamplingSettings, scan_checkpoint
from hf_sane.tokenization._checkpoints import CheckpointSource

BUDGETS = ("1%", "10%", "100%")
SIDE, CLASSES, NUM_TEST = 8, 10, 397


def perceptron(width: int) -> nn.Module:
    """A perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Linear(SIDE**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def convolutional(width: int) -> nn.Module:
    """A network with three convolutions."""
    last = width // 2
    layers = [nn.Conv2d(1, width // 4, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 4, last, 3, padding=1), nn.ReLU()]
    head = [nn.Conv2d(last, last, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(9 * last, CLASSES)]
    return nn.Sequential(nn.Unflatten(1, (1, SIDE, SIDE)), *layers, *head)


def transformer(width: int) -> nn.Module:
    """A transformer with one block, which reads an image row by row."""
    side = width // 2
    block = nn.TransformerEncoderLayer(side, 4, width, 0.0, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(1, (SIDE, SIDE)), nn.Linear(SIDE, side), block, nn.Flatten(), nn.Linear(SIDE * side, CLASSES)
    )


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "perceptron": perceptron,
    "convolutional": convolutional,
    "transformer": transformer,
}
INITIALISATIONS: dict[str, Callable[[Tensor], Any]] = {
    "uniform": nn.init.kaiming_uniform_,
    "normal": nn.init.kaiming_normal_,
    "truncated normal": lambda weight: nn.init.trunc_normal_(weight, 0, 0.05, -0.1, 0.1),
    "normal of std 0.02": lambda weight: nn.init.normal_(weight, 0, 0.02),
}


def fresh(architecture: str, initialisation: str, width: int, seed: int) -> nn.Module:
    """A network before training: weights are drawn, and biases are zero, as most initialisations have it."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture](width)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            INITIALISATIONS[initialisation](parameter.data)
        elif name.endswith("bias"):
            parameter.data.zero_()
    return model


def train(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, seed: int) -> float:
    """Train with Adam; returns the test accuracy."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = torch.randint(len(images) - NUM_TEST, (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(images[-NUM_TEST:]).argmax(1) == labels[-NUM_TEST:]).double().mean())


def called(model: nn.Module, path: Path) -> dict[str, bool]:
    """Whether a network is called untrained, by budget."""
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, path)
    found = {}
    for budget in BUDGETS:
        scan = scan_checkpoint(CheckpointSource(path), SamplingSettings(budget=budget))
        found[budget] = any(finding.rule == "untrained" for finding in scan.findings)
    return found


def measure(options: Any, path: Path) -> list[dict[str, Any]]:
    """One row per network."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
    rows = []
    for architecture in ARCHITECTURES:
        for initialisation in INITIALISATIONS:
            for seed in options.seeds:
                model = fresh(architecture, initialisation, options.width, seed)
                facts = {"architecture": architecture, "initialisation": initialisation, "seed": seed}
                rows.append({**facts, "is_trained": False, "called": called(model, path)})
                accuracy = train(model, images, labels, steps=options.steps, seed=seed)
                rows.append({**facts, "is_trained": True, "accuracy": accuracy, "called": called(model, path)})
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--width", type=int, default=256, help="of the largest layers")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    options, record = start(parser, argv)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(options, Path(scratch) / "network.safetensors")
    trained, others = ([row for row in rows if row["is_trained"] == wanted] for wanted in (True, False))
    budgets = {
        budget: {
            "trained_called": sum(row["called"][budget] for row in trained),
            "fresh_missed": sum(not row["called"][budget] for row in others),
        }
        for budget in BUDGETS
    }
    results = {"trained": len(trained), "fresh": len(others), "budgets": budgets, "networks": rows}
    return finish(record, results, options.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="untrained.py")
