"""Adapters ready for the Hub: weights, run record and card in one folder, which `plan_push` uploads."""

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.modeling_zoo import ZooPreTrainedModel
from hf_sane.core._adapters import ADAPTER, read_adapter_config, save_adapter
from hf_sane.hub._cards import CardOptions, adapter_card
from hf_sane.hub._publish import save_image_processor, write_card, write_sane_card
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.records._outputs import output_folder
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.records._sources import hub_id
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._pretrained import load_pretrained
from hf_sane.training._settings import PretrainSettings

if TYPE_CHECKING:
    from peft import PeftModel


def save_network_adapter(
    folder: str | Path,
    model: "PeftModel",
    base: ZooPreTrainedModel,
    record: RunRecord,
    *,
    base_model: str | None,
    title: str = "LoRA adapter of a sampled network",
    **options: Unpack[CardOptions],
) -> Path:
    """Save the adapter of a network with its run record and card, and check that it restores the network.

    Args:
        folder: Receives adapter_config.json, adapter_model.safetensors, preprocessor_config.json (if the record
            describes its images), run.json and README.md.
        model: The network with its adapter.
        base: The network before fine-tuning.
        record: Record of the fine-tuning.
        base_model: Hub repo id of the base; an adapter without one can be used locally, but not published.
        title: Heading of the card.
        **options: Facts of the card: `repo_id`, `datasets`, `license_id`.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds anything else, or was modified since it was written.
        RuntimeError: If the base with the saved adapter differs from `model`.
    """
    with output_folder(folder, ADAPTER, replace=True) as partial:
        save_adapter(model, partial, base_model=base_model, base=base)
        record.save(partial / RECORD)
        save_image_processor(partial, record, include_code=False)
        write_adapter_card(partial, base.config, title=title, **options)
    return Path(folder)


def write_adapter_card(
    folder: str | Path,
    base_config: ZooConfig | SANEConfig,
    *,
    title: str = "LoRA adapter",
    network_config: ZooConfig | None = None,
    **options: Unpack[CardOptions],
) -> Path:
    """Write README.md into the folder of an adapter, from its settings and run record.

    Args:
        folder: Folder with adapter_config.json, run.json and, for a SANE autoencoder, preprocessor_config.json.
        base_config: Configuration of the base model.
        title: Heading of the card.
        network_config: Configuration of a network of the zoo, for the code example of a SANE autoencoder's adapter.
        **options: Facts of the card: `repo_id`, `datasets`, `license_id`.

    Returns:
        `folder`.

    Raises:
        FileNotFoundError: If `folder` holds no adapter.
        FileExistsError: If the folder has a README.md that was written or edited by hand.
    """
    folder = Path(folder)
    card = adapter_card(
        base_config,
        read_adapter_config(folder),
        RunRecord.load(folder / RECORD),
        title=title,
        extractor=SANEFeatureExtractor.from_pretrained(folder) if isinstance(base_config, SANEConfig) else None,
        network_config=network_config,
        **options,
    )
    return write_card(folder, card)


def write_pretraining_card(folder: Path, arguments: PretrainSettings, network_config: ZooConfig | None) -> Path:
    """Write README.md into the folder of a pre-trained SANE autoencoder, or of an adapter of one."""
    datasets = [found for name in arguments.zoo if (found := hub_id(name)) is not None]
    if arguments.lora and arguments.from_ is not None:
        base_config = load_pretrained(SANEConfig, arguments.from_, "the configuration of a SANE autoencoder")
        return write_adapter_card(
            folder, base_config, title="LoRA adapter of SANE", network_config=network_config, datasets=datasets
        )
    return write_sane_card(folder, network_config=network_config, datasets=datasets)
