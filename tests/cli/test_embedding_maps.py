"""`embed` draws where networks lie, coloured by what is known about them."""

import numpy as np
import pytest
from PIL import Image

from hf_sane.workflows.embed import EmbedSettings, embed, run_embed
from hf_sane.workflows.sane import SANE


@pytest.fixture(scope="module")
def embedded(tiny_sane_folder, tiny_zoo_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("maps") / "out"
    return embed(tiny_zoo_folder, tiny_sane_folder, poolings="mean", output=output)


def test_a_map_shows_two_principal_components(embedded, tiny_zoo):
    title, points, values = embedded.map
    assert title == "mean by test_accuracy"
    expected = np.concatenate([split.column("test_accuracy") for split in tiny_zoo.splits.values()])
    assert values == expected.tolist()
    vectors = np.concatenate([np.array(split["mean"]) for split in embedded.splits.values()])
    standardised = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0, ddof=1)
    ours = np.linalg.norm(points[:, None] - points[None], axis=-1)
    left, scale, _ = np.linalg.svd(standardised, full_matrices=False)
    plane = left[:, :2] * scale[:2]
    np.testing.assert_allclose(ours, np.linalg.norm(plane[:, None] - plane[None], axis=-1), atol=1e-4)
    with Image.open(embedded.output / "map.png") as picture:
        assert picture.format == "PNG"
        assert picture.convert("L").getextrema()[0] < 200  # something is drawn
    assert not embedded.notes


def test_the_colour_is_chosen_or_refused(tiny_sane_folder, tiny_zoo, tmp_path):
    sane = SANE.from_pretrained(tiny_sane_folder)
    found = embed(tiny_zoo, sane, poolings="mean", color="Train Loss")
    assert found.map[0] == "mean by train_loss"
    with pytest.raises(
        ValueError, match=r"expected a property .* to colour by, among .*test_accuracy.*, got 'colour'"
    ):
        embed(tiny_zoo, sane, poolings="mean", color="colour")
    network = tiny_zoo.splits["train"].model(0)
    few = embed([network, network], sane, output=tmp_path / "few")
    assert few.map is None
    assert few.notes == ["no map: it needs 4 networks with different properties"]
    assert not (tmp_path / "few" / "map.png").exists()


def test_no_plots(tiny_sane_folder, tiny_zoo_folder, tmp_path):
    arguments = {"sane": tiny_sane_folder, "zoo": tiny_zoo_folder, "poolings": ["mean"], "output": tmp_path / "out"}
    assert run_embed(EmbedSettings(**arguments, plots=False)).map is None
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".parquet", ".json", ".html"}
