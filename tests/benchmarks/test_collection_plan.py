"""The simulation of large collections against sums by hand, and the measurement of processes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
HOUR = 3600.0


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("collection_plan")


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("collection_costs")


def cost(seconds=(10.0, 2.0, 0.5), read=(7.0, 1.0, 1.0), written=(1.0, 0.0, 0.25), memory=(100.0, 1.0, 3.0)):
    names = ("fixed", "per_network", "per_byte")
    kinds = {"seconds": seconds, "read": read, "written": written, "memory": memory}
    return {kind: dict(zip(names, values, strict=True)) for kind, values in kinds.items()}


def test_without_failures_everything_is_a_sum(plan):
    sizes = np.array([2.0, 4.0, 6.0, 8.0, 10.0])  # 3, 4, 5, 6, 7 seconds
    machine = plan.Machine(workers=2, bandwidth=1e9, failures_per_day=0.0)
    found = plan.simulate(sizes, cost(), machine, networks_per_part=2, keeps=False)
    # 17 and 21 seconds on two workers; the first is free first and takes the last part, of 17 seconds
    assert found.hours == pytest.approx(34 / HOUR)
    assert found.read == pytest.approx(3 * 7 + 5 + 30)
    assert found.written == pytest.approx(3 * 1 + 30 / 4)
    assert found.memory == 100 + 2 * 1 + 10 * 3
    assert (found.failures, found.hours_lost) == (0, 0.0)


def test_a_slow_disk_is_shared(plan):
    machine = plan.Machine(workers=2, bandwidth=1.0, failures_per_day=0.0)
    found = plan.simulate(np.array([8.0, 8.0]), cost(), machine, networks_per_part=1, keeps=False)
    assert found.hours == pytest.approx((10 + 2 * (1 + 8 + 2)) / HOUR)


@pytest.mark.parametrize("keeps", [False, True])
def test_work_is_lost_when_workers_are_killed(plan, keeps):
    sizes = np.full(60, 10.0)  # 7 seconds each
    machine = plan.Machine(workers=1, bandwidth=1e9, failures_per_day=86400 / 200.0)  # every 200 seconds
    calm = plan.Machine(workers=1, bandwidth=1e9, failures_per_day=0.0)
    options = {"networks_per_part": 20, "keeps": keeps}
    undisturbed = plan.simulate(sizes, cost(), calm, **options)
    runs = [plan.simulate(sizes, cost(), machine, **options, seed=seed) for seed in range(200)]
    for found in runs:
        # the time of one worker is that of the work and what was lost of it
        assert found.hours == pytest.approx(undisturbed.hours + found.hours_lost)
        assert found.read >= undisturbed.read
        assert (found.failures > 0) == (found.hours_lost > 0)
    assert plan.simulate(sizes, cost(), machine, **options, seed=3) == runs[3]
    mean = np.mean([found.hours for found in runs]) * HOUR
    if not keeps:  # a command of t seconds that restarts takes (exp(t / m) - 1) m on average
        expected = 3 * (np.exp(150 / 200) - 1) * 200
        assert mean == pytest.approx(expected, rel=0.15)
    else:
        assert undisturbed.hours * HOUR < mean < 3 * (np.exp(150 / 200) - 1) * 200


def test_a_command_that_keeps_networks_reads_each_once(plan):
    sizes = np.full(40, 10.0)
    machine = plan.Machine(workers=3, bandwidth=1e9, failures_per_day=86400 / 60.0)
    found = plan.simulate(sizes, cost(read=(0.0, 1.0, 1.0)), machine, networks_per_part=10, keeps=True)
    assert found.failures > 0
    assert found.read == pytest.approx(40 * 11)


def test_an_epoch_is_read_by_each_process(plan):
    sizes = np.full(10, 100.0)
    machine = plan.Machine(workers=4, bandwidth=1e9, failures_per_day=0.0)
    found = plan.simulate_epoch(sizes, cost(), machine, {"seconds": 60.0, "read": 5.0})
    assert found.read == 4 * 10 * 101
    assert found.hours == pytest.approx((10 + 10 * 52 / 4) / HOUR)
    killed = plan.simulate_epoch(
        sizes, cost(), plan.Machine(4, 1e9, failures_per_day=86400 / 65.0), {"seconds": 60.0, "read": 5.0}
    )
    assert killed.failures == 8  # in 130 seconds, four processes
    assert killed.read == pytest.approx(found.read + 8 * 5 * 4)
    assert killed.hours == pytest.approx(found.hours + 8 * (10 + 30) / HOUR)


def test_sizes_have_the_wanted_sum_and_spread(plan):
    sizes = plan.draw_sizes(20_000, 1e9, 1.5, seed=0)
    assert sizes.sum() == pytest.approx(1e9)
    assert np.log(sizes).std() == pytest.approx(1.5, abs=0.05)


def test_costs_are_fitted_and_predicted_exactly(costs):
    def used(networks, nbytes, largest):
        step = {"seconds": 5 + 2 * networks + 3e-6 * nbytes, "read": nbytes, "written": 10, "memory": 1e8 + largest}
        return {"networks": networks, "bytes": nbytes, "largest": largest, "steps": {"scan": step}}

    known = [used(1, 4e4, 4e4), used(200, 1e7, 6e4), used(8, 1e8, 2e7)]
    fitted = costs.fit_costs(known, "scan")
    assert fitted["seconds"] == pytest.approx({"fixed": 5.0, "per_network": 2.0, "per_byte": 3e-6})
    mixture = used(60, 5e7, 9e6)
    assert costs.predict(fitted, mixture) == pytest.approx(mixture["steps"]["scan"], rel=1e-6)


def test_processes_are_watched_and_stopped(costs, tmp_path):
    script = "import sys, time; data = 60_000_000 * b'1'; open(sys.argv[1], 'wb').write(data[:5_000_000]); {}"
    used = costs.run_watched([sys.executable, "-c", script.format("time.sleep(0.2)"), str(tmp_path / "x")])
    assert used.memory > 60_000_000
    assert used.seconds > 0
    assert (tmp_path / "x").stat().st_size == 5_000_000
    stopped = tmp_path / "y"
    waits = [sys.executable, "-c", script.format("time.sleep(60)"), str(stopped)]
    costs.run_watched(waits, stop=stopped.exists)  # returns long before a minute is over
    with pytest.raises(subprocess.CalledProcessError) as failed:
        costs.run_watched([sys.executable, "-c", "raise SystemExit('no such thing')"])
    assert "no such thing" in failed.value.stderr


def test_the_plan_is_simulated_from_a_record_of_costs(plan, tmp_path):
    steps = dict.fromkeys(("scan", "import", "embed", "pretrain"), cost((5.0, 0.01, 1e-8), (0, 0, 1.0), (0, 0, 0.1)))
    record = tmp_path / "costs.json"
    record.write_text(json.dumps({"results": {"costs": steps}}))
    output, plot = tmp_path / "plan.json", tmp_path / "plan.png"
    words = ["--costs", str(record), "--num-models", "1000", "--gigabytes", "2", "--output", str(output)]
    results = plan.main([*words, "--plot", str(plot)])
    assert json.loads(output.read_text())["results"]["steps"]["scan"]["best"] == results["steps"]["scan"]["best"]
    assert set(results["steps"]["import"]["parts"]) == {"100", "300", "1000"}
    assert results["steps"]["import"]["parts"]["100"]["read"] == pytest.approx(2e9)
    assert results["sizes"]["largest"] <= 500e6
    assert plot.stat().st_size > 1000
