"""The analysis of a network: against the equations, on matrices whose spectrum is known, and on broken input."""

import json
import math
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from scipy import stats
from tiny_models import tiny_model
from torch import nn

from hf_sane.analysis import _spectral as spectral
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.architectures.presets import build_model, cifar_resnet
from hf_sane.core._marchenko_pastur import edges

QUICK = SpectrumSettings(num_bootstrap=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=generator(seed))


def orthogonal(size, count, seed):
    return torch.linalg.qr(gaussian(size, count, seed).double())[0]


def with_eigenvalues(eigenvalues, rows, seed=0):
    """A matrix `[rows, n]` whose `W^T W` has these eigenvalues."""
    count = len(eigenvalues)
    return orthogonal(rows, count, seed) * eigenvalues.sqrt() @ orthogonal(count, count, seed + 1).T


def analyze(weight, settings=QUICK):
    (layer,) = analyze_spectrum({"w": weight}, settings).layers
    return layer


def test_norms_by_definition():
    weight = gaussian(70, 90)
    layer = analyze(weight)
    matrix = weight.double().numpy()
    values = np.linalg.svd(matrix)[1]
    assert layer.eigenvalues == pytest.approx(values**2, rel=1e-8)
    assert (layer.rows, layer.columns, layer.rank, layer.num_matrices) == (90, 70, 70, 1)
    assert layer.log_frobenius_norm == pytest.approx(2 * math.log10(np.linalg.norm(matrix)))
    assert layer.log_spectral_norm == pytest.approx(2 * math.log10(np.linalg.norm(matrix, 2)))
    assert layer.stable_rank == pytest.approx((np.linalg.norm(matrix) / np.linalg.norm(matrix, 2)) ** 2)
    assert layer.alpha_weighted == pytest.approx(layer.alpha * math.log10(values[0] ** 2))
    assert layer.log_alpha_norm == pytest.approx(math.log10((values ** (2 * layer.alpha)).sum()))
    tail = values[values**2 >= layer.xmin * (1 - 1e-12)] ** 2
    assert layer.tail_size == len(tail)
    assert layer.alpha == pytest.approx(1 + len(tail) / np.log(tail / tail.min()).sum())


@pytest.mark.parametrize("alpha", [2.0, 3.0, 4.0])
def test_alpha_of_matrices_with_known_tails(alpha):
    levels = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    weight = with_eigenvalues(levels ** (-1 / (alpha - 1)), 640).float()
    layer = analyze(weight)
    assert layer.alpha == pytest.approx(alpha, abs=0.1)
    assert layer.phase == "heavy-tailed"
    assert analyze(7 * weight.T).alpha == pytest.approx(layer.alpha, abs=1e-3)


def test_edges_within_one_percent_and_random_matrices_look_random():
    layer = analyze(0.02 * gaussian(800, 400))
    low, high = edges(800, 400, 0.02)
    assert layer.lower_edge == pytest.approx(low, rel=0.01)
    assert layer.upper_edge == pytest.approx(high, rel=0.01)
    assert layer.sigma == pytest.approx(0.02, rel=0.005)
    assert (layer.phase, layer.num_spikes) == ("random-like", 0)
    assert "0 of 400 eigenvalues beyond the bulk" in layer.evidence


def test_spikes_make_another_phase():
    weight = gaussian(300, 200) + 60 * (orthogonal(300, 3, 1) @ orthogonal(200, 3, 2).T).float()
    layer = analyze(weight)
    assert (layer.phase, layer.num_spikes) == ("bulk+spikes", 3)
    assert layer.spike_threshold > layer.upper_edge


def test_rank_deficient_matrices_have_collapsed():
    weight = gaussian(120, 60) @ gaussian(60, 200, 1)
    layer = analyze(weight)
    assert (layer.phase, layer.rank) == ("rank-collapse", 60)
    assert "rank 60 of 120" in layer.warnings
    assert layer.alpha is not None
    small = analyze(gaussian(120, 5) @ gaussian(5, 200, 1))
    assert (small.phase, small.rank, small.alpha) == ("rank-collapse", 5, None)


