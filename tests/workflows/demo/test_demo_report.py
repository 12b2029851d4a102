import copy
import json

import pytest

from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._comparison import METHODS
from hf_sane.workflows.demo.report import (
    DemoResult,
    Goal,
    goals,
    goals_table,
    probe_table,
    render_report,
    sampling_table,
    to_markdown,
)

PROPERTIES = ("test_accuracy", "epoch", "generalization_gap")


@pytest.fixture
def record():
    """A record in which every goal is just reached."""
    row = {"weights": 0.1, "layer_statistics": 0.5, "sane_mean": 0.2, "sane_best": 0.5}
    start = dict.fromkeys(METHODS, 0.3) | {"anchors": 0.9, "sane_subsampled": 0.8}
    part = {"r2": 0.95, "accuracy_original": 0.9, "accuracy_reconstructed": 0.81, "accuracy_kept": 0.9}
    probe = {"r2": 0.5, "kendall_tau": 0.4}
    return {
        "seed": 3,
        "seconds": 61.0,
        "hardware": {"cpu": "Some Processor"},
        "peak_rss_bytes": 2**30,
        "stage_seconds": {"train": 60.0},
        "reconstruction_r2": 0.9,
        "reconstruction": {"seed": part},
        "zoos": {"seed": {"networks": 20, "excluded": 1, "accuracy": 0.9, "checkpoints": 4}},
        "probe": {name: dict(row) for name in PROPERTIES},
        "probe_details": {name: {"weights": probe, "sane_best": probe} for name in PROPERTIES},
        "sampling": {
            "epoch_0": start,
            "epoch_1": start | {"scratch": 0.7},
            "epoch_5": dict(start),
            "nearest_training_distance": dict.fromkeys(METHODS, 0.25),
            "num_anchors": 6,
            "num_kept": 3,
            "num_candidates": 20,
            "bandwidth": 0.2,
        },
    }


def test_all_goals_reached(record):
    found = goals(record)
    assert len(found) == 13
    assert all(goal.reached for goal in found)
    assert "Every goal was reached. Seed 3, Some Processor, 61 s" in render_report(record)


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("reconstruction_r2",), 0.899, "reconstruction R2"),
        (("reconstruction", "seed", "accuracy_kept"), 0.89, "accuracy kept"),
        (("probe", "epoch", "sane_best"), 0.49, "epoch: best SANE pooling against s(W)"),
        (("probe", "test_accuracy", "weights"), 0.5, "test accuracy: best SANE pooling against W"),
        (("sampling", "epoch_0", "anchors"), 0.95, "0.85 of the anchors"),
        (("sampling", "epoch_0", "anchor_average"), 0.8, "above the anchor average"),
        (("sampling", "epoch_0", "anchor_noise"), 0.81, "anchor + noise at equal distance"),
        (("sampling", "epoch_0", "anchor_noise_selected"), 0.81, "selected alike"),
        (("sampling", "epoch_1", "scratch"), 0.8, "above training from scratch"),
    ],
)
def test_each_goal_can_be_missed_and_is_then_said_first(record, path, value, name):
    changed = copy.deepcopy(record)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    missed = [goal for goal in goals(changed) if not goal.reached]
    assert [goal for goal in missed if name in goal.name]
    assert render_report(changed).splitlines()[2].startswith("Not reached: ")
    assert "**no**" in to_markdown(goals_table(goals(changed)))


def test_strict_goals_want_more():
    assert Goal("a", 0.5, 0.5).reached
    assert not Goal("a", 0.5, 0.5, strict=True).reached


def test_tables(record):
    table = to_markdown(sampling_table(record["sampling"]))
    assert len(table.splitlines()) == 2 + len(METHODS)
    assert "| SANE, subsampled | 0.8 | 0.8 | 0.8 | 0.25 |" in table
    assert "| sane_best | 0.5 | 0.4 |" in to_markdown(probe_table(record["probe_details"]))


def test_the_result_prints_its_tables_and_writes_its_record(record, tmp_path):
    facts = {name: record.pop(name) for name in ("seed", "seconds", "hardware", "peak_rss_bytes")}
    result = DemoResult(record=RunRecord(command="hf-sane demo", results=record, **facts))
    assert result.to_dict() == {"command": "hf-sane demo", **facts, **record}
    lines = str(result).splitlines()
    assert lines[0] == "Every goal was reached."
    cells = {line.partition("  ")[0]: line.split() for line in lines}
    assert cells["reconstruction R2 of test networks"][-4:] == [">=", "0.9", "0.9", "yes"]
    assert cells["SANE, subsampled"][-4:] == ["0.8", "0.8", "0.8", "0.25"]
    result.save(tmp_path / "report")
    assert json.loads((tmp_path / "report/report.json").read_text()) == result.to_dict()
    assert (tmp_path / "report/report.md").read_text() == render_report(result.to_dict())


def test_report_links_only_to_files_beside_it(record):
    text = render_report(record)
    assert "](overview.png)" in text
    assert "](embedding_map.png)" in text
    assert "](finetuning.png)" in text
    assert "](/" not in text
    assert "http" not in text
