"""The doctor: what works is ok, what does not is a fault with its remedy, and a token is never printed."""

import json
from importlib.metadata import PackageNotFoundError

import pytest
from hub_server import TOKEN

from hf_sane.workflows import doctor
from hf_sane.workflows.doctor import Check

WRONG = "hf_" + "s" * 34


def test_this_machine_is_healthy(hf_sane_command):
    told = hf_sane_command("doctor", "--no-hub", "--json").stdout
    answer = json.loads(told)
    found = {check["name"]: check for check in answer["checks"]}
    assert answer["healthy"]
    assert {"versions", "PyTorch", "threads", "allocator", "this folder", "Hub cache", "self-test"} <= found.keys()
    assert found["self-test"]["verdict"] == "ok", found["self-test"]
    assert found["versions"]["verdict"] == "ok"


def test_a_fault_is_a_finding_with_its_remedy(monkeypatch, hf_sane_command):
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy>=99", "torch>=2.6", "peft; extra == 'train'"])
    told = hf_sane_command("doctor", "--no-hub", "--no-self-test", exit_code=1).stdout
    assert "\nfault: versions" in "\n" + told
    assert "pip install 'numpy>=99'" in told


def test_a_missing_extra_says_what_it_is_for(monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    train = next(check for check in doctor.check_extras() if check.name == "extra train")
    assert (train.verdict, train.found) == ("note", "no peft, tensorboard")
    assert train.remedy == "for TensorBoard logs of pre-training, and LoRA: pip install 'hf_sane[train]'"


def test_too_many_threads_and_too_little_room(monkeypatch):
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor, "read_hardware", lambda: {"usable_cores": 2})
    assert doctor.check_threads().remedy == "set OMP_NUM_THREADS=2"
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 2**80)
    assert {check.verdict for check in doctor.check_disks()} == {"fault"}


def test_a_self_test_that_fails_is_a_fault(monkeypatch):
    def refuse(folder):
        raise ValueError("no")

    monkeypatch.setattr(doctor, "_run_through", refuse)
    assert doctor.check_itself() == Check(
        "self-test", "fault", "no", "please report this with the output of `hf-sane doctor --json`"
    )


@pytest.mark.parametrize(
    ("token", "verdict", "found"),
    [
        (TOKEN, "ok", "can be reached, logged in as someone"),
        (WRONG, "fault", "does not accept the token"),
        (None, "note", "can be reached; no token is set"),
    ],
)
def test_the_hub_and_the_token_which_is_not_printed(token, verdict, found, local_hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    if token is None:
        monkeypatch.setattr(doctor, "get_token", lambda: None)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    check = doctor.check_hub()
    assert check.verdict == verdict
    assert check.found == f"{local_hub.address} {found}"
    assert str(token) not in str(check)


def test_a_hub_that_is_not_reached_is_no_fault(local_hub):
    local_hub.stop()
    check = doctor.check_hub()
    assert (check.verdict, check.remedy) == ("note", "local files work without the Hub")
