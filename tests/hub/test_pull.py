"""What is pulled is what the Hub has, byte by byte; folders of others are left alone; a busy Hub is called one."""

import os
import time

import pytest
from hub_server import Fault
from hub_storage import git_hash, is_large, sha256
from huggingface_hub import HfApi, constants

from hf_sane.hub._pull import pull
from hf_sane.records import _patience as patience
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST, UNFINISHED
from hf_sane.records._outputs import check_finished
from hf_sane.records._patience import HubBusyError, patiently
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.zoo.importing._importing import import_zoo
from hf_sane.zoo.importing._settings import ImportSettings

FILES = {
    "model.safetensors": os.urandom(300),
    "config.json": b'{"a": 1}',
    "sub/notes.txt": b"notes",
    ".gitattributes": b"* text",
}


@pytest.fixture
def hub(local_hub, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    local_hub.storage.add_files("models", "org/model", FILES)
    return local_hub


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_have_the_digests_of_both_kinds():
    """Otherwise one of the two is never compared below."""
    assert is_large("model.safetensors", 300)
    assert not is_large("config.json", 8)
    assert (len(sha256(b"")), len(git_hash(b""))) == (64, 40)


def test_a_folder_is_the_repository_and_a_manifest(hub, tmp_path):
    folder = pull("org/model", tmp_path / "model")
    found = content(folder)
    assert found.pop(MANIFEST)
    assert found == hub.repositories["models", "org/model"].head.files
    manifest = check_finished(folder)
    assert manifest.job == "pull of the model org/model"
    assert manifest.facts["revision"] == hub.repositories["models", "org/model"].head.sha
    assert [path.name for path in tmp_path.iterdir() if path.name != "hub cache"] == ["model"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "sub/notes.txt"])
