"""`hf-sane pretrain --lora --from`: an adapter with its card, from the command line."""

import re

from hf_sane.core._adapters import read_adapter_config
from hf_sane.records._run_record import RunRecord


def test_pretrain_leaves_an_adapter_with_its_card(tiny_sane_folder, tiny_zoo_folder, tmp_path, hf_sane_command):
    result = hf_sane_command(
        *("pretrain", "--zoo", tiny_zoo_folder, "--from", tiny_sane_folder, "--output", tmp_path / "run", "--lora"),
        *("--lora-rank", 1, "--lora-alpha", 3, "--lora-targets", "q_proj,token_out", "--base", "org/sane"),
        *("--max-steps", 2, "--num-permutations", 2, "--log-with", "none", "--no-progress-bar"),
    )
    assert "reconstruction R2 (validation)" in result.output
    folder = tmp_path / "run" / "model"
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json", "run.json"}
    assert {path.name for path in folder.iterdir()} - {"hf_sane_manifest.json"} == names
    config = read_adapter_config(folder)
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (1, 3.0, "org/sane")
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert 'SANEModel.from_pretrained("org/sane")' in code
    assert "| rank | 1 |" in card
    share = RunRecord.load(folder / "run.json").results["adapter"]["share"]
    assert f"| adapter: share | {share:.4g} |" in card


def test_an_adapter_needs_a_model_to_adapt(tiny_zoo_folder, tmp_path, hf_sane_command):
    refused = hf_sane_command(
        "pretrain", "--zoo", tiny_zoo_folder, "--output", tmp_path / "run", "--lora", exit_code=2
    )
    assert "lora needs a pretrained model to adapt" in refused.stderr
