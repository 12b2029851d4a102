"""The explorer: its page in a real browser, and the verb that opens it."""

import gc
import json
import time
from importlib.util import find_spec

import pytest
import torch
from browser import BROWSER, open_browser
from huggingface_hub import RepoCard

import hf_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._outputs import check_finished
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows import explore
from hf_sane.workflows.explore import ExploreSettings, run_explore
from hf_sane.workflows.sane import SANE

HAS_GRADIO = find_spec("gradio") is not None


@pytest.fixture(scope="module")
def sane(tiny_zoo):
    """An autoencoder that nobody trained."""
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    torch.manual_seed(0)
    config = SANEConfig(token_dim=layout.token_dim, hidden_size=16, latent_dim=8, num_hidden_layers=1, window_size=32)
    return SANE(SANEModel(config).eval(), extractor)


CANVAS = "document.querySelector('#map canvas')"
CHOSEN = "document.querySelector('#chosen textarea, #chosen input').value"


def press(page, name):
    page.run(f"document.querySelector('#{name}').click()")


def type_in(page, name, text):
    page.run(
        f"(box => {{ box.value = {json.dumps(text)}; box.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
        f"(document.querySelector('#{name} textarea, #{name} input'))"
    )


def shows(page, name, text):
    page.wait(f"document.querySelector('#{name}')?.innerText.includes({json.dumps(text)})")


def places(page):
    """Where the page draws places of the map, once it has settled."""
    box, before = None, ()
    while box != before:
        before = box
        time.sleep(0.2)
        box = page.run(f"(b => [b.x, b.y, b.width, b.height])({CANVAS}.getBoundingClientRect())")
    left, top, width, height = box
    return lambda x, y: (left + (x * 0.94 + 0.03) * width, top + (0.97 - y * 0.94) * height)


