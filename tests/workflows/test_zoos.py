"""Zoos from Python: built, imported, mixed, aligned, shown, as the verbs and the script do it."""

import json
import runpy
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner
from zoo_recipes import hyperparameter_zoo

from hf_sane.cli.app import app
from hf_sane.records._manifests import UNFINISHED
from hf_sane.workflows.align_zoo import AlignZooSettings, align_zoo, run_align_zoo
from hf_sane.workflows.build_zoo import BuildZooSettings, build_zoo, run_build_zoo
from hf_sane.workflows.import_zoo import ImportZooSettings, import_zoo, run_import_zoo
from hf_sane.workflows.mix_zoos import mix_zoos
from hf_sane.workflows.show_zoo import load_zoo, show_zoo
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo.building._settings import CHILD_SETTINGS, ZooSettings
from hf_sane.zoo.importing._settings import ImportSettings

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_zoo.py"
LIMITS = {"train_limit": 64, "validation_limit": 20, "test_limit": 20}
TINY = {"num_models": 3, "epochs": 1, "architecture": "mlp", "architecture_settings": {"hidden_sizes": [3]}, **LIMITS}
FLAGS = [
    *("--num-models", 3, "--epochs", 1, "--architecture", "mlp", "--architecture-settings", '{"hidden_sizes": [3]}'),
    *("--train-limit", 64, "--validation-limit", 20, "--test-limit", 20, "--no-progress-bar"),
]


def verb(*arguments):
    """What a verb of the command line prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def as_json(*arguments):
    """What a verb tells as JSON, without the place of its output."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return {name: value for name, value in json.loads(result.stdout).items() if name not in ("output", "notes")}


def same_networks(one: Zoo, other: Zoo) -> bool:
    return all(
        torch.equal(split.tokens(i), other.splits[name].tokens(i))
        for name, split in one.splits.items()
        for i in range(len(split))
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_zoo("digits", output=tmp_path_factory.mktemp("built"), progress_bar=False, **TINY)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for index in range(4):
        save_file({"layer.weight": torch.randn(3, 5), "layer.bias": torch.randn(3)}, folder / f"{index}.safetensors")
    (folder / "none.safetensors").write_bytes(b"no weights")
    return folder


def test_python_the_verb_and_the_script_build_the_same_zoo(built, tmp_path, monkeypatch, capsys):
    found = as_json("zoo", "build", "-o", tmp_path / "verb", *FLAGS)
    assert found == json.loads(json.dumps(show_zoo(built).to_dict()))
    assert same_networks(built, Zoo.load(tmp_path / "verb"))
    old = ["--output_dir", "script", *(str(flag).replace("-limit", "_limit") for flag in FLAGS)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *old])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    told = capsys.readouterr()
    assert not ended.value.code
    assert told.out.endswith("wrote script\n")
    assert "build_zoo.py: --output_dir is now --output; the old spelling works until version" in told.err
    assert same_networks(built, Zoo.load(tmp_path / "script"))
    settings = [load_zoo(place).facts.arguments for place in (built, tmp_path / "verb", tmp_path / "script")]
    assert settings[1] == settings[2] == settings[0]


def test_a_build_records_the_settings_of_the_zoo_and_not_its_place(built):
    assert built.facts.arguments.keys() == {
        entry.name
        for entry in fields(ZooSettings)
        if not entry.name.startswith("module") and entry.name not in CHILD_SETTINGS  # which do not apply
    }
    assert built.run_record.arguments == dict(built.facts.arguments)
    assert built.alignment is not None
    assert not list(Path(built.source).rglob("*.html"))  # which verbs leave


def test_a_finished_zoo_is_opened_again_and_another_one_refused(built, tmp_path):
    again = build_zoo(output=built.source, progress_bar=True, **TINY)
    assert same_networks(built, again)
    with pytest.raises(ValueError, match="with other settings of seed"):
        build_zoo(output=built.source, seed=1, **TINY)


def test_a_recipe_changes_defaults_alone(tmp_path):
    options = {"dropout": [0.0], "num_models": 5}
    settings = BuildZooSettings.from_options(recipe="hyperparameter", output=tmp_path, **options)
    assert settings.to_dict() == hyperparameter_zoo(**options).to_dict()
    plain = BuildZooSettings.from_options(output=tmp_path)
    assert plain.to_dict() == ZooSettings().to_dict()
    with pytest.raises(ValueError, match="expected recipe to be one of 'seed', 'hyperparameter'"):
        BuildZooSettings.from_options(recipe="seeds", output=tmp_path)


