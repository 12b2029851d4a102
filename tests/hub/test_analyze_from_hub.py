"""A sharded checkpoint on the Hub is analysed by its name."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.tokenization._lazy_checkpoints import LazyCheckpoint, open_checkpoint

# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


def test_a_repository_gives_the_same_report_as_its_folder(tmp_path, local_hub):
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "network"
    folder.mkdir()
    weight_map = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    for name, file in weight_map.items():
        save_file({name: torch.randn(55, 60, generator=generator)}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    HfApi().create_repo("someone/network")
    HfApi().upload_folder(repo_id="someone/network", folder_path=folder)
    assert isinstance(open_checkpoint("someone/network"), LazyCheckpoint)
    settings = SpectrumSettings(num_bootstrap=0)
    here, there = analyze_spectrum(folder, settings), analyze_spectrum("someone/network", settings)
    assert here.rows() == there.rows()
    assert len(here) == 2
    assert there.source == "someone/network"
