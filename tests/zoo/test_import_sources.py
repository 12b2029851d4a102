"""Which files of a repository are networks, and which folders are repositories."""

import io
import json
import pickle
from pathlib import PurePosixPath

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import save

from hf_sane.zoo.importing._importing import import_zoo
from hf_sane.zoo.importing._settings import ImportSettings
from hf_sane.zoo.importing._sources import find_networks, find_sources
from hf_sane.zoo.importing._trees import open_tree

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.safetensors", "README.md"], ["model.safetensors"]),
        (["model.safetensors", "other.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        ([INDEX, *SHARDS], [INDEX]),
        (["adapter_model.safetensors", "checkpoint-5/adapter_model.safetensors"], ["adapter_model.safetensors"]),
        (["b.safetensors", "sub/a.safetensors"], ["b.safetensors", "sub/a.safetensors"]),
        ([f"sub/{INDEX}", *(f"sub/{name}" for name in SHARDS)], [f"sub/{INDEX}"]),
        (
            ["unet/x.safetensors", "unet/x.fp16.safetensors", "only.fp16.safetensors"],
            ["only.fp16.safetensors", "unet/x.safetensors"],
        ),
    ],
)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_safetensors_come_first(files, expected, allow_pickle):
    assert find_networks(dict.fromkeys(files, 1), [], allow_pickle=allow_pickle) == expected


SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


def test_pickled_shards_are_one_network(tmp_path):
    index = "pytorch_model.bin.index.json"
    files = dict.fromkeys([*SHARDS, index, "training_args.bin"], 1)
    with pytest.raises(ValueError, match="it holds only pickles"):
        find_networks(files, [], allow_pickle=False)
    assert find_networks(files, [], allow_pickle=True) == [index]
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {"a": torch.full((2, 4), 3.0), "b": torch.full((1, 4), 5.0)}
    for file, name in zip(SHARDS, tensors, strict=True):
        torch.save({name: tensors[name]}, folder / file)
    places = dict(zip(tensors, SHARDS, strict=True))
    (folder / index).write_text(json.dumps({"weight_map": places}))
    settings = {"folder": str(folder), "token_dim": 4, "split_shares": [1, 0, 0]}
    with pytest.raises(ValueError, match="it is a pickle, which can run code|it holds only pickles"):
        import_zoo(ImportSettings(**settings), tmp_path / "refused")
    result = import_zoo(ImportSettings(**settings, allow_pickle=True), tmp_path / "zoo")
    assert [entry.status for entry in result.entries] == ["taken"]
    found = result.zoo.splits["train"].state_dict(0)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_pickles_must_be_allowed():
    files = {"pytorch_model.bin": 1, "training_args.bin": 1, "optimizer.pt": 1, "rng_state_0.pth": 1, "b.pt": 1}
    with pytest.raises(ValueError, match=r"it holds only pickles, which can run code"):
        find_networks(files, [], allow_pickle=False)
    assert find_networks(files, [], allow_pickle=True) == ["pytorch_model.bin"]
    del files["pytorch_model.bin"]
    assert find_networks(files, [], allow_pickle=True) == ["b.pt"]


def test_patterns_choose_files():
    files = dict.fromkeys(["a/model.safetensors", "b/model.safetensors", "c.pt", "README.md"], 1)
    assert find_networks(files, ["a/*"], allow_pickle=False) == ["a/model.safetensors"]
    assert find_networks(files, ["*.safetensors", "c.*"], allow_pickle=False) == [
        *("a/model.safetensors", "b/model.safetensors", "c.pt")
    ]
    with pytest.raises(ValueError, match=r"none of its weights match \*.md; it holds .md, .pt, .safetensors"):
        find_networks(files, ["*.md"], allow_pickle=True)


def test_a_subfolder_takes_the_place_of_the_root():
    files = dict.fromkeys(
        ["model.safetensors", "unet/model.safetensors", "unet/x.safetensors", "vae/a.bin", "u/b.md"], 1
    )
    for subfolder, found in ((None, "model.safetensors"), ("unet", "unet/model.safetensors"), ("/vae/", "vae/a.bin")):
        assert find_networks(files, [], allow_pickle=True, subfolder=subfolder) == [found]
    with pytest.raises(ValueError, match="no safetensors and no pickled weights in its folder u, but .md"):
        find_networks(files, [], allow_pickle=True, subfolder="u")
    with pytest.raises(ValueError, match="it holds only pickles"):
        find_networks(files, [], allow_pickle=False, subfolder="vae")


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model.safetensors.index.fp16.json"])
def test_a_variant_is_chosen_by_its_name(name):
    files = dict.fromkeys([f"{folder}{file}" for folder in ("", "unet/") for file in ("model.safetensors", name)], 1)
    assert find_networks(files, [], allow_pickle=False) == ["model.safetensors"]
    assert find_networks(files, [], allow_pickle=False, variant="fp16") == [name]
    assert find_networks(files, [], allow_pickle=False, variant="fp16", subfolder="unet") == [f"unet/{name}"]
    with pytest.raises(FileNotFoundError, match="it holds no safetensors of the variant bf16; .*--variant fp16|leave"):
        find_networks(files, [], allow_pickle=False, variant="bf16")


