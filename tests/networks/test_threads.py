import threading

import pytest
import torch

from hf_sane.networks._threads import map_on_threads


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_items(threads, count):
    threads(count)
    names = set()

    def square(value):
        names.add(threading.current_thread().name)
        return value**2

    assert map_on_threads(square, range(20)) == [value**2 for value in range(20)]
    assert (names == {"MainThread"}) == (count == 1)
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("count", [1, 2])
def test_gradient_mode_is_that_of_the_caller(threads, count):
    threads(count)
    with torch.no_grad():
        assert map_on_threads(lambda _: torch.is_grad_enabled(), [1, 2]) == [False, False]
    assert map_on_threads(lambda _: torch.is_grad_enabled(), [1, 2]) == [True, True]


def test_each_operation_has_one_thread(threads):
    threads(2)
    assert map_on_threads(lambda _: torch.get_num_threads(), [1, 2]) == [1, 1]


def test_errors_arrive_and_leave_the_setting_alone(threads):
    threads(2)

    def fail(value):
        raise ValueError(f"item {value}")

    with pytest.raises(ValueError, match="item 1"):
        map_on_threads(fail, [1, 2])
    assert torch.get_num_threads() == 2


def test_nothing_to_do():
    assert map_on_threads(len, []) == []
