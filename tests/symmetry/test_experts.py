"""Experts of a mixture as files store them: where each value is in the model, and which experts may be exchanged."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_sane.symmetry._saved_forms import saved_forms
from hf_sane.symmetry._transformers_models import transformers_spec, transformers_symmetries

TINY = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
CHOICE = {"num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 2, "v_head_dim": 2}
DEEPSEEK = CHOICE | LATENT | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0}
SETTINGS = {
    "Mixtral": CHOICE | {"intermediate_size": 6, "num_local_experts": 3},
    "Phimoe": CHOICE | {"intermediate_size": 6, "num_local_experts": 3},
    "Qwen2Moe": CHOICE | {"num_experts": 4, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 6},
    "Qwen3Moe": CHOICE | {"num_experts": 4, "moe_intermediate_size": 5, "head_dim": 4},
    "Olmoe": CHOICE | {"num_experts": 4, "intermediate_size": 6},
    "DeepseekV3": DEEPSEEK | {"moe_intermediate_size": 5, "n_group": 2, "topk_group": 1},
    "GptOss": CHOICE | {"num_local_experts": 4, "intermediate_size": 6, "head_dim": 4},
    "GraniteMoe": CHOICE | {"num_local_experts": 4, "intermediate_size": 6},
}
TRACED = ["Mixtral", "DeepseekV3", "GptOss"]  # experts one by one; in groups; in one tensor, with biases


def configuration(name):
    settings = TINY | SETTINGS[name] | {"architectures": [f"{name}ForCausalLM"]}
    return getattr(transformers, f"{name}Config")(**settings)


def saved_model(name, folder):
    """A model in which no two units are alike, and its tensors as `save_pretrained` writes them."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(configuration(name)).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.3 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


def loaded(model, tensors, folder):
    """A model of the same configuration from tensors in a file."""
    model.config.save_pretrained(folder)
    save_file({key: x.contiguous() for key, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return type(model).from_pretrained(folder)


def logits_of(model):
    model.set_experts_implementation("eager")
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6)).logits


@pytest.mark.parametrize("name", SETTINGS)
def test_every_value_of_a_file_has_its_place_in_the_model(name, tmp_path):
    model, stored = saved_model(name, tmp_path)
    forms, state = saved_forms(model), model.state_dict()
    assert forms.keys() == stored.keys()
    empty = {form.source: torch.full_like(state[form.source], torch.nan) for form in forms.values()}
    for key, form in forms.items():
        assert torch.equal(form.read(state[form.source]), stored[key])
        form.write(empty[form.source], stored[key])
    assert all(torch.equal(tensor, state[key]) for key, tensor in empty.items())
    assert any(form.at for form in forms.values()) == (name not in ("GptOss", "GraniteMoe"))


@pytest.mark.parametrize("name", TRACED)
def test_experts_are_exchanged_with_their_routers(name, tmp_path):
    model, stored = saved_model(name, tmp_path)
    symmetries = transformers_symmetries(configuration(name))
    whole = symmetries.join(stored)
    split = symmetries.split(whole)
    assert split.keys() == stored.keys()
    assert all(torch.equal(split[key], stored[key]) for key in stored)
    permutation = symmetries.spec.random(generator=torch.Generator().manual_seed(0))
    moved = symmetries.split(symmetries.spec.apply(whole, permutation))
    assert all(not torch.equal(moved[key], stored[key]) for key in stored if "expert" in key)
    other = loaded(model, moved, tmp_path / "other")
    torch.testing.assert_close(logits_of(other), logits_of(model), rtol=1e-4, atol=1e-5)
    alone = {key: x for key, x in whole.items() if key in symmetries.stacks}
    wrong = whole | symmetries.spec.apply(alone, permutation)  # without the router
    broken = loaded(model, symmetries.split(wrong), tmp_path / "broken")
    assert (logits_of(broken) - logits_of(model)).abs().max() > 1e-2


def test_groups_of_experts_keep_their_place():
    """DeepSeek-V3 chooses groups first: its experts are exchanged inside a group, the units of each by themselves."""
    symmetries = transformers_symmetries(configuration("DeepseekV3"))
    free = {name: x.size for name, x in symmetries.spec.generators.items() if "mlp.experts" in name}
    units = {f"{stem}/1[{i}]" for stem in _axes_of_units(symmetries) for i in range(2)}
    assert free == {f"model.layers.0.mlp.experts.{group}/0": 2 for group in range(2)} | dict.fromkeys(units, 5)
    router = symmetries.spec.axes["model.layers.0.mlp.gate.weight"][0]
    assert [(part.axis[-1], part.start, part.stop) for part in router] == [("0", 0, 2), ("1", 0, 2)]


def _axes_of_units(symmetries):
    return [axis for axis, made_of in symmetries.spec.parts.items() if "experts" in axis and len(made_of) == 2]


def test_in_a_zoo_the_units_of_each_expert_move_by_themselves(tmp_path):
    model, stored = saved_model("Mixtral", tmp_path)
    spec = transformers_spec(configuration("Mixtral"), as_saved=True)
    assert list(spec.axes) == list(stored)
    experts = {axis: size for axis, size in spec.sizes.items() if "experts" in axis}
    assert sorted(experts.values()) == [6, 6, 6]
    assert "topk" in spec.fixed["model.layers.0.block_sparse_moe.gate.weight"][0]
    moved = spec.apply(stored, spec.random(generator=torch.Generator().manual_seed(0)))
    other = loaded(model, moved, tmp_path / "other")
    torch.testing.assert_close(logits_of(other), logits_of(model), rtol=1e-4, atol=1e-5)
