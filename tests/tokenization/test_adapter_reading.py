"""LoRA adapters of every style, read as factors."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._adapters import Adapter

FIRST, SECOND = torch.arange(12.0).reshape(2, 6), torch.arange(10.0).reshape(5, 2) - 4
STYLES = {
    "diffusers": ("down.attn1.processor.to_q_lora.down.weight", "down.attn1.processor.to_q_lora.up.weight"),
    "cloneofsimo": ("unet:3:down", "unet:3:up"),
    "kohya": ("lora_unet_down_to_q.lora_down.weight", "lora_unet_down_to_q.lora_up.weight"),
    "peft": ("unet.down.to_q.lora_A.weight", "unet.down.to_q.lora_B.weight"),
}
MODULES = {
    "diffusers": "down.attn1.processor.to_q",
    "cloneofsimo": "unet:3",
    "kohya": "lora_unet_down_to_q",
    "peft": "unet.down.to_q",
}


def write(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loose_files(style, dtype, tmp_path):
    down, up = STYLES[style]
    path = write(
        tmp_path / "adapter.safetensors", {down: FIRST.to(dtype), up: SECOND.to(dtype), "<s1>": torch.ones(3)}
    )
    (module, (first, second)), *rest = open_factors(path).items()
    assert module == MODULES[style]
    assert not rest
    assert second.dtype == torch.float32
    assert torch.equal(second @ first.float(), SECOND @ FIRST)


def test_a_stated_alpha_scales(tmp_path):
    down, up = STYLES["kohya"]
    tensors = {down: FIRST, up: SECOND, "lora_unet_down_to_q.alpha": torch.tensor(6.0)}
    first, second = open_factors(write(tmp_path / "a.safetensors", tensors))["lora_unet_down_to_q"]
    assert torch.equal(second @ first, 3 * SECOND @ FIRST)


@pytest.mark.parametrize(
    "name",
    ["lora_mid.weight", "hada_w1_a", "lokr_w2", "oft_blocks", "diff", "diff_b", "dora_scale", "lora_B.bias", "w_norm"],
)
@pytest.mark.parametrize("style", STYLES)
def test_tensors_beside_the_factors_are_refused_by_name(style, name, tmp_path):
    down, up = STYLES[style]
    tensors = {down: FIRST, up: SECOND, f"{MODULES[style]}.{name}": torch.ones(3)}
    with pytest.raises(ValueError, match=rf"1 tensors beside LoRA factors and their alphas, such as \['.*{name}'\]"):
        open_factors(write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("alpha", [torch.tensor(torch.nan), torch.ones(2)])
def test_a_scale_is_one_finite_number(alpha, tmp_path):
    down, up = STYLES["kohya"]
    tensors = {down: FIRST, up: SECOND, "lora_unet_down_to_q.alpha": alpha}
    with pytest.raises(ValueError, match="expected one finite number as 'lora_unet_down_to_q.alpha'"):
        open_factors(write(tmp_path / "a.safetensors", tensors))


def test_folders_of_peft_know_their_scale(tmp_path):
    write(
        tmp_path / "adapter_model.safetensors",
        {f"base_model.model.to_q.lora_{side}.weight": tensor for side, tensor in (("A", FIRST), ("B", SECOND))},
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    first, second = open_factors(tmp_path)["to_q"]
    assert torch.equal(second @ first, 4 * SECOND @ FIRST)


def test_what_is_no_adapter_is_refused(tmp_path):
    down, up = STYLES["diffusers"]
    with pytest.raises(ValueError, match=r"got no factors .*, but \['weight'\]; pass a file or"):
        open_factors(write(tmp_path / "a.safetensors", {"weight": FIRST}))
    with pytest.raises(ValueError, match="lacks one of the factors of .*; save the adapter again"):
        open_factors(write(tmp_path / "b.safetensors", {down: FIRST}))
    with pytest.raises(ValueError, match=r"factors of .* do not fit: \[2, 6\], \[2, 5\]; expected"):
        open_factors(write(tmp_path / "c.safetensors", {down: FIRST, up: SECOND.mT}))
    with pytest.raises(ValueError, match="is not finite .* leave that adapter out"):
        open_factors(write(tmp_path / "d.safetensors", {down: FIRST * torch.nan, up: SECOND}))
    with pytest.raises(FileNotFoundError):
        open_factors(tmp_path / "missing.safetensors")


def test_a_factor_under_two_names_is_refused(tmp_path):
    names = [f"q.{side}.weight" for side in ("lora_down", "lora_up", "lora_A", "lora_B")]
    tensors = dict(zip(names, (FIRST, SECOND, FIRST.clone(), 3 * SECOND), strict=True))
    with pytest.raises(
        ValueError, match=r"holds the same factor twice, as 'q.lora_\w+.weight' and 'q.lora_\w+.weight'"
    ):
        open_factors(write(tmp_path / "twice.safetensors", tensors))
    stored = {
        f"{prefix}q.lora_{side}.weight": t.clone()
        for prefix in ("", "base_model.model.")
        for side, t in zip("AB", (FIRST, SECOND), strict=True)
    }
    config = {"peft_type": "LORA", "r": len(FIRST), "lora_alpha": 1}
    with pytest.raises(ValueError, match=r"holds the same factor twice, as 'q.lora_A.weight' and 'base_model.model.q"):
        _ = Adapter("twice", stored, config).modules


# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_adapters_on_the_hub(tmp_path, local_hub):
    folder = tmp_path / "adapter"
    folder.mkdir()
    test_folders_of_peft_know_their_scale(folder)
    api = HfApi()
    api.create_repo("someone/adapter")
    api.upload_folder(repo_id="someone/adapter", folder_path=folder)
    first, second = open_factors("someone/adapter")["to_q"]
    assert torch.equal(second @ first, 4 * SECOND @ FIRST)
    with pytest.raises(FileNotFoundError, match="no such file or folder, and no such repository on the Hub"):
        open_factors("someone/nothing")
    api.create_repo("someone/else")
    with pytest.raises(FileNotFoundError, match="someone/else holds no adapter_config.json; expected an adapter"):
        open_factors("someone/else")
