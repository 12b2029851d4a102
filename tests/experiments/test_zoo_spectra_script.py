"""experiments/zoo_spectra.py on the tiny zoo."""

import runpy
from pathlib import Path

import pytest

from hf_sane.records._run_record import RunRecord

SCRIPT = Path(__file__).parents[2] / "experiments" / "zoo_spectra.py"


def test_pictures_and_record(tiny_zoo_folder, tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    arguments = ["--zoo", str(tiny_zoo_folder), "--min-values", "5", "--output", str(tmp_path / "out")]
    results = main(arguments)
    names = {"training.png", "correlation.png", "run.json", "hf_sane_manifest.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert RunRecord.load(tmp_path / "out" / "run.json").results == results
    assert len(results["against_test_accuracy"]["test_accuracy"]) == 12
    assert "mean_alpha" in capsys.readouterr().out
    run_id = results["through_training"]["run_id"]
    with pytest.raises(FileExistsError, match="already holds a finished analysis of a zoo"):
        main(arguments)
    arguments[-1] = str(tmp_path / "again")
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"notes\.json is not a run record"):
        main([*arguments, "--record", str(tmp_path / "notes.json")])
    again = main([*arguments, "--run-id", run_id, "--record", str(tmp_path / "elsewhere.json")])
    assert again["through_training"] == results["through_training"]
    assert (tmp_path / "elsewhere.json").exists()
