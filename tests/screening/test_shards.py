"""Shards that differ from their index: each difference is a finding, and every tensor is read once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import hf_sane

NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def shards() -> dict[str, bytes]:
    """Two shards and their index."""
    parts = [{f"{part}.{index}": torch.full((4, 5), 10.0 * index) for index in range(2)} for part in ("a", "b")]
    index = {"weight_map": {tensor: name for name, part in zip(NAMES, parts, strict=True) for tensor in part}}
    return {INDEX: json.dumps(index).encode(), **{n: save(part) for n, part in zip(NAMES, parts, strict=True)}}


def mapped(**changes: str | None) -> bytes:
    index = json.loads(shards()[INDEX])["weight_map"] | {name.replace("_", "."): x for name, x in changes.items()}
    return json.dumps({"weight_map": {name: x for name, x in index.items() if x}}).encode()


FIRST, SECOND = (shards()[name] for name in NAMES)
CASES = {
    "as listed": ({}, [], 4),
    "swapped": ({NAMES[0]: SECOND, NAMES[1]: FIRST}, ["in another shard than"], 4),
    "copied": ({NAMES[1]: FIRST}, ["lists, but no shard holds: b.0, b.1", "several shards hold"], 2),
    "missing": ({NAMES[1]: None}, ["are missing, with 2 tensors: model-00002"], 2),
    "lost": ({INDEX: mapped(a_2=NAMES[0])}, ["lists, but no shard holds: a.2"], 4),
    "extra": ({INDEX: mapped(b_1=None)}, ["does not list: b.1"], 4),
    "moved": ({INDEX: mapped(b_1=NAMES[0])}, ["in another shard than model.safetensors.index.json says: b.1"], 4),
    "damaged": ({NAMES[1]: SECOND[:-3]}, [f"{NAMES[1]}: expected a whole safetensors file"], 2),
    "pointer": ({NAMES[1]: b"version https://git-lfs.github.com/spec/v1\n"}, ["a Git LFS pointer"], 2),
}


def differences(scan):
    return [x for x in scan.findings if x.rule in ("shards", "damaged")]


@pytest.mark.parametrize("case", CASES)
def test_a_difference_is_a_finding_and_every_tensor_is_read_once(case, tmp_path):
    changes, texts, count = CASES[case]
    files = {name: content for name, content in (shards() | changes).items() if content is not None}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = hf_sane.scan(tmp_path)
    (scan,) = result.scans
    found = differences(scan)
    assert len(found) == len(texts)
    assert all(text in x.message and x.severity == "error" for text, x in zip(texts, found, strict=True))
    assert len(scan.tensors) == len({x.name for x in scan.tensors}) == count
    assert scan.bytes_read == scan.num_bytes == 80 * count
    assert result.exit_code == bool(texts)
    assert INDEX not in scan.skipped
    assert hf_sane.scan(tmp_path, fail_on=["shards", "damaged"]).exit_code == bool(texts)


def test_a_repository_has_the_same_findings(tmp_path, local_hub):
    for case, (changes, texts, count) in CASES.items():
        files = {name: content for name, content in (shards() | changes).items() if content is not None}
        repo = f"org/{case.replace(' ', '-')}"
        local_hub.storage.add_files("models", repo, files)
        if case == "pointer":  # which the Hub does not serve
            continue
        (scan,) = hf_sane.scan(repo).scans
        assert [text in x.message for text, x in zip(texts, differences(scan), strict=True)] == [True] * len(texts)
        assert len(scan.tensors) == count


def test_shards_without_their_index_are_no_checkpoints_of_their_own(tmp_path):
    (tmp_path / NAMES[0]).write_bytes(FIRST)
    for severity, others in (("error", f", as are other shards: {NAMES[1]}"), ("warning", "")):
        found = [x for _, x in hf_sane.scan(tmp_path).findings if x.rule == "shards"]
        assert {x.message for x in found} == {f"one of 2 shards, whose index {INDEX} is missing{others}"}
        assert {x.severity for x in found} == {severity}
        (tmp_path / NAMES[1]).write_bytes(SECOND)
    (tmp_path / INDEX).write_bytes(shards()[INDEX])
    assert not [x for _, x in hf_sane.scan(tmp_path / NAMES[0]).findings if x.rule == "shards"]


def test_an_index_without_any_shard_is_unreadable(tmp_path: Path):
    (tmp_path / INDEX).write_bytes(shards()[INDEX])
    (scan,) = hf_sane.scan(tmp_path).scans
    (found,) = [x for x in scan.findings if x.severity == "error"]
    assert found.rule == "unreadable"
    assert "got none of model-00001" in found.message