@pytest.mark.parametrize("subfolder", ["unet", "a/unet"])
def test_subfolders_of_a_folder_are_found_by_the_end_of_their_path(tmp_path, subfolder):
    for index, place in enumerate(("a/unet", "b/unet", "a/vae", "c")):
        (tmp_path / "all" / place).mkdir(parents=True)
        for file in ("model.safetensors", "model.fp16.safetensors"):
            value = index + 10 * ("fp16" in file)
            (tmp_path / "all" / place / file).write_bytes(save({"w": torch.full((2, 4), float(value))}))
    settings = ImportSettings(
        folder=tmp_path / "all", subfolder=subfolder, variant="fp16", token_dim=4, split_shares=[1, 0, 0]
    )
    rows = import_zoo(settings, tmp_path / "zoo").zoo.splits["train"]
    found = {run_id: rows.state_dict(index)["w"][0, 0].item() for index, run_id in enumerate(rows.run_ids)}
    assert found == {
        place: value for place, value in {"a/unet": 10, "b/unet": 11}.items() if place.endswith(subfolder)
    }
    with pytest.raises(StrictDataclassClassValidationError, match=r"'unet/model.fp16.safetensors' \(--files\)"):
        ImportSettings(folder=tmp_path, subfolder="unet", variant="fp16", files=["*"])


def test_repositories_without_weights_say_what_they_hold():
    files = dict.fromkeys(["model.gguf", "README.md", "LICENSE", "x.onnx", "y.h5", "z.msgpack", "a.json"], 1)
    message = "no safetensors and no pickled weights, but .gguf, .h5, .json, .md, .msgpack and 2 more"
    with pytest.raises(ValueError, match=message):
        find_networks(files, [], allow_pickle=True)
    with pytest.raises(ValueError, match="but no files"):
        find_networks({}, [], allow_pickle=True)


@pytest.mark.parametrize(
    "path", ["../model.safetensors", "/etc/model.safetensors", "a/../../b.bin", "a\\b.safetensors"]
)
def test_paths_that_lead_elsewhere_are_refused(path):
    with pytest.raises(ValueError, match=r"outside the repository; do not trust it"):
        find_networks({"model.safetensors": 1, path: 1}, [], allow_pickle=False)


