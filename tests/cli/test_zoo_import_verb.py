"""`hf-sane zoo import`, and what can be done with a zoo of networks that share no architecture."""

import json
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hub_server import run_hub
from huggingface_hub import constants
from safetensors.torch import save, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, pipeline
from window_samplers import new_sampler, stream_of

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._zoo_features import known_networks
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import evaluate_reconstruction
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._stream import ZooStream

SMALL = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "window_size": 16}
QUIET = ("--log-with", "none", "--no-progress-bar", "--eval-every-epochs", 0)


def network(index: int) -> nn.Module:
    torch.manual_seed(index)
    kinds = [
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
        lambda: build_model(cnn_digits()),
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 2)),
        lambda: nn.ModuleDict(
            {"embedding": nn.Embedding(7, 4), "norm": nn.LayerNorm(4), f"head_{index}": nn.Linear(4, 3)}
        ),
    ]
    return kinds[index % len(kinds)]()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16 networks of four kinds, one of them with layers whose names no other network has."""
    folder = tmp_path_factory.mktemp("models")
    for index in range(16):
        save_file(network(index).state_dict(), folder / f"{index:02}.safetensors")
    torch.save({"a": torch.ones(2)}, folder / "pickle.pt")
    return folder


@pytest.fixture(scope="module")
def imported(models, tmp_path_factory, hf_sane_command) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("zoos") / "imported"
    arguments = ("zoo", "import", "--folder", models, "--output", output, "--token-dim", 20, "--name", "mixed")
    arguments += ("--group-by", "network")
    return output, hf_sane_command(*arguments).output


@pytest.fixture(scope="module")
def sane(imported, tmp_path_factory, hf_sane_command) -> Path:
    output = tmp_path_factory.mktemp("sane") / "run"
    views = ("--views", "original,original", "--statistics-by-kind", "--epochs", 2)
    hf_sane_command("pretrain", "--zoo", imported[0], "--output", output, *views, "--model", json.dumps(SMALL), *QUIET)
    return output / "model"


def test_it_says_what_became_of_each_network(imported, hf_sane_command):
    folder, output = imported
    assert "importing" not in output  # a bar is for terminals
    assert "\nskipped: 1, it holds only pickles, which can run code when they are opened" in output
    assert "\n  pickle.pt\n" in output
    assert f"outcome for each network: {folder / 'data' / 'import.json'}" in output
    assert f"wrote {folder}" in output
    shown = hf_sane_command("zoo", "show", folder).output
    assert "zoo mixed (not aligned)" in shown
    assert "architecture imported: no configuration" in shown
    assert "1 runs excluded" in shown
    facts = json.loads(hf_sane_command("zoo", "show", folder, "--json").output)
    assert facts["splits"]["train"]["epochs"] == []
    assert facts["splits"]["train"]["final"]["test_accuracy"] is None
    assert len(facts["layouts"]) == 7


def test_sane_trains_on_it_and_reconstructs_networks_it_has_not_seen(imported, sane):
    model, extractor = SANEModel.from_pretrained(sane), SANEFeatureExtractor.from_pretrained(sane)
    zoo = Zoo.load(imported[0])
    for split in zoo.splits.values():
        count, *_, errors = evaluate_reconstruction(model, extractor, split, range(len(split))).tolist()
        assert count > 0
        assert np.isfinite(errors)
    assert "# " in (sane / "README.md").read_text()


def test_windows_of_a_stream_are_those_of_the_files(imported, sane):
    zoo, extractor = Zoo.load(imported[0]), SANEFeatureExtractor.from_pretrained(sane)
    settings = {"window_size": 16, "batch_size": 4, "views": ("original", "original"), "noise": 0.0}
    stream = stream_of(ZooStream.open(imported[0]).rows("train"), zoo.facts)
    streamed = list(islice(new_sampler([stream], extractor, **settings), len(zoo.splits["train"]) // 4))
    for batch in (*streamed, new_sampler([zoo.splits["train"]], extractor, **settings).batch(0)):
        assert batch["tokens"].shape == (4, 16, 20)
        assert torch.equal(batch["target_tokens"], batch["second_target_tokens"])
        assert (batch["target_tokens"][~batch["weight_mask"]] == 0).all()
    split = zoo.splits["train"]
    for row, tokens in enumerate(streamed[0]["target_tokens"]):
        layout, positions = split.layout(row), streamed[0]["positions"][row]
        real = streamed[0]["attention_mask"][row]
        expected = extractor.normalize(split.tokens(row), layout)[positions[real][:, 0]]
        torch.testing.assert_close(tokens[real], expected)


def test_a_stream_of_it_trains_too(imported, tmp_path, hf_sane_command):
    views = ("--views", "original,original", "--statistics-by-kind", "--max-steps", 2, "--streaming")
    run = (
        "pretrain",
        "--zoo",
        imported[0],
        "--output",
        tmp_path / "run",
        *views,
        "--model",
        json.dumps(SMALL),
        *QUIET,
    )
    assert "reconstruction R2 (validation)" in hf_sane_command(*run).output


def test_rows_that_are_mostly_padding_are_pointed_out(imported, tmp_path, hf_sane_command):
    save_file({"w": torch.randn(20, 2)}, tmp_path / "narrow.safetensors")
    arguments = ("zoo", "import", "--folder", tmp_path, "--split-shares", "1,0,0", "--output")
    hint = "layouts that are at least 90% padding: 1 of 1; --token-layout dense takes less space"
    assert hint in hf_sane_command(*arguments, tmp_path / "rowwise").output
    assert (
        hint
        not in hf_sane_command(*arguments, tmp_path / "dense", "--token-layout", "dense", "--token-dim", 20).output
    )
    assert hint not in imported[1]


def test_its_embeddings_are_those_of_the_pipeline(imported, sane, models, tmp_path, hf_sane_command):
    output = hf_sane_command("embed", "--sane", sane, "--zoo", imported[0], "--output", tmp_path / "embeddings").output
    assert "-" in output.splitlines()[1].split()[-1]  # layer_mean_std has another length for every structure
    embed = pipeline("weight-feature-extraction", model=str(sane))
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "embeddings/*.parquet"), cache_dir=str(tmp_path))
    rows = rows["train"]
    assert len(rows) == 16
    paths = [str(models / name) for name in rows["run_id"]]
    for pooling in ("mean", "layer_mean_std"):
        for row, found in zip(rows, embed(paths, pooling=pooling), strict=True):
            torch.testing.assert_close(torch.tensor(row[pooling]), found, atol=1e-5, rtol=1e-4)
    assert {"repo_id", "license", "num_weights", "test_accuracy"} <= set(rows.column_names)


def test_probes_use_what_is_known_of_all_networks(imported, sane, hf_sane_command):
    probe = ("probe", "--sane", sane, "--zoo", imported[0], "--poolings", "mean,layer_mean")
    found = hf_sane_command(*probe, "--properties", "num_weights,file_bytes").output
    assert (
        "left out, since their length depends on the architecture: weights, layer_statistics, sane_layer_mean" in found
    )
    assert "sane_mean" in found.split(" test networks\n")[1]
    message = (
        "expected networks with all of num_weights, test_accuracy in every split, got none in train, validation, test"
    )
    assert message in hf_sane_command(*probe, "--properties", "num_weights,test_accuracy", exit_code=2).stderr
    lengths = hf_sane_command(*probe[:-1], "layer_mean", "--properties", "num_weights", exit_code=2)
    assert "features of networks of different architectures have lengths" in lengths.stderr


def test_networks_whose_properties_are_unknown_are_left_out():
    nan = np.nan
    targets = {"a": {"train": np.array([1, nan, 3.0]), "test": np.array([1.0])}}
    targets["b"] = {"train": np.array([1.0, 2, 3]), "test": np.array([2.0])}
    known, notes = known_networks(targets)
    assert {key: rows.tolist() for key, rows in known.items()} == {"train": [0, 2], "test": [0]}
    assert notes == ["networks left out, since not all of their properties are known: 1"]


def test_what_stops_a_run_is_said_before_it_begins(imported, sane, tmp_path, hf_sane_command):
    def refused(*arguments):
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        model = json.dumps({**SMALL, "max_positions": [5, 100, 100]} if "small" in arguments else SMALL)
        given = [argument for argument in arguments if argument != "small"]
        run = ("pretrain", "--zoo", imported[0], "--output", output, "--model", model, *given, *QUIET)
        return hf_sane_command(*run, exit_code=2).stderr

    assert "no statistics for ['head_" in refused("--views", "original")
    assert "(--statistics-by-kind)" in refused("--views", "original")
    message = "more than the learned positions of the model, [5, 100, 100]; raise max_positions, or"
    assert message in refused("--views", "original", "--statistics-by-kind", "small")
    for views in ("aligned,permuted", "permuted"):
        said = refused("--views", views, "--statistics-by-kind")
        assert "are unknown (expected a Transformers configuration next to the weights, got none" in said
        assert "); pass their code: hf_sane.register_architecture(" in said
    aligned = ("embed", "--sane", sane, "--zoo", imported[0], "--output", tmp_path / "y", "--align")
    assert "expected an aligned zoo" in hf_sane_command(*aligned, exit_code=2).stderr


def test_networks_of_transformers_are_aligned_and_trained_on_in_permuted_views(tmp_path, monkeypatch, hf_sane_command):
    monkeypatch.setattr("hf_sane.workflows.align_zoo.SHOWN_PLACES", 1)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    for seed in range(6):
        torch.manual_seed(seed)
        config = ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
        ViTForImageClassification(config).save_pretrained(tmp_path / "models" / str(seed))
    zoo = tmp_path / "zoo"
    hf_sane_command("zoo", "import", "--folder", tmp_path / "models", "--output", zoo, "--token-dim", 24)
    shown = hf_sane_command("zoo", "align", zoo).stdout
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("imported-")]
    alignment = Zoo.load(zoo).alignment
    assert row[1:4] == ["6", str(1 + 1 + 1 + 2 + 2), alignment.references[row[0]]]
    before, after = map(float, row[4:])
    assert after < before
    assert f"not permuted in {row[0]}" in shown
    assert "  outputs of the network: classifier.bias[0] and 1 more" in shown
    assert "projection.weight[2] and 1 more" in shown
    model = json.dumps({**SMALL, "position_embedding": "sinusoidal"})
    hf_sane_command(
        *("pretrain", "--zoo", zoo, "--output", tmp_path / "run", "--model", model, "--views", "aligned,permuted"),
        *("--max-steps", 2, "--batch-size", 4, *QUIET),
    )
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_bad_options_are_refused(tmp_path, hf_sane_command):
    for arguments, message in (
        ((), "nothing to import: name repositories"),
        (("--folder", tmp_path / "none"), "folder must be an existing folder"),
        (("a/b", "--max-size", "many"), "expected a size such as 500MB or 1.5GiB, got 'many'"),
        (("--folder", tmp_path), "; expected files of safetensors or torch.save, folders of models"),
    ):
        assert (
            message in hf_sane_command("zoo", "import", "--output", tmp_path / "zoo", *arguments, exit_code=2).stderr
        )


def test_repositories_of_a_hub(tmp_path, monkeypatch, hf_sane_command):
    with run_hub() as hub:
        # Read from the environment when huggingface_hub is imported; a new process would take longer than all the
        # rest.
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "".join(template[1:]))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        for index in range(4):
            files = {"model.safetensors": save(network(4 * index).state_dict())}
            hub.storage.add_files("models", f"org/net-{index}", files)
        hub.storage.add_files("models", "org/huge", {"model.safetensors": bytes(3_000_000)})
        repos = ("org/net-0", "org/net-1", "org/net-2", "org/huge", "org/missing")
        options = ("--max-size", "2MB", "--output", tmp_path / "zoo", "--token-dim", 9)
        output = hf_sane_command("zoo", "import", *repos, *options, "--json").output
    told = json.loads(output[output.index("{\n") :])
    assert sorted(told["taken"]) == ["org/net-0", "org/net-1", "org/net-2"]
    assert told["splits"] == {"train": 1, "validation": 1, "test": 1}
    assert "model.safetensors takes 3,000,000 bytes, the limit is 2,000,000 (--max-size)" in output
    assert "Repository Not Found" in output
    assert hub.sent("org/huge/resolve") == 0
    zoo = Zoo.load(tmp_path / "zoo")
    assert [len(split) for split in zoo.splits.values()] == [1, 1, 1]
    split = zoo.splits["test"]
    assert split.column("repo_id")[0].startswith("org/net-")
    assert torch.equal(split.state_dict(0)["0.weight"], network(4 * int(split.run_ids[0][-1]))[0].weight)


def test_a_flat_folder_without_runs_is_told_of_patterns(tmp_path, hf_sane_command):
    hint = "no run names were found, so every file counts as its own run"
    for run in "ab":
        (tmp_path / "deep" / run).mkdir(parents=True)
        for epoch in range(2):
            tensors = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(2 * ord(run) + epoch))}
            (tmp_path / "flat").mkdir(exist_ok=True)
            save_file(tensors, tmp_path / "flat" / f"{run}_epoch{epoch}.safetensors")
        save_file(tensors, tmp_path / "deep" / run / "model.safetensors")
    every = ("--token-dim", 4, "--split-shares", "1,0,0")

    def imported(folder, name, *options):
        found = hf_sane_command("zoo", "import", tmp_path / folder, "--output", tmp_path / name, *every, *options)
        assert "importing" not in found.stderr  # a bar is for terminals
        return " ".join(found.output.split())

    assert hint in imported("flat", "one")
    assert hint not in imported("flat", "two", "--pattern", "{run}_epoch{epoch:d}.safetensors")
    assert len(set(Zoo.load(tmp_path / "two").splits["train"].run_ids)) == 2
    assert hint not in imported("deep", "three")


def test_a_wrong_path_is_reported_as_such_offline(tmp_path, monkeypatch, hf_sane_command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = hf_sane_command("zoo", "import", "nofolder/x", "--output", "zoo", exit_code=2).stderr
    assert "nofolder/x: no such file or folder, and in offline mode" in told
    assert not (tmp_path / "zoo").exists()