def test_dead_rows_and_columns_are_no_part_of_the_bulk():
    weight = gaussian(400, 300)
    padded = torch.zeros(420, 330)
    padded[:400, :300] = weight
    whole, dead = analyze(weight), analyze(padded)
    assert dead.rank == 300
    assert dead.sigma == pytest.approx(whole.sigma, rel=1e-6)
    assert dead.num_spikes == 0


def test_small_layers_say_so():
    layer = analyze(gaussian(30, 200))
    assert (layer.alpha, layer.num_spikes, layer.phase, layer.sigma) == (None, None, None, None)
    assert layer.warnings == ("30 eigenvalues are too few for a power law, a bulk or a phase (min_values: 50)",)
    assert layer.stable_rank > 1
    assert analyze(gaussian(30, 200), SpectrumSettings(min_values=30, num_bootstrap=0)).alpha is not None


def test_equal_eigenvalues_have_no_tail():
    layer = analyze(torch.eye(60, 70))
    assert (layer.alpha, layer.tail_size) == (None, 0)
    assert layer.alpha_left_out in layer.warnings
    assert layer.alpha_left_out.startswith("the eigenvalues of the tail differ by less than a tenth")
    assert layer.phase == "undecided"
    assert "no tail" in layer.evidence


def test_bootstrap_encloses_alpha_and_repeats():
    weight = with_eigenvalues(torch.rand(300, generator=generator(), dtype=torch.float64) ** -0.5, 320)
    first, second = (analyze(weight, SpectrumSettings(num_bootstrap=40)) for _ in range(2))
    assert first.alpha_low < first.alpha < first.alpha_high
    assert (first.alpha_low, first.alpha_high) == (second.alpha_low, second.alpha_high)
    assert analyze(weight).alpha_low is None


def test_pooled_and_sliced_convolutions():
    weight = torch.randn(64, 60, 3, 3, generator=generator())
    settings = {conv: SpectrumSettings(conv=conv, num_bootstrap=0) for conv in ("slices", "pooled", "flatten")}
    slices = analyze_spectrum({"c": weight}, settings["slices"]).layers
    pooled = analyze(weight, settings["pooled"])
    assert len(slices) == 9
    together = np.sort(np.concatenate([layer.eigenvalues for layer in slices]))[::-1]
    assert pooled.eigenvalues == pytest.approx(together)
    assert pooled.sigma == pytest.approx(1, rel=0.02)
    assert (pooled.phase, pooled.num_matrices, pooled.rank) == ("random-like", 9, 540)
    flat = analyze(weight, settings["flatten"])
    assert flat.eigenvalues == pytest.approx(np.linalg.svd(weight.flatten(1).double().numpy())[1] ** 2)
    assert pooled.log_frobenius_norm == pytest.approx(flat.log_frobenius_norm)
    assert pooled.weight_correlation == flat.weight_correlation != slices[0].weight_correlation


@pytest.mark.parametrize(("method", "error"), [("lanczos", 1e-6), ("randomized", 0.02)])
def test_large_layers_by_approximate_methods(method, error):
    """Norms and spikes as from the whole spectrum; the tail too, where it lies among the known eigenvalues."""
    levels = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    weight = with_eigenvalues(levels**-0.7, 500).float()
    exact = analyze(weight)
    settings = SpectrumSettings(method=method, num_values=120, exact_up_to=200, num_bootstrap=0)
    part = analyze(weight, settings)
    assert part.is_partial
    assert (part.rank, part.bulk_distance, part.phase) == (None, None, "undecided")
    assert part.eigenvalues == pytest.approx(exact.eigenvalues[:120], rel=2 * error)
    assert part.log_frobenius_norm == pytest.approx(exact.log_frobenius_norm, abs=1e-6)
    assert part.log_spectral_norm == pytest.approx(exact.log_spectral_norm, abs=1e-6)
    assert part.alpha == pytest.approx(exact.alpha, abs=0.2)
    assert "only the 120 largest of 400 eigenvalues are known" in part.warnings
    assert not analyze(gaussian(200, 300), settings).is_partial  # small enough
    random = analyze(gaussian(300, 400), SpectrumSettings(method=method, exact_up_to=100, num_bootstrap=0))
    assert (random.num_spikes, random.is_partial) == (0, True)