def test_folders_are_repositories(tmp_path):
    for name in (
        "org/one/model.safetensors",
        "org/one/extra.safetensors",
        "org/one/README.md",
        f"org/two/{INDEX}",
        *(f"org/two/{shard}" for shard in SHARDS),
        "loose.pt",
        "org/loose.safetensors",
        "org/loose.txt",
        ".cache/hidden/model.safetensors",
        "split/part.safetensors.index.json",
        "split/part-00001-of-00001.safetensors",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("---\nlicense: mit\n---\n" if name.endswith(".md") else name)
    sources = list(find_sources(ImportSettings(folder=str(tmp_path)), HfApi(), open_tree(tmp_path)))
    found = {source.label: source.open()[0] for source in sources}
    assert sorted(found) == [
        "loose.pt",
        "org/loose.safetensors",
        "org/one",
        "org/two",
        "split/part.safetensors.index.json",
    ]
    assert sorted(found["org/one"].files) == ["README.md", "extra.safetensors", "model.safetensors"]
    assert sorted(found["split/part.safetensors.index.json"].files) == [
        *("part-00001-of-00001.safetensors", "part.safetensors.index.json")
    ]
    assert found["org/one"].card.columns["license"] == "mit"
    assert found["org/one"].card.columns["author"] == "org"
    assert found["loose.pt"].card.columns == {"author": None}
    assert found["org/one"].revision is None
    before = found["loose.pt"].state
    (tmp_path / "loose.pt").write_text("longer than before")
    again = find_sources(ImportSettings(folder=str(tmp_path)), HfApi(), open_tree(tmp_path))
    assert {source.label: source for source in again}["loose.pt"].open()[0].state != before
    one = tmp_path / "org" / "one"
    (single,) = find_sources(ImportSettings(folder=str(one)), HfApi(), open_tree(one))
    assert single.label == "one"


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def test_a_folder_is_taken_or_listed_file_by_file_whatever_their_names(tmp_path):
    """Formats are decided by the first bytes; what is known and not read stands in the list with the reason."""
    folder = tmp_path / "networks"
    networks = [{"fc.weight": torch.full((3, 4), float(index)), "fc.bias": torch.ones(3)} for index in range(7)]
    taken = {
        "checkpoint.pth.tar": torch_bytes({"state_dict": networks[0], "epoch": 3}),
        "net.pkl": torch_bytes(networks[1]),
        "no_suffix": torch_bytes(networks[2], _use_new_zipfile_serialization=False),
        "sub/weights.dat": save(networks[3]),
        "really_safetensors.bin": save(networks[4]),
        "really_torch.safetensors": torch_bytes({"net": networks[5], "acc": 91.2}),
    }
    skipped = {
        "model.gguf": (b"GGUF" + bytes(40), "it is a GGUF file, which is not supported; load it with Transformers"),
        "model.onnx": (b"\x08\x07\x12\x07pytorch" + bytes(40), "it is an ONNX file, which is not supported"),
        "garbage.onnx": (bytes(range(200)), "no safetensors and no pickled weights, but .onnx"),
        "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "it is an HDF5 file (Keras), which is not supported"),
        "array": (b"\x93NUMPY\x01\0" + bytes(60), "it is a NumPy array, which is not supported"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "plain.pkl": (pickle.dumps({"w": [1.0]}), "a Python pickle not written by torch.save"),
        "several.ckpt": (torch_bytes({"model": networks[0], "model_ema": networks[6]}), "2 state dicts: 'model' ("),
    }
    ignored = {"README.md": b"# Networks", "config.json": b"{}", "log.txt": b"epoch 1", "picture.png": b"\x89PNG\r\n"}
    for name, content in (taken | {name: content for name, (content, _) in skipped.items()} | ignored).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    settings = {"folder": str(folder), "token_dim": 4, "split_shares": [1, 0, 0]}
    result = import_zoo(ImportSettings(**settings, allow_pickle=True), tmp_path / "zoo")
    found = {entry.run_id: entry for entry in result.entries}
    assert found.keys() == {*taken, *skipped}
    assert {name for name, entry in found.items() if entry.status == "taken"} == set(taken)
    for name, (_, reason) in skipped.items():
        assert found[name].status == "skipped"
        assert reason in found[name].reason
        assert str(tmp_path) not in found[name].reason
    values = sorted(float(network[0, 0]) for network in (result.zoo.splits["train"].tokens(row) for row in range(6)))
    assert values == [0, 1, 2, 3, 4, 5]
    refused = import_zoo(ImportSettings(**settings), tmp_path / "safe")
    assert {e.run_id for e in refused.entries if e.status == "taken"} == {"sub/weights.dat", "really_safetensors.bin"}
    averages = import_zoo(
        ImportSettings(**settings, allow_pickle=True, key="model_ema", files=["*.ckpt"]), tmp_path / "averages"
    )
    assert float(averages.zoo.splits["train"].tokens(0)[0, 0]) == 6


def test_a_path_among_repositories_is_skipped_and_the_rest_goes_on(tmp_path, local_hub):
    local_hub.storage.add_files("models", "org/network", {"model.safetensors": save({"w": torch.ones(2, 2)})})
    (tmp_path / "here").mkdir()
    names = ["no/valid/name", str(tmp_path / "here"), "org/network"]
    result = import_zoo(ImportSettings(repos=names, token_dim=2, split_shares=[1, 0, 0]), tmp_path / "zoo")
    assert [entry.status for entry in result.entries] == ["skipped", "skipped", "taken"]
    assert "got a path, which does not exist" in result.entries[0].reason
    assert "got a path, which is on this machine: pass it as folder (--folder)" in result.entries[1].reason


@pytest.mark.parametrize("name", ["{}.safetensors", "{}/model.safetensors"], ids=["files", "model folders"])
def test_each_file_is_compared_with_few_others(tmp_path, monkeypatch, name):
    """10,000 files in a folder were compared with each other: most of the time of an import."""
    for index in range(count := 100):
        path = tmp_path / name.format(index)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(save({"w": torch.zeros(1)}))
    equal, comparisons = PurePosixPath.__eq__, []
    monkeypatch.setattr(PurePosixPath, "__eq__", lambda a, b: comparisons.append(a) or equal(a, b))
    sources = list(find_sources(ImportSettings(folder=tmp_path), HfApi(), open_tree(tmp_path)))
    assert len({source.label for source in sources}) == count
    assert len(comparisons) < 10 * count
