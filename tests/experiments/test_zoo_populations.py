"""Spectra over a zoo: through the training of a run, and against accuracy."""

import matplotlib.image
import numpy as np
import pytest
from scipy.stats import kendalltau
from zoo_populations import (
    SUMMARIES,
    analyze_networks,
    plot_correlations,
    plot_training,
    spectra_against_property,
    spectra_through_training,
)

from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum

SMALL = SpectrumSettings(min_values=5, min_tail=2, num_bootstrap=0)


def test_alpha_through_the_training_of_one_run(tiny_zoo, tmp_path):
    split = tiny_zoo.splits["train"]
    run_id = split.run_ids[-1]
    curves = spectra_through_training(split, run_id, SMALL)
    assert curves["epoch"] == [0, 3, 6, 12]
    members = [i for i, name in enumerate(split.run_ids) if name == run_id]
    for i in members:
        place = curves["epoch"].index(split.column("epoch")[i])
        report = analyze_spectrum(split.state_dict(i), SMALL)
        assert curves["test_accuracy"][place] == split.column("test_accuracy")[i]
        for name, alphas in curves["alpha"].items():
            assert alphas[place] == report[name].alpha
            assert curves["phase"][name][place] == report[name].phase
    plot_training(curves, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000


def test_correlation_with_accuracy_over_runs(tiny_zoo, tmp_path):
    splits = [split.final_epochs() for split in tiny_zoo.splits.values()]
    found = spectra_against_property(splits, SMALL)
    assert found["networks"] == 12 == len(found["test_accuracy"])
    first = analyze_spectrum(splits[0].state_dict(0), SMALL).summary()
    assert found["summaries"]["mean_alpha"][0] == first["mean_alpha"]
    norms = found["summaries"]["mean_log_frobenius_norm"]
    expected = kendalltau(norms, found["test_accuracy"])[0]
    assert found["correlation"]["mean_log_frobenius_norm"]["kendall_tau"] == pytest.approx(expected)
    assert found["correlation"]["mean_log_frobenius_norm"]["pearson"] == pytest.approx(
        np.corrcoef(norms, found["test_accuracy"])[0, 1]
    )
    plot_correlations(found, tmp_path / "correlation.png")
    assert (tmp_path / "correlation.png").stat().st_size > 1000


def test_constants_have_no_correlation_and_small_layers_no_alpha(tiny_zoo):
    split = tiny_zoo.splits["train"].final_epochs()
    found = spectra_against_property([split], column="epoch")
    assert "mean_alpha" not in found["summaries"]
    assert found["correlation"]["mean_stable_rank"] == {"pearson": None, "kendall_tau": None}


def test_what_cannot_be_followed_is_refused(tiny_zoo):
    split = tiny_zoo.splits["train"]
    with pytest.raises(KeyError, match="no run 'none' in this split; its runs are"):
        spectra_through_training(split, "none")
    with pytest.raises(ValueError, match="no layer of run .* has an alpha at every epoch; lower min_values"):
        spectra_through_training(split, split.run_ids[0])
    with pytest.raises(ValueError, match="expected at least three networks to correlate over, got 2"):
        spectra_against_property([split.select([0]), split.select([1])])
    assert len(list(analyze_networks(split.select([0, 1])))) == 2


def test_correlations_need_a_summary(tmp_path):
    found = {"networks": 3, "test_accuracy": [0.1, 0.2, 0.3], "summaries": {}, "correlation": {}}
    with pytest.raises(
        ValueError, match="none of mean_alpha, .* is known for every network; lower min_values, or min_tail"
    ):
        plot_correlations(found, tmp_path / "x.png")
    found["summaries"] = {SUMMARIES[0]: [2.0, 2.0, 2.0]}
    found["correlation"] = {SUMMARIES[0]: {"pearson": None, "kendall_tau": None}}
    plot_correlations(found, tmp_path / "x.png")
    assert matplotlib.image.imread(tmp_path / "x.png").shape[0] > 100
