"""Sample networks for a dataset that the autoencoder was not trained on; a run record per study and seed.

    python experiments/paper_transfer.py --zoo ../zoos --images ../shared/data/images --work ../sane \
        --records runs/paper/transfer
    python experiments/paper_transfer.py ... --studies usps_few_3 --seeds 0          # one study and seed

Run it after `paper_tables.py`, whose autoencoder of the source family it loads from `--work`. There are two kinds of
studies: with anchors of the source, fine-tuned on the target (`mnist_to_usps`); and with few anchors of the target,
trained for two epochs (`usps_few_3`). The results are part of docs/results/zoos.md.
"""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_sane.networks._images import load_zoo_images
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.zoo._facts import read_facts

tables = importlib.import_module("paper_tables")  # the script next to this one

PROMPT_EPOCH = 2


@dataclass(frozen=True)
class Study:
    """One study of sampling for a target dataset.

    Attributes:
        source: Family of the autoencoder.
        anchors: Zoo of the anchors.
        target: Zoo whose images are used to select, train and test the networks.
        num_anchors: Number of best networks to use as anchors; by default the best 30%.
        epoch: Epoch of the anchors; by default their last one.
    """

    source: str
    anchors: str
    target: str
    num_anchors: int | None = None
    epoch: int | None = None


STUDIES = {
    "mnist_to_usps": Study("mnist", "mnist_seed", "usps_seed"),
    "mnist_to_fashion": Study("mnist", "mnist_seed", "fashion_seed"),
    **{
        f"{target}_few_{count}": Study("mnist", f"{target}_seed", f"{target}_seed", count, PROMPT_EPOCH)
        for target in ("usps", "fashion")
        for count in (1, 3, 5)
    },
}


def run_study(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Results of one study and seed, which are read from its record if it exists."""
    study, path = STUDIES[name], options.records / f"{name}_{seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    record = RunRecord.start(seed=seed, arguments={"study": name, **vars(study)})
    token_dim = tables.FAMILIES[study.source].token_dim
    zoo = tables.open_zoo(study.anchors, token_dim, options.zoos, options.work)
    sane = tables.open_sane(options.work / f"{study.source}_{seed}" / "model")
    family = next(family for family in tables.FAMILIES.values() if family.sampled == study.target)
    facts = read_facts(options.zoos)[study.target]
    data = load_zoo_images(facts, path=options.images / family.images)
    settings = {
        "seed": seed,
        "num_anchors": study.num_anchors,
        "epoch": study.epoch,
        # A single anchor has no spread, so the bandwidth is relative to the spread of all its latents.
        "unit": "latent_std" if study.num_anchors == 1 else "anchor_std",
        "num_candidates": options.num_candidates,
        "num_samples": options.num_kept,
    }
    results = tables.sample_family(
        sane, zoo, data, settings, facts.training_recipe, condition=False, epochs=options.finetune_epochs
    )
    counts = {part: len(rows) for part, rows in zoo.splits.items()}
    record.finish(results, data={"networks": {study.anchors: counts}, "split": "by training run"}).save(path)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and run each study and seed."""
    parser = tables.parser_of_places(__doc__)
    parser.add_argument("--studies", nargs="+", choices=sorted(STUDIES), default=list(STUDIES), metavar="NAME")
    tables.add_sampling_arguments(parser)
    options = parser.parse_args(argv)
    tune_allocator()
    for seed in options.seeds:
        for name in options.studies:
            methods = run_study(name, seed, options)["methods"]
            means = {key: sum(row["accuracy"]["1"]) / len(row["accuracy"]["1"]) for key, row in methods.items()}
            shown = ", ".join(f"{key} {means[key]:.3f}" for key in ("sane_subsampled", "anchors", "scratch"))
            print(f"{name} seed {seed}, after one epoch: {shown}", flush=True)


if __name__ == "__main__":
    run_script(main, name="paper_transfer.py")