def test_partial_spectra_warn_of_what_they_may_miss():
    levels = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    weight = with_eigenvalues(levels**-2, 300)
    settings = SpectrumSettings(method="lanczos", num_values=20, exact_up_to=100, min_values=10, num_bootstrap=0)
    warnings = analyze(weight, settings).warnings
    assert "all of them are beyond the bulk: there may be more spikes" in warnings
    assert "the tail reaches the smallest of them: it may start below" in warnings


def test_alpha_on_few_eigenvalues_and_poor_tails_are_marked():
    eigenvalues = torch.cat([torch.full((90,), 1.0), torch.linspace(1.01, 1.05, 5), torch.tensor([900.0, 2000, 5e3])])
    assert any("alpha is based on" in text for text in analyze(with_eigenvalues(eigenvalues.double(), 100)).warnings)
    assert "the tail is not close to a power law (see tail_distance)" in analyze(gaussian(100, 100)).warnings


def test_double_precision_keeps_small_singular_values():
    eigenvalues = torch.logspace(0, -20, 60, dtype=torch.float64)
    layer = analyze(with_eigenvalues(eigenvalues, 60))
    assert layer.eigenvalues == pytest.approx(eigenvalues.numpy(), rel=1e-4)
    assert layer.rank == 60


class Watched(Mapping):
    """A checkpoint that notices when two of its tensors are alive."""

    def __init__(self, tensors):
        self.tensors, self.last = tensors, lambda: None

    def __getitem__(self, name):
        assert self.last() is None, f"a tensor is still in memory when {name} is read"
        found = self.tensors[name].clone()
        self.last = weakref.ref(found)
        return found

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


@pytest.mark.parametrize("conv", ["flatten", "slices", "pooled"])
def test_one_layer_in_memory_at_a_time(conv, monkeypatch):
    tensors = {"a": gaussian(60, 60), "b": torch.ones(3), "c": torch.randn(5, 4, 3, 3), "d": gaussian(4, 6)}
    monkeypatch.setattr(spectral, "open_checkpoint", lambda source, revision: Watched(tensors))
    report = analyze_spectrum("anything", SpectrumSettings(conv=conv, num_bootstrap=0))
    assert report["d"].rank == 4


def test_module_state_dict_file_and_shards_agree(tmp_path):
    network = build_model(cifar_resnet(20, width=4))
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    names = list(state)
    weight_map = {name: f"part-{index % 3}.safetensors" for index, name in enumerate(names)}
    (tmp_path / "shards").mkdir()
    for file in set(weight_map.values()):
        save_file({n: state[n] for n in names if weight_map[n] == file}, tmp_path / "shards" / file)
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    reports = [
        analyze_spectrum(s, QUICK) for s in (network, state, tmp_path / "model.safetensors", tmp_path / "shards")
    ]
    for report in reports:
        assert len(report) == 20
        rows = {layer.name: layer.row() for layer in report.layers}
        assert rows == {layer.name: layer.row() for layer in reports[0].layers}
        assert report.skipped == reports[0].skipped
    assert reports[0].source == type(network).__name__
    assert reports[1].source == "state dict"
    assert set(reports[0].skipped.values()) == {"one-dimensional", "int64 values, no weights"}


