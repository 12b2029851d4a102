"""Text classification data: three fixed splits of tokenized texts, from any dataset."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from hf_sane.networks._image_sources import LABEL_COLUMNS, SPLITS, Part, check_classes, numbered_from_zero
from hf_sane.networks._images import choose_splits
from hf_sane.networks._labelled_datasets import (
    complete_examples,
    dataset_labels,
    dataset_name,
    find_column,
    label_column,
    label_names,
    labelled_splits,
    open_dataset,
)
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, find_source, parse_source
from hf_sane.tokenization._pretrained import load_pretrained

logger = logging.getLogger(__name__)

TEXT_KINDS = "A dataset on the Hub or on disk, or a folder or file (CSV, JSON, parquet) with texts and labels"
PAIR_COLUMNS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("query", "passage")),
)
TEXT_COLUMNS = ("text", "sentence", "content", "review", "question", "tweet", "message", "comment", "title")
MAX_TOKENS = 128

TextSource: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict


@dataclass(frozen=True, slots=True)
class TextData:
    """Tokenized texts and labels in three splits.

    Attributes:
        name: Name in records and cards.
        inputs: `[n, 2, L]` int64 by split: token ids and attention mask; for text pairs `[n, 3, L]` with token types,
            if the tokenizer uses them. `L` is the length of the longest text.
        labels: `[n]` int64 in `[0, K)`, by split.
        num_classes: `K`.
        class_names: Names of the classes; may be empty.
        tokenizer: The tokenizer of the texts.
        columns: Columns with the texts; two for text pairs.
    """

    name: str
    inputs: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    num_classes: int
    class_names: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    columns: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Inputs and labels of `"train"`, `"validation"` or `"test"`.

        Raises:
            ValueError: If the name is unknown.
        """
        if name not in SPLITS:
            raise ValueError(f"expected one of the splits {', '.join(SPLITS)}, got {name!r}")
        return self.inputs[name], self.labels[name]

    def describe(self) -> dict[str, Any]:
        """Facts for records and cards: name, classes, tokens of the longest text, texts per split."""
        counts = {split: len(self.labels[split]) for split in SPLITS}
        named = {"classes": list(self.class_names)} if self.class_names else {}
        pairs = {"pairs": list(self.columns)} if len(self.columns) > 1 else {}
        return {"name": self.name, "tokens": self.inputs["train"].shape[2], **counts, **named, **pairs}

    def set_padding(self, network: object) -> None:
        """Set the padding token of a Transformers network, unless it has one."""
        config = getattr(network, "config", None)
        if isinstance(config, PreTrainedConfig) and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = self.tokenizer.pad_token_id


def load_texts(
    source: TextSource,
    tokenizer: str | Path | PreTrainedTokenizerBase,
    *,
    name: str | None = None,
    text_column: str | Sequence[str] | None = None,
    label: str | None = None,
    max_tokens: int = MAX_TOKENS,
    train_limit: int | None = None,
    seed: int = 0,
) -> TextData:
    """Load text classification data, split it reproducibly like `load_images`, and tokenize it.

    Examples without a text or label are left out, with a warning.

    Args:
        source: A dataset on the Hub, `owner/name`; a folder or file of CSV, JSON or parquet; a folder from
            `save_to_disk`; or a `datasets` object.
        tokenizer: A tokenizer, or the folder or repository of one.
        name: Name of the data; if `None`, it is derived from the source.
        text_column: Column with the texts, or two columns of text pairs (also as `"premise,hypothesis"`); if `None`,
            columns with common names (premise and hypothesis, text, sentence, ...), or the only text column.
        label: Column with the labels (indices, `ClassLabel` or texts); found in the same way if `None`.
        max_tokens: Longer texts are truncated.
        train_limit: Use at most this many training texts.
        seed: Random seed for splits and draws.

    Raises:
        FileNotFoundError: If there is no such source or tokenizer.
        KeyError: If a column is missing.
        InvalidFileError: If a file is damaged.
        ValueError: If a split is empty, labels are not classes, there is only one class, or the tokenizer has no
            token to pad with.
    """
    loaded, label_of = _open(source)
    splits = labelled_splits(loaded)
    columns = _text_columns(splits["train"], text_column, label)
    splits = {split: _complete(split, part, columns, label) for split, part in splits.items()}
    names = label_names(splits["train"], label)
    parts = {split: _part(split, part, columns, label, names) for split, part in splits.items()}
    parts = numbered_from_zero(name or label_of, parts)
    names = parts["train"].class_names
    chosen = choose_splits(name or label_of, parts, {}, seed)
    check_classes(name or label_of, parts["train"])
    encoder = _open_tokenizer(tokenizer)
    texts, labels = {}, {}
    for split in SPLITS:
        origin, indices = chosen[split]
        indices = np.sort(indices[:train_limit] if split == "train" else indices)
        texts[split] = parts[origin].fetch(indices)
        labels[split] = torch.from_numpy(parts[origin].labels[indices].astype(np.int64))
    every = [text for split in SPLITS for text in texts[split]]
    encoded = encoder(
        *map(list, zip(*every, strict=True)),  # the texts, or the first and the second texts
        truncation=True,
        max_length=min(max_tokens, encoder.model_max_length),
        padding=True,
        return_tensors="pt",
    )
    rows = [encoded["input_ids"], encoded["attention_mask"]]
    if len(columns) > 1 and "token_type_ids" in encoded:
        rows.append(encoded["token_type_ids"])
    stacked = torch.stack(rows, dim=1)
    return TextData(
        name=name or label_of,
        inputs=dict(zip(SPLITS, stacked.split([len(texts[split]) for split in SPLITS]), strict=True)),
        labels=labels,
        num_classes=max(len(names), *(1 + int(part.labels.max()) for part in parts.values())),
        class_names=names,
        tokenizer=encoder,
        columns=columns,
    )


