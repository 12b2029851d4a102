"""The report: rows, tables, JSON, summaries and densities say the same."""

import json

import numpy as np
import pytest
import torch

from hf_sane.analysis._report import known
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum


@pytest.fixture(scope="module")
def report():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(60, 80, generator=generator),
        "a.bias": torch.ones(60),
        "b.weight": torch.randn(70, 60, generator=generator),
        "c.weight": torch.randn(5, 70, generator=generator),
        "d.weight": torch.randn(64, 10, generator=generator) @ torch.randn(10, 70, generator=generator),
    }
    return analyze_spectrum(tensors, SpectrumSettings(num_bootstrap=10))


def test_rows_and_frame_are_the_layers(report):
    rows, frame = report.rows(), report.to_frame()
    assert [row["name"] for row in rows] == ["a.weight", "b.weight", "c.weight", "d.weight"]
    assert list(frame.columns) == list(rows[0])
    assert "eigenvalues" not in frame
    assert frame.alpha[1] == report["b.weight"].alpha
    assert len(report) == len(frame) == 4


def test_summary_by_hand(report):
    found = report.summary()
    assert (found["layers"], found["skipped"], found["layers_with_alpha"]) == (4, 1, 2)
    alphas = [layer.alpha for layer in report.layers if layer.alpha is not None]
    assert found["mean_alpha"] == pytest.approx(np.mean(alphas))
    assert found["mean_stable_rank"] == pytest.approx(np.mean([layer.stable_rank for layer in report.layers]))
    assert found["phases"] == {"random-like": 2, "too small": 1, "rank-collapse": 1}


def test_a_summary_without_alphas_has_none():
    assert analyze_spectrum({"w": torch.randn(4, 4)}).summary()["mean_alpha"] is None


@pytest.mark.parametrize("eigenvalues", [False, True])
def test_json_holds_everything(report, eigenvalues, tmp_path):
    path = report.save_json(tmp_path / "new" / "spectrum.json", eigenvalues=eigenvalues)
    content = json.loads(path.read_text())
    assert content["source"] == "state dict"
    assert content["settings"]["num_bootstrap"] == 10
    assert content["skipped"] == {"a.bias": "one-dimensional"}
    assert content["summary"] == report.summary()
    for row, layer in zip(content["layers"], report.layers, strict=True):
        assert row["alpha"] == layer.alpha
        assert tuple(row["shape"]) == layer.shape
        assert row.get("eigenvalues") == (layer.eigenvalues.tolist() if eigenvalues else None)


@pytest.mark.parametrize("logarithmic", [True, False])
def test_density_integrates_to_the_positive_share(report, logarithmic):
    for name, share in (("a.weight", 1), ("d.weight", 10 / 64)):
        edges, density = report[name].histogram(30, logarithmic=logarithmic)
        assert len(edges) == 31
        assert (density * np.diff(edges)).sum() == pytest.approx(share)


def test_density_of_equal_eigenvalues_is_one_bin():
    layer = analyze_spectrum({"w": torch.eye(4)}).layers[0]
    edges, density = layer.histogram(5)
    assert (density > 0).sum() == 1
    assert (density * np.diff(edges)).sum() == pytest.approx(1)


def test_unknown_layers_are_named(report):
    with pytest.raises(KeyError, match="no layer 'e' in this report; its layers are a.weight, b.weight"):
        report["e"]


def test_nan_is_none():
    assert known(float("nan")) is None
    assert known(np.float64(0.5)) == 0.5
