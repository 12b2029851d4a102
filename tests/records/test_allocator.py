"""Allocator settings, in processes of their own: they cannot be taken back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_sane.records import _allocator as allocator
from hf_sane.records._allocator import SETTINGS, allocator_state, peak_rss_bytes, tune_allocator

GLIBC = allocator_state()["name"].startswith("glibc")
SOURCE = Path(allocator.__file__)
BLOCK = 2**27


def state_in_new_process(**environment):
    """Load the module alone, without the package: no PyTorch to wait for."""
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('allocator', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "result = [module.allocator_state(), module.tune_allocator(), module.peak_rss_bytes()]\n"
        f"block = b'x' * {BLOCK}\n"
        "result.append(module.peak_rss_bytes())\n"
        "del block\n"
        "print(json.dumps([*result, module.peak_rss_bytes()]))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "LD_PRELOAD"}
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code, str(SOURCE)],
        capture_output=True,
        text=True,
        env=clean | environment,
        check=True,
    )
    return json.loads(ran.stdout)


def test_importing_changes_nothing_and_tuning_says_what_it_did():
    before, after, *_ = state_in_new_process()
    assert before["tuned"] == {}
    assert after["name"] == before["name"]
    assert after["tuned"] == ({name: value for name, (_, value, _) in SETTINGS.items()} if GLIBC else {})


def test_what_the_environment_sets_is_left_alone():
    before, after, *_ = state_in_new_process(MALLOC_TOP_PAD_="1000000", MALLOC_MMAP_MAX_="7")
    assert before["environment"] == {"MALLOC_MMAP_MAX_": "7", "MALLOC_TOP_PAD_": "1000000"}
    assert after["tuned"].keys() == ({"trim_threshold"} if GLIBC else set())


@pytest.mark.parametrize("preload", ["/usr/lib/libjemalloc.so.2", "/opt/libtcmalloc.so"])
def test_another_allocator_is_left_alone(preload, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", preload)
    monkeypatch.setattr(allocator, "_tuned", {})
    assert tune_allocator()["name"] in preload
    assert allocator_state()["tuned"] == {}


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(allocator, "_tuned", {})
    assert tune_allocator() == {"name": f"default of {platform}", "environment": _malloc_variables(), "tuned": {}}


def test_another_c_library_is_left_alone(monkeypatch):
    def confstr(name):
        raise OSError(22, "Invalid argument")

    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "confstr", confstr)
    monkeypatch.setattr(os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2})
    monkeypatch.setattr(allocator, "_tuned", {})
    assert tune_allocator()["name"] == "default of linux"
    assert allocator_state()["tuned"] == {}


def test_the_peak_counts_what_was_allocated_and_stays():
    _, _, before, during, after = state_in_new_process()
    assert during - before == pytest.approx(BLOCK, rel=0.1)
    assert after == pytest.approx(during, rel=0.1)
    assert peak_rss_bytes() > BLOCK  # of this process, with PyTorch in it


def test_the_peak_of_a_child_is_its_own():
    """`getrusage` would give a child of this process at least this process's size."""
    block = torch.ones(2**27)  # 512 MiB
    _, _, peak, *_ = state_in_new_process()
    assert peak < block.nbytes / 4


def test_a_system_that_does_not_tell_gives_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_rss_bytes() is None


def _malloc_variables():
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith("MALLOC_") or k == "GLIBC_TUNABLES"}
