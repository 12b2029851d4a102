"""Soups of foreign files, which may differ in ties, idle buffers, wrappers and dtypes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_sane.hub._soups import save_soup_of_files
from hf_sane.merging._averaging import average_checkpoints, pour
from hf_sane.merging._ingredients import open_ingredients
from hf_sane.merging._reconciliation import carries_nothing
from hf_sane.records._run_record import RunRecord

WORDS = torch.arange(11)[None]
SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}


def llama(seed, *, tied, **settings):
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=11, tie_word_embeddings=tied, **settings)
    return LlamaForCausalLM(config).eval()


def mean_of(*models):
    """The average by hand, of ends that are not tied."""
    average = llama(0, tied=False)
    states = [model.state_dict() for model in models]
    average.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return average


def save_as_tied(model, folder):
    """The fault of transformers/45127: two ends in the file, and a configuration that ties them."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def soup(folder, sources):
    ingredients = open_ingredients(sources)
    weights = [1 / len(sources)] * len(sources)
    rows = {ingredient.name: {"weight": weight} for ingredient, weight in zip(ingredients, weights, strict=True)}
    record = RunRecord.start(seed=0, arguments={"recipe": "uniform"}).finish({"ingredients": rows})
    return save_soup_of_files(folder, ingredients, weights, record)


def check_logits(folder, expected):
    found = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(WORDS).logits, expected(WORDS).logits, rtol=1e-5, atol=1e-6)
    return found


def test_a_head_that_the_file_unties_is_averaged_as_one_of_its_own(tmp_path):
    models = [llama(seed, tied=False) for seed in range(2)]
    sources = [save_as_tied(model, tmp_path / str(index)) for index, model in enumerate(models)]
    found = check_logits(soup(tmp_path / "soup", sources), mean_of(*models))
    assert not found.config.tie_word_embeddings
    tied = llama(0, tied=True)
    pour(tied, open_ingredients(sources), [0.5, 0.5])
    with torch.no_grad():
        torch.testing.assert_close(tied(WORDS).logits, mean_of(*models)(WORDS).logits, rtol=1e-5, atol=1e-6)
    assert not tied.config.tie_word_embeddings
    pour(tied, open_ingredients(sources), [1.0, 0.0])  # and stays able to hold any other mixture
    with torch.no_grad():
        torch.testing.assert_close(tied(WORDS).logits, models[0](WORDS).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_a_head_that_only_one_file_unties(order, tmp_path):
    untied, tied = llama(0, tied=False), llama(1, tied=True)
    tied.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    sources = [save_as_tied(untied, tmp_path / "untied"), tmp_path / "tied"]
    check_logits(soup(tmp_path / "soup", sources[::order]), mean_of(untied, tied))


def test_a_tie_that_is_stored_twice_stays_one(tmp_path):
    models = [llama(seed, tied=True) for seed in range(2)]
    for index, model in enumerate(models):
        model.save_pretrained(tmp_path / str(index))
    path = tmp_path / "0" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path, {"format": "pt"})
    found = check_logits(soup(tmp_path / "soup", [tmp_path / "0", tmp_path / "1"]), mean_of(*models))
    assert found.config.tie_word_embeddings
    assert found.lm_head.weight is found.model.embed_tokens.weight


def test_one_tied_and_one_untied_configuration_are_refused(tmp_path):
    for tied in (False, True):
        llama(0, tied=tied).save_pretrained(tmp_path / str(tied))
    with pytest.raises(ValueError, match="different architectures: tie_word_embeddings False and True"):
        open_ingredients([tmp_path / "False", tmp_path / "True"])


def test_settings_that_one_file_leaves_out_are_compared_as_defaults(tmp_path):
    """Transformers leaves out of config.json what is the default of every architecture."""
    llama(0, tied=True).save_pretrained(tmp_path / "0")
    llama(1, tied=True, rms_norm_eps=1e-2).save_pretrained(tmp_path / "1")
    path = tmp_path / "0" / "config.json"
    path.write_text(json.dumps({key: v for key, v in json.loads(path.read_text()).items() if key != "rms_norm_eps"}))
    with pytest.raises(ValueError, match="different architectures: rms_norm_eps 1e-06 and 0.01"):
        open_ingredients([tmp_path / "0", tmp_path / "1"])


def bert(seed):
    torch.manual_seed(seed)
    return BertModel(BertConfig(**SIZES, vocab_size=11, max_position_embeddings=6)).state_dict()


