"""`probe --transfer` compares the zoos of one folder, and refuses what it cannot do before it computes anything."""

import pytest

from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.show_zoo import split_config


@pytest.fixture(scope="module")
def folder(tiny_zoo, tmp_path_factory):
    """Two zoos, `first` and `second`, in one folder."""
    root = tmp_path_factory.mktemp("two") / "zoos"
    for config in ("first", "second"):
        tiny_zoo.save(root, config)
    return root


def probe(folder, sane, *more):
    common = ("--poolings", "mean", "--properties", "test_accuracy")
    return ("probe", "--sane", sane, "--zoo", folder, "--zoo-config", "first", *common, *more)


def test_two_configurations_of_one_folder(folder, tiny_sane_folder, tmp_path, hf_sane_command):
    first, second = f"{folder}:first", f"{folder}:second"
    printed = hf_sane_command(*probe(folder, tiny_sane_folder, "--transfer", second, "-o", tmp_path / "out")).output
    assert first in printed
    found = RunRecord.load(tmp_path / "out" / "run.json").results["transfer"]["test_accuracy"]["weights"]
    assert found.keys() == {first, second}
    assert found[first][second] == found[second][first] == found[first][first]  # they are the same networks


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--transfer", "{folder}:first"), "expected different zoos, got {folder}:first twice"),
        (("--transfer", "{folder}"), "expected different zoos, got {folder}:first twice"),
        (("--transfer", "{folder}:third"), "third"),
        (("--transfer", "{folder}/nowhere"), "nowhere"),
        (("--transfer", "{folder}:second", "--properties", "nothing"), "nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_work(
    more, said, folder, tiny_sane_folder, tmp_path, hf_sane_command, monkeypatch
):
    def no_work(*_, **__):
        raise AssertionError("a SANE was loaded")

    monkeypatch.setattr("hf_sane.hub._publish.load_sane", no_work)
    arguments = probe(folder, tiny_sane_folder, *(part.format(folder=folder) for part in more))
    refused = hf_sane_command(*arguments, "-o", tmp_path / "out", exit_code=2)
    assert said.format(folder=folder) in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_path_with_a_colon_is_a_path(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert split_config(f"{tmp_path}/a:b") == (f"{tmp_path}/a:b", None)
    assert split_config(f"{tmp_path}/a:c") == (f"{tmp_path}/a", "c")
    assert split_config("org/zoo:seeds") == ("org/zoo", "seeds")
    assert split_config("C:\\zoos") == ("C:\\zoos", None)
    assert split_config("org/zoo") == ("org/zoo", None)
