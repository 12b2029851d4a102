"""Which bytes are read: all of small tensors, and blocks from everywhere in large ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_sane.screening._plan import BLOCK_BYTES, WHOLE_BYTES, plan_reads
from hf_sane.screening._scan import READ_WHOLE, read_budget
from hf_sane.tokenization._safetensors_header import TensorEntry


def entries(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float16) -> dict[str, TensorEntry]:
    found, place = {}, 100
    for index, shape in enumerate(shapes):
        outline = torch.empty(shape, dtype=dtype, device="meta")
        found[str(index)] = TensorEntry(outline, place, place + outline.nbytes)
        place += outline.nbytes
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=4),
    st.floats(0.001, 1),
    st.integers(0, 5),
    st.sampled_from([torch.float16, torch.float32, torch.int8]),
)
def test_blocks_lie_in_their_tensor_and_do_not_overlap(shapes, share, seed, dtype):
    made = entries(*shapes, dtype=dtype)
    total = sum(entry.stop - entry.start for entry in made.values())
    for name, plan in plan_reads(made, round(share * total), seed=seed).items():
        entry, row = made[name], made[name].outline[0].nbytes
        assert all(entry.start <= start < stop <= entry.stop for start, stop in plan.blocks)
        assert all(first[1] <= second[0] for first, second in zip(plan.blocks, plan.blocks[1:], strict=False))
        assert plan.is_whole == (plan.num_bytes == entry.stop - entry.start)
        if not plan.is_whole:
            assert all((start - entry.start) % min(row, dtype.itemsize) == 0 for start, _ in plan.blocks)
            length = plan.blocks[0][1] - plan.blocks[0][0]
            assert length <= BLOCK_BYTES
            # Whole rows, if one fits into a block.
            assert length < row or all((start - entry.start) % row == 0 for start, _ in plan.blocks)


def test_a_budget_is_met_and_shared_by_size():
    made = entries((4000, 4000), (8000, 4000), (4000,))
    plans = plan_reads(made, 10 * 2**20)
    assert sum(plan.num_bytes for plan in plans.values()) == pytest.approx(10 * 2**20, rel=0.03)
    assert plans["1"].num_bytes == pytest.approx(2 * plans["0"].num_bytes, rel=0.05)
    assert plans["2"].is_whole  # as small as it is


def test_every_part_of_a_tensor_is_read():
    made = entries((40_000, 1000))
    (plan,) = plan_reads(made, 2**22).values()
    starts = torch.tensor([start - 100 for start, _ in plan.blocks]) / made["0"].outline.nbytes
    assert len(starts) >= 30
    expected = torch.arange(len(starts)) / len(starts)
    assert (starts - expected).abs().max() < 1.5 / len(starts)  # one per stratum


def test_equal_shapes_are_read_at_equal_places_and_seeds_differ():
    made = entries((4000, 4000), (4000, 4000), (4001, 4000))
    plans = plan_reads(made, 2**20)
    places = {name: [start - made[name].start for start, _ in plan.blocks] for name, plan in plans.items()}
    assert places["0"] == places["1"]
    assert places["0"] != places["2"]
    other = plan_reads(made, 2**20, seed=1)["0"]
    assert other.blocks != plans["0"].blocks


def test_everything_is_read_for_a_budget_of_everything():
    made = entries((4000, 4000), (3,), (0, 5))
    plans = plan_reads(made, 2**40)
    assert all(plan.is_whole for plan in plans.values())
    assert [plan.num_bytes for plan in plans.values()] == [32_000_000, 6, 0]
    assert plan_reads(entries((WHOLE_BYTES // 2,)), 1)["0"].is_whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1%", 10_000_000),
        ("100 %", 1_000_000_000),
        ("0.1%", 1_000_000),
        ("64MB", 64_000_000),
        ("2KiB", 2048),
        ("7b", 7),
    ],
)
def test_budgets(text, expected):
    assert read_budget(text, 1_000_000_000) == expected


def test_by_default_small_checkpoints_are_read_whole_and_large_ones_in_part():
    assert read_budget("", 1000) == 1000
    assert read_budget("", READ_WHOLE + 1) == READ_WHOLE
    assert read_budget("", 10**12) == 10**10


@pytest.mark.parametrize("text", ["1", "x%", "-1%", "0%", "101%", "nan%", "inf MB", "1%%", "MB", "1e999MB"])
def test_what_is_no_budget(text):
    with pytest.raises(ValueError, match="expected a budget such as 1% or 64MB, got"):
        read_budget(text, 100)
