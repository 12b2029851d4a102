"""Build a zoo of trained networks.

    python scripts/build_zoo.py --recipe hyperparameter --num_models 640 --output_dir runs/zoo
    python scripts/build_zoo.py --images mnist.npz --architecture cnn_s --num_models 128 --epochs 25 --output_dir runs/mnist

The settings are the fields of `hf_sane.zoo.building.settings.ZooSettings` (`--help` lists them); a hyper-parameter with two values
is drawn between them. An interrupted build continues when the same command is given again.

Time and memory: 640 networks on scikit-learn's digits, 50 epochs, take about 4 minutes and 1 GB on 2 CPU cores.
"""

from collections.abc import Sequence

from hf_sane.records.allocator import tune_allocator
from hf_sane.records.failures import run_script
from hf_sane.zoo.building.build import build_zoo
from hf_sane.zoo.building.settings import parse_arguments
from hf_sane.zoo.dataset import Zoo


def main(argv: Sequence[str] | None = None) -> Zoo:
    """Parse, build, report."""
    tune_allocator()
    request = parse_arguments(argv)
    zoo = build_zoo(request.arguments, None, request.output_dir, config=request.config)
    for name, split in zoo.facts.splits.items():
        print(
            f"{name}: {split['runs']} runs, {split['networks']} networks, mean final accuracy {split['test_accuracy']:.3f}"
        )
    print(f"{request.output_dir}: {len(zoo.facts.excluded)} runs excluded")
    return zoo


if __name__ == "__main__":
    run_script(main, name="build_zoo.py")
