"""The cross-zoo table, on two tiny zoos."""

import accuracy_transfer
import numpy as np
import pytest
from sklearn.metrics import r2_score
from zoo_recipes import hyperparameter_zoo

from hf_sane.records._run_record import RunRecord
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo


def test_every_regressor_on_every_pair_of_zoos(tiny_zoo_folder, digits, tmp_path, capsys):
    arguments = hyperparameter_zoo(
        name="other", num_models=8, epochs=2, keep_epochs=[0, 2], progress_bar=False, seed=1
    )
    build_zoo(arguments, digits, tmp_path / "other")
    zoos = [str(tiny_zoo_folder), str(tmp_path / "other")]
    report = accuracy_transfer.main(
        ["--zoo", *zoos, "--boosting-grid", "[[7, 0.1, 3]]", "--output", str(tmp_path / "r.json")]
    )
    assert report.keys() == {"mean_of_source", "ridge", "logit_linear", "gradient_boosting"}
    for regressor in ("ridge", "logit_linear", "gradient_boosting"):
        for kind in ("layer_statistics", "weights"):
            rows = report[regressor][kind]
            assert {(source, target) for source in rows for target in rows[source]} == {
                (source, target) for source in ("digits", "other") for target in ("digits", "other")
            }
    splits = [Zoo.load(folder).splits for folder in zoos]
    wanted = splits[1]["test"].column("test_accuracy")
    guess = np.full(len(wanted), splits[0]["train"].column("test_accuracy").mean())
    assert report["mean_of_source"]["digits"]["other"]["r2"] == pytest.approx(r2_score(wanted, guess))
    record = RunRecord.load(tmp_path / "r.json")
    assert record.data["networks"]["digits"] == {"train": 32, "validation": 8, "test": 8}
    assert "logit_linear" in capsys.readouterr().out
