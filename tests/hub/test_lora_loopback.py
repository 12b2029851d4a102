"""Adapters on the Hub: made with the commands, pushed, loaded, merged, and described by cards whose code runs."""

from pathlib import Path

import pytest
from forks import run_in_fork
from safetensors.torch import load_file

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.core._adapters import read_adapter_config
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.training._preparation import fit_extractor

ROOT = Path(__file__).parents[2]
pytestmark = [
    # huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename,
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning"),
    # and PEFT asks for an attribute of Transformers by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


NETWORK = """
import re, runpy

import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModel, PeftConfig, PeftModel
from transformers import AutoModelForImageClassification

import hf_sane
from hf_sane.hub._push import plan_push
from hf_sane.networks._images import load_images

plan_push("samples", folder / "network", "someone/network").push()
main = runpy.run_path(finetune_lora)["main"]
small = ["--steps", "8", "--learning-rate", "1e-2", "--train-limit", "200", "--lora-rank", "2"]
main(["someone/network", "--output", str(folder / "from_hub"), "--push-to", "someone/adapter", "--public", *small])

assert PeftConfig.from_pretrained("someone/adapter").base_model_name_or_path == "someone/network"
base = AutoModelForImageClassification.from_pretrained("someone/network")
images = load_images("digits", train_limit=200).test_images
plain = base(images).logits
adapted = PeftModel.from_pretrained(base, "someone/adapter").eval()
expected = adapted(images).logits
assert not torch.allclose(plain, expected, atol=1e-2)
assert torch.allclose(adapted.merge_and_unload()(images).logits, expected, atol=1e-4)
alone = AutoModelForImageClassification.from_pretrained("someone/adapter").eval()  # finds its base by itself
assert torch.allclose(alone(images).logits, expected, atol=1e-5)
again = AutoPeftModel.from_pretrained("someone/adapter", import_allowlist=["hf_sane"]).eval()
assert torch.allclose(again(images).logits, expected, atol=1e-5)

card = ModelCard.load("someone/adapter")
assert card.data.base_model == "someone/network" and card.data.library_name == "peft"
(code,) = re.findall(r"```python\\n(.*?)```", str(card), flags=re.DOTALL)
names = {}
exec(code, names)
assert torch.allclose(names["network"](images).logits, expected, atol=1e-4)
"""

SANE = """
from transformers import AutoModel

from hf_sane import SANEFeatureExtractor, SANEModel

plan_push("model", folder / "sane", "someone/sane").push()
flags = "--lora --from someone/sane --lora-rank 2 --lora-alpha 4 --lora-targets q_proj token_in"
flags += " --max_steps 4 --batch_size 4 --num_permutations 3 --no_progress_bar --log_with none"
result = runpy.run_path(pretrain)["main"](["--zoo", zoo, "--output_dir", str(folder / "run"), *flags.split()])
plan_push("adapter", result.output, "someone/sane-adapter").push()

sequence = SANEFeatureExtractor.from_pretrained("someone/sane-adapter").encode("someone/network")
tokens, positions = sequence.tokens[None], sequence.positions
base = SANEModel.from_pretrained("someone/sane")
plain = base.encode_sequences(tokens, positions)
adapted = PeftModel.from_pretrained(base, "someone/sane-adapter").eval()
expected = adapted.encode_sequences(tokens, positions)
assert not torch.equal(plain, expected)
alone = AutoModel.from_pretrained("someone/sane-adapter").eval()
assert torch.allclose(alone.encode_sequences(tokens, positions), expected, atol=1e-5)
assert torch.allclose(adapted.merge_and_unload().encode_sequences(tokens, positions), expected, atol=1e-4)

card = ModelCard.load("someone/sane-adapter")
assert card.data.base_model == "someone/sane"
(code,) = re.findall(r"```python\\n(.*?)```", str(card), flags=re.DOTALL)
names = {}
exec(code, names)
assert torch.allclose(names["model"].encode_sequences(tokens, positions), expected, atol=1e-4)
print("all came back")
"""


@pytest.fixture
def folder(tmp_path, tiny_zoo):
    """A SANE folder and a network, saved for publication."""
    network, record = build_model(cnn_digits()), RunRecord(command="x")
    extractor = fit_extractor([tiny_zoo.splits["train"]], "standardize")
    config = SANEConfig(
        token_dim=73, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2, window_size=52
    )
    save_sane(tmp_path / "sane", SANEModel(config), extractor, record, repo_id="someone/sane")
    save_network(tmp_path / "network", network, record, repo_id="someone/network")
    return tmp_path


def test_adapters_go_to_the_hub_and_back(folder, tiny_zoo_folder, local_hub):
    names = {"folder": folder, "zoo": str(tiny_zoo_folder)}
    names |= {name: str(ROOT / "scripts" / f"{name}.py") for name in ("finetune_lora", "pretrain")}
    assert "all came back" in run_in_fork(lambda: exec(NETWORK + SANE, names))
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "run.json"}
    for name in ("adapter", "sane-adapter"):
        assert files <= local_hub.repositories["models", f"someone/{name}"].files.keys()
    bases = {"from_hub": "someone/network", "run/model": "someone/sane"}
    for name, base in bases.items():
        assert read_adapter_config(folder / name)["base_model_name_or_path"] == base
    held = load_file(folder / "run" / "model" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in held} == {"q_proj", "token_in"}
