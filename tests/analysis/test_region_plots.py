"""Pictures of regions."""

import matplotlib.image
import pytest
import torch

from hf_sane.analysis._region_plots import plot_maps, plot_scores
from hf_sane.analysis._region_results import RegionScores


def test_maps_side_by_side(tmp_path):
    points = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = ["a", "b"] * 3
    plot_maps({"weights": (points, labels)}, tmp_path / "one.png")
    plot_maps({f"map {i}": (points, [str(j) for j in range(6)]) for i in range(4)}, tmp_path / "four.png")
    plot_maps({"many": (torch.randn(15, 2), [str(i) for i in range(15)])}, tmp_path / "many.png")
    one, four = (matplotlib.image.imread(tmp_path / f"{name}.png").shape for name in ("one", "four"))
    assert four[0] > 1.5 * one[0]
    assert four[1] > 2 * one[1]


def test_scores_of_regions(tmp_path):
    scores = RegionScores(torch.rand(5), torch.rand(3), torch.rand(3), torch.empty(0))
    plot_scores({"digits": scores, "clothes": scores}, tmp_path / "scores.png")
    assert matplotlib.image.imread(tmp_path / "scores.png").shape[0] > 200


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="expected at least one map to draw, got none"):
        plot_maps({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"weights: expected coordinates \[2, 2\], got \[3, 2\]"):
        plot_maps({"weights": (torch.zeros(3, 2), ["a", "b"])}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected at most 20 labels to draw, got 21; choose a coarser level"):
        plot_maps({"weights": (torch.zeros(21, 2), [str(i) for i in range(21)])}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected the scores of at least one region, got none"):
        plot_scores({}, tmp_path / "x.png")
