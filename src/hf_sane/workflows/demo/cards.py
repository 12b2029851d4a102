"""The cards of the demo's artefacts, from its run record and their configurations alone: weights are not needed."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.hub._cards import network_card, sane_card
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._export import Provenance
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._loading import load_config
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._facts import read_facts

SANE_TITLE = "SANE of the demo"
# What a card is made of: the files of each artefact that are kept beside its card.
CARD_FACTS = {
    "sane": ("config.json", "preprocessor_config.json"),
    "sampled/network_0": ("config.json", "provenance.json"),
    "zoos": ("zoo.json",),
}


def network_title(index: int) -> str:
    """Headline of a sampled network."""
    return f"Sampled digits CNN {index}"


def network_record(record: RunRecord, index: int) -> RunRecord:
    """The demo's record with the results of one of its subsampled networks: test accuracy over fine-tuning epochs."""
    curves: list[list[float]] = record.results["sampling"]["finetuning_curves"]["sane_subsampled"]
    accuracy = {f"after {epoch} epochs": networks[index] for epoch, networks in enumerate(curves) if epoch}
    return replace(record, results={"test_accuracy": curves[0][index], "test_accuracy_fine_tuned": accuracy})


def record_from_report(report: Mapping[str, Any]) -> RunRecord:
    """The run record inside a `report.json`, whose results stand at the top level."""
    names = {entry.name for entry in fields(RunRecord)} - {"results"}
    return RunRecord(
        **{name: value for name, value in report.items() if name in names},
        results={name: value for name, value in report.items() if name not in names},
    )


def render_demo_cards(folder: Path, report: Mapping[str, Any]) -> dict[str, str]:
    """Render the cards of the autoencoder, the first sampled network and the zoos.

    Args:
        folder: Of the demo, or anything that holds the files of [`CARD_FACTS`].
        report: Content of its `report.json`.

    Returns:
        Text of each `README.md`, by the artefact's folder.
    """
    record = record_from_report(report)
    network_config = load_config(folder / "sampled/network_0")
    assert isinstance(network_config, ZooConfig)
    sane = sane_card(
        SANEConfig.from_pretrained(folder / "sane"),
        SANEFeatureExtractor.from_pretrained(folder / "sane"),
        record,
        title=SANE_TITLE,
        network_config=network_config,
    )
    network = network_card(
        network_config,
        network_record(record, 0),
        title=network_title(0),
        provenance=Provenance.load(folder / "sampled/network_0"),
    )
    return {"sane": str(sane), "sampled/network_0": str(network), "zoos": zoo_card(read_facts(folder / "zoos"))}


__all__ = []
