"""Soups as repositories: weights, card and run record, with every ingredient and its weight on the card."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig, PreTrainedModel

from hf_sane.core.files import write_atomically
from hf_sane.core.run_record import RunRecord
from hf_sane.hub.cards import NETWORK_CODE, _metadata, _render, describe_config
from hf_sane.hub.publish import CARD, RECORD, save_model
from hf_sane.hub.tables import fact_text, markdown_table
from hf_sane.merging.adapters import AdapterSoup
from hf_sane.merging.ingredients import CARRIED_FILES

SOUP_TAGS = ["model-soup", "merge", "weight-space-learning"]
ADAPTER_CODE = """\
import torch{registration}
from peft import PeftModel
from transformers import AutoModelForImageClassification

base = AutoModelForImageClassification.from_pretrained("{base}")
network = PeftModel.from_pretrained(base, "{source}")
pixel_values = torch.zeros(1, {channels}, {size}, {size})  # your images
predicted = network(pixel_values=pixel_values).logits.argmax(-1)"""
REGISTRATION = "import hf_sane  # makes its architectures known to Transformers"
SETTINGS = ("r", "lora_alpha", "target_modules", "modules_to_save", "base_model_name_or_path")


def save_soup(
    folder: str | Path,
    model: PreTrainedModel,
    record: RunRecord,
    *,
    repo_id: str | None = None,
    title: str = "Model soup",
    license_id: str | None = None,
    include_code: bool = False,
    files_from: Path | None = None,
) -> Path:
    """Save a soup of checkpoints.

    Args:
        folder: Receives config.json, model.safetensors, run.json and README.md.
        model: Holds the soup, see `greedy_soup`.
        record: Of the run, see [`soup_card`].
        repo_id: Where it will be published: the code of the card loads from there.
        title: Headline of the card.
        license_id: Hub licence identifier.
        include_code: Also copy the modelling code (networks of this library).
        files_from: Folder of an ingredient, whose tokenizer and image processor are copied.

    Returns:
        `folder`.
    """
    folder = Path(folder)
    save_model(folder, model, auto_class="AutoModelForImageClassification", include_code=include_code)
    if files_from is not None:
        for name in CARRIED_FILES:
            if (files_from / name).is_file():
                shutil.copyfile(files_from / name, folder / name)
    card = soup_card(
        model.config, record, source=repo_id or ".", title=title, license_id=license_id, with_code=include_code
    )
    return _finish(folder, card, record)


def save_adapter_soup(
    folder: str | Path,
    soup: AdapterSoup,
    config: PreTrainedConfig,
    record: RunRecord,
    *,
    repo_id: str | None = None,
    title: str = "Soup of adapters",
    license_id: str | None = None,
) -> Path:
    """Save a soup of LoRA adapters.

    Args:
        folder: Receives adapter_config.json, adapter_model.safetensors, run.json and README.md.
        soup: From `average_adapters`.
        config: Of the base model.
        record: Of the run, see [`soup_card`].
        repo_id: Where it will be published: the code of the card loads from there.
        title: Headline of the card.
        license_id: Hub licence identifier.

    Returns:
        `folder`.
    """
    folder = soup.save(folder)
    card = soup_card(config, record, source=repo_id or ".", title=title, license_id=license_id, adapter=soup.config)
    return _finish(folder, card, record)


def soup_card(
    config: PreTrainedConfig,
    record: RunRecord,
    *,
    source: str = ".",
    title: str = "Model soup",
    license_id: str | None = None,
    with_code: bool = False,
    adapter: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Describe a soup.

    Args:
        config: Of the network, or of the base of adapters.
        record: Of the run: `arguments` with `recipe` (`"greedy"` or `"uniform"`), `metric`, `aligned`, `recalibrated`;
            `results["ingredients"]` as `{name: {"weight": ..., "held_out_score": ...}}`; other results become tables,
            those called `test_...` and `validation_...` entries of the model index.
        source: Repo id or path that the code of the card loads from; `"."` for code run inside the folder.
        title: Headline, and the model's name in the model index.
        license_id: Hub licence identifier, such as `"mit"`.
        with_code: Whether the folder carries its modelling code.
        adapter: Content of adapter_config.json, for a soup of adapters.

    Returns:
        The card; `str(card)` is the README.
    """
    rows: Mapping[str, Mapping[str, Any]] = record.results["ingredients"]
    facts, metric = record.arguments, str(record.arguments.get("metric", "accuracy"))
    measured = [
        ("image-classification", metric, f"{split} {metric}", record.results[f"{split}_{metric}"])
        for split in ("test", "validation")
        if record.results.get(f"{split}_{metric}") is not None
    ]
    metadata = _metadata(record, title, measured, SOUP_TAGS, datasets=(), license_id=license_id)
    parents = [name.partition("@")[0] for name, row in rows.items() if row["weight"] and _is_repo_id(name)]
    base = None if adapter is None else adapter.get("base_model_name_or_path")
    metadata.base_model = ([base] if base and _is_repo_id(base) else list(dict.fromkeys(parents))) or None
    metadata["base_model_relation"] = ("merge" if adapter is None else "adapter") if metadata.base_model else None
    metadata.pipeline_tag = "image-classification"
    if adapter is not None:
        metadata.library_name = "peft"
    images = record.data.get("images")
    preprocessing = None
    if isinstance(images, Mapping) and images.get("mean"):
        preprocessing = f"Images: channels first, standardised as `(pixels - {images['mean']}) / {images['std']}`."
    others = {name: value for name, value in record.results.items() if name != "ingredients"}
    return _render(
        "soup.md",
        metadata,
        replace(record, results=others),
        title=title,
        source=source,
        code=_code(config, source, images, with_code=with_code, base=base, is_adapter=adapter is not None),
        settings=describe_config(config) if adapter is None else {name: adapter.get(name) for name in SETTINGS},
        is_adapter=adapter is not None,
        description=_description(config, rows, facts, is_adapter=adapter is not None),
        ingredients_table=_ingredients_table(rows, metric),
        selection=_selection(facts, metric),
        preprocessing=preprocessing,
    )


