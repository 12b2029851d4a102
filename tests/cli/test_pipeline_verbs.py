"""Pre-train, embed, probe, sample, fine-tune and the demo, from the command line, on the tiny zoo."""

import json
import re
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification
from zoo_recipes import seed_zoo

import hf_sane
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._streaming import embed_checkpoint
from hf_sane.probing._zoo_features import read_zoo_features, stacked_features
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._comparison import METHODS
from hf_sane.sampling._export import Provenance
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._preparation import fit_code
from hf_sane.workflows.probe import ProbeSettings, _features, _open_codes
from hf_sane.zoo._alignment import aligned_tokens, token_blocks
from hf_sane.zoo.building._build import build_zoo

BASELINES = ("anchors", "reconstructed_anchors", "anchor_noise", "anchor_average", "scratch")


def run_card_code(folder, monkeypatch):
    """Run the code of a folder's card inside the folder."""
    card = ModelCard.load(folder / "README.md")
    (code,) = re.findall(r"```python\n(.*?)```", str(card), flags=re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, {})
    return card


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, tiny_sane_folder, tiny_zoo_folder, hf_sane_command):
    """Output folder of `hf-sane sample`, and what it printed."""
    output = tmp_path_factory.mktemp("cli") / "sampled"
    result = hf_sane_command(
        *("sample", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--output", output),
        *("--num-samples", 3, "--num-candidates", 12, "--bandwidth", "0.1,0.5", "--seed", 4, "--images", "digits"),
    )
    return output, result.output


def test_pretrain_leaves_a_sane_folder_with_its_card(tiny_sane_run, tiny_zoo_folder, monkeypatch, hf_sane_command):
    output, printed = tiny_sane_run
    assert "reconstruction R2 (validation)" in printed
    files = {path.name for path in (output / "model").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "run.json"} <= files
    card = run_card_code(output / "model", monkeypatch)
    record = RunRecord.load(output / "model" / "run.json")
    assert card.data.eval_results[0].metric_value == round(record.results["reconstruction_r2"], 6)
    refused = hf_sane_command("pretrain", "--zoo", tiny_zoo_folder, "--output", output, exit_code=2)
    assert (
        f"{output} already holds a finished run; choose another output folder; to continue: hf-sane" in refused.stderr
    )
    assert refused.stderr.endswith(f"hf-sane pretrain --zoo {tiny_zoo_folder} --output {output} --resume\n")


def test_a_misspelt_model_setting_is_refused(tiny_zoo_folder, tmp_path, hf_sane_command):
    arguments = ("pretrain", "--zoo", tiny_zoo_folder, "--output", tmp_path / "run", "--log-with", "none")
    refused = hf_sane_command(*arguments, "--model", '{"hiden_size": 8}', exit_code=2)
    assert "no field 'hiden_size'; did you mean 'hidden_size'?" in refused.stderr


def test_embed_writes_a_dataset(tiny_sane_folder, tiny_zoo_folder, tiny_zoo, tmp_path, hf_sane_command):
    arguments = ("embed", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--output", tmp_path / "out")
    printed = hf_sane_command(*arguments, "--poolings", "mean,concat").output
    assert "1664" in printed.replace(",", "")  # 52 tokens of 32 latents
    files = {name: str(tmp_path / "out" / f"{name}.parquet") for name in ("train", "validation", "test")}
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    split = tiny_zoo.splits["test"]
    assert found["test"]["run_id"][:] == split.run_ids
    assert np.allclose(found["test"]["test_accuracy"][:], split.column("test_accuracy"))
    model, extractor = (cls.from_pretrained(tiny_sane_folder) for cls in (SANEModel, SANEFeatureExtractor))
    expected = embed_networks(model, extractor, split.layout(0), aligned_tokens(split), poolings=["mean", "concat"])
    for name, values in expected.items():
        assert torch.allclose(torch.tensor(found["test"][name][:]), values, atol=1e-6)
    assert RunRecord.load(tmp_path / "out" / "run.json").results["networks"]["test"] == len(split)
    assert "already holds a finished" in hf_sane_command(*arguments, exit_code=2).stderr


@pytest.mark.parametrize("max_memory_bytes", [None, 0])
def test_embed_takes_checkpoints(max_memory_bytes, tiny_sane_folder, tiny_zoo, tmp_path, hf_sane_command, monkeypatch):
    networks = [tiny_zoo.splits["test"].state_dict(index) for index in (0, 1)]
    paths = [tmp_path / f"{index}.safetensors" for index in (0, 1)]
    for path, network in zip(paths, networks, strict=True):
        save_file(network, path)
    model, extractor = (cls.from_pretrained(tiny_sane_folder) for cls in (SANEModel, SANEFeatureExtractor))
    expected = [
        embed_checkpoint(model, extractor, network, poolings=["mean", "layer_mean_std"]) for network in networks
    ]
    loaded, encode = [], SANEFeatureExtractor.encode
    monkeypatch.setattr(SANEFeatureExtractor, "encode", lambda *a, **k: loaded.append(a) or encode(*a, **k))
    limit = () if max_memory_bytes is None else ("--max-memory-bytes", max_memory_bytes)
    arguments = ("embed", *paths, "--sane", tiny_sane_folder, "--output", tmp_path / "out", *limit)
    printed = hf_sane_command(*arguments).output
    assert str(paths[1]) in printed
    assert len(loaded) == (2 if max_memory_bytes is None else 0)
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["checkpoint"][:] == [str(path) for path in paths]
    assert found["tokens"][:] == [layout.num_tokens for layout, _ in expected]
    for name in ("mean", "layer_mean_std"):
        vectors = torch.stack([vectors[name] for _, vectors in expected])
        assert torch.allclose(torch.tensor(found[name][:]), vectors, rtol=1e-4, atol=1e-5)
    assert RunRecord.load(tmp_path / "out" / "run.json").results["networks"] == 2


def test_embed_reports_a_bad_checkpoint_and_goes_on(tiny_sane_folder, tiny_zoo, tmp_path, hf_sane_command):
    split = tiny_zoo.splits["test"]
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for index in (0, 2):
        save_file(split.state_dict(index), paths[index])
    paths[1].write_bytes(paths[0].read_bytes()[:-4])
    missing = tmp_path / "missing.safetensors"
    told = hf_sane_command("embed", *paths, missing, "--sane", tiny_sane_folder, "--output", tmp_path / "out")
    assert f"skipped {paths[1]}: expected a whole safetensors file" in told.stderr
    assert f"skipped {missing}: no such file" in told.stderr
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["checkpoint"][:] == [str(paths[0]), str(paths[2])]
    results = RunRecord.load(tmp_path / "out" / "run.json").results
    assert results["networks"] == 2
    assert list(results["skipped"]) == [str(paths[1]), str(missing)]


def test_embed_takes_a_folder_of_files_and_folders(tiny_sane_folder, tiny_zoo, tmp_path, hf_sane_command):
    """In natural order; a damaged one is listed, cards and hidden files are left out."""
    folder, split = tmp_path / "in", tiny_zoo.splits["test"]
    names = ("net_2.pt", "net_10.safetensors", "run/model.safetensors", "set/a.bin", "set/b.bin")
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (save_file if name.endswith("safetensors") else torch.save)(split.state_dict(index), path)
    for name in (".hidden.safetensors", "net_3.safetensors", "README.md", "catalog.json"):
        (folder / name).write_text("{}")
    (folder / "empty").mkdir()
    arguments = ("embed", folder, "--sane", tiny_sane_folder, "--output", tmp_path / "out", "--json")
    told = json.loads(hf_sane_command(*arguments).stdout)
    assert told["networks"] == len(names)
    assert list(told["skipped"]) == [str(folder / name) for name in ("empty", "net_3.safetensors")]
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    found = [str(folder / name) for name in ("net_2.pt", "net_10.safetensors", "run", "set/a.bin", "set/b.bin")]
    assert rows["checkpoint"][:] == found
    one = hf_sane.embed([folder / "set" / "b.bin"], tiny_sane_folder, poolings=["mean"]).splits["train"]["mean"][0]
    assert rows["mean"][4] == pytest.approx(one, abs=1e-6)
    shutil.copytree(folder / "run", tmp_path / "single")  # one network, though it has a card
    (tmp_path / "single" / "README.md").write_text("card")
    found = hf_sane.embed(tmp_path / "single", tiny_sane_folder, poolings=["mean"])
    assert found.splits["train"]["checkpoint"] == [str(tmp_path / "single")]


def test_embed_without_a_good_checkpoint_fails(tiny_sane_folder, tmp_path, hf_sane_command):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"no tensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    told = hf_sane_command("embed", *paths, "--sane", tiny_sane_folder, "--output", tmp_path / "out", exit_code=2)
    assert (
        f"hf-sane: {paths[1]}: expected safetensors, a shard index, or a file of torch.save, got a text" in told.stderr
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "named"), [((), "neither"), (("net.safetensors", "--zoo", "zoo"), "both")])
def test_embed_takes_a_zoo_or_checkpoints(given, named, tiny_sane_folder, tmp_path, hf_sane_command):
    refused = hf_sane_command("embed", *given, "--sane", tiny_sane_folder, "--output", tmp_path / "out", exit_code=2)
    assert f"expected checkpoints or a zoo (--zoo), got {named}; name one of them" in refused.stderr


def test_probe_prints_and_saves_the_same_table(tiny_sane_folder, tiny_zoo, tiny_zoo_folder, tmp_path, hf_sane_command):
    arguments = ("probe", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--poolings", "mean,layer_mean_std")
    printed = hf_sane_command(*arguments, "--output", tmp_path / "out").output
    table = RunRecord.load(tmp_path / "out" / "run.json").results["probe"]
    assert list(table) == ["test_accuracy", "epoch", "generalization_gap"]
    rows = ["weights", "layer_statistics", "sane_mean", "sane_layer_mean_std", "sane_best"]
    assert list(table["epoch"]) == rows
    first = printed.split("\n\n")[0].splitlines()
    assert first[0] == f"R2 on {len(tiny_zoo.splits['test'])} test networks"
    for line, name in zip(first[2:], rows, strict=True):
        assert line.split() == [name, *(f"{row[name]['r2']:.4g}" for row in table.values())]


def test_spectra_are_one_more_baseline_on_request(
    tiny_sane_folder, tiny_zoo, tiny_zoo_folder, tmp_path, hf_sane_command
):
    arguments = ("probe", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--poolings", "mean", "--spectra")
    assert "spectral_features" in hf_sane_command(*arguments, "--output", tmp_path).output
    row = RunRecord.load(tmp_path / "run.json").results["probe"]["epoch"]
    matrices = [tensor for tensor in tiny_zoo.splits["test"].state_dict(0).values() if tensor.ndim > 1]
    assert row["spectral_features"]["num_features"] == 7 * len(matrices)


def test_probes_need_no_autoencoder(tiny_zoo, tiny_zoo_folder, tmp_path, hf_sane_command):
    """The linear code that is fitted to the zoo, or to the first of several, takes the place of SANE."""
    shutil.copytree(tiny_zoo_folder, tmp_path / "copy")
    probe = ("probe", "--zoo", tiny_zoo_folder, "--poolings", "mean", "--properties", "test_accuracy")
    printed = hf_sane_command(*probe, "--transfer", tmp_path / "copy", "--output", tmp_path / "out").output
    assert "90% prediction intervals (share of test networks that are inside)" in printed
    results = RunRecord.load(tmp_path / "out" / "run.json").results
    row = results["probe"]["test_accuracy"]
    assert row.keys() == {"weights", "layer_statistics", "linear_mean", "linear_best"}
    across = results["transfer"]["test_accuracy"]["linear_mean"]
    first, second = str(tiny_zoo_folder), str(tmp_path / "copy")
    assert across[first][second] == across[first][first]
    from_python = hf_sane.probe(tiny_zoo, poolings=["mean"], properties=["test_accuracy"])
    assert from_python.table["test_accuracy"]["linear_mean"].to_dict() == row["linear_mean"]


def test_a_code_of_one_zoo_embeds_the_others(tiny_zoo, tiny_sane_folder):
    """A probe that is transferred must find in the other zoo what it was fitted to."""
    train = tiny_zoo.splits["train"]
    other = replace(tiny_zoo, splits={**tiny_zoo.splits, "train": train.select(np.arange(len(train) // 2))})
    sane = hf_sane.SANE.from_pretrained(tiny_sane_folder)
    latent_dim = sane.model.config.latent_dim
    settings = ProbeSettings(zoo=tiny_zoo, sane=sane, properties=["epoch"], poolings=["mean"], linear=True)
    codes = _open_codes(settings, tiny_zoo)
    found = _features(other, codes, settings).features["linear_mean"]["test"]
    expected, _ = fit_code([train], sane.extractor, latent_dim=latent_dim, grouping="kind")
    own, _ = fit_code([other.splits["train"]], sane.extractor, latent_dim=latent_dim, grouping="kind")

    def embedded(code):
        return read_zoo_features(other, ["epoch"], None, sane.extractor, poolings=["mean"], linear=code).features[
            "linear_mean"
        ]["test"]

    assert torch.equal(found, embedded(expected))
    assert not torch.allclose(found, embedded(own))


def test_probes_of_ranks_of_one_zoo_and_across(tiny_sane_folder, tiny_zoo_folder, tmp_path, hf_sane_command):
    shutil.copytree(tiny_zoo_folder, tmp_path / "copy")
    probe = ("probe", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--poolings", "mean")
    probe = (*probe, "--properties", "epoch", "--regressor", "logit_linear", "--transfer", tmp_path / "copy")
    for name, options in (("values", ()), ("ranks", ("--ranks",))):
        printed = hf_sane_command(*probe, *options, "--output", tmp_path / name).output
        assert ("mean absolute error of normal scores on 8 test networks" in printed) == (name == "ranks")
        assert "Kendall tau on 8 test networks" in printed
    values, ranks = (RunRecord.load(tmp_path / name / "run.json") for name in ("values", "ranks"))
    assert (values.arguments["ranks"], ranks.arguments["ranks"]) == (False, True)
    found = ranks.results["probe"]["epoch"]["weights"]
    assert found["r2"] != values.results["probe"]["epoch"]["weights"]["r2"]
    across = ranks.results["transfer"]["epoch"]["weights"][str(tiny_zoo_folder)][str(tmp_path / "copy")]
    assert across == {key: found[key] for key in across}


def test_probe_takes_any_numeric_column_and_refuses_others(tiny_sane_folder, tiny_zoo_folder, hf_sane_command):
    arguments = ("probe", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--poolings", "mean", "--properties")
    assert "learning_rate" in hf_sane_command(*arguments, "learning_rate").output
    assert "colour" in hf_sane_command(*arguments, "colour", exit_code=2).stderr


def test_sample_saves_networks_that_load(sampled, monkeypatch):
    output, printed = sampled
    folders = sorted(output.glob("network_*"))
    assert [folder.name for folder in folders] == ["network_0", "network_1", "network_2"]
    for folder in folders:
        network = AutoModelForImageClassification.from_pretrained(folder)
        assert network(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 10)
        record, provenance = RunRecord.load(folder / "run.json"), Provenance.load(folder)
        assert record.results["test_accuracy"] == provenance.test_accuracy
        assert provenance.bandwidth in (0.1, 0.5)
        assert provenance.seed == 4
    card = run_card_code(folders[0], monkeypatch)
    assert card.data.eval_results[0].dataset_name == "digits"
    accuracies = [Provenance.load(folder).validation_accuracy for folder in folders]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "mean test accuracy" in printed


def test_sample_reports_every_baseline(sampled):
    output, printed = sampled
    rows = RunRecord.load(output / "run.json").results["networks"]
    assert tuple(rows) == ("sane_subsample", *BASELINES)
    assert "\nSANE, subsample " in printed
    assert all(f"\n{METHODS[name]} " in printed for name in BASELINES)
    assert rows["anchors"]["nearest_training_distance"] == pytest.approx(0, abs=1e-5)
    assert rows["anchor_noise"]["nearest_training_distance"] == pytest.approx(
        rows["sane_subsample"]["nearest_training_distance"], rel=0.2
    )
    own = [Provenance.load(folder).test_accuracy for folder in sorted(output.glob("network_*"))]
    assert rows["sane_subsample"]["test_accuracy"] == pytest.approx(np.mean(own))


@pytest.mark.parametrize("method", ["kde", "bootstrap"])
def test_other_methods_sample_too(method, tiny_sane_folder, tiny_zoo_folder, tmp_path, hf_sane_command):
    hf_sane_command(
        *("sample", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--output", tmp_path / "out"),
        *("--method", method, "--num-samples", 2, "--num-candidates", 6, "--num-rounds", 2, "--include-code"),
        *("--bandwidth", "0.05", "--unit", "latent", "--mode", "token", "--images", "digits"),
    )
    rows = RunRecord.load(tmp_path / "out" / "run.json").results["networks"]
    assert f"sane_{method}" in rows
    assert (tmp_path / "out" / "network_1" / "modeling_zoo.py").exists()


def test_architectures_that_sane_never_saw_need_statistics(tiny_sane_folder, digits, tmp_path, hf_sane_command):
    prompts = seed_zoo(architecture="mlp", num_models=6, epochs=1, token_dim=73, train_limit=100, progress_bar=False)
    build_zoo(prompts, digits, tmp_path / "prompts")
    places = ("--sane", tiny_sane_folder, "--zoo", tmp_path / "prompts", "--output", tmp_path / "out")
    sizes = (
        "--num-samples",
        2,
        "--num-candidates",
        6,
        "--bandwidth",
        "0.1",
        "--top-fraction",
        1,
        "--images",
        "digits",
    )
    refused = hf_sane_command("sample", *places, *sizes, exit_code=2).stderr
    assert "fitted on another layout" in refused
    assert "hf-sane sample --prompt-statistics" in refused
    assert "anchor + noise" in hf_sane_command("sample", *places, *sizes, "--prompt-statistics").output
    assert RunRecord.load(tmp_path / "out" / "run.json").arguments["prompt_statistics"]


def test_more_anchors_than_networks_are_refused(tiny_sane_folder, tiny_zoo_folder, tmp_path, hf_sane_command):
    arguments = ("sample", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--output", tmp_path / "out")
    assert "runs, got 50; request fewer" in hf_sane_command(*arguments, "--num-anchors", 50, exit_code=2).stderr


def test_finetune_improves_on_what_it_was_given(sampled, tmp_path, monkeypatch, hf_sane_command):
    output, _ = sampled
    printed = hf_sane_command(
        "finetune", output, "--output", tmp_path / "tuned", "--epochs", 2, "--learning-rate", "3e-3"
    ).output
    curves = RunRecord.load(tmp_path / "tuned" / "run.json").results["test_accuracy"]
    assert {name: np.shape(curve) for name, curve in curves.items()} == {"networks": (3, 3), "scratch": (3, 3)}
    assert curves["networks"][0] == pytest.approx(
        [Provenance.load(output / f"network_{index}").test_accuracy for index in range(3)], abs=0.02
    )
    assert np.mean(curves["networks"][2]) > np.mean(curves["networks"][0])
    assert len([line for line in printed.splitlines() if line[:1].isdigit()]) == 3
    assert "fine-tuned for 2 epochs" in str(run_card_code(tmp_path / "tuned" / "network_2", monkeypatch))
    before, after = (
        AutoModelForImageClassification.from_pretrained(folder / "network_0")
        for folder in (output, tmp_path / "tuned")
    )
    assert not torch.equal(before.classifier.weight, after.classifier.weight)


def test_finetune_without_scratch_and_with_folders_of_one_name(sampled, tmp_path, hf_sane_command):
    output, _ = sampled
    hf_sane_command(
        *("finetune", output / "network_0", output / "network_0", "--output", tmp_path / "tuned"),
        *("--epochs", 0, "--no-scratch", "--train-limit", 64),
    )
    assert RunRecord.load(tmp_path / "tuned" / "run.json").results["test_accuracy"].keys() == {"networks"}
    assert sorted(path.name for path in tmp_path.joinpath("tuned").glob("*_network_0")) == [
        "0_network_0",
        "1_network_0",
    ]


def test_networks_of_two_architectures_are_refused(sampled, tmp_path, hf_sane_command):
    output, _ = sampled
    network = AutoModelForImageClassification.from_pretrained(output / "network_0")
    config = json.loads(json.dumps(network.config.to_dict())) | {"activation": "relu"}
    type(network)(type(network.config).from_dict(config)).save_pretrained(tmp_path / "relu")
    refused = hf_sane_command(
        "finetune", output / "network_0", tmp_path / "relu", "--output", tmp_path / "tuned", exit_code=2
    )
    assert "expected networks of one architecture" in refused.stderr


def test_the_demo_passes_its_settings_on(tmp_path, monkeypatch, hf_sane_command):
    calls = []

    def note(folder, settings):
        calls.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr("hf_sane.workflows.demo.run.fill_folder", note)
    hf_sane_command("demo", "--output", tmp_path / "out", "--seed", 3, "--bandwidth", "0.1,0.2", exit_code=2)
    (settings,) = calls
    assert settings.output == tmp_path / "out"
    assert settings.seed == 3
    assert settings.bandwidth == [0.1, 0.2]


def test_features_of_several_lengths_do_not_stack():
    with pytest.raises(ValueError, match=r"have lengths \[2, 3\]; use the pooling 'mean'"):
        stacked_features([torch.zeros(1, 2), torch.zeros(1, 3)])


@pytest.mark.parametrize("aligned", [True, False])
def test_blocks_hold_every_network_once(tiny_zoo, aligned):
    split = tiny_zoo.splits["train"]
    blocks = list(token_blocks(split, aligned=aligned, size=5))
    assert len(blocks) > 1
    members = np.concatenate([members for members, _, _ in blocks])
    assert sorted(members) == list(range(len(split)))
    tokens = torch.cat([tokens for _, _, tokens in blocks])
    expected = aligned_tokens(split) if aligned else split.stacked_tokens()
    assert torch.equal(tokens, expected[torch.from_numpy(members)])


def test_probes_that_use_all_tokens(tiny_sane_folder, tiny_zoo_folder, tmp_path, hf_sane_command):
    probe = ("probe", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--poolings", "mean", "--linear")
    probe = (*probe, "--properties", "epoch", "--regressor", "set_transformer")
    hf_sane_command(*probe, "--output", tmp_path / "probe")
    table = RunRecord.load(tmp_path / "probe" / "run.json").results["probe"]["epoch"]
    kinds = ("token_statistics", "sane_tokens", "linear_tokens")
    assert list(table)[:3] == [f"{kind}, set_transformer" for kind in kinds]
    assert {row["regressor"] for row in table.values()} == {"set_transformer"}
    assert table["sane_best"]["features"] == "sane_tokens"
    result = hf_sane_command(*probe, "--transfer", tmp_path / "probe", exit_code=2)
    assert "expected a regressor that transfers between zoos (ridge, logit_linear or gradient_boosting), got" in (
        " ".join(result.output.split())
    )


def test_probes_with_other_regressors_and_across_zoos(tiny_sane_folder, tiny_zoo_folder, tmp_path, hf_sane_command):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_zoo_folder, copy)
    result = hf_sane_command(
        *("probe", "--sane", tiny_sane_folder, "--zoo", tiny_zoo_folder, "--output", tmp_path / "probe"),
        *("--poolings", "mean", "--properties", "test_accuracy", "--regressor", "logit_linear", "--transfer", copy),
    )
    assert "R2 of test_accuracy: fitted on the zoo of the row, tested on the zoo of the column" in result.output
    results = RunRecord.load(tmp_path / "probe" / "run.json").results
    table = results["transfer"]["test_accuracy"]
    assert table.keys() == {"weights", "layer_statistics", "sane_mean"}
    for found in table.values():  # the copy is the same zoo
        scores = [score for row in found.values() for score in row.values()]
        assert len(scores) == 4
        assert all(score == scores[0] for score in scores)
    assert results["probe"]["test_accuracy"]["weights"]["r2"] == pytest.approx(
        table["weights"][str(tiny_zoo_folder)][str(copy)]["r2"]
    )
