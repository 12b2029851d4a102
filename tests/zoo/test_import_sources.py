"""Which files of a repository are networks, and which folders are repositories."""

import pytest
from huggingface_hub import HfApi

from hf_sane.zoo.importing.arguments import ImportArguments
from hf_sane.zoo.importing.sources import find_networks, find_sources

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


def test_pickles_must_be_allowed():
    files = {"pytorch_model.bin": 1, "training_args.bin": 1, "optimizer.pt": 1, "rng_state_0.pth": 1, "b.pt": 1}
    with pytest.raises(ValueError, match=r"it holds pickles only, which can run code"):
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
    with pytest.raises(ValueError, match=r"no weights among its files match \*.md; it holds .md, .pt, .safetensors"):
        find_networks(files, ["*.md"], allow_pickle=True)


def test_repositories_without_weights_say_what_they_hold():
    files = dict.fromkeys(["model.gguf", "README.md", "LICENSE", "x.onnx", "y.h5", "z.msgpack", "a.json"], 1)
    message = "no safetensors and no pickled weights, but .gguf, .h5, .json, .md, .msgpack and more"
    with pytest.raises(ValueError, match=message):
        find_networks(files, [], allow_pickle=True)
    with pytest.raises(ValueError, match="but no files"):
        find_networks({}, [], allow_pickle=True)


@pytest.mark.parametrize(
    "path", ["../model.safetensors", "/etc/model.safetensors", "a/../../b.bin", "a\\b.safetensors"]
)
def test_paths_that_lead_elsewhere_are_refused(path):
    with pytest.raises(ValueError, match=r"which lies outside of it; refused, do not trust it"):
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
    sources = list(find_sources(ImportArguments(folder=str(tmp_path)), HfApi()))
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
    again = {source.label: source for source in find_sources(ImportArguments(folder=str(tmp_path)), HfApi())}
    assert again["loose.pt"].open()[0].state != before
    (single,) = find_sources(ImportArguments(folder=str(tmp_path / "org" / "one")), HfApi())
    assert single.label == "one"
