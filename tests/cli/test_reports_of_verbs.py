"""Reports that verbs add to outputs which others read: listed in the manifest, seen by people, never published."""

import json
import shutil
from html import unescape

import datasets
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from hf_sane.records._outputs import check_finished
from hf_sane.records._uploads import folder_files
from hf_sane.zoo._dataset import Zoo

LIMITS = ("--train-limit", 32, "--validation-limit", 10, "--test-limit", 10, "--no-progress-bar")
MODEL = '{"hidden_size": 8, "latent_dim": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "window_size": 8}'
SHORT = ("--epochs", 4, "--log-every-steps", 1, "--eval-every-epochs", 0, "--log-with", "none", "--no-progress-bar")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_zoo_folder):
    """Networks with a table, one of whose rows belongs to none of them, a file that is no network, and a zoo."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "networks").mkdir()
    for index in range(3):
        tensors = {"weight": torch.full((2, 3), float(index)), "bias": torch.zeros(2)}
        save_file(tensors, folder / "networks" / f"net_{index}.safetensors")
    (folder / "networks" / "cut.safetensors").write_bytes(b"nothing")
    rows = [f"net_{index}.safetensors,0.{index + 5}" for index in range(3)]
    (folder / "runs.csv").write_text("\n".join(["file,test_accuracy", *rows, "gone.safetensors,0.9", ""]))
    shutil.copytree(tiny_zoo_folder, folder / "zoo")
    return folder


def test_a_zoo_of_implicit_networks_shows_how_well_they_fit(tmp_path, hf_sane_command):
    few = ("--train-limit", 4, "--validation-limit", 3, "--test-limit", 3, "--no-progress-bar")
    told = hf_sane_command("zoo", "fit", *few, "--hidden-sizes", "4,3", "--steps", 3, "--output", tmp_path / "zoo")
    page = unescape((tmp_path / "zoo/data/report.html").read_text(encoding="utf-8"))
    for text in (told.stdout, page):
        assert "final psnr" in text
        assert "final test accuracy" not in text
    assert ">Splits<" in page


def test_an_index_names_what_it_skips_once(inputs, tmp_path, hf_sane_command):
    told = hf_sane_command("index", inputs / "networks", "--output", tmp_path / "known").stdout
    page = unescape((tmp_path / "known/report.html").read_text(encoding="utf-8"))
    for text in (told, page):
        assert text.count(f"skipped {inputs / 'networks/cut.safetensors'}: expected ") == 1


VERBS = {  # verb, arguments, the report, and what it tells
    "build": ("--num-models", 3, "--epochs", 1, *LIMITS),
    "import": ("{}/networks", "--properties", "{}/runs.csv", "--group-by", "network"),
    "mix": ("a={}/zoo", "b={}/zoo"),
    "align": ("{}/zoo",),
}
TOLD = {
    "build": ("hf_sane: zoo", "test accuracy at the last epoch", "epoch", "hf-sane zoo build"),
    "import": (
        "cut.safetensors",
        "Files that were not imported",
        "Rows without a network",
        "line 5",
        "test accuracy at",
        "properties: columns: test accuracy",
        "known 3",
    ),
    "mix": (
        "zoo a + b (not aligned when this report was written; hf-sane zoo align writes alignment.html beside it)",
        "test accuracy at the last epoch",
    ),
    "align": ("hf_sane: alignment", "free permutations", "after alignment", "distance to the reference before"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_zoos_have_a_report_that_loaders_and_pushes_leave_alone(verb, inputs, tmp_path, hf_sane_command):
    words = [str(word).format(inputs) for word in VERBS[verb]]
    hf_sane_command("zoo", verb, *words, *(() if verb == "align" else ("--output", tmp_path / "zoo")))
    folder = inputs / "zoo" if verb == "align" else tmp_path / "zoo"
    name = "alignment.html" if verb == "align" else "report.html"
    page = unescape((folder / "data" / name).read_text(encoding="utf-8"))
    assert [told for told in TOLD[verb] if told not in page] == []
    assert page.count("<svg") == 2  # for wide and for narrow screens
    assert name in check_finished(folder / "data", all_digests=True).files
    zoo = Zoo.load(folder)
    rows = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in zoo.splits.items()} == {
        split: len(part) for split, part in rows.items()
    }
    sent = {file.path for file in folder_files(folder)}
    assert "data/run.json" in sent
    assert not [path for path in sent if path.endswith(".html")]


def test_a_run_has_a_report_with_its_losses_which_a_resumed_run_has_too(tiny_zoo_folder, tmp_path, hf_sane_command):
    command = ("pretrain", "--zoo", tiny_zoo_folder, "--output", tmp_path / "run", "--model", MODEL, *SHORT)
    hf_sane_command(*command)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "training loss" in page
    assert "reconstruction R2 (validation)" in page
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"model", "report.html", "run.yaml"}
    assert "report.html" not in {file.path for file in folder_files(tmp_path / "run/model")}


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_a_pull_has_a_report_unless_the_repository_has_one(local_hub, tmp_path, hf_sane_command):
    HfApi().create_repo("org/a")
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/a")
    hf_sane_command("pull", "org/a", "--output", tmp_path / "a")
    assert "config.json" in (tmp_path / "a/report.html").read_text()
    assert "report.html" in check_finished(tmp_path / "a", all_digests=True).files
    again = json.loads(hf_sane_command("pull", "org/a", "--output", tmp_path / "a", "--json").stdout)
    assert set(again["files"]) == {"config.json"}
    HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="report.html", repo_id="org/a")
    hf_sane_command("pull", "org/a", "--output", tmp_path / "a")
    assert (tmp_path / "a/report.html").read_bytes() == b"theirs"