def _open(source: TextSource) -> tuple[datasets.Dataset | datasets.DatasetDict, str]:
    """A `datasets` object, and its name."""
    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        return source, "dataset"
    place = parse_source(source)
    if isinstance(place, HubRepo):
        find_source(source, repo_type="dataset")  # raises an error if neither a path nor a repository exists
        loaded = patiently(datasets.load_dataset, place.repo_id, revision=place.revision)
        return loaded, place.repo_id.rpartition("/")[2]
    if not place.exists():
        raise FileNotFoundError(f"no texts at {place}; expected {TEXT_KINDS[0].lower()}{TEXT_KINDS[1:]}")
    return open_dataset(place, "a dataset of texts and labels"), dataset_name(place)


def _text_columns(dataset: datasets.Dataset, given: str | Sequence[str] | None, label: str | None) -> tuple[str, ...]:
    """The column with the texts, or the two columns of text pairs."""
    there = dataset.column_names
    if given is not None:
        found = (given,) if isinstance(given, str) and given in there else given
        columns = tuple(part.strip() for part in found.split(",")) if isinstance(found, str) else tuple(found)
        if len(columns) > 2:
            raise ValueError(f"expected a column of texts, or two columns of text pairs, got {', '.join(columns)}")
        return columns
    if pair := next((pair for pair in PAIR_COLUMNS if set(pair) <= set(there)), None):
        return pair
    labels_from = label or label_column(dataset)
    strings = [n for n, f in dataset.features.items() if f == datasets.Value("string") and n != labels_from]
    found_by_name = find_column(dataset, TEXT_COLUMNS, strings)
    return TEXT_COLUMNS if found_by_name is None else (found_by_name,)


def _complete(split: str, dataset: datasets.Dataset, columns: tuple[str, ...], label: str | None) -> datasets.Dataset:
    """The examples with texts and a label."""
    labels_from = label or label_column(dataset)
    if not {*columns, labels_from} <= set(dataset.column_names):
        raise KeyError(
            f"expected a text column ({', '.join(columns)}) and a label column "
            f"({label or ', '.join(LABEL_COLUMNS)}), got {dataset.column_names}; name them (--text-column, "
            "--label-column)"
        )
    assert labels_from is not None
    return complete_examples(split, dataset, (*columns, labels_from))


def _part(
    split: str, dataset: datasets.Dataset, columns: tuple[str, ...], label: str | None, names: tuple[str, ...]
) -> Part:
    labels_from = label or label_column(dataset)
    assert labels_from is not None

    def fetch(indices: np.ndarray) -> list[tuple[str, ...]]:
        chosen = dataset.select(indices)
        return list(zip(*(chosen[column] for column in columns), strict=True))

    return Part(dataset_labels(split, dataset, labels_from, names), fetch, names)


def _open_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    found: Any = tokenizer
    if isinstance(tokenizer, str | Path):
        found = load_pretrained(AutoTokenizer, tokenizer, "a tokenizer")
    if found.pad_token is None:
        if found.eos_token is None:
            raise ValueError(
                f"expected a tokenizer that can pad texts to the same length, got {type(found).__name__} without a "
                f"pad "
                "token and an end-of-text token; set tokenizer.pad_token, also in the configuration of the networks"
            )
        found = copy.deepcopy(found)
        found.pad_token = found.eos_token
        logger.warning("%s has no pad token: texts are padded with %s", type(found).__name__, found.eos_token)
    return found
