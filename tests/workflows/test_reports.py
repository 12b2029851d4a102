"""Reports: one page in HTML that needs no network, is legible by day and by night, and works in a real browser."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hf_sane
from hf_sane.analysis._pictures import PALETTE, _spread_out, collecting_pictures
from hf_sane.analysis._plots import plot_distances, plot_trees
from hf_sane.analysis._region_plots import plot_maps
from hf_sane.analysis._zoo_plots import plot_accuracies, plot_methods
from hf_sane.records._outputs import check_finished
from hf_sane.records._run_record import RunRecord
from hf_sane.records._uploads import folder_files
from hf_sane.workflows.reports import render_report
from hf_sane.workflows.results import Result

EVIL = "<script>alert(1)</script>&\"'"
NAMES = tuple(f"layers.{index}.weight" for index in range(11))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "input", "link", "img", "hr"}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Folder that `hf_sane.diff` wrote, of networks with a tensor whose name would be a program."""
    folder = tmp_path_factory.mktemp("report")
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(12, 8, generator=generator) for name in (*NAMES, EVIL)}
        save_file(tensors, folder / f"network_{seed}.safetensors")
    compare(folder, folder / "out")
    return folder / "out"


def compare(folder, output):
    return hf_sane.diff(folder / "network_0.safetensors", folder / "network_1.safetensors", output=output)


