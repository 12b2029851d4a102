"""Soups as repositories: weights, card and run record, with every ingredient and its weight on the card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, save_torch_state_dict
from transformers import PreTrainedConfig, PreTrainedModel

from hf_sane.hub._cards import (
    auto_class,
    card_metadata,
    describe_config,
    fill_template,
    model_code,
    network_code,
    preprocessing_note,
)
from hf_sane.hub._publish import save_model, write_card
from hf_sane.hub._tables import fact_text, markdown_table
from hf_sane.merging._adapters import SOUP, AdapterSoup
from hf_sane.merging._averaging import average_checkpoints, averaged_config
from hf_sane.merging._ingredients import CARRIED_FILES, CONFIG_FILE, Ingredient
from hf_sane.merging._reconciliation import complete_config
from hf_sane.records._escaping import markdown_text
from hf_sane.records._outputs import output_folder
from hf_sane.records._redaction import hide_folders
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.records._sources import hub_id, parse_repo

SOUP_TAGS = ["model-soup", "merge", "weight-space-learning"]
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
    """Save a soup of checkpoints. One there that nobody has changed since is replaced.

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

    Raises:
        FileExistsError: If `folder` holds something else, or files that were changed.
    """
    card = soup_card(
        model.config, record, source=repo_id or ".", title=title, license_id=license_id, with_code=include_code
    )
    with output_folder(folder, SOUP, replace=True) as partial:
        save_model(partial, model, auto_class="AutoModelForImageClassification", include_code=include_code)
        for name in CARRIED_FILES:
            if files_from is not None and (files_from / name).is_file():
                shutil.copyfile(files_from / name, partial / name)
        record.save(partial / RECORD)
        write_card(partial, card)
    return Path(folder)


def save_soup_of_files(
    folder: str | Path,
    ingredients: Sequence[Ingredient],
    weights: Sequence[float],
    record: RunRecord,
    *,
    repo_id: str | None = None,
    title: str = "Model soup",
    license_id: str | None = None,
) -> Path:
    """Average checkpoints of any architecture, tensor by tensor, under the names in their files; no model is built.

    Args:
        folder: Receives config.json and the other side files of the first ingredient, the weights (in shards, if they
            are large), run.json and README.md. A soup there that nobody has changed since is replaced.
        ingredients: From `open_ingredients`, with configurations.
        weights: One per ingredient, >= 0, with sum 1.
        record: Of the run, see [`soup_card`].
        repo_id: Where it will be published: the code of the card loads from there.
        title: Headline of the card.
        license_id: Hub licence identifier.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds something else, or files that were changed.
        ValueError: If the first ingredient has no configuration, or the tensors cannot be averaged.
    """
    first = ingredients[0]
    if not first.config or first.folder is None:
        raise ValueError(f"{first.name} has no config.json, so its architecture is unknown; give the whole folder")
    with output_folder(folder, SOUP, replace=True) as partial:
        tensors = average_checkpoints(ingredients, weights)
        config = averaged_config(ingredients, tensors)
        card = soup_card(complete_config(config), record, source=repo_id or ".", title=title, license_id=license_id)
        save_torch_state_dict(tensors, partial, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
        for name in CARRIED_FILES:
            if (first.folder / name).is_file():
                shutil.copyfile(first.folder / name, partial / name)
        record.save(partial / RECORD)
        write_card(partial, card)
    return Path(folder)


def save_adapter_soup(
    folder: str | Path,
    soup: AdapterSoup,
    config: PreTrainedConfig | None,
    record: RunRecord,
    *,
    repo_id: str | None = None,
    title: str = "Soup of adapters",
    license_id: str | None = None,
) -> Path:
    """Save a soup of LoRA adapters. One there that nobody has changed since is replaced.

    Args:
        folder: Receives adapter_config.json, adapter_model.safetensors, run.json and README.md.
        soup: From `average_adapters`.
        config: Of the base model; `None` if it is not known.
        record: Of the run, see [`soup_card`].
        repo_id: Where it will be published: the code of the card loads from there.
        title: Headline of the card.
        license_id: Hub licence identifier.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds something else, or files that were changed.
    """
    card = soup_card(config, record, source=repo_id or ".", title=title, license_id=license_id, adapter=soup.config)
    with output_folder(folder, SOUP, replace=True) as partial:
        soup.save(partial)
        record.save(partial / RECORD)
        write_card(partial, card)
    return Path(folder)


def soup_card(
    config: PreTrainedConfig | None,
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
        config: Of the network, or of the base of adapters; `None` if that is not known.
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
    metadata = card_metadata(record, title, measured, SOUP_TAGS, datasets=(), license_id=license_id)
    parents = [parse_repo(name).repo_id for name, row in rows.items() if row["weight"] and _is_repo_id(name)]
    base = None if adapter is None else hub_id(adapter.get("base_model_name_or_path"))
    metadata.base_model = ([base] if base and _is_repo_id(base) else list(dict.fromkeys(parents))) or None
    metadata["base_model_relation"] = ("merge" if adapter is None else "adapter") if metadata.base_model else None
    auto, metadata.pipeline_tag = ("AutoModel", None) if config is None else auto_class(config)
    if adapter is not None:
        metadata.library_name = "peft"
    images = record.data.get("images")
    code = None  # of adapters that cannot be loaded onto anything known
    if adapter is None or base is not None:
        if config is None or auto != "AutoModelForImageClassification":
            code = model_code(config, source, base=base)
        else:
            code = network_code(config, source, images, with_code=with_code, base=base)
    others = {name: value for name, value in record.results.items() if name != "ingredients"}
    return fill_template(
        "soup.md",
        metadata,
        replace(record, results=others),
        title=title,
        source=source,
        code=code,
        settings=describe_config(config)
        if adapter is None and config is not None
        else {name: (adapter or {}).get(name) for name in SETTINGS},
        is_adapter=adapter is not None,
        description=_description(config, rows, facts, is_adapter=adapter is not None),
        ingredients_table=_ingredients_table(rows, metric),
        selection=_selection(facts, metric),
        preprocessing=preprocessing_note(images),
    )


def _is_repo_id(name: str) -> bool:
    """Whether an ingredient is named after a Hub repository (`owner/name`), not after a local folder."""
    return "/" in name and hub_id(name) is not None


def _description(
    config: PreTrainedConfig | None,
    rows: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    *,
    is_adapter: bool,
) -> str:
    used = sum(row["weight"] > 0 for row in rows.values())
    kind = "" if config is None else f"{markdown_text(config.model_type.removeprefix('sane_'))} "
    what = f"LoRA adapters of a {kind}base model" if is_adapter else f"{kind}networks"
    recipe = "greedy" if facts.get("recipe") == "greedy" else "uniform"
    text = (
        f"A {recipe} model soup ([arXiv:2203.05482](https://arxiv.org/abs/2203.05482)): the average of the weights "
        f"of {used} of {len(rows)} {what}."
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
        f"Selected by {markdown_text(metric)} on the held-out split: ingredients were tried from the best to the "
        "worst, and kept where the soup did not get worse. On the held-out split it is therefore at least as good "
        "as the best ingredient, by construction; what counts is the test split."
    )


def _ingredients_table(rows: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    has_scores = all("held_out_score" in row for row in rows.values())
    metric = markdown_text(metric)
    header = ["ingredient", "weight", *([f"held-out {metric}"] if has_scores else [])]
    lines = [
        [
            markdown_text(hide_folders(name)),
            fact_text(row["weight"]),
            *([fact_text(row["held_out_score"])] if has_scores else []),
        ]
        for name, row in rows.items()
    ]
    return markdown_table(header, lines, numbers=True)


__all__ = ["save_adapter_soup", "save_soup", "save_soup_of_files", "soup_card"]
