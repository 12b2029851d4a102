"""Explore a zoo on a local page: its map, the networks on it, and networks sampled around them."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, ClassVar, NotRequired, TypedDict

from huggingface_hub import CardData

from hf_sane.cards._rendering import render
from hf_sane.explorer._atlas import Atlas
from hf_sane.explorer._scans import Scans, is_scan, read_scans
from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.records._escaping import python_literal
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.records._sources import hub_id
from hf_sane.workflows.doctor import installed, make_tiny_zoo
from hf_sane.workflows.results import Result, optional_output
from hf_sane.workflows.sample import SampleResult, sample
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.scan import scan
from hf_sane.workflows.shared import SaneSettings
from hf_sane.workflows.show_zoo import is_zoo, load_zoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import ZooSourceSettings

POOLING = "layer_mean_std"
NO_GRADIO = "the explorer needs Gradio and matplotlib: pip install 'hf_sane[explore]'"
GRADIO_VERSION = "6.31.0"  # that the page was tested with
APP = """# Made by hf-sane explore --space: the page of a zoo.
from hf_sane.workflows.explore import ExploreSettings, run_explore

run_explore(ExploreSettings({arguments}))
"""


@dataclass(kw_only=True)
class ExploreSettings(ImageSettings, SaneSettings, ZooSourceSettings):
    """Settings of [`explore`]."""

    source: str | Path | Zoo | None = setting(
        "Zoo (folder or Hub repo id); or the output of hf-sane scan; or a file or folder of checkpoints, which are "
        "scanned first.",
        default=None,
        positional=True,
    )
    sane: str | Path | SANE | None = setting(
        "SANE (folder or Hub repo id) that embeds the networks and samples; without one, the map shows statistics of "
        "their weights.",
        default=None,
    )
    images: str | ImageData | None = setting(
        f"Images on which sampled networks are evaluated: {IMAGE_KINDS}; by default those of the zoo.",
        default=None,
    )
    port: int | None = setting("Port of the page; by default the first free one from 7860 on.", default=None)
    share: bool = setting("Let Gradio publish the page at a public address.", default=False)
    space: Path | None = setting(
        "Do not open the page, but write the folder of a Hugging Face Space that shows it.", default=None
    )
    self_test: bool = setting("Build a tiny zoo, open its page, use it, and close it.", default=False, once=True)
    hosted: bool = setting(
        "Whether the page runs in a Space, where nothing can be written.", default=False, only_python=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source is None) != self.self_test:
            raise ValueError(
                "expected a zoo (folder or Hub repo id) or --self-test, got "
                f"{'both' if self.self_test else 'neither'}; name one"
            )


class ExploreJson(TypedDict):
    """Output of `--json` when the page is closed.

    Attributes:
        address: Address of the page; missing with --space.
        networks: Number of networks or checkpoints on the page; missing with --space.
    """

    address: NotRequired[str]
    networks: NotRequired[int]


@dataclass(kw_only=True)
class ExploreResult(Result):
    """A page that was open.

    Attributes:
        address: Its address; empty if it was not opened.
        shown: Kind of things on it.
        files: Content of the files of a Space.
    """

    JSON: ClassVar[Any] = ExploreJson
    JOB: ClassVar[str] = "space"

    address: str = ""
    shown: str = "networks"
    files: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Address and number of networks."""
        return {"address": self.address, **self.record.results} if self.address else {}

    def write_all(self, partial: Path) -> None:
        """Write the files of a Space, which needs no record of how it was made."""
        for name, content in self.files.items():
            (partial / name).write_text(content, encoding="utf-8")

    def summary(self) -> list[str]:
        """Size and address of the page."""
        if not self.address:
            return ["push it with: hf upload user/name FOLDER --repo-type space"]
        return [f"{self.record.results['networks']:,} {self.shown} were shown at {self.address}, which is closed"]


def explore(source: str | Path | Zoo, sane: str | Path | SANE | None = None, **options: Any) -> ExploreResult:
    """Open the page of a zoo, until Ctrl-C.

    Args:
        source: A zoo, its folder or its Hub repo id, or a folder of checkpoints.
        sane: A SANE, its folder or its Hub repo id.
        **options: Other fields of [`ExploreSettings`].
    """
    return run_explore(ExploreSettings(source=source, sane=sane, **options))


def run_explore(settings: ExploreSettings) -> ExploreResult:
    """Open a local page with the map of a zoo, until Ctrl-C.

    Click a network for its properties, layers, spectrum and neighbours; with --sane, sample new networks around those
    that are selected, and save or publish them. Only this machine can open the page, and nothing is loaded from
    the internet.
    """
    if settings.space is not None:
        with optional_output(settings.space, ExploreResult.JOB) as output:
            record = RunRecord.start(arguments=as_arguments(settings))
            return output.write(ExploreResult(record=record.finish({}), files=space_files(settings)))
    if find_spec("gradio") is None or find_spec("matplotlib") is None:
        raise ValueError(NO_GRADIO)
    record = RunRecord.start(arguments=as_arguments(settings))
    if settings.self_test:
        with TemporaryDirectory(prefix="hf_sane-explore-") as folder:
            data, zoo, sane = make_tiny_zoo(Path(folder))
            return _show(replace(settings, self_test=False, source=zoo, sane=sane, images=data), record, _use)
    return _show(settings, record, _wait)