def test_broken_layers_are_skipped_and_said():
    network = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    with torch.no_grad():
        network[0].weight[3, 4] = torch.nan
    report = analyze_spectrum(network, QUICK)
    assert [layer.name for layer in report.layers] == ["1.weight"]
    assert report.skipped["0.weight"] == "NaN or infinite weights"
    with pytest.raises(KeyError, match="0.weight was skipped: NaN or infinite weights"):
        report["0.weight"]


def test_nothing_to_analyse_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="the state dict: expected a dictionary of tensors.*got an empty dictionary"):
        analyze_spectrum({})
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="empty.safetensors holds no tensors"):
        analyze_spectrum(tmp_path / "empty.safetensors")
    with pytest.raises(
        ValueError, match=r"LayerNorm holds no matrix .* among 2 tensors \(weight, bias: one-dimensional"
    ):
        analyze_spectrum(nn.LayerNorm(4))
    with pytest.raises(ValueError, match=r"no matrix to analyse among 1 tensors \(w: NaN or infinite weights\)"):
        analyze_spectrum({"w": torch.full((3, 3), torch.nan)})
    with pytest.raises(TypeError, match="expected a state dict, module, path or Hub repo id, got int"):
        analyze_spectrum(7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_values": 0}, "expected num_values and exact_up_to >= 1 and correlation_channels >= 2, got 0, 1024"),
        ({"correlation_channels": 1}, "got 128, 1024 and 1"),
        ({"min_values": 2}, "expected min_values >= 3 and num_bootstrap >= 0, got 2 and 100"),
        ({"num_bootstrap": -1}, "got 50 and -1"),
        ({"min_tail": 1}, "expected min_tail >= 2, got 1"),
        ({"spike_level": 1.0}, r"expected spike_level in \(0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SpectrumSettings(**settings)


@pytest.mark.parametrize("settings", [{"conv": "rows"}, {"method": "power"}, {"min_values": 2.5}])
def test_settings_of_another_kind(settings):
    with pytest.raises(StrictDataclassError):
        SpectrumSettings(**settings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_orthogonal_layers_have_no_alpha_and_do_not_count(dtype):
    """Singular values that are one up to rounding give an exponent in the millions by the formula."""
    known = with_eigenvalues(((torch.arange(600, dtype=torch.float64) + 0.5) / 600) ** -0.5, 640).float()
    report = analyze_spectrum({"orthogonal": orthogonal(64, 64, 0).to(dtype), "known": known}, QUICK)
    layer = report["orthogonal"]
    assert (layer.alpha, layer.alpha_weighted, layer.log_alpha_norm, layer.xmin, layer.tail_size) == (None,) * 4 + (0,)
    reason = "the eigenvalues of the tail differ by less than a tenth: they show no power law"
    assert layer.alpha_left_out == reason
    assert reason in layer.warnings
    assert layer.stable_rank == pytest.approx(64, rel=0.01)
    summary = report.summary()
    assert summary["layers_with_alpha"] == 1
    for name in ("alpha", "alpha_weighted", "log_alpha_norm"):
        assert summary[f"mean_{name}"] == getattr(report["known"], name) is not None
    assert summary["mean_alpha"] == pytest.approx(3, abs=0.1)


FEW = torch.cat([torch.full((90,), 1.0), torch.linspace(1.01, 1.05, 5), torch.tensor([900.0, 2000, 5e3])]).double()
ONE_SPIKE = torch.cat([torch.ones(63), torch.tensor([100.0])]).double()


@pytest.mark.parametrize(("eigenvalues", "different"), [(FEW, 3), (ONE_SPIKE, 2)], ids=["few", "one spike"])
def test_an_alpha_of_few_eigenvalues_is_marked_and_left_out_of_means(eigenvalues, different):
    tail = with_eigenvalues(((torch.arange(600, dtype=torch.float64) + 0.5) / 600) ** -1.0, 640)
    report = analyze_spectrum({"few": with_eigenvalues(eigenvalues, 100), "tail": tail}, QUICK)
    few = report["few"]
    assert (
        few.alpha_left_out == f"alpha is based on {different} different eigenvalues: left out of means (min_tail: 10)"
    )
    assert few.alpha_left_out in few.warnings
    assert few.phase != "heavy-tailed"
    assert report["tail"].alpha_left_out is None
    summary = report.summary()
    assert summary["layers_with_alpha"] == 1
    assert summary["mean_alpha"] == report["tail"].alpha == pytest.approx(2, abs=0.1)
    lower = analyze_spectrum(
        {"few": with_eigenvalues(eigenvalues, 100)}, SpectrumSettings(num_bootstrap=0, min_tail=2)
    )
    assert lower.summary()["mean_alpha"] == few.alpha


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_drawn_tails_against_scipy_and_the_truth(alpha, seed):
    """Eigenvalues from a Pareto law: the exponent is within three standard errors and agrees with SciPy."""
    drawn = torch.rand(500, generator=generator(seed), dtype=torch.float64) ** (-1 / (alpha - 1))
    layer = analyze(with_eigenvalues(drawn, 520))
    error = (layer.alpha - 1) / math.sqrt(layer.tail_size)
    assert abs(layer.alpha - alpha) < 3 * error
    tail = layer.eigenvalues[: layer.tail_size]
    shape, _, scale = stats.pareto.fit(tail, floc=0, fscale=layer.xmin)
    assert scale == layer.xmin
    assert layer.alpha == pytest.approx(1 + shape, rel=1e-6)
    below = np.arange(len(tail)) / len(tail)  # `powerlaw` and Clauset's code take the share below a value
    law = stats.pareto.cdf(np.sort(tail), shape, scale=layer.xmin)
    assert layer.tail_distance == pytest.approx(np.abs(law - below).max(), abs=1e-6)


def test_every_expert_of_a_fused_layer_has_a_spectrum():
    weight = torch.randn(16, 64, 128, generator=generator())
    weight[3] = gaussian(64, 1) @ gaussian(1, 128, 1)
    report = analyze_spectrum({"model.layers.0.mlp.experts.gate_up_proj": weight}, QUICK)
    assert len(report) == 16
    ranks = [layer.rank for layer in report.layers]
    assert ranks == [64] * 3 + [1] + [64] * 12
    broken = report["model.layers.0.mlp.experts.gate_up_proj[3]"]
    assert (broken.phase, broken.reshaping, broken.shape) == ("rank-collapse", "expert", (64, 128))
    values = np.linalg.svd(weight[5].double().numpy())[1] ** 2
    assert report["model.layers.0.mlp.experts.gate_up_proj[5]"].eigenvalues == pytest.approx(values, rel=1e-6)


def test_experts_of_a_real_architecture():
    model = tiny_model("mixtral").to_empty(device="cpu")
    for index, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, generator=generator(index))
    report = analyze_spectrum(model.state_dict(), QUICK)
    stacks = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim == 3}
    assert stacks
    found = {layer.name: layer.shape for layer in report.layers}
    for name, tensor in stacks.items():
        assert [found[f"{name}[{index}]"] for index in range(len(tensor))] == [tuple(tensor.shape[1:])] * len(tensor)


@pytest.mark.parametrize("model_type", ["mixtral", "beit", "detr", "bert"])
def test_a_module_and_its_file_have_the_same_spectra(model_type, tmp_path):
    model = tiny_model(model_type).to_empty(device="cpu")
    for index, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, generator=generator(index))
    for buffer in model.buffers():
        buffer.fill_(1)
    model.save_pretrained(tmp_path)
    module, file = (
        {layer.name: layer.eigenvalues.tolist() for layer in analyze_spectrum(source, QUICK).layers}
        for source in (model, tmp_path)
    )
    assert module == file
    assert model_type != "mixtral" or "layers.0.block_sparse_moe.experts.0.w1.weight" in module