def visit(page, address, found, folder):
    """What a visitor does: click a network, draw a loop around all, colour, sample around four, save."""
    page.open(address)
    page.wait(f"{CANVAS}?.dataset.drawn === '48'")
    assert page.run(f"{CANVAS}.dataset.title") == "test accuracy"
    for name, title in (("card", "property"), ("sampled", "test accuracy"), ("compared", "networks")):
        shows(page, name, title)  # of tables before there is anything to show
    place = places(page)
    page.drag(place(found["x"][7], found["y"][7]))
    page.wait(f"{CHOSEN} === '7'")
    shows(page, "card", "generalization gap")
    shows(page, "heading", found["names"][7])
    page.drag(place(-0.02, -0.02), place(1.02, -0.02), place(1.02, 1.02), place(-0.02, 1.02))
    page.wait(f"{CHOSEN}.split(',').length === 48")
    shows(page, "heading", "and 47 more")
    page.run("document.querySelector('#colour input').focus()")
    option = "[...document.querySelectorAll('[role=option]')].find(x => x.innerText.includes('optimizer'))"
    page.wait(option)
    page.run(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    page.wait(f"{CANVAS}.dataset.title === 'optimizer'")
    type_in(page, "chosen", "28-31, 3")
    shows(page, "heading", "and 4 more")
    press(page, "sample")
    page.wait(f"{CANVAS}.dataset.sampled === '5'")
    shows(page, "sampled", "sampled 4")
    type_in(page, "folder", str(folder))
    press(page, "save")
    shows(page, "said", "Wrote")


WIDER = """
[...document.querySelectorAll("body *")].filter((x) => x.getBoundingClientRect().right > innerWidth + 1
  && !x.closest("table, .table-wrap, canvas, svg, [role=tablist]")).map((x) => x.outerHTML.slice(0, 90))
"""
SMALLEST = """
Math.min(...[...document.querySelectorAll("#spectrum text")].filter((x) => x.getClientRects().length).map((x) =>
  Math.hypot(x.getScreenCTM().a, x.getScreenCTM().b) * parseFloat(getComputedStyle(x).fontSize)))
"""
TABS = "[...document.querySelectorAll('#tabs [role=tab]')].filter(x => x.checkVisibility({visibilityProperty: true}))"


def visit_on_a_phone(page, found):
    """What fingers do: zoom with two, tap a network, read its spectrum."""
    page.resize(390, 900)
    page.run(f"{CANVAS}.scrollIntoView()")
    place = places(page)
    (left, top), middle = place(0.5, 0.9), place(0.5, 0.5)
    page.touch("Start", (left - 20, top), (left + 20, top))
    page.touch("Move", (left - 40, top), (left + 40, top))
    page.touch("End")
    page.wait(f"Number({CANVAS}.dataset.scale) > 1.5")
    page.touch("Start", (left - 80, top), (left + 80, top))
    page.touch("Move", (left - 20, top), (left + 20, top))
    page.touch("End")
    page.wait(f"Number({CANVAS}.dataset.scale) === 1")
    x, y = place(found["x"][7], found["y"][7])
    page.touch("Start", (x + (9 if x < middle[0] else -9), y))
    page.touch("End")
    page.wait(f"{CHOSEN} !== '28-31, 3'")
    page.wait(f"{TABS}.length === 4")
    page.run(f"{TABS}.find(x => x.innerText === 'Spectrum').click()")
    page.wait("document.querySelector('#spectrum .narrow svg')?.getClientRects().length")
    assert page.run(SMALLEST) >= 9
    assert page.run(WIDER) == []


# Gradio leaves sockets and event loops to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_page(tiny_zoo, sane, digits, tmp_path, monkeypatch):
    settings = ExploreSettings(source=tiny_zoo, sane=sane, images=digits)
    if BROWSER is None or not HAS_GRADIO:  # what can be said without them
        assert explore.open_atlas(settings)[1] is not None
        return
    atlas, _ = explore.open_atlas(settings)
    found = atlas.map("epoch")

    def use(address):
        with open_browser(tmp_path / "profile", height=1400) as page:
            visit(page, address, found, tmp_path / "networks")
            page.screenshot(tmp_path / "page.png")
            visit_on_a_phone(page, found)
            assert page.complaints == []
            assert [x for x in page.addresses if not x.startswith((address, "data:", "blob:"))] == []

    monkeypatch.setattr(explore, "_wait", use)
    result = run_explore(settings)
    assert result.address.startswith("http://127.0.0.1:")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert sorted(path.name for path in (tmp_path / "networks").glob("network_*")) == [
        f"network_{i}" for i in range(5)
    ]
    gc.collect()


def test_the_verb_names_what_is_not_installed(tiny_zoo_folder, monkeypatch, hf_sane_command):
    monkeypatch.setattr(explore, "find_spec", lambda name: None)
    told = hf_sane_command("explore", tiny_zoo_folder, exit_code=2).stderr
    assert told == "hf-sane: the explorer needs Gradio and matplotlib: pip install 'hf_sane[explore]'\n"


def test_a_zoo_or_the_self_test(hf_sane_command):
    assert "or --self-test, got neither" in hf_sane_command("explore", exit_code=2).stderr
    assert "or --self-test, got both" in hf_sane_command("explore", "zoo", "--self-test", exit_code=2).stderr


def test_a_space_is_ready_to_push(tmp_path, hf_sane_command):
    space = tmp_path / "space"
    wanted = ("explore", "org/zoo@v1", "--sane", "org/sane", "--images", "digits", "--space", space)
    assert json.loads(hf_sane_command(*wanted, "--json").stdout) == {"output": str(space)}
    check_finished(space, all_digests=True)
    card = RepoCard.load(space / "README.md")
    told = card.data.to_dict()
    assert (told["sdk"], told["app_file"], told["datasets"], told["models"]) == (
        *("gradio", "app.py"),
        *(["org/zoo"], ["org/sane"]),
    )
    assert "org/zoo@v1" in card.text
    assert (space / "requirements.txt").read_text() == f"hf_sane[explore]=={hf_sane.__version__}\n"
    made = []
    program = (space / "app.py").read_text().replace("run_explore(", "made.append(", 1)
    program = program.replace("import ExploreSettings, run_explore", "import ExploreSettings")
    exec(compile(program, "app.py", "exec"), {"made": made})
    assert made == [ExploreSettings(source="org/zoo@v1", sane="org/sane", images="digits", hosted=True)]


def test_a_space_reads_from_the_hub(tiny_zoo_folder, tmp_path, hf_sane_command):
    told = hf_sane_command("explore", tiny_zoo_folder, "--space", tmp_path / "space", exit_code=2).stderr
    assert f"expected a source on the Hub, where a Space can read it, got {tiny_zoo_folder}; push it first" in told
    assert not (tmp_path / "space").exists()
