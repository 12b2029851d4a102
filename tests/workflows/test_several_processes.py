"""Two processes, or two workers of one, give what one process gives; only the main process writes and prints."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from datasets import load_dataset
from safetensors.torch import load_file

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._processes import current_processes, divided, joined_processes
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.build_zoo import BuildZooSettings, run_build_zoo
from hf_sane.workflows.embed import EmbedSettings, run_embed
from hf_sane.workflows.sample import SampleSettings, run_sample
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.scan import ScanSettings, run_scan
from hf_sane.zoo._dataset import Zoo

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def sane(tiny_zoo) -> SANE:
    """An autoencoder that nobody trained."""
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    torch.manual_seed(0)
    config = SANEConfig(token_dim=layout.token_dim, hidden_size=16, latent_dim=8, num_hidden_layers=1, window_size=32)
    return SANE(SANEModel(config).eval(), extractor)


@pytest.fixture
def files(tiny_zoo, tmp_path) -> list[Path]:
    """Three networks, and a file that is none."""
    paths = [tmp_path / "networks" / f"{index}.pt" for index in range(4)]
    paths[0].parent.mkdir()
    for index, path in enumerate(paths):
        torch.save(tiny_zoo.splits["train"].state_dict(index), path)
    paths[1].write_text("this is no checkpoint")
    return paths


def run_all(folder: Path, sane: SANE, zoo: Zoo, digits, files: list[Path]) -> list[bool]:
    """Embed, sample and build; says which results are silent."""
    torch.set_num_threads(1)
    results = [
        run_embed(EmbedSettings(sane=sane, zoo=zoo, output=folder / "embedded", batch_size=3, plots=False)),
        run_embed(EmbedSettings(sane=sane, checkpoints=files, output=folder / "files", plots=False)),
        run_sample(
            SampleSettings(
                sane=sane,
                zoo=zoo,
                images=digits,
                output=folder / "sampled",
                method="bootstrap",
                num_rounds=2,
                num_samples=3,
                num_candidates=66,
                bandwidth=[0.2],
            )
        ),
        run_build_zoo(
            BuildZooSettings.from_options(
                output=folder / "zoo",
                num_models=6,
                group_size=2,
                epochs=1,
                children=3,
                shifts=["rotation", "scale", "shear"],
                child_epochs=1,
                train_limit=32,
                test_limit=32,
                validation_limit=32,
                progress_bar=False,
            )
        ),
    ]
    assert current_processes().count == 1
    return [result.is_silent for result in results]


def run_and_note(folder: str, *given) -> None:
    silent = run_all(Path(folder), *given)
    with joined_processes() as processes:
        rows = processes.gather((processes.index, processes.count, silent))
        if processes.is_main:
            Path(folder, "silent.json").write_text(json.dumps(rows))


def test_two_processes_embed_sample_and_build_what_one_does(tmp_path, sane, tiny_zoo, digits, files, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert run_all(one, sane, tiny_zoo, digits, files) == [False] * 4
    debug_launcher(run_and_note, (str(two), sane, tiny_zoo, digits, files), num_processes=2)
    assert json.loads((two / "silent.json").read_text()) == [[0, 2, [False] * 4], [1, 2, [True] * 4]]
    for name in ("embedded", "files"):
        found = {path.stem: read_parquet(path) for path in (one / name).glob("*.parquet")}
        assert len(found) == (3 if name == "embedded" else 1)
        assert found == {path.stem: read_parquet(path) for path in (two / name).glob("*.parquet")}
    assert len(read_parquet(one / "files/train.parquet")["checkpoint"]) == 3
    networks = sorted(path.relative_to(one) for path in (one / "sampled").glob("*/model.safetensors"))
    assert len(networks) == 3
    for path in networks:
        expected, got = load_file(one / path), load_file(two / path)
        assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    rows = [json.loads((folder / "sampled/run.json").read_text())["results"]["networks"] for folder in (one, two)]
    assert rows[0] == rows[1]
    built = [Zoo.load(folder / "zoo") for folder in (one, two)]
    for name, split in built[0].splits.items():
        assert split.run_ids == built[1].splits[name].run_ids
        assert torch.equal(split.stacked_tokens(), built[1].splits[name].stacked_tokens())
    assert sum(len(set(split.run_ids)) for split in built[0].splits.values()) > 6


def read_parquet(path: Path) -> dict:
    return load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(path.parent / "cache")).to_dict()


def test_two_workers_embed_and_scan_what_one_process_does(sane, tiny_zoo, files):
    for given in ({"zoo": tiny_zoo, "batch_size": 3}, {"checkpoints": files}):
        one, two = (run_embed(EmbedSettings(sane=sane, output=None, workers=n, plots=False, **given)) for n in (1, 2))
        assert one.skipped == two.skipped
        assert (len(two.skipped) == 1) == ("checkpoints" in given)
        for name, columns in one.splits.items():
            assert columns.keys() == two.splits[name].keys()
            for column in ("mean", "layer_mean_std"):
                torch.testing.assert_close(torch.tensor(columns[column]), torch.tensor(two.splits[name][column]))
    scans = [run_scan(ScanSettings(checkpoints=list(map(str, files)), workers=n)).to_dict() for n in (1, 2)]
    for scan in (*scans[0]["scans"], *scans[1]["scans"]):
        scan.pop("seconds")
    assert scans[0] == scans[1]
    assert [scan["format"] for scan in scans[0]["scans"]].count(scans[0]["scans"][0]["format"]) == 3


def test_errors_of_workers_are_those_of_one_process(sane, tmp_path):
    missing = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    for workers in (1, 2):
        with pytest.raises(FileNotFoundError, match="b.pt"):
            run_embed(EmbedSettings(sane=sane, checkpoints=missing, output=None, workers=workers))


def test_results_are_in_order_and_shares_are_those_of_processes():
    found = divided(lambda number: number * 10, range(7), workers=3, desc="counting", unit="number")
    assert found == [0, 10, 20, 30, 40, 50, 60]
