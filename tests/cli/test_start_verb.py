"""From a few labelled images to a network: sampled, compared with anchors and with training from scratch, saved."""

import json

import numpy as np
import onnx.reference
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification, pipeline

import hf_sane
from hf_sane.architectures.image_processing_zoo import ZooImageProcessor
from hf_sane.cards._tables import fact_text
from hf_sane.networks._images import load_images
from hf_sane.records._outputs import check_finished
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._heads import FittedHeads, fit_heads
from hf_sane.workflows.sample import sample
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.start import KINDS, _notes, _verdict, start

SMALL = {
    "progress_bar": False,
    "num_candidates": 6,
    "num_starts": 2,
    "bandwidth": [0.2],
    "epochs": 3,
    "learning_rate": [0.003, 0.01],
}


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """Sixty PNG files of the digits zero, one and two."""
    root = tmp_path_factory.mktemp("files") / "digits"
    pixels, labels = load_digits(return_X_y=True)
    for label, name in enumerate(("zero", "one", "two")):
        (root / name).mkdir(parents=True)
        for index, image in enumerate(pixels[labels == label][:20]):
            shown = Image.fromarray((image.reshape(8, 8) * 255 / 16).astype(np.uint8))
            shown.save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def bundle(tiny_sane_folder, tiny_zoo, tmp_path_factory):
    """The tiny SANE with three networks to sample around."""
    anchors = [tiny_zoo.splits["train"].at_epoch(12).model(index) for index in range(3)]
    sane = SANE.from_pretrained(tiny_sane_folder)
    return sane.save_pretrained(tmp_path_factory.mktemp("bundle") / "sane", anchors=anchors)


@pytest.fixture(scope="module")
def found(bundle, digit_files, tmp_path_factory):
    return start(digit_files, sane=str(bundle), output=tmp_path_factory.mktemp("start") / "out", onnx=True, **SMALL)


def test_the_best_network_on_validation_images_is_kept(found, digit_files):
    assert found.comparison.keys() == {"sampled", "anchors", "scratch"}
    data = load_images(digit_files)
    accuracy = {
        split: (found.network(data.split(split)[0]).logits.argmax(dim=1) == data.split(split)[1]).float().mean().item()
        for split in ("validation", "test")
    }
    row = found.comparison[found.kind]
    assert row["validation_accuracy"] == pytest.approx(accuracy["validation"])
    assert row["test_accuracy"] == pytest.approx(accuracy["test"])
    merits = {kind: (row["validation_accuracy"], -row["validation_loss"]) for kind, row in found.comparison.items()}
    assert merits[found.kind] == max(merits.values())
    assert found.notes == ["9 test images: differences in accuracy below 0.33 may be due to chance"]
    table = str(found)
    assert found.verdict[0] == "42 images for training, 9 for selection (validation), 9 for the report (test)"
    assert found.verdict[1].startswith(f"kept: {KINDS[found.kind]}, best on the 9 validation images (")
    assert "anchors, fine-tuned" in table
    assert "from scratch" in table


