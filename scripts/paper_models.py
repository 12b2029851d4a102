"""Save the best autoencoder of each family as a model folder: weights, weight tokenizer, card, run record.

    python scripts/paper_models.py --zoos ../zoos --work ../sane --records runs/paper --output ../models
    python scripts/paper_models.py ... --families usps --output pretrained

Runs after `paper_tables.py`. Of the seeds with a finished record the one with the best reconstruction R2 on validation networks is
taken. `hf-sane push model ../models/sane-usps --repo org/sane-usps` publishes it.
"""

import argparse
import importlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_sane.core.run_record import RunRecord
from hf_sane.demo.probing import short_table
from hf_sane.hub.publish import write_sane_card
from hf_sane.zoo.dataset import Zoo

tables = importlib.import_module("paper_tables")  # the script beside this one

RECORD = "run.json"


def best_seed(family: str, work: Path, records: Path) -> int:
    """The seed whose autoencoder reconstructs validation networks best.

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


def card_results(own: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """What the card shows: validation R2 of the run, and the family's results on test networks."""
    probes = {f"probe R2, {zoo}": short_table(table) for zoo, table in results.get("probe", {}).items()}
    return {**own, "reconstruction of test networks": results.get("reconstruction", {}), **probes}


def save_family(family: str, options: argparse.Namespace) -> Path:
    """Copy the best autoencoder of a family and write its card."""
    seed = best_seed(family, options.work, options.records)
    source, target = options.work / f"{family}_{seed}" / "model", options.output / f"sane-{family}"
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it, or choose another --output")
    shutil.copytree(source, target)
    own = RunRecord.load(target / RECORD)
    found = RunRecord.load(options.records / f"{family}_{seed}.json")
    replace(own, results=card_results(own.results, found.results)).save(target / RECORD)
    zoo = Zoo.load(options.zoos, tables.FAMILIES[family].sampled)
    write_sane_card(target, title=f"SANE, {family}", network_config=zoo.splits["train"].config(0), license_id="mit")
    return target


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, then one family after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", type=Path, required=True, help="folder that paper_zoos.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder of the autoencoders of paper_tables.py")
    parser.add_argument("--records", type=Path, required=True, help="folder of its run records")
    parser.add_argument("--output", type=Path, required=True, help="receives a folder per family")
    parser.add_argument("--families", nargs="+", choices=sorted(tables.FAMILIES), default=list(tables.FAMILIES))
    options = parser.parse_args(argv)
    for family in options.families:
        target = save_family(family, options)
        size = sum(path.stat().st_size for path in target.iterdir())
        print(f"{target}: {size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
