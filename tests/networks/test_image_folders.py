"""Images as people have them: folders of files, datasets with other names, arrays without a test split."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import hf_sane
from hf_sane.networks._images import load_images, load_zoo_images
from hf_sane.records._errors import InvalidFileError


def save(path: Path, value: int, *, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 2 * value, 0)).save(path)


def pets(root: Path, count: int = 10, **options) -> Path:
    """Cats are dark, dogs are light."""
    for index in range(count):
        save(root / "cat" / f"{index}.png", index, **options)
        save(root / "dog" / f"{index}.jpg", 100 + index, **options)
    return root


def test_a_folder_per_class(tmp_path):
    data = load_images(pets(tmp_path / "pets"))
    assert (data.name, data.class_names, data.num_classes) == ("pets", ("cat", "dog"), 2)
    assert [len(data.split(split)[0]) for split in ("train", "validation", "test")] == [14, 3, 3]
    assert data.train_images.shape[1:] == (1, 8, 8)
    for split in ("train", "validation", "test"):
        images, labels = data.split(split)
        raw = images.mean(dim=(1, 2, 3)) * data.std[0] + data.mean[0]
        assert ((raw > 50).long() == labels).all()
        assert set(labels.tolist()) == {0, 1}  # every split has every class
    assert data.describe()["classes"] == ["cat", "dog"]
    again = load_images(str(tmp_path / "pets"))
    assert (again.test_images == data.test_images).all()


def test_folders_of_splits(tmp_path):
    for split in ("train", "val", "testing"):
        pets(tmp_path / split, 3 if split == "train" else 1)
    data = load_images(tmp_path)
    assert [len(data.split(split)[0]) for split in ("train", "validation", "test")] == [6, 2, 2]
    (tmp_path / "val" / "bird").mkdir()
    save(tmp_path / "val" / "bird" / "x.png", 3)
    with pytest.raises(ValueError, match="the validation split has classes that train lacks: bird"):
        load_images(tmp_path)


def test_sizes_and_modes_are_brought_together_and_it_is_said(tmp_path, caplog):
    pets(tmp_path, 5, size=(40, 30), mode="RGB")
    save(tmp_path / "cat" / "grey.png", 7, size=(64, 64))
    data = load_images(tmp_path)
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert "images have 2 sizes; all are cropped to squares at their centre and resized to 32x32" in caplog.text
    assert "1 grey images among colour images are taken as colour" in caplog.text
    assert load_images(tmp_path, image_size=16).image_size == 16
    cropped = Image.new("RGB", (40, 30))  # only the middle 30 columns are kept
    cropped.paste((255, 255, 255), (5, 0, 35, 30))
    (tmp_path / "white").mkdir()
    for index in range(5):
        cropped.save(tmp_path / "white" / f"{index}.png")
    shown = load_images(tmp_path)
    white = shown.train_images[shown.train_labels == 2]
    np.testing.assert_allclose(white[0, 0].numpy() * shown.std[0] + shown.mean[0], 255, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda root: None, FileNotFoundError, "no images by class in"),
        (lambda root: save(root / "a.png", 1), FileNotFoundError, "got 1 images without a class"),
        (lambda root: pets(root, 1), ValueError, "images are too few to cut off a|no image to train on is left"),
        (
            lambda root: (pets(root), (root / "cat" / "x.png").write_text("no image")),
            InvalidFileError,
            "that Pillow can",
        ),
        (lambda root: (pets(root), (root / "cat" / "x.png").write_bytes(b"")), InvalidFileError, "that Pillow can"),
    ],
    ids=["empty", "loose", "few", "text", "empty file"],
)
def test_folders_that_will_not_do_say_why(make, error, reason, tmp_path):
    make(tmp_path)
    with pytest.raises(error, match=reason):
        load_images(tmp_path)


def test_datasets_with_other_names():
    images = [Image.new("L", (4, 4), value) for value in range(20)]
    features = datasets.Features({"photo": datasets.Image(), "species": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"photo": images, "species": [0, 1] * 10}, features=features)
    data = load_images(datasets.DatasetDict({"training": rows, "dev": rows.select([0, 1])}))
    assert data.class_names == ("cat", "dog")
    assert len(data.validation_images) == 2
    texts = datasets.Dataset.from_dict(
        {"image": [np.full((4, 4), v).tolist() for v in range(20)], "label": ["b", "a"] * 10}
    )
    assert load_images(texts).class_names == ("a", "b")
    numbers = datasets.Dataset.from_dict({"image": [np.zeros((4, 4)).tolist()] * 20, "label": [0.5] * 20})
    with pytest.raises(
        ValueError, match=r"several labels per image and numbers to be predicted \(regression\) are not"
    ):
        load_images(numbers)


def test_an_npz_without_a_test_split_is_cut(tmp_path):
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1) + np.zeros((20, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=pixels, train_labels=np.arange(20) % 2)
    data = load_images(tmp_path / "a.npz")
    assert [len(data.split(split)[0]) for split in ("train", "validation", "test")] == [14, 3, 3]
    np.savez(tmp_path / "b.npz", train_images=pixels, train_labels=np.arange(20) % 2, test_images=pixels)
    with pytest.raises(InvalidFileError, match="expected arrays"):
        load_images(tmp_path / "b.npz")


def test_a_zoo_is_trained_on_a_folder_of_images(tmp_path):
    zoo = hf_sane.build_zoo(
        pets(tmp_path / "pets"), num_models=3, epochs=1, output=tmp_path / "zoo", progress_bar=False
    )
    assert zoo.facts.data["name"] == "pets"
    assert zoo.facts.data["num_classes"] == 2
    assert load_zoo_images(zoo.facts).class_names == ("cat", "dog")
