import json
from pathlib import Path

import numpy as np
import paper_few_shot
import paper_models
import paper_tables
import paper_tradeoff
import paper_transfer
import paper_zoos
import pytest
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification

from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._outputs import check_finished
from hf_sane.sampling._export import Provenance
from hf_sane.zoo._dataset import Zoo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("data")
    digits = load_digits()
    pixels = np.kron(digits.images, np.ones((2, 2))).astype(np.uint8) * 15  # 16x16 as USPS
    parts = {}
    for part, chosen in (("train", slice(200)), ("test", slice(200, 500))):
        parts |= {f"{part}_images": pixels[chosen], f"{part}_labels": digits.target[chosen]}
    (tmp_path / "images").mkdir()
    np.savez(tmp_path / "images" / "usps16.npz", **parts)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    """Two small zoos and their records."""
    path = tmp_path_factory.mktemp("paper")
    options = ["--images", str(images), "--output", str(path / "zoos"), "--records", str(path / "records")]
    paper_zoos.main([*options, "--zoo", "usps_seed", "usps_hyper", "--num-models", "16", "--epochs", "1"])
    return path


def test_zoos_and_their_records(folder):
    zoo = Zoo.load(folder / "zoos", config="usps_seed")
    assert len(zoo.splits["train"]) == 24  # twelve of sixteen runs, epochs 0 and 1
    record = json.loads((folder / "records" / "usps_hyper.json").read_text())
    assert record["results"]["arguments"]["optimizers"] == ["adam", "sgd"]
    assert record["results"]["splits"]["test"]["runs"] == 2


def test_the_mixed_zoo_joins_those_of_both_cnns(images, folder, tmp_path, monkeypatch, capsys):
    options = ["--images", str(images), "--output", str(folder / "zoos"), "--records", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match="mixed needs the zoos mnist_seed, .*; .* lacks mnist_seed, "):
        paper_zoos.main([*options, "--zoo", "mixed"])
    known = paper_zoos.recipes()
    large = {"images": "usps16.npz", "image_size": 32, "architecture": "cnn_l", "group_size": 16}
    small = {name: known[name] for name in ("usps_seed", "usps_hyper")}
    monkeypatch.setattr(
        paper_zoos, "recipes", lambda: {**small, "cifar10_seed": ("seed", {**paper_zoos.COMMON, **large})}
    )
    paper_zoos.main([*options, "--zoo", "cifar10_seed", "mixed", "--num-models", "8", "--epochs", "1"])
    capsys.readouterr()
    paper_zoos.main([*options, "--zoo", "mixed"])  # what is there stays
    assert "mixed            train         30 runs" in capsys.readouterr().out
    zoo = Zoo.load(folder / "zoos", config="mixed")
    assert len(zoo.facts.layouts) == 2
    assert {layout.token_dim for layout in zoo.facts.parsed_layouts.values()} == {73}
    record = json.loads((tmp_path / "mixed.json").read_text())["results"]
    assert record["arguments"]["architecture"] == "cnn_l, cnn_s"
    assert record["arguments"]["epochs"] == 1
    assert record["splits"]["train"]["runs"] == 30


def test_the_zoos_of_the_tables():
    zoos = paper_zoos.recipes()
    large = [name for name, (_, settings) in zoos.items() if settings["num_models"] >= 500 and settings["epochs"] >= 8]
    assert large == ["mnist_seed", "mnist_hyper"]
    assert {settings["architecture"] for _, settings in zoos.values()} == {"cnn_s", "cnn_l", "cifar_resnet"}
    assert all(settings["num_models"] >= 40 for _, settings in zoos.values())


SMALL = ["--seeds", "0", "--finetune-epochs", "1", "--num-candidates", "4", "--num-samples", "2"]


def flags(places):
    return [str(part) for pair in places.items() for part in pair]


@pytest.fixture(scope="module")
def places(folder, images, tmp_path_factory):
    """Where the family of USPS was pre-trained, probed and sampled."""
    path = tmp_path_factory.mktemp("tables")
    found = {"--zoo": folder / "zoos", "--images": images, "--work": path / "sane", "--records": path}
    paper_tables.main([*flags(found), *SMALL, "--families", "usps", "--epochs", "1"])
    return found


