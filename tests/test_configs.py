"""Configurations of Accelerate in configs/: Accelerate reads them, and they name what there is."""

import json
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from hf_sane.models import layers_sane
from hf_sane.training._settings import PretrainSettings

ROOT = Path(__file__).parents[1]
KINDS = {"one_gpu": "NO", "several_gpus": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_configurations(name):
    config = load_config_from_file(str(ROOT / f"configs/{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type.value == KINDS[name]
    assert (config.num_processes, config.use_cpu) == (1 if name == "one_gpu" else 8, False)
    assert bool(config.fsdp_config) == (name == "fsdp")
    assert bool(config.deepspeed_config) == (name == "deepspeed")


def test_all_of_them_are_tried_and_named_in_the_guide():
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == KINDS.keys()
    guide = (ROOT / "docs/how-to/gpus_and_processes.md").read_text(encoding="utf-8")
    assert [name for name in KINDS if f"configs/{name}.yaml" not in guide] == []


def test_they_fit_the_model_and_the_defaults_of_pre_training():
    config = load_config_from_file(str(ROOT / "configs/fsdp.yaml"))
    assert hasattr(layers_sane, config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"])
    path = load_config_from_file(str(ROOT / "configs/deepspeed.yaml")).deepspeed_config["deepspeed_config_file"]
    zero = json.loads((ROOT / path).read_text(encoding="utf-8"))
    defaults = PretrainSettings(zoo=["z"], output="o")
    assert zero["train_micro_batch_size_per_gpu"] == defaults.batch_size
    assert zero["gradient_accumulation_steps"] == defaults.gradient_accumulation_steps
    assert zero["gradient_clipping"] == defaults.max_grad_norm
