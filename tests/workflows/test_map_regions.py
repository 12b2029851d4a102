"""Maps of regions from Python: zoos or adapters in, tables and pictures out; the verb does the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from hf_sane.cli.app import app
from hf_sane.workflows.regions import map_regions

OPTIONS = {"label": ["optimizer"], "limit": 12, "seed": 1, "plots": False}


@pytest.fixture(scope="module")
def regions(tiny_zoo):
    return map_regions(tiny_zoo, **OPTIONS)


def test_zoos_are_mapped(regions):
    measured = regions.record.results["weights"]["optimizer"]
    counts = measured["counts"]
    assert sum(counts.values()) == len(regions.maps["weights"].points) == regions.record.data["networks"] > 4
    assert len(counts) > 1
    distances = regions.maps["weights"].distances()
    labels = regions.maps["weights"].labels["optimizer"]
    between = [distances[i, j] for i in range(len(labels)) for j in range(i) if labels[i] != labels[j]]
    assert measured["distances"]["mean_between"] == pytest.approx(torch.stack(between).mean().item())
    first, header, *rows = str(regions).splitlines()
    assert first == "weights, optimizer: mean euclidean distance"
    assert header.split() == ["optimizer", "networks", *counts]
    assert [row.split()[:2] for row in rows[: len(counts)]] == [[name, str(count)] for name, count in counts.items()]
    assert f"ratio {measured['distances']['ratio']:.3f}" in str(regions)


def test_the_verb_takes_the_same_road(regions, tiny_zoo_folder, tmp_path):
    arguments = ["regions", "--zoo", str(tiny_zoo_folder), "--label", "optimizer", "--limit", "12", "--seed", "1"]
    told = CliRunner().invoke(
        app, [*arguments, "--no-plots", "--out", str(tmp_path / "out"), "--json"], catch_exceptions=False
    )
    assert json.loads(told.stdout) == json.loads(regions.to_json()) | {"output": str(tmp_path / "out")}
    assert "--out is now --output" in told.stderr
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved["arguments"] == {**regions.record.arguments, "zoos": [str(tiny_zoo_folder)]}


def test_adapters_are_given_by_label(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for index in range(4):
        factors = {"unet:0:down": torch.randn(2, 6, generator=generator), "unet:0:up": torch.randn(5, 2)}
        save_file(factors, tmp_path / f"{index}.safetensors")
    paths = [str(tmp_path / f"{index}.safetensors") for index in range(4)]
    found = map_regions({"cats": paths[:2], "dogs": paths[2:]}, method="pca")
    assert found.levels == ["label"]
    assert found.record.arguments["metric"] == "cosine"
    assert found.record.results["distances"] == found.maps["weights"].distances("cosine").tolist()
    found.save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= {"map.png", "run.json"}
    few = map_regions({"cats": paths[0], "dogs": Path(paths[2])})
    assert list(few.maps["weights"].labels["label"]) == ["cats", "dogs"]
    assert few.record.arguments["adapters"] == [f"cats={paths[0]}", f"dogs={paths[2]}"]
    assert few.notes == ["no map: it needs at least 4 networks"]
    assert "no regions, since every label has only one network; distances (cosine)" in str(few)


def test_a_zoo_comes_once(tiny_zoo, tiny_zoo_folder):
    with pytest.raises(ValueError, match="expected different zoos, got"):
        map_regions([tiny_zoo, tiny_zoo_folder], plots=False)
