import json
import shutil
from pathlib import Path

import ablation_variants
import paper_ablations
import pytest
import torch
from results import ablations

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo

ROOT = Path(__file__).parents[2]
SIZES = {
    "seed_runs": 12,
    "hyper_runs": 24,
    "resnet_runs": 10,
    "zoo_epochs": 2,
    "train_limit": 64,
    "base_runs": 8,
    "probe_runs": 8,
    "steps": 2,
    "batch_size": 8,
    "hidden_size": 16,
    "num_layers": 1,
    "num_candidates": 4,
    "num_kept": 2,
    "conditioning_batches": 2,
}
SHOWN = {  # of each study
    "base": "base",
    "alignment": "not_aligned",
    "windows": "halves_halo",
    "tokens": "dense_37",
    "latent": "latent_16",
    "loss": "behavior",
    "scale": "scale_100",
    "batchnorm": "resnet_keep",
}


@pytest.fixture(scope="module")
def few():
    """The script with one variant of each study, and a scale that the tests' zoo has."""
    shown = {study: {name: paper_ablations.STUDIES[study][name]} for study, name in SHOWN.items()}
    shown["scale"] = {"scale_100": paper_ablations.Variant("6 runs", zoos=("hyper",), runs=6)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_ablations, "STUDIES", shown)
        yield paper_ablations


def flags(folder, *more, **sizes):
    chosen = [part for name, value in {**SIZES, **sizes}.items() for part in (f"--{name}", str(value))]
    return ["--folder", str(folder), "--records", str(folder / "runs" / "paper" / "ablations"), *more, *chosen]