def test_tables_go_on_where_they_stopped(places, capsys):
    path = places["--records"] / "usps_0.json"
    record = json.loads(path.read_text())
    results = record["results"]
    assert results["probe"].keys() == {"usps_seed", "usps_hyper"}
    assert {"weights", "layer_statistics", "sane_mean", "sane_best"} < results["probe"]["usps_hyper"]["epoch"].keys()
    methods = results["sampling"]["methods"]
    assert results["parts"].keys() == {"reconstruction", "probe", "spectra", "ranks", "sampling"}
    assert all(row.keys() == {"spectral_features"} for row in results["spectra"]["usps_seed"].values())
    for name, row in results["ranks"]["usps_hyper"].items():
        assert row.keys() == results["probe"]["usps_hyper"][name].keys() | {"spectral_features"}
        fitted = [results[part]["usps_hyper"][name]["weights"]["validation_r2"] for part in ("probe", "ranks")]
        assert (fitted[0] == pytest.approx(fitted[1])) == (name == "epoch")  # two epochs are their own ranks
    assert {"anchors", "soup", "sane_subsampled", "anchor_noise", "scratch"} < methods.keys()
    assert all(row["accuracy"].keys() == {"0", "1"} for row in methods.values())
    assert 0 <= methods["anchors"]["agreement"] <= 1
    assert record["data"]["networks"]["usps_hyper"]["train"] == 24
    model = places["--work"] / "usps_0" / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    kept = {part: results[part] for part in ("probe", "spectra")}
    ordered, methods = results.pop("ranks"), results.pop("sampling")["methods"]
    path.write_text(json.dumps(record))
    paper_tables.main([*flags(places), *SMALL, "--families", "usps", "--epochs", "1"])
    assert "usps seed 0" in capsys.readouterr().out
    assert model.stat().st_mtime_ns == written  # neither pre-trains nor probes again
    again = json.loads(path.read_text())["results"]
    assert {part: again[part] for part in kept} == kept
    assert again["ranks"] == ordered
    assert again["sampling"]["methods"] == methods


def test_transfer_takes_the_autoencoder_of_the_tables(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        paper_transfer.STUDIES, "usps_few_1", paper_transfer.Study("usps", "usps_seed", "usps_seed", 1, 1)
    )
    monkeypatch.setitem(paper_transfer.STUDIES, "usps_to_usps", paper_transfer.Study("usps", "usps_seed", "usps_seed"))
    chosen = ["--studies", "usps_few_1", "usps_to_usps"]
    here = {**places, "--records": tmp_path}
    with pytest.raises(FileNotFoundError, match="expected an autoencoder in .*usps_0.model; run paper_tables"):
        paper_transfer.main([*flags({**here, "--work": tmp_path}), *SMALL, *chosen])
    paper_transfer.main([*flags(here), *SMALL, *chosen])
    assert "usps_few_1 seed 0, after one epoch: sane_subsampled" in capsys.readouterr().out
    one = json.loads((tmp_path / "usps_few_1_0.json").read_text())["results"]
    assert len(one["anchors"]) == 1
    assert one["bandwidth_unit"] == "latent_std"
    assert "soup" not in one["methods"]  # there is nothing to average
    many = json.loads((tmp_path / "usps_to_usps_0.json").read_text())["results"]
    assert many["bandwidth_unit"] == "anchor_std"
    assert "soup" in many["methods"]
    written = (tmp_path / "usps_to_usps_0.json").stat().st_mtime_ns
    paper_transfer.main([*flags(here), *SMALL, *chosen])  # what is there stays
    assert (tmp_path / "usps_to_usps_0.json").stat().st_mtime_ns == written


def test_networks_with_batch_norm_are_conditioned_on_training_images(places, images):
    data = paper_tables.load_zoo_images(
        paper_tables.read_facts(places["--zoo"])["usps_seed"], path=images / "usps16.npz"
    )
    plain, conditioned = (paper_tables.judge_of(data, condition=condition) for condition in (False, True))
    assert plain.conditioning_images is None
    assert conditioned.conditioning_images is data.train_images
    assert conditioned.num_batches == paper_tables.CONDITIONING_BATCHES
    assert all(judge.measure.keywords["images"] is data.validation_images for judge in (plain, conditioned))
    assert [name for name, family in paper_tables.FAMILIES.items() if family.condition] == ["resnet20"]


