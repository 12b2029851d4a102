"""Sample networks of an unseen architecture from a few briefly trained ones, fine-tune, compare with scratch.

    hf-sane zoo mix mnist=../zoos@mnist_seed usps=../zoos@usps_seed --output ../mixed --token-dim 289
    hf-sane pretrain --zoo ../mixed --output ../sane_cnn --model '{"position_embedding": "sinusoidal"}'
    hf-sane zoo build --output ../prompts --recipe seed --architecture cnn_l --num-models 12 --epochs 2 \
        --token-dim 289 --images mnist.npz
    python benchmarks/cross_architecture.py --sane ../sane_cnn/model --prompts ../prompts \
        --output runs/cross/cnn_l.json

Layers that the weight tokenizer has no statistics of get them from the prompts. Bandwidth and candidates are chosen on
validation images, everything is reported on test images, before and after fine-tuning with the hyper-parameters of the
prompts; repeated for several seeds (of what is drawn, of networks from scratch, of the orders of images).
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_sane.hub._publish import load_sane
from hf_sane.networks._images import ImageData, load_images, load_zoo_images
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._comparison import ComparisonSettings, draw_samples, finetune_all, measure_distances
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.sampling._selection import Judge
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo

REPORTED_EPOCHS = (0, 1, 5)


def one_seed(
    codec: NetworkCodec, zoo: Zoo, data: ImageData, settings: ComparisonSettings, epochs: int
) -> dict[str, dict[str, Any]]:
    """Test accuracies of every method, `[epochs + 1][networks]`, and distances to the nearest prompt."""
    judge = Judge(*data.split("validation"), conditioning_images=data.train_images)
    samples = draw_samples(codec, zoo, judge, settings)
    nearest, pairwise = measure_distances(codec, zoo, samples.methods)
    curves = finetune_all(samples.methods, data, zoo.facts.training_recipe, epochs=epochs, seed=settings.seed)
    return {
        name: {"curves": rows, "nearest_prompt_distance": nearest[name], "pairwise_distance": pairwise[name]}
        for name, rows in curves.items()
    } | {"": dict(samples.facts)}


def summary(runs: Sequence[dict[str, dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Mean accuracy over the networks of each seed, and mean and standard deviation of that over seeds."""
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
    """Sample, fine-tune, print, and write a record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sane", required=True, help="SANE folder or Hub repo id")
    parser.add_argument("--prompts", required=True, help="zoo of the other architecture")
    parser.add_argument("--config", help="which zoo of that folder")
    parser.add_argument("--images", help="instead of those of the prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--num_prompts", type=int, help="the best so many of the training split; all if left out")
    parser.add_argument("--num_candidates", type=int, default=64)
    parser.add_argument("--num_kept", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    tune_allocator()
    record = RunRecord.start(
        seed=arguments.seeds[0], arguments={k: v for k, v in vars(arguments).items() if k != "output"}
    )
    zoo = align_zoo(Zoo.load(arguments.prompts, arguments.config))
    data = load_images(arguments.images) if arguments.images else load_zoo_images(zoo.facts)
    train = zoo.splits["train"]
    layout, config = train.layout_and_config()
    model, extractor = load_sane(arguments.sane)
    known = set(extractor.statistics["means"]) if extractor.statistics else set()
    wider = extractor.extended([(layout, train.stacked_tokens())])
    codec = NetworkCodec(model, wider, layout, config)
    runs = []
    for seed in arguments.seeds:
        settings = ComparisonSettings(
            seed=seed,
            anchor_fraction=1.0,
            num_anchors=arguments.num_prompts,
            num_candidates=arguments.num_candidates,
            num_kept=arguments.num_kept,
        )
        runs.append(one_seed(codec, zoo, data, settings, arguments.epochs))
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
    if arguments.output:
        record.finish(results, data={"prompts": zoo.facts.name, "images": data.describe()})
        record.save(arguments.output)
    return results


if __name__ == "__main__":
    run_script(main, name="cross_architecture.py")