@pytest.fixture(scope="module")
def done(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    few.main(flags(folder, "--studies", "base", "--seeds", "0", "1"))
    few.main(flags(folder, "--seeds", "0"))
    return folder


def results(folder, study):
    return json.loads((folder / "runs" / "paper" / "ablations" / f"{study}.json").read_text())["results"]


def test_every_study_measures_everything(few, done):
    for study, name in SHOWN.items():
        measured = results(done, study)[name]["seeds"]["0"]
        assert {"r2", "accuracy_kept", "latents_per_weight", "seconds"} < measured.keys()
        assert set(measured["sampling"]["accuracy"]) == set(few.REPORTED)
        assert measured["sampling"]["nearest_training_distance"]["anchors"] == pytest.approx(0, abs=1e-5)
        assert ("probe" in measured) == (study != "batchnorm")
    probe = results(done, "base")["base"]["seeds"]["1"]["probe"]
    assert set(probe) == {"test_accuracy", "epoch", "generalization_gap"}
    assert {"weights", "layer_statistics", "sane_mean", "sane_best", "sane_concat"} < probe["epoch"].keys()


def test_variants_are_what_they_say(done):
    one = {study: results(done, study)[name]["seeds"]["0"] for study, name in SHOWN.items()}
    assert one["windows"]["window_size"] == one["base"]["window_size"] // 2
    assert one["latent"]["latents_per_weight"] == pytest.approx(one["base"]["latents_per_weight"] / 2)
    assert one["tokens"]["latents_per_weight"] < one["base"]["latents_per_weight"] / 2  # no padding, half the latents
    # s(W) does not see the order of channels, W does.
    probes = [one[study]["probe"]["epoch"] for study in ("base", "alignment")]
    assert probes[0]["layer_statistics"]["r2"] == pytest.approx(probes[1]["layer_statistics"]["r2"], abs=1e-3)
    assert probes[0]["weights"]["r2"] != probes[1]["weights"]["r2"]


def test_what_is_finished_is_kept(few, done, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    path = folder / "runs" / "paper" / "ablations" / "latent.json"
    written = path.stat().st_mtime_ns
    few.main(flags(folder, "--studies", "latent", "--seeds", "0"))
    few.main(flags(folder, "--studies", "latent", "--seeds", "5", "--variants", "base"))
    assert path.stat().st_mtime_ns == written
    assert "latent_16" not in capsys.readouterr().out
    record = json.loads(path.read_text())
    record["results"]["latent_16"]["seeds"] = {}
    path.write_text(json.dumps(record))
    model = folder / "sane" / "latent_16_0" / "model" / "model.safetensors"
    trained = model.stat().st_mtime_ns
    few.main(flags(folder, "--studies", "latent", "--seeds", "0"))
    assert "latent_16              seed 0: R2" in capsys.readouterr().out
    assert model.stat().st_mtime_ns == trained
    first, again = (results(place, "latent")["latent_16"]["seeds"]["0"] for place in (done, folder))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    with pytest.raises(ValueError, match=r"latent.json holds results of .*; use the same, or another --records"):
        few.main(flags(folder, "--studies", "latent", "--seeds", "0", num_candidates=6))


def test_too_few_runs_are_refused(done):
    split = Zoo.load(done / "zoos", "hyper").splits["train"]
    assert len(set(paper_ablations.first_runs(split, 5).run_ids)) == 5
    with pytest.raises(ValueError, match=r"expected at least 100 training runs, got \d+; build more \(--hyper-runs\)"):
        paper_ablations.first_runs(split, 100)


def test_without_alignment_networks_are_as_trained(done):
    zoo = Zoo.load(done / "zoos", "seed")
    plain = paper_ablations.without_alignment(zoo).splits["test"]
    assert torch.equal(aligned_tokens(plain), plain.stacked_tokens())
    assert not torch.equal(aligned_tokens(zoo.splits["test"]), plain.stacked_tokens())


def test_windows_are_shares_or_tokens():
    assert [paper_ablations.tokens_of(share, 52) for share in (1.0, 0.5, 0.25, 64)] == [52, 26, 13, 64]


def test_all_variants_have_settings_that_exist():
    assert set(ablation_variants.STUDIES) == set(SHOWN)
    variants = {name: variant for study in ablation_variants.STUDIES.values() for name, variant in study.items()}
    assert len(variants) == sum(map(len, ablation_variants.STUDIES.values()))  # names are folders: each only once
    for variant in variants.values():
        SANEConfig(**variant.model)
        PretrainSettings(zoo=["any"], output="any", **variant.training)
        assert variant.trained_as is None or variant.trained_as in variants
        assert variant.condition in (None, "reset", "keep")


def test_page_shows_every_study(done):
    blocks = ablations.blocks(done)
    assert set(blocks) == {"setting", *ablations.STUDIES, "pooling", "scale", "batchnorm"}
    for study in ablations.STUDIES:
        assert blocks[study].splitlines()[2].startswith("| **base** | ")
        assert f"[{study}.json](../../runs/paper/ablations/{study}.json)" in blocks[study]
    assert "latents per weight" in blocks["tokens"]
    assert "| s(W), no autoencoder |" in blocks["pooling"]
    assert "12 " not in blocks["scale"].splitlines()[0]
    assert "| s(W) |" in blocks["scale"]


def test_arrows_need_every_seed_outside_the_prediction_interval():
    base = {"seeds": {str(i): {"r2": value} for i, value in enumerate((0.5, 0.52, 0.48))}}
    margin = 4.303 * 0.02 * (4 / 3) ** 0.5  # Student's t with two degrees of freedom
    inside, above, below = 0.5 + 0.99 * margin, 0.5 + 1.01 * margin, 0.5 - 1.01 * margin
    for found, arrow in (((above, 0.7), " ↑"), ((inside, 0.7), ""), ((below, 0.3), " ↓"), ((below, above), "")):
        row = {"seeds": {str(i): {"r2": value} for i, value in enumerate(found)}}
        assert ablations.compared(row, base, ["r2"]) == f"{sum(found) / 2:.3f}{arrow}"


def test_a_study_without_a_record_has_no_block(done, tmp_path):
    shutil.copytree(done / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "paper" / "ablations" / "scale.json").unlink()
    assert set(ablations.blocks(done)) - set(ablations.blocks(tmp_path)) == {"scale"}