def test_the_tradeoff_of_accuracy_and_distance(places, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_tradeoff, "BANDWIDTHS", (0.05, 0.6))
    chosen = ["--families", "usps", "--seeds", "0", "--num-candidates", "4", "--num-samples", "2"]
    options = [*flags({**places, "--records": tmp_path}), *chosen, "--plot", str(tmp_path / "plot.png")]
    paper_tradeoff.main(options)
    path = tmp_path / "usps_0.json"
    results = json.loads(path.read_text())["results"]
    near, far = (results["bandwidths"][key] for key in ("0.05", "0.6"))
    for name in paper_tradeoff.METHODS:
        assert near[name]["nearest_training_distance"] < far[name]["nearest_training_distance"]
        assert len(far[name]["test_accuracy"]) == 2
    assert results["references"]["anchors"]["nearest_training_distance"] == pytest.approx(0, abs=1e-5)
    before = json.loads((places["--records"] / "usps_0.json").read_text())["results"]["sampling"]["methods"]
    assert results["references"]["anchors"]["test_accuracy"] == pytest.approx(before["anchors"]["accuracy"]["0"])
    distances, means, spreads = paper_tradeoff.curve([results, results], "sane_subsampled")
    assert distances[1] == pytest.approx(far["sane_subsampled"]["nearest_training_distance"])
    assert means[0] == pytest.approx(np.mean(near["sane_subsampled"]["test_accuracy"]))
    assert spreads == [0, 0]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    written = path.stat().st_mtime_ns
    paper_tradeoff.main(options)  # what is there stays
    assert path.stat().st_mtime_ns == written


def test_models_are_those_of_the_best_seed(places, tmp_path):
    options = flags({**places, "--output": tmp_path})
    paper_models.main([*options, "--families", "usps"])
    saved = tmp_path / "sane-usps"
    assert SANEModel.from_pretrained(saved).config.token_dim == 67
    results = json.loads((saved / "run.json").read_text())["results"]
    assert {"reconstruction_r2", "probe R2, usps_hyper"} < results.keys()
    assert "reconstruction of test networks" in (saved / "README.md").read_text()
    for page, text in paper_models.render_cards(tmp_path).items():
        assert page.read_text(encoding="utf-8") == text
    network = AutoModelForImageClassification.from_pretrained(tmp_path / "sampled-usps")
    assert network.num_parameters() == 2464
    provenance = Provenance.load(tmp_path / "sampled-usps")
    assert provenance.sane_model == "sane-usps"
    found = json.loads((places["--records"] / "usps_0.json").read_text())["results"]["sampling"]
    assert provenance.bandwidth == found["bandwidth"]
    assert "standardised as `(pixels - [" in (tmp_path / "sampled-usps" / "README.md").read_text()
    assert check_finished(saved) is not None
    (saved / "README.md").write_text("edited")
    with pytest.raises(FileExistsError, match=r"sane-usps .* added or changed since \(README\.md\)"):
        paper_models.main([*options, "--families", "usps"])
    assert (saved / "README.md").read_text() == "edited"
    record = json.loads((places["--records"] / "usps_0.json").read_text())
    del record["results"]["sampling"]
    (tmp_path / "usps_0.json").write_text(json.dumps(record))
    places = flags({**places, "--records": tmp_path, "--output": tmp_path / "again"})
    with pytest.raises(
        ValueError, match=r"usps_0.json has no bandwidth yet; run .* --families usps --seeds 0 to its end"
    ):
        paper_models.main([*places, "--families", "usps"])
    assert not (tmp_path / "again").exists()
    with pytest.raises(FileNotFoundError, match="no autoencoder of the family mnist .* --families mnist first"):
        paper_models.main([*options, "--families", "mnist"])


def test_every_family_has_its_zoos():
    zoos = paper_zoos.recipes()
    for family in paper_tables.FAMILIES.values():
        assert {family.sampled, *family.probed} <= zoos.keys()
        assert zoos[family.sampled][1]["images"] == family.images
    for study in paper_transfer.STUDIES.values():
        assert study.source in paper_tables.FAMILIES
        assert {study.anchors, study.target} <= {family.sampled for family in paper_tables.FAMILIES.values()}


def test_few_images_of_other_tasks(folder, images, tmp_path, monkeypatch, capsys):
    np.savez(images / "mnist.npz", **np.load(images / "usps16.npz"))
    monkeypatch.setattr(paper_few_shot, "STEPS", (0, 1))
    places = {"--zoo": folder / "zoos", "--images": images, "--work": tmp_path, "--output": tmp_path / "record.json"}
    small = ["--sizes", "10", "--draws", "1", "--epochs", "1", "--hidden-size", "16"]
    results = paper_few_shot.main([*flags(places), *small])
    assert json.loads((tmp_path / "record.json").read_text())["results"] == results
    assert results["accuracy"].keys() == {"other_data", "rotation", "other_labels"}
    for sizes in results["accuracy"].values():
        assert sizes["10"].keys() == {"weights", "sane", "sane_behavior", "linear", "directions", "scratch"}
        assert all(len(draws) == 1 and len(draws[0]["accuracy"]) == 4 for draws in sizes["10"].values())
    assert "other_labels 10 {'weights':" in capsys.readouterr().out
