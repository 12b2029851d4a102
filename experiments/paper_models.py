"""Save the best autoencoder of each family and a network sampled from it: weights, card, run record.

    python experiments/paper_models.py --zoo ../zoos --images ../shared/data/images --work ../sane \
        --records runs/paper --output ../models
    python experiments/paper_models.py ... --families usps --output pretrained

Run it after `paper_tables.py`. Among the seeds with a finished record, it takes the one with the best reconstruction
R2 on validation networks. `hf-sane push model ../models/sane-usps --repo org/sane-usps` publishes it.
"""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_sane.hub._cards import network_card, sane_card
from hf_sane.hub._publish import SANE, load_sane, save_network, save_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.networks._images import load_zoo_images
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._outputs import check_may_write
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.sampling._anchors import choose_anchors
from hf_sane.sampling._export import NETWORK, Provenance
from hf_sane.sampling._generation import Density, NetworkCodec
from hf_sane.sampling._selection import subsample
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._loading import load_config
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import read_facts

tables = importlib.import_module("paper_tables")  # the script next to this one

LICENSE = "mit"
# Files that the cards of an autoencoder and of a sampled network are rendered from.
CARD_FACTS = {
    "sane": ("config.json", "preprocessor_config.json", RECORD),
    "sampled": ("config.json", "provenance.json", RECORD),
}
NUM_CANDIDATES = 100  # folder of the sampled network


def best_seed(family: str, work: Path, records: Path) -> int:
    """Seed of the autoencoder with the best reconstruction of validation networks.

    Raises:
        FileNotFoundError: If no seed of the family has an autoencoder and a record.
    """
    found = {}
    for path in records.glob(f"{family}_[0-9]*.json"):
        seed = int(path.stem.rpartition("_")[2])
        own = work / f"{family}_{seed}" / "model" / RECORD
        if own.exists():
            found[seed] = RunRecord.load(own).results["reconstruction_r2"]
    if not found:
        raise FileNotFoundError(
            f"no autoencoder of the family {family} in {work} with a record {records}/{family}_SEED.json; "
            f"run paper_tables.py --families {family} first"
        )
    return max(found, key=lambda seed: found[seed])


def bandwidth_of(family: str, seed: int, records: Path) -> float:
    """Bandwidth of the family's record, selected on validation images.

    Raises:
        ValueError: If nothing has been sampled yet.
    """
    path = records / f"{family}_{seed}.json"
    found = RunRecord.load(path).results.get("sampling")
    if found is None:
        raise ValueError(
            f"{path} has no bandwidth yet; run paper_tables.py --families {family} --seeds {seed} to its end"
        )
    bandwidth: float = found["bandwidth"]
    return bandwidth


def sane_title(family: str) -> str:
    """Heading of an autoencoder's card."""
    return f"SANE, {family}"


def network_title(provenance: Provenance) -> str:
    """Heading of a sampled network's card."""
    return f"Sampled network, {provenance.zoo}"


def render_cards(folder: Path) -> dict[Path, str]:
    """Cards of all models in `folder`, rendered from the files of `CARD_FACTS` without weights."""
    cards = {}
    for sane in sorted(folder.glob("sane-*")):
        family = sane.name.removeprefix("sane-")
        sampled = folder / f"sampled-{family}"
        network, provenance = load_config(sampled), Provenance.load(sampled)
        cards[sane / "README.md"] = sane_card(
            SANEConfig.from_pretrained(sane),
            SANEFeatureExtractor.from_pretrained(sane),
            RunRecord.load(sane / RECORD),
            title=sane_title(family),
            network_config=network,
            license_id=LICENSE,
        )
        cards[sampled / "README.md"] = network_card(
            network,
            RunRecord.load(sampled / RECORD),
            title=network_title(provenance),
            provenance=provenance,
            license_id=LICENSE,
        )
    return {path: str(card) for path, card in cards.items()}


def card_results(own: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Results on the card: validation R2 of the run, and the family's results on test networks."""
    probes = {f"probe R2, {zoo}": tables.short_table(table) for zoo, table in results.get("probe", {}).items()}
    return {**own, "reconstruction of test networks": results.get("reconstruction", {}), **probes}


def save_family(family: str, seed: int, options: argparse.Namespace) -> Path:
    """Save the autoencoder of a family and seed, with the results of the family in its record and on its card."""
    model, extractor = load_sane(options.work / f"{family}_{seed}" / "model")
    own = RunRecord.load(options.work / f"{family}_{seed}" / "model" / RECORD)
    found = RunRecord.load(options.records / f"{family}_{seed}.json")
    record = replace(own, results=card_results(own.results, found.results))
    zoo = Zoo.load(options.zoos, tables.FAMILIES[family].sampled)
    return save_sane(
        options.output / f"sane-{family}",
        model,
        extractor,
        record,
        title=sane_title(family),
        network_config=zoo.splits["train"].config(0),
        license_id=LICENSE,
    )


def save_sample(
    family: Any, seed: int, bandwidth: float, sane: Path, target: Path, options: argparse.Namespace
) -> None:
    """Sample networks as in the record of the family, and save the best one on validation images."""
    record = RunRecord.start(seed=seed, arguments={"sane": sane.name, "num_candidates": NUM_CANDIDATES})
    zoo = tables.open_zoo(family.sampled, family.token_dim, options.zoos, options.work)
    opened, train = tables.open_sane(sane), zoo.splits["train"]
    codec = NetworkCodec(opened.model, opened.extractor, *train.layout_and_config())
    data = load_zoo_images(read_facts(options.zoos)[family.sampled], path=options.images / family.images)
    judge = tables.judge_of(data, condition=family.condition)
    anchors = train.select(choose_anchors(train))
    chosen = subsample(
        codec,
        codec.encode(aligned_tokens(anchors)),
        judge,
        density=Density(bandwidth),
        num_candidates=NUM_CANDIDATES,
        num_samples=1,
        generator=torch.Generator().manual_seed(seed),
    )
    results = {
        "test_accuracy": chosen.networks.evaluate(*data.split("test"))[1].item(),
        "validation_accuracy": chosen.validation_score[0].item(),
    }
    provenance = Provenance(
        method="subsampled",
        sane_model=sane.name,
        zoo=family.sampled,
        anchors=tuple(anchors.run_ids),
        seed=seed,
        index=0,
        bandwidth=bandwidth,
        bandwidth_unit="anchor_std",
        mode="joint",
        num_candidates=NUM_CANDIDATES,
        **results,
    )
    record.finish(results, data={"images": data.describe()})
    title = network_title(provenance)
    save_network(target, chosen.networks.model(0), record, title=title, license_id=LICENSE, provenance=provenance)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and save the models of each family."""
    parser = tables.parser_of_places(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for one subfolder per family")
    parser.add_argument("--families", nargs="+", choices=sorted(tables.FAMILIES), default=list(tables.FAMILIES))
    options = parser.parse_args(argv)
    tune_allocator()
    for name in options.families:
        check_may_write(options.output / f"sane-{name}", SANE, replace=True)
        check_may_write(options.output / f"sampled-{name}", NETWORK, replace=True)
        seed = best_seed(name, options.work, options.records)
        bandwidth = bandwidth_of(name, seed, options.records)  # raises an error before anything is saved
        sane = save_family(name, seed, options)
        network = options.output / f"sampled-{name}"
        save_sample(tables.FAMILIES[name], seed, bandwidth, sane, network, options)
        for target in (sane, network):
            size = sum(path.stat().st_size for path in target.iterdir())
            print(f"{target}: {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    run_script(main, name="paper_models.py")
