"""`hf-sane zoo structure` and `zoo_structure`: the networks that are compared, aligned and at which epochs."""

import json

import pytest
import torch
from program import run_command

from hf_sane.analysis._structure import shared_structure
from hf_sane.records._run_record import RECORD
from hf_sane.workflows.zoo_structure import zoo_structure
from hf_sane.zoo._dataset import Zoo


def stacked(zoo: Zoo, splits: tuple[str, ...], epoch: int) -> dict[str, torch.Tensor]:
    parts = [zoo.splits[split].at_epoch(epoch).stacked_tensors() for split in splits]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_the_verb_and_python_compare_the_last_epochs(tiny_zoo, tiny_zoo_folder, tmp_path):
    expected = shared_structure(
        stacked(tiny_zoo, ("train",), 12), stacked(tiny_zoo, ("validation", "test"), 12), seed=3
    )
    result = zoo_structure(tiny_zoo, align=False, seed=3)
    assert result.structures == expected
    arguments = (tiny_zoo_folder, "--no-align", "--seed", 3, "--output", tmp_path / "out", "--json")
    found = json.loads(run_command("zoo", "structure", *arguments).stdout)
    assert found["all"]["explained"] == list(expected[""].explained)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["data"] == {"training": 8, "held_out": 4}
    assert (tmp_path / "out" / "structure.png").read_bytes().startswith(b"\x89PNG")
    text = str(result)
    assert "principal directions of 8 runs, 4 other runs" in text
    assert "tensor, with 7 directions of its own" in text


def test_alignment_moves_channels_before_networks_are_compared(tiny_zoo):
    plain = zoo_structure(tiny_zoo, align=False)
    aligned = zoo_structure(tiny_zoo)
    assert aligned.structures != plain.structures
    assert aligned.structures[""].explained[-1] > plain.structures[""].explained[-1]


def test_changes_since_an_epoch_are_differences_of_one_run(tiny_zoo):
    found = zoo_structure(tiny_zoo, align=False, since=3)
    sides = []
    for splits in (("train",), ("validation", "test")):
        after, before = stacked(tiny_zoo, splits, 12), stacked(tiny_zoo, splits, 3)
        sides.append({name: after[name] - before[name] for name in after})
    assert found.structures == shared_structure(*sides)


def test_a_share_without_a_finding_says_so(tiny_zoo):
    text = str(zoo_structure(tiny_zoo, since=0))
    assert ("no shared linear structure was found" in text) != ("the runs share" in text)


def test_a_zoo_without_held_out_networks_is_refused(tiny_zoo):
    alone = Zoo({"train": tiny_zoo.splits["train"]}, tiny_zoo.facts)
    with pytest.raises(ValueError, match="'train' and in 'validation' or 'test', the zoo has train; import it again"):
        zoo_structure(alone)