def _finish(folder: Path, card: ModelCard, record: RunRecord) -> Path:
    record.save(folder / RECORD)
    with write_atomically(folder / CARD) as partial:
        partial.write_text(str(card), encoding="utf-8")
    return folder


def _is_repo_id(name: str) -> bool:
    """Whether an ingredient's name is that of a Hub repository (`owner/name`), not of a local folder."""
    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def _description(
    config: PreTrainedConfig, rows: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any], *, is_adapter: bool
) -> str:
    used = sum(row["weight"] > 0 for row in rows.values())
    kind = config.model_type.removeprefix("sane_")
    what = f"LoRA adapters of a {kind} base model" if is_adapter else f"{kind} networks"
    recipe = "greedy" if facts.get("recipe") == "greedy" else "uniform"
    text = (
        f"A {recipe} model soup ([arXiv:2203.05482](https://arxiv.org/abs/2203.05482)): the average of the weights of {used} of "
        f"{len(rows)} {what}."
    )
    if is_adapter:
        text += " Averaged is what the adapters add to the weights, the products of their factors, not the factors."
    if facts.get("aligned"):
        text += (
            " Channels were aligned by weight matching first ([arXiv:2209.04836](https://arxiv.org/abs/2209.04836))."
        )
    if facts.get("recalibrated"):
        text += " Batch-norm statistics were re-estimated from training images after averaging."
    return text


def _selection(facts: Mapping[str, Any], metric: str) -> str:
    if facts.get("recipe") != "greedy":
        return "All ingredients have the same weight; nothing was selected."
    return (
        f"Selected by {metric} on the held-out split: ingredients were tried from the best to the worst, and kept where the "
        "soup did not get worse. On the held-out split it is therefore at least as good as the best ingredient, by "
        "construction; what counts is the test split."
    )


def _ingredients_table(rows: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    has_scores = all("held_out_score" in row for row in rows.values())
    header = ["ingredient", "weight", *([f"held-out {metric}"] if has_scores else [])]
    lines = [
        [name, fact_text(row["weight"]), *([fact_text(row["held_out_score"])] if has_scores else [])]
        for name, row in rows.items()
    ]
    return markdown_table(header, lines, numbers=True)


def _code(
    config: PreTrainedConfig, source: str, images: Any, *, with_code: bool, base: str | None, is_adapter: bool
) -> str:
    described = images.get("image_size") if isinstance(images, Mapping) else None
    shape = {
        "channels": getattr(config, "num_channels", 3),
        "size": getattr(config, "image_size", None) or described or 32,
    }
    is_ours = config.model_type.startswith("sane_")
    if is_adapter:
        registration = f"\n{REGISTRATION}" if is_ours else ""
        return ADAPTER_CODE.format(registration=registration, base=base or "...", source=source, **shape)
    imports = ["import torch", *([REGISTRATION] if is_ours and not with_code else [])]
    imports.append("from transformers import AutoModelForImageClassification")
    trust = ", trust_remote_code=True" if with_code else ""
    return NETWORK_CODE.format(imports="\n".join(imports), source=source, trust=trust, **shape)


__all__ = ["save_adapter_soup", "save_soup", "soup_card"]
