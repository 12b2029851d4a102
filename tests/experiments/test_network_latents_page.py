"""A few numbers per network: what is measured, and what the page says about it."""

import json

import paper_network_latents
import pytest
import torch
from children_prompts import Family, draw_examples
from paper_network_latents import Networks, measure, references
from results import network_latents


def code(r2, *agreement):
    return {"r2": r2, "accuracy": [0.5 * value for value in agreement], "agreement": list(agreement)}


@pytest.fixture
def results():
    """SANE is above the linear code with 4 numbers, and below with 16; with variants for 16."""
    four = {"sane": code(0.3, 0.7, 0.8), "linear": code(0.1, 0.5, 0.6), "linear_ancestor": code(0.4, 0.9, 0.9)}
    sixteen = {"sane": code(0.5, 0.7, 0.8), "sane_attention": code(0.4, 0.6, 0.6), "linear": code(0.6, 0.8, 0.9)}
    codes = {"4": four, "16": sixteen | {"linear_ancestor": code(0.7, 0.9, 0.9)}}
    return {"codes": codes, "references": dict.fromkeys(network_latents.REFERENCES, code(1.0, 1.0, 1.0))}


def test_the_page_says_where_the_learned_code_is_better(results, write_record):
    write_record("network_latents/usps_0", results)
    codes = {size: {**found, "sane": code(0.5, 0.8, 0.9)} for size, found in results["codes"].items()}
    codes["16"].pop("sane_attention")  # one seed has variants
    second = {**results, "codes": codes}
    found = network_latents.blocks(write_record("network_latents/usps_1", second))
    assert "linear code: 0.400 and 0.100 with 4 numbers, 0.500 and 0.600 with 16 numbers." in found["verdict"]
    assert "above the linear code with 4 numbers, below it with 16 numbers, otherwise, intervals" in found["verdict"]
    table = found["codes"].split("\n")
    (row,) = (line for line in table if "| 4 | SANE, latents of whole networks |" in line)
    assert row.endswith("| 0.400 (0.300 to 0.500) | 0.400 (0.375 to 0.425) | 0.800 (0.750 to 0.850) |")
    assert "| 16 | SANE, with cross-attention | 0.400 | 0.300 | 0.600 |" in table
    first = found["paired"].split("\n")[2]
    assert "+0.125, +0.125 to +0.125 | +0.250, +0.250 to +0.250" in first
    assert found["source"].count("commit 0123456789ab") == 2


def test_without_records_there_is_nothing_to_say(tmp_path):
    assert network_latents.blocks(tmp_path)["verdict"].startswith("**There are no results yet.**")


def test_measures_against_their_definitions(family):
    """Originals lose nothing, the mean child of the ancestor explains nothing, and copies have themselves nearest."""
    zoo, data = family
    opened = Family.open(zoo)
    children = opened.splits["train"]
    examples = draw_examples(data, "test", children.shifts, count=20, seed=2)
    tokens = opened.ancestors[children.ancestor] + children.changes
    networks = Networks(tokens, children, examples)
    found = references(opened, networks)
    for name in ("original", "nearest"):
        assert found[name]["r2"] == pytest.approx(1, abs=1e-4)
        assert found[name]["agreement"] == [1.0] * len(children)
    means = torch.stack([children.changes[children.ancestor == i].mean(dim=0) for i in children.ancestor])
    assert measure(opened, networks, opened.ancestors[children.ancestor] + means)["r2"] == pytest.approx(0, abs=1e-5)
    assert found["ancestor"]["r2"] < 0


def test_the_script_runs(family, tmp_path, monkeypatch, capsys):
    zoo, data = family
    monkeypatch.setattr(paper_network_latents, "build_family", lambda name, options: zoo)
    monkeypatch.setattr(paper_network_latents, "load_images", lambda path, **limits: data)
    monkeypatch.setattr(paper_network_latents, "BUDGETS", ((1, 0.0), (2, 0.5)))
    monkeypatch.setattr(paper_network_latents, "BEHAVIOR", 0.0)  # needs a file of images
    monkeypatch.setattr(paper_network_latents, "COMPONENTS", 12)
    monkeypatch.setattr(paper_network_latents, "VARIANT_SIZE", 4)
    places = {"--images": tmp_path, "--work": tmp_path / "work", "--records": tmp_path / "records"}
    flags = [str(part) for pair in places.items() for part in pair]
    paper_network_latents.main([*flags, "--families", "usps", "--sizes", "4"])
    record = json.loads((tmp_path / "records" / "usps_0.json").read_text())
    assert record["results"]["codes"]["4"].keys() == {*network_latents.CODES}
    assert record["results"]["chosen"]["4"]["sane"]["epochs"] in (1, 2)
    assert "usps 4 {'sane':" in capsys.readouterr().out
