"""Zoos in folders of any name load and stream; names that could not be read everywhere are refused before the work."""

import pytest
import torch
from safetensors.torch import save_file

from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import check_config_name
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.importing._importing import import_zoo
from hf_sane.zoo.importing._settings import ImportSettings


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Two zoos with different weights: `first` and `second`."""
    root = tmp_path_factory.mktemp("zoos")
    for zoo in range(2):
        for index in range(3):
            folder = root / f"models_{zoo}" / str(index)
            folder.mkdir(parents=True)
            save_file({"w": torch.full((3, 4), 10.0 * zoo + index)}, folder / "model.safetensors")
    for zoo, name in enumerate(("first", "second")):
        import_zoo(ImportSettings(folder=str(root / f"models_{zoo}"), token_dim=4), root / name)
    return root


@pytest.mark.parametrize("name", ["zoo[1] v2", "a*b?", "{x,y}", "zoo@2024", "100% #1", "ünïcode", "[!a]", "hf:x"])
def test_a_folder_of_any_name_loads_and_streams(name, imported, tmp_path):
    """And it is read itself, not a neighbour that its name would match as a pattern."""
    for target, source in ((name, "second"), ("aXbY", "first"), ("zoo1 v2", "first"), ("b", "first")):
        zoo = Zoo.load(imported / source)
        zoo.save(tmp_path / target)
    for folder in (tmp_path / name, str(tmp_path / name)):
        loaded = Zoo.load(folder)
        assert sorted(float(split.tokens(0)[0, 0]) for split in loaded.splits.values()) == [10.0, 11.0, 12.0]
    stream = ZooStream.open(tmp_path / name)
    assert sorted(float(stream.sample(split, 1).tokens(0)[0, 0]) for split in loaded.splits) == [10.0, 11.0, 12.0]


BAD = [
    "a:b",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    ".hidden",
    "con",
    "NUL.txt",
    "lpt1",
    "data",
    "zoo.json",
    "a.",
    "a b",
    "a*",
    "é",
    "a" * 101,
]


@pytest.mark.parametrize("config", BAD)
def test_names_that_cannot_be_read_everywhere_are_refused_before_the_work(config, imported, tmp_path):
    with pytest.raises(ValueError, match="expected a name for the zoo"):
        check_config_name(config)
    seen = []
    arguments = ImportSettings(folder=str(imported / "models_0"), token_dim=4)
    with pytest.raises(ValueError, match=r"expected a name for the zoo \(config\) of up to 100 letters"):
        import_zoo(arguments, tmp_path / "new", config=config, on_entry=seen.append)
    assert not seen
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="expected a name for the zoo"):
        Zoo.load(imported / "first").save(tmp_path / "saved", config)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("config", ["default", "mnist_seed", "a.b-c", "1", "_x", "console", "common"])
def test_other_names_are_written_and_read(config, imported, tmp_path):
    Zoo.load(imported / "first").save(tmp_path / "saved", config)
    assert len(Zoo.load(tmp_path / "saved", config)) == 3