def test_images_may_be_given_and_the_place_left_out(digits, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    zoo = build_zoo(digits, progress_bar=False, **TINY | dict.fromkeys(LIMITS))
    (folder,) = tmp_path.glob("hf_sane-zoo-*")
    assert zoo.source == str(folder)
    assert f"no output folder was given; the zoo is written to {folder}" in caplog.text
    assert zoo.facts.data["train"] == len(digits.split("train")[1])


def test_a_result_prints_and_saves_itself(built, tmp_path):
    settings = BuildZooSettings(output=Path(built.source), progress_bar=False, **TINY)
    result = run_build_zoo(settings)
    lines = str(result).splitlines()
    assert lines[0] == "zoo digits"
    assert lines[-1] == f"wrote {built.source}"
    assert lines == verb("zoo", "show", built.source).splitlines() + lines[-1:]
    assert same_networks(built, Zoo.load(result.save(tmp_path / "copy").output))


def test_imports_from_python_and_the_verb_are_the_same(checkpoints, tmp_path):
    options = {"token_dim": 4, "group_by": "network"}
    zoo = import_zoo(checkpoints, output=tmp_path / "python", **options)
    flags = ("--token-dim", 4, "--group-by", "network", "--output", tmp_path / "verb")
    found = as_json("zoo", "import", "--folder", checkpoints, *flags)
    assert same_networks(zoo, Zoo.load(tmp_path / "verb"))
    (left_out,) = found["left_out"]
    assert left_out["networks"] == ["none.safetensors"]
    assert found["taken"] == [f"{index}.safetensors" for index in range(4)]
    assert found["splits"] == {name: len(split) for name, split in zoo.splits.items()}
    again = import_zoo(checkpoints, output=tmp_path / "python", progress_bar=False, **options)  # no other zoo
    assert same_networks(zoo, again)
    told = {e.name for e in fields(ImportSettings)} - {"max_size", "properties", "properties_key", "pattern"}
    assert zoo.facts.arguments.keys() == told | {"max_bytes"}
    result = run_import_zoo(ImportZooSettings(folder=checkpoints, output=tmp_path / "python", **options))
    assert "not taken\nskipped: 1, " in str(result)
    assert "\nvalidation         1     1           1\n" in str(result)
    assert same_networks(zoo, load_zoo(result.save(tmp_path / "copy").output))
    assert str(result).endswith(f"\nwrote {tmp_path / 'copy'}")


def test_names_of_repositories_need_no_option(tmp_path):
    told = [
        CliRunner().invoke(app, ["zoo", "import", *names, "-o", str(tmp_path / "zoo"), "--limit", "0"])
        for names in (["a/b", "c/d"], ["--repos", "a/b", "c/d"])
    ]
    assert [result.exit_code for result in told] == [2, 2]
    assert "--repos NAME is now NAME, without the option; the old spelling works until" in told[1].stderr
    assert (
        told[1].stderr.splitlines()[1:] == told[0].stderr.splitlines() == ["hf-sane: limit must be at least 1, got 0"]
    )


def test_mixtures_from_python_and_the_verb_are_the_same(built, tiny_zoo, tiny_zoo_folder, tmp_path):
    zoo = mix_zoos({"a": tiny_zoo, "b": built.source}, output=tmp_path / "python", token_dim=80)
    sources = (f"a={tiny_zoo_folder}", f"b={built.source}")
    found = as_json("zoo", "mix", *sources, "--output", tmp_path / "verb", "--token-dim", 80)
    assert same_networks(zoo, Zoo.load(tmp_path / "verb"))
    assert found["name"] == "a + b"
    assert len(zoo) == len(tiny_zoo) + len(built)


def test_a_zoo_is_aligned_in_memory_or_in_its_folder(built, tmp_path):
    plain = Zoo({name: type(split)(split.table, split.facts) for name, split in built.splits.items()}, built.facts)
    aligned = align_zoo(plain)
    assert plain.alignment is None
    plain.save(tmp_path)
    found = as_json("zoo", "align", tmp_path)
    (key,) = aligned.alignment.references
    reference = aligned.alignment.references[key]
    distance = found[key].pop("distance")
    assert found == {key: {"runs": 3, "free_permutations": 1, "reference": reference, "fixed": {}}}
    finals = [split.final_epochs() for split in aligned.splits.values()]
    target = next(part.tokens(part.run_ids.index(reference)) for part in finals if reference in part.run_ids)
    for when, tokens in (("before", ZooSplit.stacked_tokens), ("after", aligned_tokens)):
        all_tokens = torch.cat([tokens(part)[np.array(part.run_ids) != reference] for part in finals])
        expected = ((all_tokens - target).flatten(1).norm(dim=1) / target.norm()).quantile(0.5)
        assert distance[when] == pytest.approx(float(expected), rel=1e-5)
    assert distance["after"] < distance["before"]
    for name, permutation in aligned.alignment.permutations[key].items():
        assert torch.equal(permutation, Zoo.load(tmp_path).alignment.permutations[key][name])
    result = run_align_zoo(AlignZooSettings(zoo=tmp_path))
    (row,) = [line.split() for line in str(result).splitlines() if line.startswith(key)]
    assert row == [key, "3", "1", reference, *(f"{distance[when]:.4g}" for when in ("before", "after"))]
    copy = load_zoo(result.save(tmp_path / "copy").output)
    assert same_networks(plain, copy)
    assert copy.alignment.references == aligned.alignment.references
    given = align_zoo(plain, reference=plain.splits["test"].state_dict(0))
    assert given.alignment.references == {key: "given"}
    assert not list(tmp_path.rglob(UNFINISHED))
