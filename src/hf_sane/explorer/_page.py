"""The page of the explorer, in Gradio, which need not be installed."""

import html
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from torch import nn

from hf_sane.cards._tables import fact_text
from hf_sane.explorer._atlas import Atlas, Table, parse_numbers
from hf_sane.explorer._scans import Scans, list_findings, list_scans, list_tensors
from hf_sane.records._errors import shorten
from hf_sane.records._escaping import markdown_text
from hf_sane.records._failures import describe_error, expected_errors
from hf_sane.zoo._dataset import Zoo

HERE = Path(__file__).parent
TEMPLATE = (
    '<div class="map"><canvas tabindex="0" role="img" aria-label="Map of the networks; the arrow keys select one">'
    '</canvas><span class="tip"></span></div><div class="legend"></div>'
)
HOW_TO = (
    "Click or tap a network for its card, or drag around several; Shift adds to the selection, the wheel or two "
    "fingers zoom. Numbers can be typed, too."
)
SPECTRUM_STYLE = """
overflow-x: auto; svg { display: block; max-width: none; } .narrow { display: none; }
@media (max-width: 46rem) {
.wide { display: none; } .narrow { display: block; } .narrow svg { width: 100%; height: auto; }
}
"""
# All four tabs are seen on a phone.
STYLE = "@media (max-width: 46rem) { #tabs .tab-container button { font-size: 0.85rem; padding: 0 0.4rem; } }"
NEIGHBOUR_COLUMNS = ("number", "network", "distance")
LOOPBACK = "127.0.0.1"