def test_the_folder_holds_network_card_record_and_onnx(found, digit_files):
    check_finished(found.output, all_digests=True)
    report = (found.output / "report.md").read_text()
    assert all(f"- {line}\n" in report for line in (*found.verdict, *found.notes))
    assert f"| from scratch | {fact_text(found.comparison['scratch']['validation_accuracy'])} |" in report
    assert "| anchor + noise, same distance |" in report
    assert "| SANE, bootstrap |" in report
    folder = found.output / "network"
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert loaded.config.id2label == {0: "one", 1: "two", 2: "zero"}
    images = load_images(digit_files).test_images
    with torch.no_grad():
        expected = loaded(images).logits.numpy()
    evaluator = onnx.reference.ReferenceEvaluator(str(found.output / "model.onnx"))
    (logits,) = evaluator.run(None, {"pixel_values": images.numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    file = next((digit_files / "two").glob("*.png"))
    rows = pipeline("image-classification", model=str(folder))(str(file))
    assert {row["label"] for row in rows} == {"one", "two", "zero"}
    record = RunRecord.load(found.output / "run.json")
    assert record.results["kind"] == found.kind
    assert record.results["before_fine_tuning"].keys() >= {"anchors", "anchor_noise", "anchor_average", "scratch"}
    card = str(ModelCard.load(folder / "README.md"))
    assert ("whose weights were not trained" in card) == (found.kind == "sampled")


@pytest.mark.parametrize(
    ("test", "winner"),
    [
        ((0.9, 0.5, 0.4), "sampled, fine-tuned wins"),
        ((0.5, 0.4, 0.6), "no kind wins by more than chance"),
        (
            (0.9, 0.8, 0.4),
            "no kind wins by more than chance, but from scratch is worse than the best by more",
        ),
    ],
)
def test_the_verdict_says_who_wins_on_how_many_images(test, winner, digit_files):
    kinds = dict(zip(KINDS, test, strict=True))
    rows = {kind: {"validation_accuracy": 0.75, "test_accuracy": value} for kind, value in kinds.items()}
    rows["scratch"]["validation_accuracy"] = 0.5
    split, kept, told = _verdict("anchors", rows, load_images(digit_files))
    assert split == "42 images for training, 9 for selection (validation), 9 for the report (test)"
    assert kept == (
        "kept: anchors, fine-tuned, best on the 9 validation images (0.75; equally accurate there, with a larger "
        "loss: sampled, fine-tuned)"
    )
    assert told.startswith(f"on the 9 test images, {winner} (")


@pytest.mark.parametrize(
    ("accuracy", "recorded", "told"),
    [
        (0.9, 0.95, None),
        (0.6, None, "accuracy of 0.6; always naming the most frequent class would reach 0.3333, which is no worse up"),
        (0.7, 0.95, "far below that of the networks to start from on their own images (0.95)"),
    ],
)
def test_low_accuracies_are_noted(accuracy, recorded, told, digit_files):
    record = RunRecord.start(arguments={}).finish({} if recorded is None else {"anchors": {"run0": recorded}})
    caution, *others = _notes(accuracy, load_images(digit_files), record)
    assert caution == "9 test images: differences in accuracy below 0.33 may be due to chance"
    assert len(others) == (told is not None)
    assert told is None or told in others[0]


def test_heads_are_ridge_regressions_on_the_last_features(bundle, digit_files):
    data = load_images(digit_files)
    network = AutoModelForImageClassification.from_pretrained(bundle / "anchors" / "anchor_1")
    stack = hf_sane.networks.StackedNetworks.from_state_dicts(network.config, [network.state_dict()])
    fitted = fit_heads(stack, data)
    assert fitted.config.num_classes == 3
    inputs = {}
    network.classifier.register_forward_hook(lambda module, given, output: inputs.update(x=given[0]))
    with torch.no_grad():
        network(data.train_images)
    x = inputs["x"].double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = 5.0 * np.eye(3)[data.train_labels]
    weight = np.linalg.solve(x.T @ x / len(x) + 0.01 * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)) / len(x))
    expected = x @ weight + y.mean(axis=0)
    np.testing.assert_allclose(fitted.logits(data.train_images)[0].numpy(), expected, atol=1e-4)
    score = FittedHeads(data).measure_one(network, "test")
    assert score == pytest.approx(fitted.evaluate(*data.split("test"))[1].item())


def test_a_feature_that_hardly_varies_in_training_gets_no_large_weight(bundle, digit_files):
    """Fitted to noise, its weight would swamp all others on images where the feature does vary."""
    data = load_images(digit_files)
    network = AutoModelForImageClassification.from_pretrained(bundle / "anchors" / "anchor_1")
    layer = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-2]
    with torch.no_grad():
        layer.weight[3] *= 1e-6
    stack = hf_sane.networks.StackedNetworks.from_state_dicts(network.config, [network.state_dict()])
    sizes = fit_heads(stack, data).tensors["classifier.weight"][0].abs().amax(dim=0)
    assert sizes[3] < sizes.median()