def test_a_corrupted_file_of_the_right_length_is_fetched_again_once(hub, tmp_path, name):
    hub.faults = [Fault(f"resolve/.*/{name}")]
    assert content(pull("org/model", tmp_path / "model"))[name] == FILES[name]
    assert hub.faults[0].times == 0
    hub.faults = [Fault(f"resolve/.*/{name}", times=10)]
    with pytest.raises(InvalidFileError, match=rf"org/model/{name}: expected a file with the Hub's digest"):
        pull("org/model", tmp_path / "other")
    assert hub.faults[0].times == 8
    assert name not in content(tmp_path / "other")
    with pytest.raises(InvalidFileError, match="an interrupted pull of the model org/model"):
        check_finished(tmp_path / "other")
    hub.faults = []
    assert content(pull("org/model", tmp_path / "other")) == content(tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_corrupted_file_in_the_cache_is_not_copied(hub, tmp_path, name):
    cached = HfApi(endpoint=hub.address).hf_hub_download("org/model", name)
    with open(os.path.realpath(cached), "r+b") as file:
        file.write(b"\0")
    assert content(pull("org/model", tmp_path / "model"))[name] == FILES[name]


def test_a_corrupted_file_of_an_interrupted_pull_is_noticed(hub, tmp_path):
    hub.faults = [Fault("resolve/.*/sub/notes.txt", status=403, times=100, method="HEAD")]
    with pytest.raises(Exception, match="403"):
        pull("org/model", tmp_path / "model")
    assert (tmp_path / "model" / UNFINISHED).is_file()
    (tmp_path / "model" / "config.json").write_bytes(b'{"a": 2}')
    hub.faults = []
    assert content(pull("org/model", tmp_path / "model"))["config.json"] == FILES["config.json"]


def test_files_of_somebody_are_refused_before_anything_is_fetched(hub, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("theirs")
    with pytest.raises(FileExistsError, match="holds config.json, not ours to replace"):
        pull("org/model", tmp_path / "theirs")
    assert content(tmp_path / "theirs") == {"config.json": b"theirs"}
    assert not hub.sent("resolve")
    folder = pull("org/model", tmp_path / "model")
    hub.storage.add_files("models", "org/second", {"config.json": b"{}"})
    with pytest.raises(FileExistsError, match="a finished pull of the model org/model, not ours to replace"):
        pull("org/second", folder)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"added or changed since \(mine.txt\)"):
        pull("org/model", folder)
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_finished_folder_is_brought_up_to_date(hub, tmp_path):
    folder = pull("org/model", tmp_path / "model")
    before = hub.sent("resolve")
    pull("org/model", folder)
    assert hub.sent("resolve") == before, "nothing is fetched twice"
    repository = hub.repositories["models", "org/model"]
    hub.storage.add_files("models", "org/model", {"config.json": b'{"a": 2}'})
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "deletedFile", "value": {"path": "sub/notes.txt"}}]
    hub.storage.commit(repository, "main", lines)
    found = content(pull("org/model", folder))
    assert found.pop(MANIFEST)
    assert found == repository.head.files
    assert "sub/notes.txt" not in found


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_for_a_while_is_asked_again(hub, tmp_path, status):
    headers = {"Retry-After": "0"}
    hub.faults = [Fault("/api/models/org/model", status, times=3, headers=headers), Fault("resolve/.*config", status)]
    assert content(pull("org/model", tmp_path / "model"))["config.json"] == FILES["config.json"]
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_a_hub_that_stays_busy_is_called_so(hub, tmp_path):
    hub.faults = [Fault("/api/", 429, times=1000, headers={"Retry-After": "0"})]
    with pytest.raises(
        HubBusyError, match=r"answered 429 Too Many Requests to GET http.*api/models/org/model, repeatedly"
    ):
        pull("org/model", tmp_path / "model")
    assert hub.faults[0].times == 1000 - patience.TRIES
    hub.faults = [Fault("/api/", 500, times=1000)]
    with pytest.raises(HubBusyError, match="answered 500 Internal Server Error .* try again later"):
        load_state_dict("org/model")
    result = []
    with pytest.raises(ValueError, match="answered 500 Internal Server Error to GET"):
        import_zoo(ImportSettings(repos=["org/model"]), tmp_path / "zoo", on_entry=result.append)
    assert [entry.status for entry in result] == ["failed"]
    assert "check your" not in result[0].reason
    assert not (tmp_path / "zoo").exists()


def test_a_hub_that_cannot_be_reached_is_called_so(hub, tmp_path):
    hub.stop()
    expected = r"the Hub cannot be reached \(.+\); check the connection, then try again"
    with pytest.raises(ConnectionError, match=expected):
        pull("org/model", tmp_path / "pulled")
    with pytest.raises(ValueError, match=r"the Hub cannot be reached to ask for .*check the path, or the connection"):
        import_zoo(ImportSettings(repos=["org/model"]), tmp_path / "zoo")
    assert not (tmp_path / "pulled").exists()
    assert not (tmp_path / "zoo").exists()


def test_a_wait_that_is_too_long_is_said_and_not_waited_for(hub, tmp_path):
    hub.faults = [Fault("/api/", 429, times=1000, headers={"Retry-After": "3600"})]
    with pytest.raises(HubBusyError, match="try again in 3600 s, or log in"):
        pull("org/model", tmp_path / "model")
    assert hub.faults[0].times == 999


def test_the_wait_is_what_the_hub_asks_for(hub, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.faults = [Fault("/api/", 429, headers={"Retry-After": "7"}), Fault("/api/", 500, times=2)]
    assert patiently(HfApi(endpoint=hub.address).model_info, "org/model").id == "org/model"
    assert waits == [7.0, 2 * patience.FIRST_WAIT, 4 * patience.FIRST_WAIT]


def test_what_is_final_is_final(hub, tmp_path):
    with pytest.raises(Exception, match="404|Repository Not Found"):
        pull("org/none", tmp_path / "none")
    assert len([request for request in hub.log if "org/none" in request.path]) == 2
    assert hub.address == constants.ENDPOINT