class Sampled(Protocol):
    """Sampled networks, see `SampleResult`."""

    provenance: list[Any]

    def modules(self) -> list[nn.Module]:
        """The networks."""

    def tables(self) -> Sequence[Any]:
        """Measurements of these and of simpler networks."""

    def save(self, folder: str) -> object:
        """Save them in a new folder."""

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish them."""


Sample = Callable[..., Sampled]


def build_page(atlas: Atlas, title: str, sample: Sample | None = None, *, can_write: bool = True) -> gr.Blocks:
    """The page of a zoo.

    Args:
        atlas: The zoo.
        title: Its name.
        sample: Samples around the networks of a zoo, if there is a SANE.
        can_write: Whether visitors may save and publish sampled networks.
    """
    first = atlas.colourable[0]
    nothing = [_empty("property", "value"), _empty("layer", "kind", "shape"), _empty(*NEIGHBOUR_COLUMNS)]
    with gr.Blocks(title=f"hf_sane: {title}", analytics_enabled=False) as page:
        lines = [f"## {markdown_text(title)}", f"{len(atlas):,} networks. {HOW_TO}", *map(markdown_text, atlas.notes)]
        gr.Markdown("\n\n".join(lines))
        kept = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3, min_width=360):
                choices = [(name.replace("_", " "), name) for name in atlas.colourable]
                colour = gr.Dropdown(choices, value=first, label="Colour by", elem_id="colour")
                picture = gr.HTML(
                    atlas.map(first),
                    html_template=TEMPLATE,
                    css_template=(HERE / "map.css").read_text(encoding="utf-8"),
                    js_on_load=(HERE / "map.js").read_text(encoding="utf-8"),
                    elem_id="map",
                    selected=[],
                )
                chosen = gr.Textbox(label="Selected networks", placeholder="such as 3, 14-16", elem_id="chosen")
            with gr.Column(scale=2, min_width=320):
                heading = gr.Markdown("No network is selected.", elem_id="heading")
                with gr.Tabs(elem_id="tabs"):
                    with gr.Tab("Card"):
                        card = gr.Dataframe(nothing[0], interactive=False, elem_id="card", wrap=True)
                    with gr.Tab("Layers"):
                        layers = gr.Dataframe(nothing[1], interactive=False, elem_id="layers")
                    with gr.Tab("Spectrum"):
                        spectrum = gr.HTML(elem_id="spectrum", css_template=SPECTRUM_STYLE)
                    with gr.Tab("Neighbours"):
                        neighbours = gr.Dataframe(nothing[2], interactive=False, elem_id="neighbours")
        if sample is not None:
            _add_sampling(atlas, sample, kept, chosen, colour, picture, can_write=can_write)

        def pick(event: gr.EventData) -> str:
            return ", ".join(str(int(number)) for number in event.networks)

        @_shows_errors
        def show(text: str) -> list[Any]:
            numbers = parse_numbers(text, len(atlas))
            marked = gr.HTML(selected=numbers)
            if not numbers:
                return [marked, "No network is selected.", *nothing]
            index = numbers[0]
            more = f", and {len(numbers) - 1:,} more" if len(numbers) > 1 else ""
            near = [
                [str(other), atlas.names[other], fact_text(distance)] for other, distance in atlas.neighbours(index)
            ]
            return [
                marked,
                f"**{markdown_text(atlas.names[index])}**{more}",
                _frame(atlas.card(index)),
                _frame(atlas.layers(index)),
                _frame((list(NEIGHBOUR_COLUMNS), near)),
            ]

        @_shows_errors
        def draw_spectrum(text: str) -> str:
            numbers = parse_numbers(text, len(atlas))
            return atlas.spectrum(numbers[0]) if numbers else ""

        @_shows_errors
        def recolour(name: str, result: Sampled | None) -> dict[str, Any]:
            return atlas.map(name, [] if result is None else result.modules())

        def follow(table: Any, event: gr.SelectData) -> str:
            return str(table.iloc[event.index[0], 0])

        picture.pick(pick, None, chosen, show_progress="hidden", api_visibility="private")
        outputs = [picture, heading, card, layers, neighbours]
        chosen.change(show, chosen, outputs, show_progress="hidden", api_name="show")
        chosen.change(
            draw_spectrum, chosen, spectrum, show_progress="hidden", trigger_mode="always_last", api_name="spectrum"
        )
        neighbours.select(follow, neighbours, chosen, show_progress="hidden", api_visibility="private")
        colour.change(recolour, [colour, kept], picture, show_progress="hidden", api_name="colour")
    return page


def _add_sampling(
    atlas: Atlas,
    sample: Sample,
    kept: gr.State,
    chosen: gr.Textbox,
    colour: gr.Dropdown,
    picture: gr.HTML,
    *,
    can_write: bool,
) -> None:
    """The part of the page that samples around the selected networks, or around the best ones."""
    gr.Markdown(
        "### Sample\n\nThe selected networks are the anchors (of each run, its last selected epoch); if none are, the "
        "best of the training split. Distances are to the nearest of them, or of the training split."
    )
    with gr.Row():
        count = gr.Slider(1, 20, value=5, step=1, label="Networks to keep")
        candidates = gr.Slider(1, 500, value=50, step=1, label="Networks to draw")
        bandwidth = gr.Slider(0.0, 1.0, value=0.2, step=0.05, label="Bandwidth (in spreads of the anchors)")
        start = gr.Button("Sample", variant="primary", elem_id="sample")
    with gr.Row():
        table = gr.Dataframe(
            _empty("network", "test accuracy"), interactive=False, elem_id="sampled", label="Sampled networks"
        )
        compared = gr.Dataframe(
            _empty("networks", "mean test accuracy"),
            interactive=False,
            elem_id="compared",
            label="Compared with simpler networks",
        )

    @_shows_errors
    def run(text: str, name: str, kept_networks: float, drawn: float, width: float) -> list[Any]:
        numbers = parse_numbers(text, len(atlas))
        zoo: Zoo = atlas.chosen(numbers) if numbers else atlas.zoo
        options: dict[str, Any] = {"top_fraction": 1.0} if numbers else {}
        if len({atlas.properties["run_id"][number] for number in numbers}) == 1:
            options["unit"] = "latent_std"  # one anchor has no spread
        options |= {"num_samples": int(kept_networks), "num_candidates": int(max(drawn, kept_networks))}
        result = sample(zoo, bandwidth=float(width), **options)
        found = next(iter(result.tables()), None)
        rows = None if found is None else [[fact_text(x, shorten) for x in row] for row in found.rows]
        shown = None if found is None else _frame((list(found.header), rows or []))
        return [result, _frame(_measured(result)), shown, atlas.map(name, result.modules())]

    outputs = [kept, table, compared, picture]
    start.click(run, [chosen, colour, count, candidates, bandwidth], outputs, api_name="sample")
    if not can_write:
        return
    with gr.Row():
        folder = gr.Textbox(label="New folder", placeholder="my_networks", elem_id="folder")
        save = gr.Button("Save", elem_id="save")
        repo_id = gr.Textbox(label="Repository on the Hub", placeholder="user/name", elem_id="repo_id")
        private = gr.Checkbox(value=True, label="private")
        push = gr.Button("Push", elem_id="push")
    said = gr.Markdown(elem_id="said")

    @_shows_errors
    def save_networks(result: Sampled | None, where: str) -> str:
        _sampled(result).save(_given(where, "a folder"))
        return f"Wrote {markdown_text(where.strip())}."

    @_shows_errors
    def push_networks(result: Sampled | None, where: str, is_private: bool) -> str:
        address = _sampled(result).push_to_hub(_given(where, "a repository"), private=is_private)
        return f"Published: {markdown_text(address)}"

    save.click(save_networks, [kept, folder], said, api_visibility="private")
    push.click(push_networks, [kept, repo_id, private], said, api_visibility="private")


def build_scan_page(scans: Scans, title: str) -> gr.Blocks:
    """The page of a scan: a row selects a checkpoint, whose findings and tensors are listed."""
    with gr.Blocks(title=f"hf_sane: {title}", analytics_enabled=False) as page:
        gr.Markdown(
            f"## {markdown_text(title)}\n\n{len(scans):,} checkpoints. Click a row for its findings and tensors."
        )
        table = gr.Dataframe(_frame(list_scans(scans)), interactive=False, elem_id="scans", wrap=True)
        heading = gr.Markdown(elem_id="heading")
        findings = gr.Dataframe(
            _empty("severity", "message"), interactive=False, elem_id="findings", label="Findings", wrap=True
        )
        tensors = gr.Dataframe(_empty("name", "shape"), interactive=False, elem_id="tensors", label="Tensors")

        def show(rows: Any, event: gr.SelectData) -> list[Any]:
            source = rows.iloc[event.index[0], 0]  # since visitors may have sorted the table
            scan = next(scan for scan in scans if shorten(scan["source"]) == source)
            return [f"**{markdown_text(source)}**", _frame(list_findings(scan)), _frame(list_tensors(scan))]

        table.select(show, table, [heading, findings, tensors], show_progress="hidden", api_visibility="private")
    return page


def _sampled(result: Sampled | None) -> Sampled:
    if result is None:
        raise ValueError("there are no sampled networks yet; sample some first")
    return result


def _given(text: str, what: str) -> str:
    if not text.strip():
        raise ValueError(f"expected {what}, got nothing; name it in the box")
    return text.strip()


def _measured(result: Sampled) -> Table:
    """Scores of each sampled network, and its distance to trained ones."""
    first = result.provenance[0]
    measured = [name for name in ("test_accuracy", "validation_accuracy") if getattr(first, name) is not None]
    header = ["network", *(name.replace("_", " ") for name in (*measured, *first.scores)), "distance"]
    rows = [
        [f"sampled {index}", *(getattr(x, name) for name in measured), *x.scores.values(), x.nearest_training_distance]
        for index, x in enumerate(result.provenance)
    ]
    return header, [[fact_text(cell, shorten) for cell in row] for row in rows]


def _frame(table: Table) -> dict[str, Any]:
    """A table as a data frame takes it."""
    header, rows = table
    return {"headers": header, "data": rows}


def _empty(*titles: str) -> dict[str, Any]:
    """A table before there is anything to show."""
    return _frame((list(titles), []))


def _shows_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show the message of an expected error on the page."""

    @wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except expected_errors() as error:
            raise gr.Error(html.escape(describe_error(error)), print_exception=False) from error

    return call


def serve(page: gr.Blocks, *, port: int | None = None, share: bool = False, hosted: bool = False) -> str:
    """Open a page in the background; `page.close()` ends it.

    Args:
        page: The page.
        port: Port; by default the first free one from 7860 on.
        share: Whether Gradio publishes the page under an address of its own.
        hosted: Whether this is a Space, which says itself where to listen.

    Returns:
        Address of the page.
    """
    _, address, shared = page.launch(
        server_name=None if hosted else LOOPBACK,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        css=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return shared or address
