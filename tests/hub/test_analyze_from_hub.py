"""A sharded checkpoint on the Hub is analysed by its name."""

import json
import subprocess
import sys

import torch
from hub_server import run_hub
from safetensors.torch import save_file

CLIENT = """
import sys
from huggingface_hub import HfApi
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.tokenization._lazy_checkpoints import LazyCheckpoint, open_checkpoint

HfApi().create_repo("someone/network")
HfApi().upload_folder(repo_id="someone/network", folder_path=sys.argv[1])
assert isinstance(open_checkpoint("someone/network"), LazyCheckpoint)
settings = SpectrumSettings(num_bootstrap=0)
here, there = analyze_spectrum(sys.argv[1], settings), analyze_spectrum("someone/network", settings)
assert here.rows() == there.rows() and len(here) == 2, (here.rows(), there.rows())
assert there.source == "someone/network"
print("the same")
"""


def test_a_repository_gives_the_same_report_as_its_folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "network"
    folder.mkdir()
    weight_map = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    for name, file in weight_map.items():
        save_file({name: torch.randn(55, 60, generator=generator)}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with run_hub() as hub:
        ran = subprocess.run(
            [sys.executable, "-c", CLIENT, str(folder)],
            capture_output=True,
            text=True,
            env=hub.environment(tmp_path / "home"),
            timeout=120,
            check=False,
        )
    assert ran.stdout.splitlines()[-1:] == ["the same"], ran.stderr
