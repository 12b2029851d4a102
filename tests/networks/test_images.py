"""Images: shapes, deterministic and disjoint splits, standardisation, every source, every error."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_sane.networks._images import ImageData, load_images, load_zoo_images
from hf_sane.records._errors import InvalidFileError
from hf_sane.zoo._facts import ZooFacts


def write_npz(folder, *, train=40, test=10, shape=(6, 6), **changed):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        arrays[f"{split}_images"] = generator.integers(0, 255, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 4).astype(np.uint8)
    arrays |= changed
    path = folder / "some.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_digits_have_the_documented_sizes():
    data = load_images("digits")
    assert data.train_images.shape == (1000, 1, 8, 8)
    assert len(data.validation_labels) == 297
    assert len(data.test_labels) == 500
    assert (data.num_classes, data.num_channels, data.image_size, data.name) == (10, 1, 8, "digits")


def test_splits_of_the_digits_share_no_image():
    data = load_images("digits")
    raw = [data.split(name)[0].flatten(1) * data.std[0] + data.mean[0] for name in ("train", "validation", "test")]
    rows = [{tuple(row) for row in part.round().int().tolist()} for part in raw]
    assert sum(map(len, rows)) == 1797  # all images of the digits differ
    assert len(rows[0] | rows[1] | rows[2]) == 1797


def test_training_pixels_are_standardised():
    images = load_images("digits").train_images
    assert images.dtype == torch.float32
    assert images.mean().abs() < 1e-5
    assert (images.std(unbiased=False) - 1).abs() < 1e-5


def test_threads_do_not_change_a_digit(tmp_path):
    pixels = np.random.default_rng(0).random((3000, 14, 14))
    labels = np.arange(3000) % 10
    path = tmp_path / "noise.npz"
    np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels[:10], test_labels=labels[:10])
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found += [load_images(path), load_images(path, image_size=20)]
    finally:
        torch.set_num_threads(threads)
    for first, *others in (found[::2], found[1::2]):
        assert all((other.mean, other.std) == (first.mean, first.std) for other in others)
        assert all(torch.equal(other.train_images, first.train_images) for other in others)


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    first, again, other = load_images("digits"), load_images("digits"), load_images("digits", seed=1)
    assert torch.equal(first.test_images, again.test_images)
    assert not torch.equal(first.test_labels, other.test_labels)


@pytest.mark.parametrize("limit", [1, 7, 39])
def test_limits_draw_from_the_whole_set(tmp_path, limit):
    data = load_images(write_npz(tmp_path, train=200), train_limit=limit, validation_limit=3, test_limit=2)
    assert (len(data.train_labels), len(data.validation_labels), len(data.test_labels)) == (limit, 3, 2)
    assert data.num_classes == 4  # known from all labels, not from the few that were drawn


def test_a_limited_set_is_part_of_the_whole(tmp_path):
    path = write_npz(tmp_path)
    whole, part = load_images(path), load_images(path, train_limit=5)
    rows = {
        tuple(row) for row in (whole.train_images * whole.std[0] + whole.mean[0]).flatten(1).round().int().tolist()
    }
    drawn = (part.train_images * part.std[0] + part.mean[0]).flatten(1).round().int().tolist()
    assert len(drawn) == 5
    assert {tuple(row) for row in drawn} <= rows


@pytest.mark.parametrize(("shape", "channels"), [((6, 6), 1), ((6, 6, 3), 3), ((6, 6, 1), 1), ((3, 6, 6), 3)])
def test_npz_of_every_channel_layout(tmp_path, shape, channels):
    data = load_images(write_npz(tmp_path, shape=shape))
    assert data.train_images.shape == (34, channels, 6, 6)  # 15% of 40 went to validation
    assert len(data.mean) == channels
    assert data.name == "some"


def test_npz_with_its_own_validation_split(tmp_path):
    images, labels = np.zeros((4, 6, 6), dtype=np.uint8), np.arange(4)
    data = load_images(write_npz(tmp_path, validation_images=images, validation_labels=labels))
    assert len(data.train_labels) == 40
    assert len(data.validation_labels) == 4


def test_constant_pixels_stay_finite(tmp_path):
    data = load_images(write_npz(tmp_path, train_images=np.full((40, 6, 6), 7, dtype=np.uint8)))
    assert data.train_images.abs().max() == 0
    assert data.std == (1.0,)


def test_jpeg_npz_decodes_the_images_it_uses(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("test", 4)):
        encoded = []
        for i in range(count):
            buffer = io.BytesIO()
            colour = generator.integers(0, 255, (1, 1, 3), dtype=np.uint8)
            Image.fromarray(np.broadcast_to(colour, (8, 8, 3)).copy()).save(buffer, "JPEG", quality=95)
            encoded.append(buffer.getvalue() if i else encoded[0] if encoded else buffer.getvalue())
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, encoded)])
        arrays[f"{split}_labels"] = np.arange(count) % 3
    path = tmp_path / "colour.npz"
    np.savez(path, **arrays)
    data = load_images(path)
    assert data.train_images.shape == (10, 3, 8, 8)
    spread = data.train_images.flatten(2).std(dim=2)
    assert spread.max() < 0.2  # one colour per image
    assert data.train_images.mean(dim=(2, 3)).std() > 0.5


def images_dataset(count=30, mode="L", sizes=(6,)):
    pixels = [
        Image.fromarray(np.full((sizes[i % len(sizes)],) * 2, i, dtype=np.uint8)).convert(mode) for i in range(count)
    ]
    return datasets.Dataset.from_dict({"image": pixels, "label": [i % 3 for i in range(count)]})


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("1", 1), ("P", 3)])
def test_dataset_of_pil_images(mode, channels):
    data = load_images(images_dataset(mode=mode), name="mine")
    assert data.name == "mine"
    assert data.train_images.shape[1:] == (channels, 6, 6)
    assert len(data.train_labels) + len(data.validation_labels) + len(data.test_labels) == 30
    assert data.num_classes == 3


def test_dataset_dict_of_arrays_with_other_column_names():
    part = datasets.Dataset.from_dict({"img": np.zeros((20, 5, 5)).tolist(), "fine_label": [i % 2 for i in range(20)]})
    data = load_images(datasets.DatasetDict({"train": part, "test": part, "validation": part}))
    assert [len(data.split(name)[1]) for name in ("train", "validation", "test")] == [20, 20, 20]


def test_the_only_column_that_can_be_meant_has_the_labels(caplog):
    """Names in other languages: a column of texts, or of whole numbers, whose values repeat."""
    images = images_dataset(12).remove_columns("label").rename_column("image", "bild")
    named = images.add_column("klasse", ["katze", "hund", "kuh"] * 4).add_column(
        "datei", [f"{i}.png" for i in range(12)]
    )
    data = load_images(named)
    assert data.class_names == ("hund", "katze", "kuh")
    assert data.num_classes == 3
    assert "classes are taken from the column 'klasse', the only one that can be meant" in caplog.text
    numbered = images.add_column("klasse", [0, 1, 1] * 4)
    assert (
        load_images(datasets.DatasetDict({"train": numbered, "test": numbered})).test_labels.tolist() == [0, 1, 1] * 4
    )
    for ambiguous in (named.add_column("farbe", ["rot", "blau"] * 6), named.remove_columns("klasse")):
        with pytest.raises(KeyError, match=r"expected a label column"):
            load_images(ambiguous)


def test_classes_of_an_npz_may_have_names_or_be_numbered_from_one(tmp_path, caplog):
    """Labels from 1 made an eleventh class of ten, that no image has."""
    pixels = np.zeros((6, 6, 6), dtype=np.uint8)
    names = np.array(["cat", "dog", "cow"])
    path = tmp_path / "named.npz"
    np.savez(path, x_train=pixels, y_train=names.repeat(2), x_test=pixels[:2], y_test=names[:2])
    named = load_images(path)
    assert (named.num_classes, named.class_names) == (3, ("cat", "cow", "dog"))
    assert named.test_labels.tolist() == [0, 2]
    np.savez(path, x_train=pixels, y_train=names.repeat(2), x_test=pixels[:1], y_test=np.array(["hen"]))
    with pytest.raises(InvalidFileError, match="the test split has classes that train lacks: hen"):
        load_images(path)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=np.arange(6) % 3 + 1, x_test=pixels[:2], y_test=[2, 3])
    numbered = load_images(tmp_path / "a.npz")
    assert (numbered.num_classes, numbered.class_names) == (3, ("1", "2", "3"))
    assert numbered.test_labels.tolist() == [1, 2]
    assert "a: classes are numbered from 1 to 3, and are renumbered from 0 to 2" in caplog.text


def test_labels_belong_to_their_images():
    count = 30
    source = datasets.Dataset.from_dict(
        {"image": [np.full((4, 4), i).tolist() for i in range(count)], "label": [i % 7 for i in range(count)]}
    )
    data = load_images(source)
    for split in ("train", "validation", "test"):
        images, labels = data.split(split)
        numbers = (images[:, 0, 0, 0] * data.std[0] + data.mean[0]).round().long()
        assert torch.equal(numbers % 7, labels)


def test_what_records_say_about_images(tmp_path):
    found = load_images(write_npz(tmp_path, shape=(6, 6, 3)), train_limit=9).describe()
    counts = {"train": 9, "validation": 6, "test": 10}
    assert {key: value for key, value in found.items() if key not in ("mean", "std")} == {
        "name": "some",
        "image_size": 6,
        "white": 255,
        **counts,
    }
    assert len(found["mean"]) == len(found["std"]) == 3
    assert json.loads(json.dumps(found)) == found


def test_images_of_a_zoo_are_those_it_was_trained_on(tmp_path):
    path = write_npz(tmp_path)
    settings = {"train_limit": 9, "validation_limit": 3, "test_limit": None, "image_size": 3}
    expected = load_images(path, **settings)
    facts = ZooFacts("zoo", {}, {}, arguments={"images": str(path), **settings})
    moved = path.rename(tmp_path / "moved.npz")
    with pytest.raises(FileNotFoundError, match="no image file"):
        load_zoo_images(facts)
    found = load_zoo_images(facts, path=moved)
    assert found.name == "moved"
    for split in ("train", "validation", "test"):
        for tensor, wanted in zip(found.split(split), expected.split(split), strict=True):
            assert torch.equal(tensor, wanted)
    assert len(load_zoo_images(ZooFacts("digits", {}, {}, arguments={"images": "digits"})).train_images) == 1000


@pytest.mark.parametrize("path", [None, "digits"])
def test_a_zoo_that_does_not_name_its_images_needs_them_named(path):
    with pytest.raises(ValueError, match="the zoo 'x' does not name the images it was trained on; pass them"):
        load_zoo_images(ZooFacts("x", {}, {}), path=path)


def test_other_devices_and_splits(digits):
    moved = digits.to("cpu")
    assert torch.equal(moved.test_images, digits.test_images)
    with pytest.raises(ValueError, match="expected one of the splits train, validation, test, got 'dev'"):
        digits.split("dev")


def test_images_must_be_square():
    part = torch.zeros(2, 1, 4, 6)
    labels = torch.zeros(2, dtype=torch.int64)
    data = ImageData("wide", part, labels, part, labels, part, labels, num_classes=1)
    with pytest.raises(ValueError, match="wide: expected square images, got 4x6"):
        _ = data.image_size


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_images": torch.zeros(0, 1, 4, 4), "test_labels": torch.zeros(0).long()}, "the test split is empty"),
        ({"test_labels": torch.zeros(3).long()}, "with one label each, got images .2, 1, 4, 4. and labels .3."),
        ({"test_images": torch.zeros(2, 1, 5, 5)}, r"expected test images \[n, 1, 4, 4\]"),
        ({"train_labels": torch.tensor([0, 2])}, r"train labels must lie in \[0, 2\), got 0 to 2"),
        ({"test_labels": torch.tensor([-1, 0])}, r"test labels must lie in \[0, 2\), got -1 to 0"),
    ],
)
def test_inconsistent_data_is_refused(changed, message):
    fields = {}
    for split in ("train", "validation", "test"):
        fields |= {f"{split}_images": torch.zeros(2, 1, 4, 4), f"{split}_labels": torch.zeros(2).long()}
    with pytest.raises(ValueError, match=message):
        ImageData("odd", **{**fields, **changed}, num_classes=2)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"train_labels": None}, InvalidFileError, r"expected arrays \['train_labels'\], got \['test_images'"),
        ({"test_images": None}, InvalidFileError, r"expected arrays \['test_images'\]"),
        (
            {"train_labels": np.full(40, 2**40)},
            ValueError,
            "expected class indices from 0 to 65535, got 1099511627776",
        ),
        ({"train_labels": np.full(40, -1)}, ValueError, "expected class indices from 0 to 65535, got -1"),
        (
            {"train_images": np.full((40, 6, 6), np.nan)},
            ValueError,
            r"expected finite pixels >= 0, got none \(NaN or infinite values: 1,224 of 1,224\)",
        ),
        (
            {"train_images": np.where(np.arange(1440) == 7, np.nan, np.arange(1440) % 9).reshape(40, 6, 6)},
            ValueError,
            r"got values from 0.0 to 8.0 \(NaN or infinite values: 1 of 1,224\)",
        ),
        ({"train_images": np.full((40, 6, 6), -1.0)}, ValueError, "expected finite pixels >= 0, got values from -1.0"),
        (
            {"train_images": np.full((40, 6, 6), 1j)},
            ValueError,
            "numeric pixels, got complex128",
        ),
        ({"train_images": np.full((40, 6, 6), None)}, InvalidFileError, "some.npz"),
        ({"train_images": np.full((40, 6, 6), "a")}, ValueError, "numeric pixels, got <U1"),
        ({"test_labels": np.zeros(3, dtype=np.int64)}, ValueError, "10 test images but 3 labels"),
        ({"train_labels": np.arange(40)}, ValueError, "got 40 different labels of 40 examples; .*regression"),
        ({"train_labels": np.eye(40, 5, dtype=int)}, ValueError, r"train: expected one integer .*\(40, 5\); multiple"),
        (
            {"train_labels": np.array(["[0, 1]", "[1]"] * 20)},
            ValueError,
            r"name of one class per example, got '\[0, 1\]'",
        ),
        (
            {"train_labels": np.array(["0.5", "1.5"] * 20)},
            ValueError,
            "expected names of classes, got numbers such as",
        ),
        ({"test_labels": np.zeros(10)}, ValueError, "expected one integer class index per example, got float64"),
        ({"train_images": np.zeros((40, 6, 6, 2))}, ValueError, "with 1 or 3 channels, got"),
        ({"train_images": np.zeros((0, 6, 6)), "train_labels": np.zeros(0, dtype=int)}, ValueError, "no examples in"),
        (
            {"train_images": np.zeros((1, 6, 6)), "train_labels": np.zeros(1, dtype=int)},
            ValueError,
            "are too few to split",
        ),
    ],
)
def test_broken_files_are_refused(tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        load_images(write_npz(tmp_path, **changed))


def test_labels_in_a_column_and_splits_of_competitions(tmp_path):
    labels = np.arange(40) % 3
    expected = load_images(write_npz(tmp_path, train_labels=labels, test_labels=np.zeros(10, dtype=int)))
    found = load_images(write_npz(tmp_path, train_labels=labels[:, None], test_labels=np.zeros((10, 1), dtype=int)))
    assert torch.equal(found.train_labels, expected.train_labels)
    images = np.zeros((40, 4, 4), dtype=np.uint8).tolist()
    train = datasets.Dataset.from_dict({"image": images, "label": labels.tolist()})
    hidden = datasets.Dataset.from_dict({"image": images, "label": [-1] * 40})  # indices without names
    assert len(load_images(datasets.DatasetDict(train=train, test=hidden)).test_labels) == 6


def test_sources_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file .*missing.npz; expected 'digits', a folder"):
        load_images(tmp_path / "missing.npz")
    with pytest.raises(TypeError, match="expected 'digits', a folder of images, an .npz file, a dataset .*, got int"):
        load_images(3)
    with pytest.raises(ValueError, match="limits must be at least 1, got {'test': 0}"):
        load_images("digits", test_limit=0)


def test_datasets_that_are_none():
    with pytest.raises(KeyError, match="expected an image column .* got \\['x'\\]; rename_column"):
        load_images(datasets.Dataset.from_dict({"x": [1, 2]}))
    with pytest.raises(KeyError, match="the dataset has splits .'dev'.; expected 'train'"):
        load_images(datasets.DatasetDict({"dev": images_dataset()}))
    with pytest.raises(ValueError, match="train images have several shapes, .*convert them to one size"):
        load_images(images_dataset(sizes=(6, 5)))


def test_resized_images_are_means_of_areas_standardised_anew(tmp_path):
    path = write_npz(tmp_path)
    raw, small = load_images(path), load_images(path, image_size=3)
    assert small.image_size == 3
    pixels = {
        split: raw.split(split)[0].double() * raw.std[0] + raw.mean[0] for split in ("train", "validation", "test")
    }
    means = {
        split: values.unflatten(3, (3, -1)).unflatten(2, (3, -1)).mean((3, 5)) for split, values in pixels.items()
    }
    assert small.mean[0] == pytest.approx(means["train"].mean().item(), rel=1e-5)
    assert small.std[0] == pytest.approx(means["train"].std(correction=0).item(), rel=1e-5)
    for split, values in means.items():
        expected = (values - small.mean[0]) / small.std[0]
        assert torch.allclose(small.split(split)[0].double(), expected, atol=1e-4)
        assert torch.equal(small.split(split)[1], raw.split(split)[1])


def test_resizing_to_the_same_size_changes_nothing():
    digits = load_images("digits", train_limit=20, validation_limit=10, test_limit=10)
    assert digits.resized(8) is digits
    with pytest.raises(ValueError, match="digits: expected a size of at least 1 pixel, got 0"):
        digits.resized(0)


def test_a_missing_folder_of_images_is_no_dataset_on_the_hub(local_hub):
    with pytest.raises(FileNotFoundError, match="no such file or folder.*no_such_images"):
        load_images("images/no_such_images")
