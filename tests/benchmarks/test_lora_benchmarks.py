"""The LoRA benchmarks on a tiny zoo and an untrained network choose, resume and write a record."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.training._preparation import fit_extractor

FOLDER = Path(__file__).parents[2] / "benchmarks"


def save_sane_folder(folder, zoo, width):
    torch.manual_seed(0)
    config = {"hidden_size": width, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    SANEModel(SANEConfig(token_dim=73, window_size=52, max_positions=[52, 5, 20], **config)).save_pretrained(folder)
    fit_extractor([zoo.splits["train"]], "standardize").save_pretrained(folder)
    RunRecord(command="x").save(folder / "run.json")
    return folder


def test_adapting_sane(tmp_path, tiny_zoo, tiny_zoo_folder, capsys):
    sane = save_sane_folder(tmp_path / "sane", tiny_zoo, 64)
    flags = [
        "--sane",
        sane,
        "--source-zoo",
        f"{tiny_zoo_folder}:default",
        "--zoo",
        tiny_zoo_folder,
        "--seeds",
        "0",
        "1",
    ]
    flags += ["--work", tmp_path / "work", "--steps", "1", "--batch-size", "2", "--output", tmp_path / "record.json"]
    flags += ["--full-rates", "1e-3", "--lora-rates", "1e-2"]
    benchmark = import_module("adapt_sane")
    first = benchmark.main(list(map(str, flags)))
    assert "of the gain with" in capsys.readouterr().out
    results = json.loads((tmp_path / "record.json").read_text())["results"]
    assert 0 < results["adapter"]["share"] < results["adapter"]["share_of_encoder_and_decoder"] < 0.05
    assert len(results["methods"]) == 3
    kinds = results["validation_r2_of_the_search"]
    assert sorted(len(tried) for tried in kinds.values()) == [1, 1, 1, 1]
    best = max((value, kind) for kind, tried in kinds.items() if kind != benchmark.FULL for value in tried.values())
    assert results["adapter"]["kind"] == best[1]
    runs = sorted((tmp_path / "work").glob("*/model/run.json"))
    assert len(runs) == 4 + 2
    times = [path.stat().st_mtime_ns for path in runs]
    assert benchmark.main(list(map(str, flags))) == first  # nothing is trained again
    assert [path.stat().st_mtime_ns for path in runs] == times


def test_a_sane_too_narrow_for_five_percent(tmp_path, tiny_zoo):
    sane = save_sane_folder(tmp_path / "sane", tiny_zoo, 8)
    benchmark = import_module("adapt_sane")
    experiment = benchmark.Experiment(str(sane), tiny_zoo, tiny_zoo, tmp_path, 1, 2, 0.0, 4)
    with pytest.raises(ValueError, match="rank 1 in all maps takes more than 5% of the parameters; use a wider SANE"):
        experiment.adapter("all maps")


def test_adapting_sampled_networks(tmp_path):
    benchmark = import_module("lora_finetuning")
    flags = (
        "--train-limit 64 --validation-limit 30 --test-limit 30 --steps 2 --report-at 0 --ranks 1 --rates 1e-3 1e-2"
    )
    flags += f" --seeds 0 1 --networks {tmp_path / 'networks'} --output {tmp_path / 'record.json'}"
    with pytest.raises(FileNotFoundError, match="no networks in .*; expected folders that hold a config.json"):
        benchmark.main(flags.split())
    torch.manual_seed(0)
    build_model(cnn_digits()).save_pretrained(tmp_path / "networks" / "network_0")
    benchmark.main(flags.split())
    results = json.loads((tmp_path / "record.json").read_text())["results"]
    assert set(results["test_accuracy"]) == {"sampled + LoRA", "sampled + full fine-tuning", "scratch"}
    whole, lora = (results["test_accuracy"][f"sampled + {name}"] for name in ("full fine-tuning", "LoRA"))
    assert set(whole) == {"0 steps", "2 steps"}
    assert whole["0 steps"] == lora["0 steps"]
    assert results["runs_of_each_method"] == 2
    for search in results["search"].values():
        assert len(search) == 2
