"""Options of experiments and benchmarks."""

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
    assert (new.num_samples, new.config, new.networks) == (3, "a_b", 2)