def _show(settings: ExploreSettings, record: RunRecord, use: Callable[[str], None]) -> ExploreResult:
    """Open the page, use it, and close it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before it is imported
    from hf_sane.explorer._page import build_page, build_scan_page, serve

    assert settings.source is not None
    if isinstance(settings.source, Zoo) or is_zoo(settings.source) or not Path(settings.source).exists():
        atlas, sampler = open_atlas(settings)
        title, count, shown = str(atlas.zoo.source or atlas.zoo.facts.name), len(atlas), "networks"
        page = build_page(atlas, title, sampler, can_write=not settings.hosted)
    else:
        scans = open_scans(settings.source)
        title, count, shown = str(settings.source), len(scans), "checkpoints"
        page = build_scan_page(scans, title)
    address = serve(page, port=settings.port, share=settings.share, hosted=settings.hosted)
    try:
        use(address)
    finally:
        page.close(verbose=False)
    return ExploreResult(record=record.finish({"networks": count}), address=address, shown=shown)


def open_atlas(settings: ExploreSettings) -> tuple[Atlas, Callable[..., SampleResult] | None]:
    """The map of the zoo and, if there is a SANE, what samples around its networks."""
    assert settings.source is not None
    zoo = load_zoo(settings.source, **settings.zoo_place)
    if settings.sane is None:
        return Atlas.of(zoo), None
    sane = open_sane(settings.sane, **settings.sane_place)
    is_one = len({key for split in zoo.splits.values() for key in split.column("layout").tolist()}) == 1
    embed = partial(sane.embed, pooling=POOLING if is_one else "mean")
    return Atlas.of(zoo, embed), partial(sample, sane=sane, images=settings.images, **settings.image_shape)


def open_scans(source: str | Path) -> Scans:
    """The scans in the output of `hf-sane scan`, or of a file or folder of checkpoints."""
    return read_scans(source) if is_scan(source) else scan(source, fail_on=["never"]).to_dict()["scans"]


def space_files(settings: ExploreSettings) -> dict[str, str]:
    """The files of a Space that shows a zoo of the Hub, by name.

    Raises:
        ValueError: If the zoo, the SANE or the images are not on the Hub, where the Space will read them.
    """
    given: dict[str, Any] = {"source": settings.source, "sane": settings.sane, "images": settings.images}
    for name, value in given.items():
        if value is not None and (not isinstance(value, str) or Path(value).exists()):
            shown = getattr(value, "source", None) or value
            raise ValueError(
                f"expected a {name} on the Hub, where a Space can read it, got {shown}; push it first (hf-sane push)"
            )
    for part in (ZooSourceSettings, SaneSettings, ImageSettings):
        given |= as_arguments(settings, part)
    arguments = [f"{name}={python_literal(value)}" for name, value in given.items() if value is not None]
    known: dict[str, Any] = {"datasets": [hub_id(given["source"])], "models": [hub_id(given["sane"])]}
    metadata = CardData(
        title="Networks on a map",
        sdk="gradio",
        sdk_version=installed("gradio") or GRADIO_VERSION,
        app_file="app.py",
        **{name: values for name, values in known.items() if all(values)},
    )
    facts = {"title": "Networks on a map", "source": settings.source, "samples": settings.sane is not None}
    return {
        "app.py": APP.format(arguments=", ".join([*arguments, "hosted=True"])),
        "requirements.txt": f"hf_sane[explore]=={installed('hf_sane')}\n",
        "README.md": render("space.md", metadata, **facts),
    }


def _wait(address: str) -> None:
    """Keep the page open until Ctrl-C."""
    sys.stderr.write(f"The explorer is at {address} until you press Ctrl-C.\n")
    with suppress(KeyboardInterrupt):
        Event().wait()


def _use(address: str) -> None:
    """Select networks, colour the map and sample, as a visitor would."""
    from gradio_client import Client

    client = Client(address, verbose=False)
    _, heading, *_ = client.predict("0, 2", api_name="/show")
    if "and 1 more" not in heading:
        raise ValueError(f"expected the page to show the first of two networks, got {heading!r}")
    client.predict("epoch", api_name="/colour")
    table, *_ = client.predict("0, 2", "epoch", 1, 2, 0.1, api_name="/sample")
    if len(table["data"]) != 1:
        raise ValueError(f"expected one sampled network, got {len(table['data'])}")


__all__ = ["ExploreResult", "explore"]
