"""Settings for judging networks, by a metric on labelled examples or by a function of the user."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_sane.hub._push import network_folders
from hf_sane.networks._metrics import load_metric
from hf_sane.networks._tasks import Classification, Judgement, LabelledData, OwnTask, Task
from hf_sane.networks._texts import MAX_TOKENS, TEXT_KINDS, TextData, load_texts
from hf_sane.records._documents import parse_document
from hf_sane.records._own_code import load_named
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.records._settings import CheckedSettings, setting
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.zoo._facts import ZooFacts

FAR_BELOW = 0.2  # difference of accuracies that is no accident


@dataclass(kw_only=True)
class JudgeSettings(CheckedSettings):
    """Settings of a function that judges networks."""

    evaluate: str | Callable[..., float] | Task | None = setting(
        "Function that scores a network, as my_file.py:my_metric or my_package.my_file:my_metric; higher is "
        "better. It is called as my_metric(module), or as my_metric(module, split) with split='validation' to "
        "select networks and split='test' to report scores. The file's code is run.",
        default=None,
    )
    lower_is_better: bool = setting("Whether lower values of --evaluate or --metric are better.", default=False)

    def judgement(self) -> Task | None:
        """The function as a task, if one is given."""
        if self.evaluate is None or isinstance(self.evaluate, Task):
            return self.evaluate
        function: Judgement = (
            load_named(self.evaluate, example="my_metric") if isinstance(self.evaluate, str) else self.evaluate
        )
        return OwnTask(function, self.lower_is_better)


@dataclass(kw_only=True)
class MetricSettings(JudgeSettings):
    """Settings for judging networks by a function or by a metric on labelled examples."""

    metric: str = setting(
        "'accuracy', 'cross_entropy', a metric of the library evaluate, or the path of a metric script (./...).",
        default="accuracy",
    )
    metric_options: str = setting('Arguments of the metric as JSON, such as {"average": "macro"}.', default="{}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluate is not None and (self.metric != "accuracy" or self.metric_options != "{}"):
            raise ValueError("expected a function (--evaluate) or a metric (--metric), got both; name one")

    def task(self, data: LabelledData | None) -> Task:
        """The task that networks are judged by: the function, or the metric on the data.

        Raises:
            ValueError: If there is neither data nor a function.
        """
        if (own := self.judgement()) is not None:
            return own
        if data is None:
            raise ValueError("expected data or a function (--evaluate) to judge networks by, got neither")
        remedy = 'pass a JSON object such as {"average": "macro"}'
        options = parse_document(self.metric_options, "--metric-options", remedy=remedy).mapping()
        compare = load_metric(self.metric, options=options, lower_is_better=self.lower_is_better)
        return Classification(data, compare)


@dataclass(kw_only=True)
class TextSettings(CheckedSettings):
    """Settings of texts, for networks that classify them."""

    texts: str | TextData | datasets.Dataset | datasets.DatasetDict | None = setting(
        f"{TEXT_KINDS}, for networks that classify texts.", default=None
    )
    tokenizer: str | PreTrainedTokenizerBase | None = setting(
        "Tokenizer of the texts (folder or Hub repo id); by default that of the first network.", default=None
    )
    text_column: str | None = setting(
        "Column with the texts, or two columns of pairs, as premise,hypothesis; by default detected by name or type.",
        default=None,
    )
    label_column: str | None = setting("Column with the labels; by default detected by name or type.", default=None)
    max_tokens: int = setting("Truncate texts to this many tokens.", default=MAX_TOKENS, least=1)

    def open_texts(self, networks: Sequence[str | Path | nn.Module], **options: Any) -> TextData:
        """Load and tokenize the texts.

        Args:
            networks: The first one provides the tokenizer, unless the settings name one.
            **options: Further options of `load_texts`.

        Raises:
            ValueError: If no tokenizer is known.
        """
        assert self.texts is not None
        if isinstance(self.texts, TextData):
            return self.texts
        tokenizer: Any = self.tokenizer or next(filter(None, map(_tokenizer_place, networks)), None)
        if tokenizer is None:
            raise ValueError(
                "expected a tokenizer for the texts, got none; pass its folder or Hub repo id (--tokenizer)"
            )
        return load_texts(
            self.texts,
            tokenizer,
            text_column=self.text_column,
            label=self.label_column,
            max_tokens=self.max_tokens,
            **options,
        )


def recorded_accuracies(names: Sequence[str]) -> list[float]:
    """Accuracies on test images in the run records of saved networks, as far as there are any."""
    found = []
    for name in names:
        path = Path(name) / RECORD
        if path.is_file() and isinstance(value := RunRecord.load(path).results.get("test_accuracy"), float):
            found.append(value)
    return found


def accuracy_notes(recorded: Sequence[float], measured: float | None) -> list[str]:
    """A note if trained networks are far less accurate on the given data than recorded.

    Args:
        recorded: Accuracies from tables or run records; may be empty.
        measured: Mean accuracy of these networks on the given data; `None` for other metrics.
    """
    known = [value for value in recorded if math.isfinite(value)]
    if not known or measured is None or sum(known) / len(known) - measured < FAR_BELOW:
        return []
    return [
        f"the trained networks have an accuracy of {measured:.2f} on this data, but {sum(known) / len(known):.2f} in "
        "their records: check that images have the size (--image-size) and scale, and classes the order, of training, "
        "or judge networks by a function that prepares images as in training (--evaluate my_file.py:my_metric)"
    ]


def recorded_texts(facts: ZooFacts) -> TextData | None:
    """The texts that a zoo's networks were trained on; `None` if they were trained on something else."""
    known = {
        entry.name: facts.arguments[entry.name] for entry in fields(TextSettings) if entry.name in facts.arguments
    }
    if known.get("texts") is None:  # of an import, settings of the same names are those of other things
        return None
    if unnamed := [name for name in ("texts", "tokenizer") if str(known.get(name, "<")).startswith("<")]:
        raise ValueError(
            f"the zoo {facts.name!r} does not record where its {' and '.join(unnamed)} came from; name them"
        )
    return TextSettings(**known).open_texts([], train_limit=facts.arguments.get("train_limit"))


def _tokenizer_place(network: str | Path | nn.Module) -> str | Path | None:
    """Where to look for a network's tokenizer: in its folder or repository, or in the first folder of several."""
    if isinstance(network, nn.Module):
        return getattr(getattr(network, "config", None), "name_or_path", None) or None
    place = find_source(network)
    return network if isinstance(place, HubRepo) else network_folders(place)[0]


__all__: list[str] = []  # parts of the settings of other workflows