def test_grey_images_become_colour_and_colour_ones_grey_as_networks_need_them(digit_files, tmp_path, caplog):
    data = load_images(digit_files)
    colour = data.with_channels(3)
    assert colour.train_images.shape[1] == 3
    assert torch.equal(colour.test_images[:, 2:], data.test_images)
    assert len(colour.mean) == 3
    assert not caplog.records
    generator = np.random.default_rng(0)
    for index in range(20):
        (tmp_path / "colour" / str(index % 2)).mkdir(parents=True, exist_ok=True)
        shown = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        shown.save(tmp_path / "colour" / str(index % 2) / f"{index}.png")
    grey = load_images(tmp_path / "colour").with_channels(1)
    assert "colour images are converted to greyscale, by luminance" in caplog.text
    described = grey.describe()
    processor = ZooImageProcessor(num_channels=1, image_mean=described["mean"], image_std=described["std"])
    files = [Image.open(file) for file in sorted((tmp_path / "colour").rglob("*.png"))]
    seen = processor(files, return_tensors="pt").pixel_values
    assert all((seen - image).abs().amax(dim=(1, 2, 3)).min() < 0.6 / grey.std[0] for image in grey.test_images)
    assert grey.train_images.mean().abs() < 1e-6
    with pytest.raises(ValueError, match="expected images of 2 channels, got 1; convert the files"):
        grey.with_channels(2)


def test_sample_takes_the_networks_that_a_sane_brings(bundle, tiny_sane_folder, tmp_path):
    options = {"num_samples": 1, "num_candidates": 2, "bandwidth": 0.1, "images": "digits"}
    drawn = sample([], bundle, **options)
    assert drawn.record.arguments["num_anchors"] == 3
    assert [name.endswith(f"anchor_{i}") for i, name in enumerate(drawn.provenance[0].anchors)] == [True] * 3
    with pytest.raises(ValueError, match=r"got neither, and .*model has no anchors of its own; name the zoo"):
        sample([], tiny_sane_folder, **options)
    with pytest.raises(
        FileNotFoundError, match=r"build_zoo\(\), or import .* import_zoo\(\).*pass them as a list, and im"
    ):
        sample(str(bundle / "anchors"), bundle, **options)
    with pytest.raises(ValueError, match=r"expected a SANE that comes with networks .* without; save it with some"):
        start("digits", sane=str(tiny_sane_folder))


def test_the_verb_prints_the_comparison(bundle, digit_files, tmp_path, hf_sane_command):
    arguments = ("start", "--images", digit_files, "--sane", bundle, "--output", tmp_path / "out", "--json")
    sizes = ("--num-candidates", 4, "--num-starts", 1, "--bandwidth", 0.2, "--epochs", 1, "--learning-rate", 0.01)
    told = json.loads(hf_sane_command(*arguments, *sizes).stdout)
    assert told["compared"].keys() == {"sampled", "anchors", "scratch"}
    assert told["output"] == str(tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_repository_brings_its_networks(bundle, digit_files, local_hub):
    files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    repository = local_hub.storage.add_files("models", "org/sane", files)
    repository.tags["v1"] = repository.head.sha
    local_hub.storage.add_files("models", "org/sane", {"anchors/anchor_0/config.json": b"{}"})  # what is there now
    settings = SMALL | {"num_starts": 1, "num_candidates": 2, "epochs": 1, "learning_rate": 0.01}
    ours, theirs = (start(digit_files, sane=source, **settings) for source in (str(bundle), "org/sane@v1"))
    assert theirs.comparison == ours.comparison
    drawn = sample([], "org/sane@v1", num_samples=1, num_candidates=2, bandwidth=0.1, images="digits")
    assert drawn.record.arguments["num_anchors"] == 3


def test_twenty_images_are_enough(bundle, tmp_path):
    pixels, labels = load_digits(return_X_y=True)
    for index in range(20):
        (tmp_path / "few" / str(labels[index])).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[index].reshape(8, 8) * 15).astype(np.uint8)).save(
            tmp_path / "few" / str(labels[index]) / f"{index}.png"
        )
    found = start(tmp_path / "few", sane=str(bundle), **SMALL | {"epochs": 1, "learning_rate": 0.01})
    assert found.network.config.num_labels == 10
