"""Build the zoos of docs/results.md, one after the other; what is finished is kept, what was interrupted continues.

    python scripts/paper_zoos.py --images ../shared/data/images --output_dir ../zoos --records runs/paper/zoos
    python scripts/paper_zoos.py --images ... --output_dir ... --zoos mnist_seed usps_seed      # some of them

`--images` holds mnist.npz, fashion_mnist_20k.npz, usps16.npz and cifar10_jpeg.npz. All zoos go into one folder of configs, which
`load_dataset(folder, "mnist_seed")` and `Zoo.load(folder, config="mnist_seed")` open. Each leaves a run record.

On two CPU cores the zoos of 520 networks take about 15 minutes each, the others 5 (CNN-s) to 16 (CNN-l, ResNet-20); memory stays
below 3 GB.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_sane.core.allocator import tune_allocator
from hf_sane.core.run_record import RunRecord
from hf_sane.zoo.arguments import RECIPES
from hf_sane.zoo.build import build_zoo
from hf_sane.zoo.dataset import Zoo

# Eight epochs over 2,000 images: sized so that two CPU cores build all nine zoos in an hour and a half. Many short runs say more
# about weights than few long ones.
COMMON: dict[str, Any] = {
    "train_limit": 2000,
    "validation_limit": 500,
    "test_limit": 1000,
    "train_evaluation_limit": 500,
    "epochs": 8,
    "keep_epochs": list(range(9)),
    "max_abs_weight": 10.0,
    "group_size": 80,  # a divisor of 160: a small last group would leave a core idle
}
GREY = {"mnist": "mnist.npz", "fashion": "fashion_mnist_20k.npz", "usps": "usps16.npz"}
KINDS = {"seed": "seed", "hyper": "hyperparameter"}


def recipes() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of each zoo: recipe and settings, `images` being the name of a file."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind, recipe in KINDS.items():
        for data, images in GREY.items():
            # MNIST has the two large ones; USPS has 16x16 pixels, which the three convolutions of CNN-s would use up.
            sizes = {"num_models": 520, "group_size": 130} if data == "mnist" else {"num_models": 160}
            settings = {"images": images, "architecture": "cnn_s", **sizes}
            found[f"{data}_{kind}"] = recipe, {**COMMON, **settings, "image_size": 28}
        settings = {"images": "cifar10_jpeg.npz", "architecture": "cnn_l", "num_models": 160}
        found[f"cifar10_{kind}"] = recipe, {**COMMON, **settings}
    resnet = {
        "images": "cifar10_jpeg.npz",
        "image_size": 16,
        "architecture": "cifar_resnet",
        "architecture_settings": {"depth": 20, "width": 8},
        "num_models": 40,
        "group_size": 20,
        "train_limit": 4000,
    }
    found["resnet20"] = "seed", {**COMMON, **resnet}
    return found


def build(name: str, recipe: str, settings: dict[str, Any], images: Path, output_dir: Path) -> tuple[Zoo, RunRecord]:
    """One zoo and the record of its build; the record of a finished build says so in its seconds."""
    record = RunRecord.start(seed=0)
    arguments = RECIPES[recipe](**{**settings, "images": str(images / settings["images"]), "name": name})
    zoo = build_zoo(arguments, None, output_dir, config=name)
    facts = zoo.facts
    results = {"splits": facts.splits, "excluded": len(facts.excluded), "arguments": arguments.to_dict()}
    return zoo, record.finish(results)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, record."""
    known = recipes()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the zoos")
    parser.add_argument("--records", type=Path, help="folder of their run records")
    parser.add_argument("--zoos", nargs="+", choices=sorted(known), default=list(known), metavar="NAME")
    parser.add_argument("--num_models", type=int, help="runs per zoo, for a quick look")
    parser.add_argument("--epochs", type=int, help="epochs, all of them kept, for a quick look")
    options = parser.parse_args(argv)
    tune_allocator()
    for name in options.zoos:
        recipe, settings = known[name]
        if options.num_models is not None:
            settings = {**settings, "num_models": options.num_models}
        if options.epochs is not None:
            settings = {**settings, "epochs": options.epochs, "keep_epochs": None}
        zoo, record = build(name, recipe, settings, options.images, options.output_dir)
        for split, row in zoo.facts.splits.items():
            print(
                f"{name:16} {split:11} {row['runs']:4} runs, mean final accuracy {row['test_accuracy']:.3f}",
                flush=True,
            )
        if options.records is not None:
            record.save(options.records / f"{name}.json")


if __name__ == "__main__":
    main()
