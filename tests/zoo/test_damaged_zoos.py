"""A zoo whose files were changed is refused by name, never read with weights in other places."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.zoo._alignment_record import FILE_NAME, Alignment
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import read_facts


@pytest.fixture
def folder(tiny_zoo_folder, tmp_path):
    """A copy without manifests, as older versions of the library left zoos: only the readers can notice."""
    copy = tmp_path / "zoo"
    shutil.copytree(tiny_zoo_folder, copy)
    for path in copy.rglob(MANIFEST):
        path.unlink()
    assert len(Zoo.load(copy)) == 48
    return copy


def change(folder, edit):
    content = json.loads((folder / "zoo.json").read_text())
    edit(content["configs"]["default"])
    (folder / "zoo.json").write_text(json.dumps(content))


def layout_of(facts):
    return next(iter(facts["layouts"].values()))


def swap(layers):
    layers[0], layers[1] = layers[1], layers[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: swap(layout_of(f)["layers"]), "expected the layout whose signature begins with .*it was changed"),
        (lambda f: layout_of(f).update(token_dim=74), "expected the layout whose signature begins with"),
        (lambda f: layout_of(f).update(token_layout="dense"), "expected the layout whose signature begins with"),
        (
            lambda f: layout_of(f)["layers"][0]["weight"].update(dtype="load"),
            r"layers\[0\].weight.dtype: expected a dtype",
        ),
        (
            lambda f: layout_of(f)["layers"][0]["weight"].update(shape=[2**60]),
            r"layers\[0\].bias: expected one float32",
        ),
        (
            lambda f: layout_of(f)["layers"][0]["weight"].update(shape=[-1, 2]),
            r"shape\[0\]: expected a whole number from 0",
        ),
        (lambda f: next(iter(f["architectures"].values())).update(use_bias=False), "architectures.*they were changed"),
        (lambda f: f["splits"]["train"].update(networks="many"), "splits.train.networks: expected a whole number"),
        (lambda f: f.update(name=None), "name: expected text, got null"),
        (lambda f: f.update(other=1), r"expected fields among name, layouts.*, got \['other'\]"),
        (lambda f: f.pop("layouts"), "expected a field 'layouts'"),
    ],
)
def test_facts_that_were_changed_are_refused(edit, message, folder):
    change(folder, edit)
    with pytest.raises(InvalidFileError, match=message):
        read_facts(folder)
    with pytest.raises(InvalidFileError, match=message):
        Zoo.load(folder)


@pytest.mark.parametrize("name", ["../zoo", "a/b", "..", "", "a\\b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name, folder):
    content = json.loads((folder / "zoo.json").read_text())
    content["configs"] = {name: content["configs"]["default"]}
    (folder / "zoo.json").write_text(json.dumps(content))
    with pytest.raises(InvalidFileError, match="expected a name that is valid for a folder"):
        read_facts(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format_version": 1}'])
def test_other_bytes_are_no_facts(content, folder):
    (folder / "zoo.json").write_bytes(content)
    with pytest.raises(InvalidFileError, match="zoo.json"):
        Zoo.load(folder)


def test_damaged_parquet_is_refused(folder, tmp_path):
    path = next((folder / "data").glob("train-*"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidFileError, match="expected the parquet files of a zoo"):
        Zoo.load(folder, cache_dir=tmp_path / "cache")


def test_a_missing_part_of_a_split_is_noticed(folder, tmp_path):
    path = next((folder / "data").glob("train-*"))
    path.rename(path.with_name("train-00000-of-00002.parquet"))
    with pytest.raises(InvalidFileError, match="expected train files that are all there, got 1 files"):
        Zoo.load(folder, cache_dir=tmp_path / "cache")


def test_a_row_never_gives_the_numbers_of_the_next_one(tiny_zoo):
    table = tiny_zoo.splits["train"].table
    assert table.lengths.tolist() == [52 * 73] * len(table)
    rows, last = np.array([3, 0]), 52 * 73 - 1
    found = table.gather(rows, torch.tensor([[0, last], [last, 5]]))
    expected = [[table.tokens(3)[0], table.tokens(3)[last]], [table.tokens(0)[last], table.tokens(0)[5]]]
    assert found.tolist() == torch.tensor(expected).tolist()
    for index in (last + 1, -1):
        with pytest.raises(IndexError, match=f"row 0 has {last + 1} scalars, got indices from"):
            table.gather(rows, torch.tensor([[0, last], [index, 5]]))


SPEC = PermutationSpec({"a": ("P", None), "b": (None, "P")}, {"P": 3})


def save_alignment(folder, index, *, specs=None, runs=("r0", "r1"), key="k"):
    facts = {"references": {"k": "r0"}, "run_ids": {"k": list(runs)}, "specs": specs or {"k": SPEC.to_dict()}}
    save_file({f"{key}/P": index}, folder / FILE_NAME, metadata={"alignment": json.dumps(facts)})


GOOD = torch.tensor([[0, 1, 2], [2, 0, 1]], dtype=torch.int32)


def test_an_alignment_comes_back(tmp_path):
    save_alignment(tmp_path, GOOD)
    assert torch.equal(Alignment.load(tmp_path).permutations["k"]["P"], GOOD.long())
    assert Alignment.load(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("index", "settings", "message"),
    [
        (torch.tensor([[0, 1, 2], [2, 0, 0]], dtype=torch.int32), {}, "k/P: .*got rows that are not permutations"),
        (GOOD + 1, {}, "rows that are not permutations"),
        (GOOD - 1, {}, "rows that are not permutations"),
        (GOOD[:1], {}, "expected one permutation for each of 2 runs, got torch.int32 .1, 3."),
        (GOOD.float(), {}, "got torch.float32"),
        (GOOD[0], {}, "got torch.int32 .3."),
        (GOOD, {"runs": ("r0", "r0")}, "every run of 'k' once"),
        (GOOD, {"key": "other"}, "the runs of 'other'"),
        (
            torch.tensor([[0, 1], [1, 0]], dtype=torch.int32),
            {},
            "specs.k.sizes: expected the axes of the permutations",
        ),
        (GOOD, {"specs": {"k": {**SPEC.to_dict(), "sizes": {"P": 2**60}}}}, "specs.k.sizes: expected the axes"),
        (
            GOOD,
            {"specs": {"k": {**SPEC.to_dict(), "axes": {"a": [[["P", 0, 3, 2**60]]]}}}},
            r"specs.k.axes.a\[0\]\[0\]",
        ),
        (
            GOOD,
            {"specs": {"k": {**SPEC.to_dict(), "parts": {"P": [["x", 2, [], True]]}}}},
            "symmetries that fit together",
        ),
    ],
)
def test_what_is_no_alignment_is_refused(index, settings, message, tmp_path):
    save_alignment(tmp_path, index, **settings)
    with pytest.raises(InvalidFileError, match=message):
        Alignment.load(tmp_path)
