"""Soups as repositories: weights, run record, and a card that lists every ingredient with its weight.

An unmodified soup in the same folder is replaced. Run records must have the fields required by
[`soup_card`][hf_sane.hub._cards.soup_card].
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_sane.hub._cards import soup_card
from hf_sane.hub._publish import class_names, name_classes, save_image_processor, save_model, write_card
from hf_sane.merging._adapters import SOUP, AdapterSoup
from hf_sane.merging._averaging import average_checkpoints, averaged_config
from hf_sane.merging._ingredients import CARRIED_FILES, CONFIG_FILE, Ingredient
from hf_sane.merging._reconciliation import complete_config
from hf_sane.records._documents import read_document
from hf_sane.records._outputs import output_folder
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.sampling._export import save_module


def save_soup(
    folder: str | Path,
    model: nn.Module,
    record: RunRecord,
    *,
    include_code: bool = False,
    files_from: Path | None = None,
) -> Path:
    """Save a soup of checkpoints.

    Args:
        folder: Receives config.json, model.safetensors, run.json and README.md.
        model: Model with the averaged weights; see `greedy_soup`.
        record: Record of the run.
        include_code: Also copy the modelling code (networks of this library).
        files_from: Folder of an ingredient, whose tokenizer, image processor and class names are copied; if it has no
            image processor, one is saved that prepares images as the run did, and if it names no classes, they are
            those of the run's data.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds anything else, or was modified since it was written.
    """
    card = soup_card(model.config if isinstance(model, PreTrainedModel) else model, record, with_code=include_code)
    with output_folder(folder, SOUP, replace=True) as partial:
        if isinstance(model, PreTrainedModel):
            save_model(partial, model, auto_class="AutoModelForImageClassification", include_code=include_code)
        else:
            save_module(partial, model)
            name_classes(partial, _ingredient_classes(files_from) or class_names(record))
        _carry_files(files_from, partial)
        save_image_processor(partial, record, include_code=include_code)
        record.save(partial / RECORD)
        write_card(partial, card)
    return Path(folder)


def save_soup_of_files(
    folder: str | Path, ingredients: Sequence[Ingredient], weights: Sequence[float], record: RunRecord
) -> Path:
    """Average checkpoints of any architecture, tensor by tensor, without building a model.

    Args:
        folder: Receives config.json and the other side files of the first ingredient, the weights (in shards if they
            are large), run.json and README.md.
        ingredients: Ingredients with configurations, from `open_ingredients`.
        weights: Weight of each ingredient, >= 0, with sum 1.
        record: Record of the run.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds anything else, or was modified since it was written.
        ValueError: If the first ingredient has no configuration, or the tensors cannot be averaged.
    """
    first = ingredients[0]
    if not first.config or first.folder is None:
        raise ValueError(
            f"{first.name} has no config.json, so its architecture is unknown; give the whole folder, or the code of "
            "its module (--module)"
        )
    with output_folder(folder, SOUP, replace=True) as partial:
        tensors = average_checkpoints(ingredients, weights)
        config = averaged_config(ingredients, tensors)
        card = soup_card(complete_config(config), record)
        save_torch_state_dict(tensors, partial, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
        _carry_files(first.folder, partial)
        record.save(partial / RECORD)
        write_card(partial, card)
    return Path(folder)


def save_adapter_soup(
    folder: str | Path, soup: AdapterSoup, config: PreTrainedConfig | None, record: RunRecord
) -> Path:
    """Save a soup of LoRA adapters.

    Args:
        folder: Receives adapter_config.json, adapter_model.safetensors, run.json and README.md.
        soup: Averaged adapter from `average_adapters`.
        config: Configuration of the base model; `None` if unknown.
        record: Record of the run.

    Returns:
        `folder`.

    Raises:
        FileExistsError: If `folder` holds anything else, or was modified since it was written.
    """
    card = soup_card(config, record, title="Soup of adapters", adapter=soup.config)
    with output_folder(folder, SOUP, replace=True) as partial:
        soup.save(partial)
        record.save(partial / RECORD)
        write_card(partial, card)
    return Path(folder)


def _ingredient_classes(folder: Path | None) -> list[str]:
    """Class names in the configuration of an ingredient, in order; empty if there are none."""
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return []
    names = read_document(folder / CONFIG_FILE, expected="a configuration").mapping().get("id2label")
    if not isinstance(names, Mapping) or set(names) != {str(index) for index in range(len(names))}:
        return []
    return [str(names[str(index)]) for index in range(len(names))]


def _carry_files(source: Path | None, partial: Path) -> None:
    for name in CARRIED_FILES:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
