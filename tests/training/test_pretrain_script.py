"""scripts/pretrain.py, run as its docstring says, and through `main`."""

import gc
import os
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from forks import Fork
from torch.distributed import TCPStore
from torch.nn.parallel import DistributedDataParallel

from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._images import load_images
from hf_sane.records._manifests import MANIFEST
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    arguments = ZooSettings(
        architecture="mlp",
        architecture_settings={"hidden_sizes": [4]},
        num_models=8,
        epochs=0,
        token_dim=16,
        progress_bar=False,
    )
    build_zoo(arguments, load_images("digits", train_limit=50, validation_limit=50, test_limit=50), folder)
    model = '{"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4, "window_size": 8}'
    flags = f"--zoo {folder} --max_steps 4 --batch_size 4 --num_permutations 3 --no_progress_bar"
    return [*flags.split(), "--model", model]


def test_main_trains_and_writes_a_card(flags, tmp_path, capsys):
    result = runpy.run_path(str(SCRIPT))["main"]([*flags, "--output_dir", str(tmp_path)])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert result.run.steps == 4
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("steps")] == [
        ["steps", "4"]
    ]
    expected = {MANIFEST, "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "run.json"}
    assert {path.name for path in result.output.iterdir()} == expected
    assert "SANEModel.from_pretrained" in (result.output / "README.md").read_text()


def test_two_processes_train_as_torchrun_starts_them(flags, tmp_path):
    """In forks, which need not import everything once more, with the environment that torchrun gives its processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": store.host, "MASTER_PORT": store.port}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0, "ACCELERATE_USE_CPU": "true"}
    shared |= {"OMP_NUM_THREADS": 1}  # unless it is set already

    def train(rank):
        end_training = Accelerator.end_training

        def end(accelerator):
            wrapped = [found for found in gc.get_objects() if type(found) is DistributedDataParallel]
            sys.stderr.write(f"still wrapped {len(wrapped)}\n")
            end_training(accelerator)

        Accelerator.end_training = end  # of this fork
        os.environ |= {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        sys.argv = [str(SCRIPT), *flags, "--output_dir", str(tmp_path / "run"), "--log_with", "none"]
        runpy.run_path(str(SCRIPT), run_name="__main__")

    first, second = (ending.wait() for ending in [Fork(partial(train, rank)) for rank in range(2)])
    assert first.code == second.code == 0, first.stderr + second.stderr
    lines = [line.split() for line in first.stdout.splitlines() if line.startswith("processes")]
    assert lines == [["processes", "2"]]
    assert second.stdout == ""
    # One that outlives the connections between processes can wait for ever for their threads.
    for ending in (first, second):
        assert [line for line in ending.stderr.splitlines() if line.startswith("still")] == ["still wrapped 0"]
    assert SANEModel.from_pretrained(tmp_path / "run" / "model").config.window_size == 8
