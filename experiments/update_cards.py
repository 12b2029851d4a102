"""Update the model cards of the demo and of the published zoos and models from their records.

python experiments/update_cards.py --demo demo_output   # after `make demo`: copy its configurations, render the cards
python experiments/update_cards.py --zoo ../zoos        # after experiments/paper_zoos.py: the same for its zoos
python experiments/update_cards.py --models ../models   # after experiments/paper_models.py: the same for its models
python experiments/update_cards.py                      # render from model_cards/ and the demo's record
python experiments/update_cards.py --check              # exit 1 if a card differs from its record

It also updates the cards and manifests of pretrained/ and of the autoencoder in the package; run it after changing a
file there.
"""

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from script_options import ScriptParser

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.hub._cards import DEMO_NETWORK, DEMO_SANE, network_card, sane_card
from hf_sane.hub._publish import ANCHORS, SANE
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.records._failures import run_script
from hf_sane.records._files import write_atomically
from hf_sane.records._manifests import MANIFEST, Manifest
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.sampling._export import NETWORK, Provenance
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._loading import load_config
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._facts import FILE_NAME, read_facts

models = importlib.import_module("paper_models")  # the scripts next to this one
small_images = importlib.import_module("small_images")

ROOT = Path(__file__).parents[1]
PAPER_ZOOS, PAPER_MODELS = "paper_zoos", "paper_models"
PACKAGED = "src/hf_sane/pretrained/small_images"
# Files of each artefact of the demo that its card is rendered from; they are kept next to the card.
CARD_FACTS = {
    "sane": ("config.json", "preprocessor_config.json"),
    "sampled/network_0": ("config.json", "provenance.json"),
    "zoos": ("zoo.json",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Render or compare the cards; returns the exit code."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--demo", type=Path, help="output folder of `make demo`")
    parser.add_argument("--zoo", dest="zoos", type=Path, help="output folder of experiments/paper_zoos.py")
    parser.add_argument("--models", type=Path, help="output folder of experiments/paper_models.py")
    parser.add_argument("--check", action="store_true", help="only compare, without writing")
    options = parser.parse_args(argv)
    cards = ROOT / "model_cards"
    if options.demo is not None:
        for artefact, names in CARD_FACTS.items():
            for name in names:
                copy(options.demo / artefact / name, cards / artefact / name)
    if options.zoos is not None:
        copy(options.zoos / FILE_NAME, cards / PAPER_ZOOS / FILE_NAME)
    if options.models is not None:
        take_models(options.models, cards / PAPER_MODELS)
    report = json.loads((ROOT / "runs/demo/report.json").read_text(encoding="utf-8"))
    rendered = {cards / artefact / "README.md": text for artefact, text in render_demo_cards(cards, report).items()}
    rendered[cards / PAPER_ZOOS / "README.md"] = zoo_card(read_facts(cards / PAPER_ZOOS))
    for folder in (cards / PAPER_MODELS, ROOT / "pretrained"):
        rendered |= models.render_cards(folder)
    rendered[ROOT / PACKAGED / "README.md"] = packaged_card(ROOT / PACKAGED)
    outdated = {
        page: text for page, text in rendered.items() if not page.exists() or page.read_text(encoding="utf-8") != text
    }
    for page, text in outdated.items():
        print(f"{'out of date' if options.check else 'wrote'}: {page.relative_to(ROOT)}")
        if not options.check:
            with write_atomically(page) as partial:
                partial.write_text(text, encoding="utf-8")
    stale = renew_manifests(check=options.check)
    return int(options.check and bool(outdated or stale))


def network_record(record: RunRecord, index: int) -> RunRecord:
    """The demo's record with the results of one subsampled network: test accuracy after each epoch of fine-tuning."""
    curves: list[list[float]] = record.results["sampling"]["finetuning_curves"]["sane_subsampled"]
    accuracy = {f"after {epoch} epochs": networks[index] for epoch, networks in enumerate(curves) if epoch}
    return replace(record, results={"test_accuracy": curves[0][index], "test_accuracy_fine_tuned": accuracy})


def record_from_report(report: Mapping[str, Any]) -> RunRecord:
    """The run record in a `report.json`, which has the results at its top level."""
    names = {entry.name for entry in fields(RunRecord)} - {"results"}
    return RunRecord(
        **{name: value for name, value in report.items() if name in names},
        results={name: value for name, value in report.items() if name not in names},
    )


def render_demo_cards(folder: Path, report: Mapping[str, Any]) -> dict[str, str]:
    """Render the cards of the autoencoder, the first sampled network and the zoos.

    Args:
        folder: Folder of the demo, or any folder with the files of `CARD_FACTS`.
        report: Content of its `report.json`.

    Returns:
        Text of each `README.md` by folder.
    """
    record = record_from_report(report)
    network_config = load_config(folder / "sampled/network_0")
    assert isinstance(network_config, ZooConfig)
    sane = sane_card(
        SANEConfig.from_pretrained(folder / "sane"),
        SANEFeatureExtractor.from_pretrained(folder / "sane"),
        record,
        title=DEMO_SANE,
        network_config=network_config,
    )
    network = network_card(
        network_config,
        network_record(record, 0),
        title=f"{DEMO_NETWORK} 0",
        provenance=Provenance.load(folder / "sampled/network_0"),
    )
    return {"sane": str(sane), "sampled/network_0": str(network), "zoos": zoo_card(read_facts(folder / "zoos"))}


def packaged_card(folder: Path) -> str:
    """The card of the autoencoder that comes with the package, from its configuration and run record."""
    network_config = load_config(folder / ANCHORS / "anchor_0")
    assert isinstance(network_config, ZooConfig)
    card = sane_card(
        SANEConfig.from_pretrained(folder),
        SANEFeatureExtractor.from_pretrained(folder),
        RunRecord.load(folder / RECORD),
        **small_images.card_options(network_config),
    )
    return str(card)


def renew_manifests(*, check: bool) -> list[Path]:
    """Rewrite the manifests of committed models, where changes are tracked by git."""
    jobs = {ROOT / PACKAGED: SANE}
    for kind, job in (("sane", SANE), ("sampled", NETWORK)):
        jobs |= dict.fromkeys(sorted((ROOT / "pretrained").glob(f"{kind}-*")), job)
    stale = [folder for folder, job in jobs.items() if Manifest.of(folder, job) != Manifest.load(folder)]
    for folder in stale:
        print(f"{'out of date' if check else 'wrote'}: {(folder / MANIFEST).relative_to(ROOT)}")
        if not check:
            Manifest.of(folder, jobs[folder]).save(folder)
    return stale


def copy(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with write_atomically(target) as partial:
        shutil.copyfile(source, partial)


def take_models(source: Path, target: Path) -> None:
    """Copy the files that the cards of autoencoders and sampled networks are rendered from."""
    for kind, names in models.CARD_FACTS.items():
        for folder in sorted(source.glob(f"{kind}-*")):
            for name in names:
                copy(folder / name, target / folder.name / name)


if __name__ == "__main__":
    run_script(main, name="update_cards.py")
