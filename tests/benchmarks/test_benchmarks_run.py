"""Every benchmark runs on a small scale and writes a run record; nothing is timed here."""

import json
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "barrier": "--kinds mlp cnn --widths 3 --pairs 1 --epochs 1 --train-limit 64 --test-limit 32",
    "lazy_embedding": (
        "--gigabytes 0.001 --width 4 --hidden-size 8 --num-layers 1 --slice-tokens 600 --rounds 1 --window-size 64"
    ),
    "alignment": "--num-models 6 --loop-networks 2 --repeats 1 --resnet-width 2",
    "kde_sampling": "--tokens 30 --latent-dim 4 --num-anchors 5 --num-samples 3 --subset 4 --rounds 1",
    "scan_budgets": (
        "--num-models 12 --width 30 --epochs 1 --train-limit 64 --test-limit 32 --steps 1 --seeds 0 "
        "--checkpoints src/hf_sane/pretrained/small_images/anchors/anchor_0"
    ),
    "lineage_trees": ("--architectures mlp --fitting 1 --held-out 1 --roots 1 --children 2 --trees 1 --fan 1"),
    "fingerprints": "--architectures cnn_digits --num-models 5 --epochs 1 --train-limit 64 --queries 1",
    "untrained": "--width 16 --steps 1 --seeds 0",
    "scan_large": "--hidden-size 64 --intermediate-size 80 --num-layers 1 --vocabulary 50 --budgets 1% 100%",
    "swa_gain": "--num-seeds 2 --epochs 1 --cycles 2 --cycle-epochs 1 --train-limit 64 --architectures cnn_digits",
    "cost_curves": "--widths 4 8 12 16 --rounds 1",
    "pretraining_step": "--hidden-size 16 --num-layers 1 --batch-size 2 --product 16 --repeats 1",
    "zoo_columns": "--num-models 8 --rounds 1",
    "zoo_loader": "--num-models 10 --rounds 1 --batch-size 4",
    "zoo_training": "--num-models 4 --plain-networks 2 --batches 1 --rounds 1",
    "tokenization": "--rounds 1 --repeats 1",
    "zoo_import": "--num-models 6 --compared 4",
    "import_time": "--rounds 1 --discarded 0",
    "spectra": "--width 4 --values 100 --rounds 1",
}
# Too large for a test, or in need of files that are not in the repository, of a browser or of a network.
BY_HAND = {"released_resnets", "released_wheel", "explore"}
IMPORTED = {"running", "forests", "released_cifar"}  # by other benchmarks
ELSEWHERE = {  # in files of their own names, test_lora_benchmarks.py, test_matrix.py and others
    "accuracy_transfer",
    "adapt_sane",
    "beyond_vision",
    "collection_costs",
    "collection_plan",
    "cross_architecture",
    "dependency_matrix",
    "lora_finetuning",
    "regions",
    "round_trip",
    "soup_vs_sampling",
    "tutorials",
}


def test_every_benchmark_is_covered():
    assert {path.stem for path in FOLDER.glob("*.py")} == SMALL.keys() | BY_HAND | ELSEWHERE | IMPORTED


def test_a_record_has_options_and_seed_but_no_folders(tmp_path, capsys):
    running = import_module("running")
    parser = running.new_parser("About.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--work", type=Path)
    argv = ["--images", str(tmp_path / "images.npz"), "--work", "x", "--output", str(tmp_path / "record.json")]
    options, record = running.start(parser, argv, hidden=("work",))
    assert running.finish(record, {"found": 1.5}, options.output, data={"split": "test"}, shows=True) == {"found": 1.5}
    assert json.loads(capsys.readouterr().out) == {"found": 1.5}
    saved = json.loads((tmp_path / "record.json").read_text())
    assert (saved["seed"], saved["arguments"]) == (4, {"seeds": [4, 5], "images": "images.npz"})
    assert (saved["results"], saved["data"]) == ({"found": 1.5}, {"split": "test"})


@pytest.mark.parametrize("name", SMALL)
def test_runs_and_leaves_a_record(name, tmp_path):
    module = import_module(name)
    output = tmp_path / "record.json"
    module.main([*SMALL[name].split(), "--output", str(output)])
    record = json.loads(output.read_text())
    assert record["results"]
    assert {"command", "hardware", "versions", "allocator"} <= record.keys()


@pytest.mark.parametrize("speedup", [0.2, 2.0])
def test_bf16_is_measured_only_where_its_products_are_faster(speedup, monkeypatch):
    """Without units for bf16 a step is emulated, and the benchmark would not end."""
    module = import_module("pretraining_step")
    monkeypatch.setattr(module, "bf16_speedup", lambda sizes, repeats: speedup)
    results = module.main(SMALL["pretraining_step"].split())
    assert ("ours_bf16" in results["steps"]) == ("ours_bf16_over_plain" in results["ratios"]) == (speedup > 1)
    assert any("bfloat16" in name for name in results["product_gflops"]) == (speedup > 1)
    reasons = {
        "ours_bf16": "bf16 products run at 0.2 x the rate of fp32 ones here: the processor has no units for them"
    }
    assert results["left_out"] == ({} if speedup > 1 else reasons)
