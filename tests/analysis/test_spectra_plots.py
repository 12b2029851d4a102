"""Pictures are drawn for every kind of report."""

import matplotlib.image
import numpy as np
import torch
from torch import nn

from hf_sane.analysis import _plots as plots
from hf_sane.analysis._pictures import collecting_pictures
from hf_sane.analysis._region_plots import plot_properties
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum


def shape_of(path):
    return matplotlib.image.imread(path).shape


def test_densities_and_depth_of_any_report(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "random": torch.randn(60, 60, generator=generator),
        "heavy": torch.rand(60, 80, generator=generator) ** -1.5,
        "small": torch.randn(3, 4, generator=generator),
        "flat": torch.eye(60),
        "low": torch.randn(80, 55, generator=generator) @ torch.randn(55, 70, generator=generator),
        "partial": torch.randn(120, 130, generator=generator),
    }
    settings = SpectrumSettings(num_bootstrap=10, method="lanczos", exact_up_to=100, num_values=60)
    report = analyze_spectrum(tensors, settings)
    plots.plot_densities(report, tmp_path / "densities.png")
    plots.plot_depth(report, tmp_path / "depth.png")
    plots.plot_depth(report, tmp_path / "beside.png", spread={"random": 0.3, "heavy": 0.2})
    assert shape_of(tmp_path / "densities.png")[1] > 500
    assert shape_of(tmp_path / "beside.png")[0] > shape_of(tmp_path / "depth.png")[0]


def test_deep_networks_are_thinned_out(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MAX_PANELS", 4)
    report = analyze_spectrum(nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)]))
    plots.plot_densities(report, tmp_path / "densities.png")
    assert shape_of(tmp_path / "densities.png")[0] < 400


def test_one_layer_is_enough(tmp_path):
    report = analyze_spectrum(nn.Linear(60, 60), SpectrumSettings(num_bootstrap=0))
    plots.plot_densities(report, tmp_path / "densities.png")
    plots.plot_depth(report, tmp_path / "depth.png")
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_was_measured_has_a_panel_and_a_legend(tmp_path):
    small = analyze_spectrum(nn.Sequential(*[nn.Linear(4, 4) for _ in range(60)]))
    with collecting_pictures(files=False) as pictures:
        plots.plot_depth(small, tmp_path / "depth.png")
        plots.plot_densities(small, tmp_path / "densities.png")
        plots.plot_distances([(f"{index}.weight", 1.0) for index in range(60)], tmp_path / "distances.png")
    depth, densities, distances = (picture.svg for picture in pictures)
    assert ">stable rank<" in depth
    assert "alpha" not in depth
    assert "power law" not in densities
    assert "Marchenko" not in densities
    for svg in (depth, distances):  # of 60 names, 30 are legible
        assert ">58.weight<" in svg
        assert ">59.weight<" not in svg
        assert "one of 2 is named" in svg


def test_names_in_any_script_are_drawn_without_warnings(tmp_path):
    with collecting_pictures() as pictures:
        plot_properties(np.eye(3)[:, :2], {"mean by 学习率": [1.0, 2.0, 3.0]}, tmp_path / "map.png")
    assert "mean by 学习率" in pictures[0].svg
    assert matplotlib.image.imread(tmp_path / "map.png").size
