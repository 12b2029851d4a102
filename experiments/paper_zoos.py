"""Build the zoos of docs/results/zoos.md; finished ones are kept, interrupted ones are resumed.

    python experiments/paper_zoos.py --images ../shared/data/images --output ../zoos --records runs/paper/zoos
    python experiments/paper_zoos.py --images ... --output ... --zoo mnist_seed usps_seed      # selected zoos

The folder `--images` contains mnist.npz, fashion_mnist_20k.npz, usps16.npz and cifar10_jpeg.npz. All zoos are written
to one folder, from which `load_dataset(folder, "mnist_seed")` and `Zoo.load(folder, config="mnist_seed")` read them.
Each has a run record. The last zoo, `mixed`, combines the zoos of both CNNs.

On two CPU cores the zoos of 520 networks take about 15 minutes each, the others 5 (CNN-s) to 16 (CNN-l, ResNet-20);
memory stays below 3 GB.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from script_options import ScriptParser

from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import FILE_NAME, MIX_KEY, read_facts
from hf_sane.zoo._mixing import mix_zoos
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import RECIPES, ZooSettings

# Eight epochs over 2,000 images, so that two CPU cores build all nine zoos in an hour and a half. Many short runs are
# more informative about weights than few long ones.
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
MIXED = "mixed"  # all data sets, both CNNs
MIXED_TOKEN_DIM = 73  # half of the longest row of CNN-l; the longest of CNN-s takes three such tokens


def recipes() -> dict[str, tuple[str, dict[str, Any]]]:
    """Recipe and settings of each zoo, where `images` is a file name."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind, recipe in KINDS.items():
        for data, images in GREY.items():
            # MNIST has the two large ones; the 16x16 pixels of USPS are too few for the three convolutions of CNN-s.
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
    """Build one zoo with its record; the record of a finished build keeps its seconds."""
    record = RunRecord.start(seed=0)
    arguments = ZooSettings(
        **{**RECIPES[recipe], **settings, "images": str(images / settings["images"]), "name": name}
    )
    zoo = build_zoo(arguments, None, output_dir, config=name)
    facts = zoo.facts
    results = {"splits": facts.splits, "excluded": len(facts.excluded), "arguments": arguments.to_dict()}
    return zoo, record.finish(results)


def mix(output_dir: Path) -> tuple[Zoo, RunRecord]:
    """Combine the zoos of both CNNs, with a record.

    Raises:
        FileNotFoundError: If one of them is missing.
    """
    record = RunRecord.start(seed=0)
    known = read_facts(output_dir) if (output_dir / FILE_NAME).exists() else {}
    parts = [name for name, (_, settings) in recipes().items() if settings["architecture"] != "cifar_resnet"]
    if missing := [name for name in parts if name not in known]:
        raise FileNotFoundError(f"{MIXED} needs the zoos {', '.join(parts)}; {output_dir} lacks {', '.join(missing)}")
    if MIXED in known:
        zoo = Zoo.load(output_dir, MIXED)
    else:
        zoos = {name: Zoo.load(output_dir, name) for name in parts}
        zoo = mix_zoos(zoos, output_dir, config=MIXED, name="all CNNs", token_dim=MIXED_TOKEN_DIM)
    origins = [part["arguments"] for part in zoo.facts.data[MIX_KEY].values()]
    arguments = {
        **zoo.facts.arguments,
        "zoos": parts,
        "architecture": ", ".join(sorted({origin["architecture"] for origin in origins})),
        "epochs": max(origin["epochs"] for origin in origins),
    }
    results = {"splits": zoo.facts.splits, "excluded": len(zoo.facts.excluded), "arguments": arguments}
    return zoo, record.finish(results)


def report(name: str, zoo: Zoo, record: RunRecord, folder: Path | None) -> None:
    """Print a summary of the zoo, and save its record."""
    for split, row in zoo.facts.splits.items():
        accuracy = row["test_accuracy"]
        print(f"{name:16} {split:11} {row['runs']:4} runs, mean final accuracy {accuracy:.3f}", flush=True)
    if folder is not None:
        record.save(folder / f"{name}.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, build the zoos, and save their records."""
    known = recipes()
    parser = ScriptParser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the zoos")
    parser.add_argument("--records", type=Path, help="folder of their run records")
    parser.add_argument(
        "--zoo", dest="zoos", nargs="+", choices=sorted([*known, MIXED]), default=[*known, MIXED], metavar="NAME"
    )
    parser.add_argument("--num-models", type=int, help="runs per zoo, for a quick trial")
    parser.add_argument("--epochs", type=int, help="epochs, all of which are kept, for a quick trial")
    options = parser.parse_args(argv)
    tune_allocator()
    changed: dict[str, Any] = {}
    if options.num_models is not None:
        changed |= {"num_models": options.num_models}
    if options.epochs is not None:
        changed |= {"epochs": options.epochs, "keep_epochs": None}
    for name in options.zoos:
        if name == MIXED:
            report(name, *mix(options.output), options.records)
        else:
            recipe, settings = known[name]
            zoo, record = build(name, recipe, settings | changed, options.images, options.output)
            report(name, zoo, record, options.records)


if __name__ == "__main__":
    run_script(main, name="paper_zoos.py")
