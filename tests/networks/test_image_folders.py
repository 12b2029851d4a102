"""Images as people have them: folders of files, datasets with other names, arrays without a test split."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hf_sane
from hf_sane.networks._image_sources import SPLITS
from hf_sane.networks._images import load_images, load_zoo_images
from hf_sane.records._errors import InvalidFileError


def save(path: Path, value: int, *, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 2 * value, 0)).save(path)


def pets(root: Path, count: int = 10, suffix: str = "jpg", **options) -> Path:
    """Cats are dark, dogs are light."""
    for index in range(count):
        save(root / "cat" / f"{index}.png", index, **options)
        save(root / "dog" / f"{index}.{suffix}", 100 + index, **options)
    return root


def deep(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def metadata(root: Path, rows: list[str], name: str = "metadata.csv") -> Path:
    """An `imagefolder`: twenty grey images, cats and dogs in turn, and a table."""
    for index in range(20):
        save(root / f"{index}.png", 10 * index)
    (root / name).write_text("\n".join(rows))
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
    assert "images are of 2 sizes; all are centre-cropped to squares and resized to 32x32" in caplog.text
    assert "1 image is greyscale, unlike others, and converted to colour" in caplog.text
    assert "resized to 32x32 (--image-size)" in caplog.text
    caplog.clear()
    assert load_images(tmp_path, image_size=16).image_size == 16
    assert "resized to 16x16" in caplog.text
    assert "--image-size" not in caplog.text  # it was chosen, perhaps by a verb without the option
    cropped = Image.new("RGB", (40, 30))  # only the middle 30 columns are kept
    cropped.paste((255, 255, 255), (5, 0, 35, 30))
    (tmp_path / "white").mkdir()
    for index in range(5):
        cropped.save(tmp_path / "white" / f"{index}.png")
    shown = load_images(tmp_path)
    white = shown.train_images[shown.train_labels == 2]
    np.testing.assert_allclose(white[0, 0].numpy() * shown.std[0] + shown.mean[0], 255, rtol=1e-3)


def test_images_below_the_folder_of_a_class_are_left_out_and_that_is_said(tmp_path, caplog):
    pets(tmp_path, 5)
    pets(tmp_path / "cat", 1)
    assert sum(len(load_images(tmp_path).split(split)[1]) for split in ("train", "validation", "test")) == 10
    assert "2 images are left out, not directly in the folder of a class: cat/cat/0.png, cat/dog/0.jpg" in caplog.text


@pytest.mark.parametrize("kind", ["saved", "parquet folder", "parquet file", "npz"])
def test_images_in_files_of_other_libraries(kind, tmp_path):
    pixels = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"picture": datasets.Image(), "kind": names, "label": names})
    labels = [index % 2 for index in range(20)]
    table = {"picture": list(map(Image.fromarray, pixels)), "kind": labels[::-1], "label": labels}
    source = tmp_path / "pets"
    if kind == "saved":
        datasets.Dataset.from_dict(table, features=features).save_to_disk(source)
    elif kind == "npz":
        np.savez(source := tmp_path / "pets.npz", x_train=pixels, y_train=np.array(labels))
    else:
        source.mkdir()
        datasets.Dataset.from_dict(table, features=features).to_parquet(source / "train.parquet")
        source = source / "train.parquet" if kind == "parquet file" else source
    data = load_images(source)
    assert data.name == ("train" if kind == "parquet file" else "pets")
    assert data.class_names == (() if kind == "npz" else ("cat", "dog"))
    raw = data.test_images * data.std[0] + data.mean[0]
    index = (raw[:, 0, 0, 0].round().long() % 256) // 16
    assert [len(data.split(split)[1]) for split in ("train", "validation", "test")] == [14, 3, 3]
    assert all(label == place % 2 for label, place in zip(data.test_labels.tolist(), index.tolist(), strict=True))


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda root: None, FileNotFoundError, "no images by class in"),
        (lambda root: save(root / "a.png", 1), FileNotFoundError, "got 1 image without a class"),
        (lambda root: pets(root / "data", 1), FileNotFoundError, "got 2 images in deeper folders; pass .*data$"),
        (lambda root: (root / "a.HEIC").write_bytes(b"x"), FileNotFoundError, r"got files of other kinds \(.heic\)"),
        (lambda root: pets(root, 1), ValueError, "examples are too few to split off a|no training image is left of"),
        (lambda root: save(root / "cat" / "a.png", 1), ValueError, "at least two classes, got only 'cat'"),
        (
            lambda root: [deep(path) for path in pets(root, suffix="png").rglob("*.*")],
            InvalidFileError,
            "8 bits per channel, got mode I;16",
        ),
        (lambda root: [damage(path) for path in pets(root).rglob("*.*")], InvalidFileError, "that Pillow can decode"),
    ],
    ids=["empty", "loose", "deeper", "other kinds", "few", "one class", "16 bits", "damaged"],
)
def test_folders_that_will_not_do_say_why(make, error, reason, tmp_path):
    make(tmp_path)
    with pytest.raises(error, match=reason):
        load_images(tmp_path)


def test_damaged_images_are_named_and_left_out(tmp_path, caplog):
    expected = load_images(pets(tmp_path / "whole" / "pets"))
    pets(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "10.png").write_text("no image")
    (tmp_path / "pets" / "cat" / "11.png").write_bytes(b"")
    for suffix in ("png", "jpg"):  # whose headers are whole
        save(tmp_path / "pets" / "dog" / f"12.{suffix}", 1, size=(64, 64))
        damage(tmp_path / "pets" / "dog" / f"12.{suffix}")
    deep(tmp_path / "pets" / "cat" / "13.png")
    found = load_images(tmp_path / "pets")
    for split in SPLITS:
        assert all(torch.equal(*pair) for pair in zip(found.split(split), expected.split(split), strict=True))
    assert caplog.messages == [
        "pets: 4 images are left out (cannot be read): cat/10.png, cat/11.png, dog/12.jpg and 1 more",
        "pets: 1 image is left out (more than 8 bits per channel): cat/13.png",
    ]


def test_hidden_files_empty_folders_and_animations(tmp_path, caplog):
    expected = load_images(pets(tmp_path / "whole" / "pets"))
    pets(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")  # which macOS writes
    (tmp_path / "pets" / "rabbit" / "later").mkdir(parents=True)
    found = load_images(tmp_path / "pets")
    assert all(torch.equal(*pair) for pair in zip(found.split("train"), expected.split("train"), strict=True))
    assert caplog.messages == ["pets: 1 folder without images, which is no class: rabbit"]
    frames = [Image.new("L", (8, 8), value) for value in (9, 200)]
    frames[0].save(tmp_path / "pets" / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pets" / "cat" / "photograph.jpg", "MPO", save_all=True, append_images=frames[1:])
    load_images(tmp_path / "pets")
    assert "pets: of 1 image with several frames or pages, the first is used: cat/moving.gif" in caplog.messages


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
    with pytest.raises(ValueError, match=r"multiple labels per example and numeric targets \(regression\) are not"):
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


def test_an_imagefolder_with_a_table_of_classes(tmp_path):
    kinds = ["dog", "cat"]
    expected = [10 * index for index in range(20)]
    csv = metadata(tmp_path / "csv", ["file_name,label", *(f"{i}.png,{kinds[i % 2]}" for i in range(20))])
    other = metadata(tmp_path / "other", ["file_name;id;class", *(f"{i}.png;{i};{kinds[i % 2]}" for i in range(20))])
    lines = [f'{{"file_name": "{i}.png", "species": "{kinds[i % 2]}"}}' for i in range(20)]
    jsonl = metadata(tmp_path / "jsonl", lines, "metadata.jsonl")
    for data in map(load_images, (csv, other, jsonl)):
        assert data.class_names == ("cat", "dog")
        images, labels = (torch.cat([data.split(split)[part] for split in SPLITS]) for part in (0, 1))
        values = (images[:, 0, 0, 0] * data.std[0] + data.mean[0]).round().int().tolist()
        assert sorted(values) == expected
        assert [("cat", "dog")[label] for label in labels] == [kinds[value // 10 % 2] for value in values]
    numbers = metadata(tmp_path / "n", ["file_name,label", *(f"{i}.png,{8 + i % 3}" for i in range(20))])
    assert load_images(numbers).class_names == ("8", "9", "10")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["file_name,label", "0.png,0.5"], r"row 1: expected the class of an image, got '0.5'; multiple labels"),
        (
            ["file_name,label", "0.png,", "1.png, "],
            r"expected the class of each image \(label\), got empty cells; fill",
        ),
        (
            ["file_name,cat,dog", "0.png,1,1"],
            r"expected one column with the class of each image \(label\), got cat, dog",
        ),
        (
            ['{"file_name": "0.png", "label": ["cat", "dog"]}'],
            r"got \['cat', 'dog'\]; multiple labels per example and numer",
        ),
        (
            ["file_name,label", *(f"{index}.png,{index}" for index in range(20))],
            "got 20 different labels of 20 examples; multiple labels per example and numeric targets",
        ),
        (["image,label", "0.png,cat"], "expected one row per image, got .*file_name"),
        (
            ["file_name,label", "30.png,cat", ",dog"],
            "expected image files in the column file_name, relative to .*, got 2 without a file: 30.png, row 2; ",
        ),
    ],
    ids=["regression", "empty cells", "columns of labels", "list of labels", "numbers", "no file_name", "no file"],
)
def test_tables_of_something_else_than_classes_are_refused(rows, reason, tmp_path):
    metadata(tmp_path, rows, "metadata.jsonl" if rows[0].startswith("{") else "metadata.csv")
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        load_images(tmp_path)


def test_rows_without_an_image_or_a_class_are_left_out_and_named(tmp_path, caplog):
    rows = ["file_name,label", *(f"{index}.png,{'dog' if index % 2 else 'cat'}" for index in range(16))]
    expected = load_images(metadata(tmp_path / "whole", rows))
    caplog.clear()
    faulty = [*rows[:5], "ghost.png,cat", ",dog", f"{'long' * 100}.png,cat", "16.png,", *rows[5:], "17.svg,dog"]
    place = metadata(tmp_path / "faulty", faulty)
    (place / "18.png").rename(place / "18.heic")
    (place / "elsewhere").mkdir()
    found = load_images(place)
    for split in SPLITS:
        assert all(torch.equal(*pair) for pair in zip(found.split(split), expected.split(split), strict=True))
    assert [message.removeprefix(str(place)).partition("long")[0] for message in caplog.messages] == [
        "/metadata.csv: 4 rows are left out (no such image): ghost.png, row 6, ",
        "/metadata.csv: 1 row is left out (no label): 16.png",
        "faulty: 3 images are left out, not in the table: 16.png, 17.png, 19.png",
        "faulty: 1 image is left out, of kinds that are not read (convert to PNG or JPEG): 18.heic",
    ]


def test_damaged_images_that_a_table_names_elsewhere_are_left_out(tmp_path, caplog):
    (tmp_path / "elsewhere.png").write_text("no image")
    rows = ["file_name,label", *(f"{index}.png,{'dog' if index % 2 else 'cat'}" for index in range(20))]
    load_images(metadata(tmp_path / "pets", [*rows, f"{tmp_path / 'elsewhere.png'},cat"]))
    assert f"pets: 1 image is left out (cannot be read): {tmp_path / 'elsewhere.png'}" in caplog.messages


def test_a_single_image_is_no_data_and_a_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="got the single image .*0.png; pass the folder that contains the folders of"):
        load_images(pets(tmp_path, 1) / "cat" / "0.png")


def test_images_of_other_kinds_are_named_and_greyscale_is_said_once(tmp_path, caplog):
    pets(tmp_path / "pets", 10)
    (tmp_path / "pets" / "cat" / "photo.HEIC").write_bytes(b"ftypheic")
    (tmp_path / "pets" / "dog" / "drawing.svg").write_text("<svg/>")
    save(tmp_path / "pets" / "dog" / "colour.png", 9, mode="RGB")
    assert load_images(tmp_path / "pets", image_channels=1).num_channels == 1
    assert caplog.messages == [
        "pets: 2 images are left out, of kinds that are not read (convert to PNG or JPEG): "
        "cat/photo.HEIC, dog/drawing.svg",
        "pets: colour images are converted to greyscale, by luminance",
    ]


def test_datasets_with_several_labels_or_without_some_are_refused():
    images = [np.zeros((4, 4)).tolist()] * 20
    several = datasets.Dataset.from_dict({"image": images, "label": [[0, 1], [1]] * 10})
    with pytest.raises(
        ValueError, match="train: expected one class per example in 'label', got List.*multiple labels per"
    ):
        load_images(several)
    missing = datasets.Dataset.from_dict({"image": images, "label": ["", None] * 10})
    with pytest.raises(ValueError, match="expected examples with image and label, got 20 that lack one of them; fill"):
        load_images(missing)


def test_examples_without_an_image_or_label_are_left_out(caplog):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float32")})
    images = [None if value == 3 else Image.new("L", (4, 4), value) for value in range(24)]
    labels = [(None, float("nan"))[value % 2] if value > 21 else float(value % 2) for value in range(24)]
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    data = load_images(rows)
    pixels = torch.cat([data.split(split)[0] for split in SPLITS])[:, 0, 0, 0] * data.std[0] + data.mean[0]
    assert sorted(pixels.round().int().tolist()) == [value for value in range(22) if value != 3]
    assert (pixels.round().long() % 2 == torch.cat([data.split(split)[1] for split in SPLITS])).all()
    assert caplog.messages == [
        "train: 1 example is left out (no image)",
        "train: 2 examples are left out (no label)",
    ]
    caplog.clear()
    load_images(rows.select([0, 1, 2, *range(4, 22)]))  # of which the table still holds the others
    assert not caplog.messages


def test_images_of_a_dataset_are_resized_like_files():
    sizes = [(20, 12), (8, 8)]
    images = [Image.new("L", sizes[value % 2], 12 * value) for value in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("bool")})
    rows = datasets.Dataset.from_dict({"image": images, "label": [True, False] * 10}, features=features)
    with pytest.raises(ValueError, match=r"several shapes, \[\(8, 8\), \(12, 20\)\]; resize them \(--image-size"):
        load_images(rows)
    data = load_images(rows, image_size=8)
    assert (data.image_size, data.class_names) == (8, ("False", "True"))


def test_twenty_images_of_six_classes_are_enough_and_it_says_what_is_missing(tmp_path, caplog):
    for index in range(20):
        save(tmp_path / "things" / f"kind{index % 6}" / f"{index}.png", 10 * index)
    data = load_images(tmp_path / "things")
    assert set(data.train_labels.tolist()) == set(range(6))
    assert "things: the validation split has no image of kind" in caplog.text
