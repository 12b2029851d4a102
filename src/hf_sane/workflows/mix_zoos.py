"""Mix zoos of several data sets or architectures into one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.workflows.results import report_writer
from hf_sane.workflows.shared import temporary_folder
from hf_sane.workflows.show_zoo import ZooResult, load_zoo
from hf_sane.zoo import _mixing as mixing
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import NewZooSettings


@dataclass(kw_only=True)
class MixZoosSettings(NewZooSettings):
    """Settings of [`mix_zoos`]."""

    zoos: list[str] | Mapping[str, str | Path | Zoo] = setting(
        "Zoos as NAME=SOURCE or NAME=SOURCE@CONFIG, where SOURCE is a folder, a Hub repo id or repo@revision.",
        positional=True,
    )
    name: str | None = setting("Title of the mixture's card; by default the names of the zoos.", default=None)
    token_dim: int | None = setting("Scalars per token; by default the largest in the zoos.", default=None, least=1)
    token_layout: str | None = setting("Token layout, as for zoo build; by default that of the zoos.", default=None)


def mix_zoos(zoos: Mapping[str, str | Path | Zoo], *, output: str | Path | None = None, **options: Any) -> Zoo:
    """Mix zoos into one, so that a single SANE can be pre-trained on all of them.

    Args:
        zoos: Zoos or their sources, by name in the mixture.
        output: Folder of the mixture; if `None`, a temporary folder, whose path is logged.
        **options: Other fields of [`MixZoosSettings`].

    Returns:
        The mixture.

    Raises:
        ValueError: If there is no zoo, a name is not allowed in the names of runs, or the zoos do not fit together.
        FileExistsError: If the folder holds something else.
    """
    return run_mix_zoos(MixZoosSettings(zoos=zoos, output=output or temporary_folder("zoo"), **options)).zoo


def run_mix_zoos(settings: MixZoosSettings) -> ZooResult:
    """Mix zoos of different data sets or architectures; all tokens get the same size, and splits are kept."""

    def result(zoo: Zoo) -> ZooResult:
        record = zoo.run_record or RunRecord.start(arguments=as_arguments(settings))
        return ZooResult(record=record, output=Path(settings.output), zoo=zoo)

    mixture = mixing.mix_zoos(
        _open(settings.zoos),
        settings.output,
        config=settings.zoo_config,
        name=settings.name,
        token_dim=settings.token_dim,
        token_layout=settings.token_layout,
        describe=report_writer(result),
    )
    return result(mixture)


def _open(zoos: list[str] | Mapping[str, str | Path | Zoo]) -> dict[str, Zoo]:
    if isinstance(zoos, Mapping):
        return {label: load_zoo(zoo) for label, zoo in zoos.items()}
    opened: dict[str, Zoo] = {}
    for text in zoos:
        label, source, config = parse_source(text)
        if label in opened:
            raise ValueError(f"two zoos are called {label!r}; rename one")
        opened[label] = load_zoo(source, config)
    return opened


def parse_source(text: str) -> tuple[str, str, str | None]:
    """Split `NAME=SOURCE[@CONFIG]` into the label, the folder or repo id, and the name of the zoo in it.

    An existing folder is used even if its name contains `@`. `owner/name@revision@config` also names a revision; the
    config may be empty.

    Raises:
        ValueError: If there is no name or no source.
    """
    label, equals, rest = text.partition("=")
    source, _, config = rest.rpartition("@") if "@" in rest and not Path(rest).exists() else (rest, "", "")
    if not label or not equals or not source:
        raise ValueError(f"expected NAME=SOURCE or NAME=SOURCE@CONFIG, got {text!r}")
    return label, source, config or None


__all__ = ["mix_zoos"]
