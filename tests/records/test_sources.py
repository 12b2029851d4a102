"""Paths and repositories are told apart in one place, and a wrong one is answered at once."""

import subprocess
import sys
from threading import Event

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError

from hf_sane.records._sources import (
    HubRepo,
    find_source,
    hub_id,
    parse_repo,
    parse_source,
    pretrained_arguments,
    source_name,
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def questions(hub):
    """Requests about repositories; the client asks for other things of its own accord."""
    return [request for request in hub.log if "/org/" in request.path or "/mixed/" in request.path]


@pytest.mark.parametrize("name", ["org/network", "network", "zoo@2024", "a b [1]", "x.safetensors", "org@v1/zoo"])
def test_what_exists_is_a_path(name, here):
    (here / name).mkdir(parents=True)
    assert parse_source(name) == find_source(name) == (here / name).relative_to(here)
    assert hub_id(name) is None
    assert pretrained_arguments(name) == (name, {})
    assert source_name(name) == name.rpartition("/")[2]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "./org/network",
            "../network",
            "/org/network",
            "~/network",
            "a/b/c",
            "a/b/c@v1",
            r"a\b",
            "org/net.safetensors",
        ),
        *("checkpoint.pth.tar", "net.PT", "org/model.gguf", "a b/c", "-x/y", "org/name..x"),
    ],
)
def test_what_cannot_be_a_repository_is_a_missing_path(name, here, local_hub):
    assert not isinstance(parse_source(name), HubRepo)
    with pytest.raises(
        FileNotFoundError, match=r"no such file or folder: .*\(tried /.*\); give an existing path or a Hub repo id"
    ):
        find_source(name)
    assert questions(local_hub) == []


def test_home_is_found(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "network").mkdir()
    assert find_source("~/network") == here / "network"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/network", HubRepo("org/network")),
        ("gpt2", HubRepo("gpt2")),
        ("org/net-v1.5", HubRepo("org/net-v1.5")),
        ("org/network@v1", HubRepo("org/network", "v1")),
        ("org/network@refs/pr/3", HubRepo("org/network", "refs/pr/3")),
    ],
)
def test_what_may_be_a_repository(name, expected):
    assert parse_source(name) == parse_repo(name) == expected
    assert hub_id(name) == expected.repo_id
    assert source_name(name) == str(expected) == name


def test_a_revision_comes_from_one_place():
    assert parse_source("org/network", revision="v1") == HubRepo("org/network", "v1")
    assert parse_source("org/network@v1", revision="v1") == HubRepo("org/network", "v1")
    with pytest.raises(ValueError, match="two revisions of one repository: org/network@v1 and 'v2'"):
        parse_source("org/network@v1", revision="v2")
    with pytest.raises(ValueError, match="expected a revision after '@', got 'org/network@'"):
        parse_source("org/network@")
    with pytest.raises(ValueError, match="got an empty name"):
        parse_source("")
    with pytest.raises(HFValidationError):
        parse_repo("a/b/c")


def test_a_pushed_name_is_never_a_path(here):
    (here / "org" / "network").mkdir(parents=True)
    assert parse_repo("org/network") == HubRepo("org/network")


@pytest.mark.parametrize("name", ["0@", "org/network@", "", None])
def test_a_card_links_to_nothing_that_is_no_repository(name):
    assert hub_id(name) is None


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_the_hub_is_asked_once(repo_type, here, local_hub):
    local_hub.storage.add_files(f"{repo_type}s", "org/there", {"config.json": b"{}"})
    assert find_source("org/there", repo_type=repo_type) == HubRepo("org/there")
    assert len(questions(local_hub)) == 1
    kind = "dataset " if repo_type == "dataset" else ""
    address = f"{local_hub.address}/{'datasets/' if kind else ''}mixed/nothere"
    message = (
        f"no such file or folder, and no such {kind}repository on the Hub: tried {here}/mixed/nothere and {address};"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_source("mixed/nothere", repo_type=repo_type)
    assert len(questions(local_hub)) == 2
    with pytest.raises(FileNotFoundError, match="org/there has no branch, tag or commit 'v9' on the Hub"):
        find_source("org/there@v9", repo_type=repo_type)
    assert len(questions(local_hub)) == 3


def test_what_is_in_the_cache_needs_no_hub(here, local_hub):
    local_hub.storage.add_files("models", "org/there", {"config.json": b"{}"})
    snapshots = f"{constants.HF_HUB_CACHE}/models--org--there/snapshots/abc"
    local_hub.stop()
    with pytest.raises(ConnectionError, match="the Hub cannot be reached to ask .* check the path, or the connection"):
        find_source("org/there")
    subprocess.run(["mkdir", "-p", snapshots], check=True)
    assert find_source("org/there@v1") == HubRepo("org/there", "v1")


def test_offline_mode_reads_paths_and_the_cache(tmp_path, local_hub):
    program = "from hf_sane.records._sources import find_source\nfind_source('org/there')"
    environment = local_hub.environment(tmp_path / "home", offline=True)
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "FileNotFoundError: no such file or folder, and in offline mode (HF_HUB_OFFLINE) only" in ran.stderr
    assert questions(local_hub) == []


def test_a_name_inside_a_folder_that_is_here_is_a_path(here, local_hub):
    """The Hub is not asked: no wait, no advice to check the connection."""
    (here / "org").mkdir()
    local_hub.storage.add_files("models", "org/network", {"config.json": b"{}"})
    with pytest.raises(FileNotFoundError, match=r"the folder org is here: .* or org/network@main for the repository"):
        find_source("org/network")
    assert questions(local_hub) == []
    assert find_source("org/network@main") == HubRepo("org/network", "main")
    assert find_source("org/network", revision="main") == HubRepo("org/network", "main")


def test_a_host_that_is_not_found_costs_a_moment(monkeypatch):
    class Api:
        endpoint = "https://hub"

        def repo_info(self, *_, **__):
            Event().wait(60)

    monkeypatch.setattr("hf_sane.records._sources.ASK_SECONDS", 0.01)
    with pytest.raises(ConnectionError, match="no such file or folder, and the Hub cannot be reached"):
        find_source("my_zoo", api=Api())


def test_a_busy_hub_is_left_to_whoever_reads(local_hub, monkeypatch):
    """What is not a refusal is no reason to call a repository missing: reading it is tried again, and says more."""
    handler = local_hub._server.RequestHandlerClass
    monkeypatch.setattr(handler, "answer", lambda self, path: self.send(503, {"error": "busy"}))
    assert find_source("org/there") == HubRepo("org/there")
    assert len(questions(local_hub)) == 1


def test_a_link_that_leads_nowhere_is_called_so(here):
    for target in ("gone", "x.safetensors"):
        (here / "x.safetensors").unlink(missing_ok=True)
        (here / "x.safetensors").symlink_to(here / target)
        with pytest.raises(FileNotFoundError, match=r"a link to a file that is missing: x.safetensors \(tried /"):
            find_source("x.safetensors")
