"""Which file of a folder or repository is read, and what is said where none is."""

import json

import pytest
import torch
from safetensors.torch import save

from hf_sane.tokenization._checkpoints import CheckpointSource, load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.tokenization._weight_files import choose_weights

TENSORS = {"w": torch.arange(6.0).reshape(2, 3)}
HALF = {"w": TENSORS["w"].half()}


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    ("files", "options", "chosen"),
    [
        (["model.safetensors", "adapter_model.safetensors", "x.safetensors"], {}, "model.safetensors"),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], {}, "model.safetensors.index.json"),
        (["policy.safetensors", "README.md"], {}, "policy.safetensors"),
        (["x.safetensors", "x.fp16.safetensors"], {}, "x.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], {"variant": "fp16"}, "model.fp16.safetensors"),
        (["x.bf16.safetensors"], {"variant": "bf16"}, "x.bf16.safetensors"),
        (["model.safetensors.index.fp16.json"], {"variant": "fp16"}, "model.safetensors.index.fp16.json"),
        (["a/model.safetensors", "model.safetensors"], {"subfolder": "a"}, "a/model.safetensors"),
        (["a/b/diffusion_pytorch_model.fp16.safetensors"], {"subfolder": "a/b/", "variant": "fp16"}, None),
    ],
)
def test_names_that_are_known(files, options, chosen, local):
    assert choose_weights("org/x", files, local=local, **options) == (chosen or files[0])


@pytest.mark.parametrize(
    ("files", "options", "local", "said"),
    [
        (
            ["model.fp16.safetensors"],
            {},
            False,
            "org/x holds no safetensors; it holds model.fp16.safetensors: choose with --variant fp16 (variant=)",
        ),
        (
            ["model.safetensors"],
            {"variant": "fp16"},
            False,
            "org/x holds no safetensors of the variant fp16; it holds model.safetensors: leave the variant out",
        ),
        (
            ["unet/model.safetensors", "vae/model.safetensors", "model_index.json"],
            {},
            False,
            "it holds weights in unet, vae: choose one with --subfolder unet (subfolder=)",
        ),
        (["my model/model.safetensors"], {}, True, "choose one with --subfolder 'my model' (subfolder=)"),
        (["zoo.json", "README.md"], {}, True, "org/x holds no safetensors; it is a zoo of networks: pass it as a zoo"),
        (
            ["a/b/model.safetensors"],
            {"subfolder": "a"},
            True,
            "org/x holds no safetensors in its folder a; it holds weights in b: choose one with --subfolder a/b",
        ),
        (["pytorch_model.bin"], {}, True, "it holds pytorch_model.bin, in PyTorch's format: pass the file itself"),
        (
            ["pytorch_model.bin"],
            {},
            False,
            "not downloaded, since it could run code; ask its author for safetensors, or download",
        ),
        (["checkpoint.pth.tar"], {}, True, "it holds checkpoint.pth.tar, in PyTorch's format: pass the file itself"),
        (
            ["model.gguf", "README.md"],
            {},
            False,
            "it holds model.gguf, which cannot be read: use safetensors, or convert the file",
        ),
        (
            ["a.safetensors", "b.safetensors"],
            {},
            True,
            "org/x holds 2 safetensors files and none of model.safetensors, adapter_model.safetensors, "
            "diffusion_pytorch_model.safetensors; pass the file itself: a.safetensors, b.safetensors",
        ),
        (["README.md", "config.json"], {}, False, "org/x holds no safetensors; it holds README.md, config.json"),
        ([], {}, False, "org/x holds no safetensors; it holds no files"),
        (list("abcdefg"), {}, False, "it holds a, b, c and 4 more"),
    ],
)
def test_what_is_there_is_named_in_one_line(files, options, local, said):
    with pytest.raises(FileNotFoundError) as caught:
        choose_weights("org/x", files, local=local, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(params=["folder", "hub"])
def place(request, tmp_path, local_hub):
    """A source with every kind of file, on this machine (a folder with a space) and on the Hub."""
    part = "model-00001-of-00001.safetensors"
    files = {
        "model.fp16.safetensors": save(HALF),
        "unet/model.safetensors": save(TENSORS),
        "vae/deep/model.safetensors.index.json": json.dumps({"weight_map": {"w": part}}).encode(),
        f"vae/deep/{part}": save(TENSORS),
        "pytorch_model.bin": b"",
    }
    if request.param == "hub":
        local_hub.storage.add_files("models", "org/parts", files)
        return "org/parts"
    for name, content in files.items():
        path = tmp_path / "a folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(tmp_path / "a folder")


@pytest.mark.parametrize("read", [load_state_dict, read_meta_state_dict, open_checkpoint])
def test_a_folder_and_a_repository_are_read_alike(place, read):
    assert read(CheckpointSource(place, variant="fp16"))["w"].dtype == torch.float16
    assert read(CheckpointSource(place, subfolder="unet"))["w"].shape == (2, 3)
    assert read(CheckpointSource(place, subfolder="vae/deep"))["w"].shape == (2, 3)
    with pytest.raises(FileNotFoundError, match="it holds model.fp16.safetensors: choose with --variant fp16"):
        read(place)
    with pytest.raises(FileNotFoundError, match="holds no safetensors in its folder nothing; it holds no files"):
        read(CheckpointSource(place, subfolder="nothing"))
