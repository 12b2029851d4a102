"""Mixtures whose files store experts one by one: the experts, and the units of each, are matched."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

import hf_sane
from hf_sane.symmetry._transformers_models import transformers_symmetries

CONFIG = MixtralConfig(
    architectures=["MixtralForCausalLM"],
    vocab_size=24,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_local_experts=4,
)
EXPERT = "model.layers.0.block_sparse_moe.experts.{}.{}.weight"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Folder of a mixture as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("mixture") / "a"
    torch.manual_seed(0)
    model = MixtralForCausalLM(CONFIG)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return folder


def copied(mixture, folder, change=lambda state: state):
    """A changed copy in which experts, units, heads and channels are in another order."""
    symmetries = transformers_symmetries(CONFIG)
    whole = symmetries.join(change(load_file(mixture / "model.safetensors")))
    order = symmetries.spec.random(generator=torch.Generator().manual_seed(1))
    router = next(name for name in order if name.endswith("mlp.experts"))
    assert sorted(order[router].tolist()) != order[router].tolist()
    moved = symmetries.split(symmetries.spec.apply(whole, order))
    folder.mkdir()
    save_file({name: x.contiguous() for name, x in moved.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((mixture / "config.json").read_text())
    return folder


def rescaled(state):
    """Units of each expert beside the gate, multiplied, and what uses them divided."""
    for expert in range(4):
        factors = torch.linspace(0.5, 3, 8)
        state[EXPERT.format(expert, "w3")] *= factors.unsqueeze(1)
        state[EXPERT.format(expert, "w2")] /= factors
    return state


def altered(state):
    """One matrix of one expert is drawn again."""
    state[EXPERT.format(2, "w1")] = 0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    return state


CHANGES = {
    "reordered": (lambda state: state, "permuted"),
    "cast": (lambda state: {name: x.bfloat16() for name, x in state.items()}, "permuted"),
    "rescaled": (rescaled, "rescaled"),
    "altered": (altered, "partly equal"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_with_exchanged_experts_is_recognised(name, mixture, tmp_path):
    change, relation = CHANGES[name]
    found = hf_sane.diff(mixture, copied(mixture, tmp_path / "b", change)).difference
    assert (found.relation, found.is_permuted, found.unaligned) == (relation, True, None)
    differing = [x.name for x in found.tensors if not x.is_same]
    assert differing == ([EXPERT.format(2, "w1")] if name == "altered" else [])


def test_a_copy_with_exchanged_experts_is_a_relative(mixture, tmp_path):
    other = copied(mixture, tmp_path / "b", altered)
    (descent,) = hf_sane.lineage(mixture, other).lineage.descents
    assert descent.change == "partly copied"
    assert descent.distance < 1e-6


def test_an_expert_that_is_stored_alone_elsewhere_does_not_hinder(mixture, tmp_path):
    """Without one of its experts a mixture cannot be joined; the rest is still matched."""
    first, other = (load_file(path / "model.safetensors") for path in (mixture, copied(mixture, tmp_path / "b")))
    lost = EXPERT.format(3, "w2")
    kept = transformers_symmetries(CONFIG).select({name: name for name in first if name != lost})
    assert len(kept.stacks) == 2
    assert lost not in kept.names
    assert set(other) - set(kept.names) == {EXPERT.format(i, "w2") for i in range(4)}
