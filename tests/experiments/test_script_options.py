"""Options of experiments and benchmarks."""

import pytest
from script_options import ScriptParser


def test_former_spellings_work(capsys):
    parser = ScriptParser("What it measures.")
    parser.add_argument("--num-samples", type=int)
    parser.add_argument("--networks", type=int)  # an option of its own
    parser.add_argument("--zoo-config", dest="config")
    new = parser.parse_args(["--num-samples", "3", "--zoo-config=a_b", "--networks", "2"])
    assert capsys.readouterr().err == ""
    assert parser.parse_args(["--num_kept", "3", "--config=a_b", "--networks", "2"]) == new
    notes = capsys.readouterr().err.splitlines()
    assert [note.partition(": ")[2].partition(";")[0] for note in notes] == [
        "--num_kept is now --num-samples",
        "--config is now --zoo-config",
    ]
    assert all(note.endswith("; the old spelling works until version 0.3") for note in notes)
    assert (new.num_samples, new.config, new.networks) == (3, "a_b", 2)


def test_a_script_may_have_former_spellings_of_its_own(capsys):
    """Also of an option that the new spelling starts with, which `argparse` would take for a short form."""
    parser = ScriptParser("What it measures.", {"--train": "--train-limit", "--seeds": "--num-seeds"})
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--num-seeds", dest="seeds", type=int)
    found = parser.parse_args(["--train", "3", "--seeds=2"])
    assert (found.train_limit, found.seeds) == (3, 2)
    assert [line.split(": ")[1].split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "--train is now --train-limit",
        "--seeds is now --num-seeds",
    ]
    with pytest.raises(SystemExit):
        ScriptParser("Another.").parse_args(["--seeds", "2"])
