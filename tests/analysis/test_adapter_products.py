"""Adapters in the analysis of spectra: the change of each weight, whatever the gauge of its factors."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum

QUICK = SpectrumSettings(num_bootstrap=0)
DOWN, UP = "lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight"


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 40, generator=generator), torch.randn(60, 3, generator=generator)


def spectrum(layer):
    return layer.eigenvalues[: layer.rank]


def test_a_peft_folder_gives_the_scaled_product(factors, tmp_path):
    first, second = factors
    names = {f"base_model.model.q.lora_{side}.weight": tensor for side, tensor in zip("AB", factors, strict=True)}
    save_file(names, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 12}))
    report = analyze_spectrum(tmp_path, QUICK)
    (layer,) = report.layers
    expected = np.linalg.svd((4 * second @ first).double().numpy())[1][:3] ** 2
    assert (layer.name, layer.shape, layer.rank, layer.reshaping) == ("q", (60, 40), 3, "product")
    assert spectrum(layer) == pytest.approx(expected, rel=1e-5)
    assert (layer.alpha, layer.phase, layer.shown_phase) == (None, None, "low-rank product")
    assert layer.alpha_left_out == "the rank of a product is limited by its factors: no power law, bulk or phase"
    assert not report.skipped
    assert report.summary()["phases"] == {"low-rank product": 1}
    (of_file,) = analyze_spectrum(tmp_path / "adapter_model.safetensors", QUICK).layers
    assert of_file.row() == layer.row()


# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_a_repository_with_an_adapter_gives_the_scaled_product(factors, tmp_path, local_hub):
    test_a_peft_folder_gives_the_scaled_product(factors, tmp_path)
    api = HfApi()
    api.create_repo("someone/adapter")
    api.upload_folder(repo_id="someone/adapter", folder_path=tmp_path, allow_patterns="adapter_*")
    (here,), (there,) = (analyze_spectrum(source, QUICK).layers for source in (tmp_path, "someone/adapter@main"))
    assert (there.row(), there.warnings) == (here.row(), ("rank 3 of 40", here.alpha_left_out))


def test_a_configuration_beside_a_loose_file_is_not_taken_for_its_own(factors, tmp_path):
    save_file(dict(zip((DOWN, UP), factors, strict=True)), tmp_path / "other.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 12}))
    (layer,) = analyze_spectrum(tmp_path / "other.safetensors", QUICK).layers
    assert spectrum(layer) == pytest.approx(np.linalg.svd((factors[1] @ factors[0]).numpy())[1][:3] ** 2, rel=1e-4)
    assert "the file does not give alpha / r: norms are those of B A alone" in layer.warnings


def test_the_gauge_of_the_factors_does_not_matter(factors, tmp_path):
    first, second = factors
    mixing = torch.tensor([[2.0, 1, 0], [0, 1, 3], [1, 0, 1]])
    spectra = []
    for name, pair in (("a", (first, second)), ("b", (mixing @ first, second @ mixing.inverse()))):
        save_file(dict(zip((DOWN, UP), pair, strict=True)), tmp_path / f"{name}.safetensors")
        spectra.append(spectrum(analyze_spectrum(tmp_path / f"{name}.safetensors", QUICK).layers[0]))
    assert spectra[0] == pytest.approx(spectra[1], rel=1e-4)


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_loose_file_without_alpha_says_that_its_scale_is_unknown(factors, alpha, tmp_path):
    tensors = dict(zip((DOWN, UP), factors, strict=True))
    if alpha is not None:
        tensors["lora_unet_q.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "adapter.safetensors")
    (layer,) = analyze_spectrum(tmp_path / "adapter.safetensors", QUICK).layers
    expected = np.linalg.svd(((alpha or 3) / 3 * factors[1] @ factors[0]).double().numpy())[1][:3] ** 2
    assert spectrum(layer) == pytest.approx(expected, rel=1e-5)
    unknown = "the file does not give alpha / r: norms are those of B A alone"
    assert (unknown in layer.warnings) == (alpha is None)


def test_factors_without_partners_are_skipped_with_the_reason(factors, tmp_path):
    save_file({DOWN: factors[0], "head.weight": torch.randn(6, 5)}, tmp_path / "adapter.safetensors")
    report = analyze_spectrum(tmp_path / "adapter.safetensors", QUICK)
    assert [layer.name for layer in report.layers] == ["head.weight"]
    assert "whose own spectrum means nothing" in report.skipped[DOWN]
    assert "; no product could be formed: " in report.skipped[DOWN]


def test_a_layer_that_the_adapter_leaves_alone_is_skipped(factors, tmp_path):
    other = [name.replace("_q.", "_v.") for name in (DOWN, UP)]
    tensors = {DOWN: factors[0].clone(), UP: torch.zeros(60, 3), **dict(zip(other, factors, strict=True))}
    save_file(tensors, tmp_path / "fresh.safetensors")
    report = analyze_spectrum(tmp_path / "fresh.safetensors", QUICK)
    assert report.skipped == {"lora_unet_q": "all weights are zero"}
    assert [layer.name for layer in report.layers] == ["lora_unet_v"]


def test_nan_in_a_factor_is_named(factors, tmp_path):
    broken = factors[1].clone()
    broken[0, 0] = torch.nan
    save_file({DOWN: factors[0], UP: broken}, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=rf"no matrix to analyse among 2 tensors .*{UP}: NaN or infinite weights"):
        analyze_spectrum(tmp_path / "broken.safetensors", QUICK)


def test_one_reason_of_all_factors_is_said_once(tmp_path):
    tensors = {f"layer_{i}.lora_{side}.weight": torch.ones(4, 4) for i in range(9) for side in ("down", "up")}
    save_file({**tensors, "layer_0.dora_scale": torch.ones(4, 1)}, tmp_path / "dora.safetensors")
    with pytest.raises(ValueError, match="no matrix to analyse among 19 tensors") as caught:
        analyze_spectrum(tmp_path / "dora.safetensors")
    assert str(caught.value).count("a factor of a low-rank product") == 1
    assert "layer_0.lora_down.weight, layer_0.lora_up.weight, layer_1.lora_down.weight and 15 more: a factor" in str(
        caught.value
    )
