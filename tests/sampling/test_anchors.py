import numpy as np
import pytest

from hf_sane.sampling._anchors import choose_anchors


class Columns:
    """The part of a zoo split that anchors come from: 10 runs at epochs 0, 5, 9; the last stopped at 5."""

    def __init__(self) -> None:
        rows = [(f"run-{run}", epoch) for epoch in (5, 0, 9) for run in range(10) if (run, epoch) != (9, 9)]
        accuracy = [0.1 * int(run[-1]) + 0.01 * (epoch == 5) for run, epoch in rows]
        self.values = {
            "run_id": np.array([run for run, _ in rows]),
            "epoch": np.array([epoch for _, epoch in rows], dtype=np.int32),
            "validation_accuracy": np.array(accuracy, dtype=np.float32),
        }

    def column(self, name: str) -> np.ndarray:
        return self.values[name]

    def described(self, chosen: np.ndarray) -> list[tuple[str, int]]:
        return [(self.values["run_id"][i], int(self.values["epoch"][i])) for i in chosen]


@pytest.fixture
def split() -> Columns:
    return Columns()


def test_best_thirty_percent_of_runs_at_their_last_epoch(split):
    assert split.described(choose_anchors(split)) == [("run-9", 5), ("run-8", 9), ("run-7", 9)]


@pytest.mark.parametrize("epoch", [0, 5])
def test_at_a_given_epoch(split, epoch):
    expected = [("run-9", epoch), ("run-8", epoch), ("run-7", epoch)]
    assert split.described(choose_anchors(split, epoch=epoch)) == expected


@pytest.mark.parametrize(
    ("num_anchors", "top_fraction", "count"), [(1, 0.3, 1), (3, 0.3, 3), (None, 1.0, 10), (None, 0.01, 1)]
)
def test_how_many(split, num_anchors, top_fraction, count):
    chosen = choose_anchors(split, num_anchors=num_anchors, top_fraction=top_fraction)
    assert chosen.dtype == np.int64
    assert [run for run, _ in split.described(chosen)] == [f"run-{run}" for run in range(9, 9 - count, -1)]


def test_test_accuracy_takes_no_part(split):
    split.values["test_accuracy"] = -split.values["validation_accuracy"]
    assert split.described(choose_anchors(split, num_anchors=1)) == [("run-9", 5)]


def test_networks_without_an_accuracy_are_no_anchors(split):
    split.values["validation_accuracy"][split.values["run_id"] == "run-9"] = np.nan
    assert split.described(choose_anchors(split, num_anchors=1)) == [("run-8", 9)]


def test_scores_that_are_all_unknown_choose_no_anchors(split):
    unknown = np.full(len(split.values["epoch"]), -np.inf)
    with pytest.raises(ValueError, match=r"expected a finite score of at least one of 10 training networks, got none"):
        choose_anchors(split, accuracy=unknown)


def test_fewer_anchors_than_asked_for(split):
    with pytest.raises(ValueError, match="at most 3 anchors, the top 30% of 10 runs, got 4; request fewer"):
        choose_anchors(split, num_anchors=4)


def test_other_errors(split):
    with pytest.raises(ValueError, match=r"no networks to choose from at epoch 7; the split has epochs \[0, 5, 9\]"):
        choose_anchors(split, epoch=7)
    with pytest.raises(ValueError, match=r"expected top_fraction in \(0, 1\] and num_anchors >= 1, got 0 and None"):
        choose_anchors(split, top_fraction=0)
    with pytest.raises(ValueError, match="got 0.3 and 0"):
        choose_anchors(split, num_anchors=0)