MASK = torch.ones(6, 6, dtype=torch.uint8).tril().view(1, 1, 6, 6)
IDLE = {
    "embeddings.position_ids": torch.arange(6)[None],
    "embeddings.token_type_ids": torch.zeros(1, 6, dtype=torch.long),
    "norm.num_batches_tracked": torch.tensor(5),
    "layers.0.rotary_emb.inv_freq": torch.rand(4),
    "h.0.attn.bias": MASK,
    "h.0.attn.masked_bias": torch.tensor(-1e4),
    "encoder.total_ops": torch.zeros(1),
    "total_params": torch.zeros(1, dtype=torch.float64),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", IDLE)
def test_buffers_that_carry_nothing_may_be_missing(name, order):
    states = [bert(0) | {name: IDLE[name]}, bert(1)]
    found = average_checkpoints(open_ingredients(states[::order]))
    assert name not in found
    for key, tensor in bert(0).items():
        torch.testing.assert_close(found[key], (tensor + bert(1)[key]) / 2)


TELLING = {
    "embeddings.position_ids": torch.arange(1, 7)[None],
    "embeddings.token_type_ids": torch.ones(1, 6, dtype=torch.long),
    "h.0.attn.bias": MASK.mT,
    "pooler.extra.weight": torch.ones(2),
    "layers.inv_freq": torch.ones(2, 2),
}


@pytest.mark.parametrize("name", TELLING)
def test_tensors_that_say_something_are_named_in_both_directions(name):
    other = bert(1) | {"b.only": torch.ones(1)}
    message = rf"1 tensors are in a only, such as \['{name}'\] and 1 tensors are in b only, such as \['b.only'\]"
    with pytest.raises(ValueError, match=message):
        open_ingredients([bert(0) | {name: TELLING[name]}, other], names=["a", "b"])


def test_a_causal_mask_is_told_from_a_bias():
    assert carries_nothing("h.0.attn.bias", MASK.bool())
    assert not carries_nothing("h.0.attn.bias", torch.ones(6))


def test_buffers_that_all_have_stay(tmp_path):
    states = [bert(seed) | {"embeddings.position_ids": torch.arange(6)[None]} for seed in range(2)]
    assert torch.equal(average_checkpoints(open_ingredients(states))["embeddings.position_ids"], torch.arange(6)[None])


@pytest.mark.parametrize("order", [1, -1])
def test_averages_that_training_made_meet_plain_checkpoints(order):
    """`AveragedModel` puts `module.` before every name, and a count beside them."""
    plain, other = nn.Linear(3, 2), nn.Linear(3, 2)
    averaged = AveragedModel(other)
    assert set(averaged.state_dict()) == {"n_averaged", "module.weight", "module.bias"}
    for source in (averaged, averaged.state_dict()):
        found = average_checkpoints(open_ingredients([plain, source][::order]))
        assert found.keys() == {"weight", "bias"}
        torch.testing.assert_close(found["weight"], (plain.weight.detach() + other.weight.detach()) / 2)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [((torch.float16, torch.bfloat16), torch.float32), ((torch.bfloat16, torch.bfloat16), torch.bfloat16)],
)
def test_the_dtype_of_a_soup_of_files(dtypes, expected, tmp_path):
    models = [llama(seed, tied=False) for seed in range(2)]
    with torch.no_grad():
        models[1].model.norm.weight.fill_(2e5)
    for index, (model, dtype) in enumerate(zip(models, dtypes, strict=True)):
        model.to(dtype).save_pretrained(tmp_path / str(index))
    folder = soup(tmp_path / "soup", [tmp_path / "0", tmp_path / "1"])
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {expected}
    start = models[0].model.norm.weight[0].float()
    torch.testing.assert_close(tensors["model.norm.weight"].float(), ((start + 2e5) / 2).expand(8), rtol=1e-2, atol=0)
    assert LlamaForCausalLM.from_pretrained(folder).dtype == expected


def test_gpt2_with_and_without_its_masks(tmp_path):
    models = []
    for index in range(2):
        torch.manual_seed(index)
        config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=6)
        models.append(GPT2LMHeadModel(config).eval())
        models[-1].save_pretrained(tmp_path / str(index))
    path = tmp_path / "0" / "model.safetensors"
    masks = {f"transformer.h.{layer}.attn.bias": MASK.clone() for layer in range(2)}
    save_file(load_file(path) | masks, path, {"format": "pt"})
    folder = soup(tmp_path / "soup", [tmp_path / "0", tmp_path / "1"])
    found = GPT2LMHeadModel.from_pretrained(folder).state_dict()
    states = [model.state_dict() for model in models]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)


def test_code_of_an_ingredient_is_not_carried_over(tmp_path):
    for index in range(2):
        llama(index, tied=True).save_pretrained(tmp_path / str(index))
        path = tmp_path / str(index) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "planted.Model"}}))
    folder = soup(tmp_path / "soup", [tmp_path / "0", tmp_path / "1"])
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_files_without_a_configuration_are_no_model(tmp_path):
    for index in range(2):
        save_file(bert(index), tmp_path / f"{index}.safetensors")
    with pytest.raises(ValueError, match=r"0.safetensors has no config.json, so its architecture is unknown"):
        soup(tmp_path / "soup", [tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    assert not (tmp_path / "soup").exists()