@pytest.fixture(scope="module")
def page(output):
    """Text of its report."""
    return (output / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All elements of a page, which must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        """Note an element."""
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Note an element without content."""
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        """It is the innermost one."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Note what is read."""
        self.text.append(data)


def test_it_lies_beside_the_output_and_is_not_published(output):
    assert "report.html" in check_finished(output, all_digests=True).files
    assert "report.html" not in {file.path for file in folder_files(output)}
    assert "run.json" in {file.path for file in folder_files(output)}


def test_it_says_all_that_the_result_says(page):
    elements = Elements(page)
    assert not elements.open
    text = " ".join(elements.text)
    for told in (*NAMES, EVIL, "How it was made", "torch threads", hf_sane.__version__):
        assert told in text, told
    assert sum(tag == "svg" for tag, _ in elements.found) == 2  # for wide and for narrow screens
    for heading in ("Settings", "Machine", "Versions"):
        assert f"<h3>{heading}</h3>" in page
    assert '<button type="button">value</button>' not in page  # of notes on tensors, which none of these has


def test_nothing_of_it_is_elsewhere_and_only_its_own_program_runs(page):
    elements = Elements(page)
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], attributes
    assert not re.findall(r"url\((?!#|\"#)", page)
    assert "@import" not in page
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    (policy,) = [x["content"] for tag, x in elements.found if x.get("http-equiv") == "Content-Security-Policy"]
    (script,) = scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def luminance(colour):
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """Contrast ratio, WCAG 2.2."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def schemes(page):
    """Colours by name, by day and by night."""
    found = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", page)]
    assert [set(colours) for colours in found] == [{"paper", "ink", "quiet", "line", "stripe", "accent"}] * 2
    return found


def test_text_and_curves_stand_out_by_day_and_by_night(page):
    assert luminance(schemes(page)[0]["paper"]) > 0.9 > 0.1 > luminance(schemes(page)[1]["paper"])
    for colours in schemes(page):
        for back in ("paper", "stripe"):
            for front in ("ink", "quiet", "accent"):
                assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
        assert contrast(colours["line"], colours["paper"]) >= 3
        for colour in PALETTE:
            assert contrast(colour, colours["paper"]) >= 3, colour
    assert "#000000" not in page  # axes and their labels are in the colour of the text


@pytest.fixture(scope="module")
def drawn():
    """A report of plots with several panels, and with names of every length."""
    draw = np.random.default_rng(0)
    names = [f"models/family_{index}/checkpoint" for index in range(5)]
    splits = {
        name: (draw.random(9), np.repeat(np.arange(3.0), 9), draw.random(27))
        for name in ("train", "validation", "test")
    }
    maps = {f"latents of level {level}": (torch.randn(15, 2), [f"{level} {n}" for n in names] * 3) for level in "ab"}
    edges = {(child, parent): ("fine-tuned", 0.9) for parent, child in pairwise(names)}
    with collecting_pictures(files=False) as pictures:
        plot_accuracies(splits, Path("accuracies.png"))
        plot_maps(maps, Path("maps.png"))
        plot_methods({f"{name}, encoded and decoded": draw.random(4) for name in names}, Path("methods.png"))
        plot_distances([(f"layers.{index}.weight", 0.5) for index in range(70)], Path("distances.png"))
        plot_trees([names], edges, Path("trees.svg"))
    return render_report(Result(record=RunRecord.start(arguments={}).finish({})), pictures)


PROBE = """
const found = {}, visible = (thing) => thing.getClientRects().length > 0;
const look = (frame) => {
  const page = frame.contentDocument, wide = page.documentElement.clientWidth, box = (x) => x.getBoundingClientRect();
  const pictures = [...page.querySelectorAll("svg")].filter(visible);
  const texts = pictures.flatMap((picture) => [...picture.querySelectorAll("text")]);
  const size = (text) => {
    const scale = text.getScreenCTM();
    return Math.hypot(scale.a, scale.b) * parseFloat(frame.contentWindow.getComputedStyle(text).fontSize);
  };
  const scrolled = page.querySelector("table")?.parentElement;
  scrolled?.scrollTo(1000, 0);
  return {
    wider: [...page.body.querySelectorAll("*")].filter((x) => visible(x) && !x.parentElement.closest(".wide, svg"))
      .filter((x) => box(x).right > wide + 1).map((x) => x.outerHTML.slice(0, 80)),
    smallest: Math.min(...texts.map(size)),
    cut: texts.filter((x) => box(x).right > box(x.closest("svg")).right + 16).map((x) => x.textContent),
    scrolling: pictures.filter((x) => x.parentElement.scrollWidth > x.parentElement.clientWidth + 1).length,
    tall: pictures.map((x) => box(x).height > box(x).width),
    frozen: scrolled && box(scrolled.querySelector("td")).left - box(scrolled).left,
  };
};
for (const width of [390, 1280]) {
  found["drawn" + width] = look(document.getElementById("d" + width));
  found["seen" + width] = look(document.getElementById("w" + width));
  const frame = document.getElementById("w" + width), page = frame.contentDocument, view = frame.contentWindow;
  const table = [...page.querySelectorAll("table")].find((t) => t.tBodies[0].rows.length > 8);
  const names = () => [...table.tBodies[0].rows].map((r) => r.cells[0].textContent);
  const titles = table.tHead.rows[0].cells, press = (n) => titles[n].firstElementChild.click();
  press(0); const up = names(); press(0); const down = names(); const sorted = titles[0].getAttribute("aria-sort");
  const column = [...titles].findIndex((t) => t.textContent === "distance");
  press(column); const gaps = [...table.tBodies[0].rows].map((r) => Number(r.cells[column].textContent));
  const filter = table.closest("section").querySelector("input");
  filter.value = "LAYERS.1"; filter.dispatchEvent(new view.Event("input"));
  found[width] = {
    overflow: page.documentElement.scrollWidth - width, up, down, sorted, gaps,
    kept: [...table.tBodies[0].rows].filter((r) => !r.hidden && r.getBoundingClientRect().height > 0).length,
    ink: view.getComputedStyle(page.body).color, paper: view.getComputedStyle(page.body).backgroundColor,
    pictures: [...page.querySelectorAll("svg")].filter(visible).map((s) => s.getBoundingClientRect().width > 300),
    alerts: page.querySelectorAll("td script").length,
    broken: table.tBodies[0].rows[0].cells[0].querySelectorAll("wbr").length,
    clipped: [...page.querySelectorAll("td")].filter((cell) => cell.scrollWidth > cell.clientWidth + 1).length,
  };
}
document.body.textContent = JSON.stringify(found);
"""


def in_browser(page, drawn, folder):
    """What a browser makes of two pages at two widths, and what it complains of."""
    frames = "".join(
        f'<iframe id="{name}{width}" width="{width}" height="900" style="border:0" srcdoc="{html.escape(x)}"></iframe>'
        for width in (390, 1280)
        for name, x in (("w", page), ("d", drawn))
    )
    probe = folder / "probe.html"
    probe.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body>{frames}<script>onload = () => {{ {PROBE} }}</script>'
    )
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000")
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", probe.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    complaints = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(re.search(r"<body>(.*?)</body>", ran.stdout, flags=re.DOTALL)[1])), complaints


def test_tables_and_plots_are_legible_on_a_phone_and_on_a_desktop(page, drawn, tmp_path):
    rows = [*sorted(NAMES, key=lambda name: int(name.split(".")[1])), EVIL]
    if BROWSER is None:  # what can be said without one
        assert page.count('aria-label="Filter rows of') == 1
        assert page.count('<button type="button">') >= 4
        assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
        assert drawn.count("<svg") == 10
        return
    found, complaints = in_browser(page, drawn, tmp_path)
    assert complaints == []
    for name in ("drawn390", "seen390"):
        assert found[name]["wider"] == []  # but what is in a table that scrolls
        assert found[name]["smallest"] >= 9  # pixels
        assert found[name]["cut"] == []
        assert found[name]["scrolling"] == 0
    assert found["drawn390"]["tall"] == [True, True, False, True, False]  # panels are one below the other
    assert found["drawn1280"]["tall"][:2] == [False, False]
    assert abs(found["seen390"]["frozen"]) <= 1  # names stay when the table is scrolled
    for width in ("390", "1280"):
        seen = found[width]
        assert seen["overflow"] <= 0, width
        assert sorted(seen["up"]) == sorted(rows)
        assert seen["up"] == seen["down"][::-1]
        assert [name for name in seen["up"] if name != EVIL] == rows[:-1]  # 2 before 10
        assert seen["sorted"] == "descending"
        assert seen["gaps"] == sorted(seen["gaps"])
        assert len(set(seen["gaps"])) > 5
        assert seen["kept"] == 2  # layers.1 and layers.10
        assert seen["pictures"] == [True]
        assert seen["alerts"] == 0
        assert seen["broken"] == 2  # layers. 10. weight
        assert seen["clipped"] == 0
        red, green, blue = map(int, re.findall(r"\d+", seen["ink"]))
        back = "#{:02x}{:02x}{:02x}".format(*map(int, re.findall(r"\d+", seen["paper"])))
        assert contrast(f"#{red:02x}{green:02x}{blue:02x}", back) >= 4.5


def test_findings_of_several_checkpoints_share_a_table(output, tmp_path):
    names = [output.parent / f"network_{seed}.safetensors" for seed in range(2)]
    tensors = {"weight": torch.full((8, 8), torch.nan)}
    save_file(tensors, tmp_path / "broken.safetensors")
    result = hf_sane.scan(*names, tmp_path / "broken.safetensors")
    page = hf_sane.report(result, tmp_path / "scan.html").read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[:2] == ["Checkpoints", "Findings"]
    assert str(tmp_path / "broken.safetensors") not in headings
    assert page.count('<td class="short">nan</td>') == 1


def test_a_report_of_any_result_goes_where_it_is_wanted(output, tmp_path):
    result = hf_sane.scan(output.parent / "network_0.safetensors")
    with pytest.raises(ValueError, match="no output folder for its report; give a path"):
        hf_sane.report(result)
    path = hf_sane.report(result, tmp_path / "scan.html")
    assert html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in path.read_text(encoding="utf-8")
    hf_sane.report(result, path)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a report"):
        hf_sane.report(result, tmp_path / "mine.html")
    known = compare(output.parent, tmp_path / "o")
    before = (tmp_path / "o/report.html").read_text()
    (tmp_path / "o/report.html").unlink()
    assert hf_sane.report(known) == tmp_path / "o/report.html"
    assert (tmp_path / "o/report.html").read_text() == before
    check_finished(tmp_path / "o", all_digests=True)


@pytest.mark.parametrize("wanted", [[0.5], [0.5, 0.5, 0.5], [0.0, 0.01, 0.9, 1.0, 1.0], [0.2, 0.21, 0.6, 0.05]])
def test_labels_at_the_ends_of_curves_do_not_overlap_and_keep_their_order(wanted):
    places = _spread_out(wanted, 0.1)
    ordered = sorted(places)
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in pairwise(ordered))
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 1 + 1e-9
    for i, first in enumerate(wanted):
        for j, second in enumerate(wanted):
            assert first >= second or places[i] < places[j]
    assert abs(sum(places) - sum(wanted)) < 1e-9 or min(ordered[0], 1 - ordered[-1]) < 1e-9
