"""Sample networks of an unseen architecture from a few briefly trained ones, fine-tune, compare with scratch.

    hf-sane zoo mix mnist=../zoos@mnist_seed usps=../zoos@usps_seed --output ../mixed --token-dim 289
    hf-sane pretrain --zoo ../mixed --output ../sane_cnn --model '{"position_embedding": "sinusoidal"}'
    hf-sane zoo build --output ../prompts --recipe seed --architecture cnn_l --num-models 12 --epochs 2 \
        --token-dim 289 --images mnist.npz
    python benchmarks/cross_architecture.py --sane ../sane_cnn/model --prompts ../prompts \
        --output runs/cross/cnn_l.json

The prompts provide statistics for layers that the weight tokenizer has none for. Bandwidth and candidates are chosen
on validation images, and results are reported on test images, before and after fine-tuning with the hyper-parameters
of the prompts. Several seeds determine the samples, the networks from scratch and the order of the images.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from running import finish, new_parser, start

from hf_sane.hub._publish import load_sane
from hf_sane.networks._images import ImageData, load_images, load_zoo_images
from hf_sane.records._failures import run_script
from hf_sane.sampling._selection import Judge
from hf_sane.workflows.compare import compare_samplers
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo

REPORTED_EPOCHS = (0, 1, 5)


def one_seed(
    sane: SANE, zoo: Zoo, data: ImageData, settings: Mapping[str, Any], epochs: int
) -> dict[str, dict[str, Any]]:
    """Test accuracies of every method, `[epochs + 1][networks]`, and distances to the nearest prompt."""
    judge = Judge.of_images(*data.split("validation"), conditioning_images=data.train_images)
    compared = compare_samplers(zoo, sane, data, judge=judge, **settings)
    found = compared.to_dict()
    nearest, pairwise = found["nearest_training_distance"], found["pairwise_distance"]
    return {
        name: {"curves": rows, "nearest_prompt_distance": nearest[name], "pairwise_distance": pairwise[name]}
        for name, rows in compared.finetune(epochs).items()
    } | {"": dict(compared.facts)}


def summary(runs: Sequence[dict[str, dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Mean accuracy over the networks of each seed, with its mean and standard deviation over seeds."""
    methods: dict[str, Any] = {}
    for name in (key for key in runs[0] if key):
        row: dict[str, Any] = {}
        for epoch in (epoch for epoch in REPORTED_EPOCHS if epoch <= epochs):
            means = [statistics.mean(run[name]["curves"][epoch]) for run in runs]
            spread = statistics.stdev(means) if len(means) > 1 else None
            row[f"epoch_{epoch}"] = {"mean": statistics.mean(means), "standard_deviation": spread}
        for key in ("nearest_prompt_distance", "pairwise_distance"):
            row[key] = statistics.mean(run[name][key] for run in runs)
        methods[name] = row
    return {"methods": methods, "draws": [run[""] for run in runs]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Sample, fine-tune, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--sane", required=True, help="SANE folder or Hub repo id")
    parser.add_argument("--prompts", required=True, help="zoo of the other architecture")
    parser.add_argument("--zoo-config", dest="config", help="which zoo of that folder")
    parser.add_argument("--images", help="images, instead of those of the prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--num-prompts", type=int, help="best networks of the training split; by default all")
    parser.add_argument("--num-candidates", type=int, default=64)
    parser.add_argument("--num-samples", dest="num_kept", type=int, default=5)
    arguments, record = start(parser, argv)
    zoo = align_zoo(Zoo.load(arguments.prompts, arguments.config))
    data = load_images(arguments.images) if arguments.images else load_zoo_images(zoo.facts)
    train = zoo.splits["train"]
    layout, config = train.layout_and_config()
    model, extractor = load_sane(arguments.sane)
    known = set(extractor.statistics["means"]) if extractor.statistics else set()
    wider = extractor.extended([(layout, train.stacked_tokens())])
    runs = []
    for seed in arguments.seeds:
        settings = {
            "seed": seed,
            "top_fraction": 1.0,
            "num_anchors": arguments.num_prompts,
            "num_candidates": arguments.num_candidates,
            "num_samples": arguments.num_kept,
        }
        runs.append(one_seed(SANE(model, wider), zoo, data, settings, arguments.epochs))
    results = {
        **summary(runs, arguments.epochs),
        "layers": len(layout.layers),
        "layers_without_statistics": len(set(wider.statistics["means"]) - known) if wider.statistics else 0,
        "tokens": layout.num_tokens,
        "architecture": config.model_type,
    }
    for name, row in results["methods"].items():
        shown = "  ".join(f"{key} {row[key]['mean']:.3f}" for key in row if key.startswith("epoch"))
        print(f"{name:24} {shown}  from the nearest prompt {row['nearest_prompt_distance']:.3f}")
    facts = {"prompts": zoo.facts.name, "images": data.describe()}
    return finish(record, results, arguments.output, data=facts)


if __name__ == "__main__":
    run_script(main, name="cross_architecture.py")
