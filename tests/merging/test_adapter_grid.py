"""Adapters over a grid of PEFT's settings: what is read from the files is what PEFT's own merge makes of them."""

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_sane.core._adapters import read_adapter_config
from hf_sane.merging._adapters import AdapterMixer, average_adapters, open_adapters
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._adapters import Adapter
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of tied weights, biases and embeddings


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.value = nn.Linear(6, 5)
        self.line = nn.Conv1d(2, 3, 3)
        self.plane = nn.Conv2d(3, 4, (3, 2))
        self.room = nn.Conv3d(2, 3, 2)
        self.point = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm1d(6)


class Network(nn.Module):
    """Three blocks of layers of every kind that LoRA adapts. It is merged, not run."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.query = nn.Linear(6, 6)  # the end of its name is that of others
        self.head = nn.Linear(6, 2)


def gpt2() -> nn.Module:
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=6, tie_word_embeddings=False)
    return GPT2LMHeadModel(config)


def llama(*, tied: bool) -> nn.Module:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=11, tie_word_embeddings=tied)
    return LlamaForCausalLM(config).eval()


ALL = ["query", "value", "line", "plane", "room", "point", "words"]
NO_WORDS = ALL[:-1]
FIELDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"value": 4, "^layers.1.query": 1},
        "alpha_pattern": {"layers.0.query": 7, "pla.e": 2},
    },
    "layers": {"layers_to_transform": [0, 2], "target_modules": NO_WORDS},
    "one layer": {"layers_to_transform": 1, "layers_pattern": "layers", "target_modules": NO_WORDS},
    "layers and a full name": {"layers_to_transform": [1], "target_modules": ["value", "layers.0.query"]},
    "excluded": {"exclude_modules": ["value", "layers.1.query"]},
    "excluded by pattern": {"exclude_modules": r".*\.1\..*"},
    "regex": {"target_modules": r".*\.(0|2)\.(query|plane)"},
    "whole": {"modules_to_save": ["head", "norm"]},
    "all biases": {"bias": "all"},
    "biases of targets": {"bias": "lora_only"},
    "added biases": {"lora_bias": True, "target_modules": NO_WORDS},
    "gaussian": {"init_lora_weights": "gaussian"},
}
CROSSED = {
    "dora": {"use_dora": True},
    "not dora": {},
    "half": {"dtype": torch.bfloat16},
}


def adapt(base, folder, seed, *, dtype=None, save_embedding_layers=False, **settings):
    """Save an adapter with random tensors; returns PEFT's model."""
    torch.manual_seed(seed)
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ALL} | settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save")) or (
                settings.get("bias", "none") != "none" and parameter.requires_grad
            ):
                parameter.copy_(torch.randn_like(parameter))
            if "magnitude" in name:
                parameter.abs_().add_(0.1)
            if dtype is not None and "lora_" in name:
                parameter.copy_(parameter.to(dtype))
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    if dtype is not None:
        path = folder / "adapter_model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    return model.eval()


def merged(model):
    return model.merge_and_unload().state_dict()


def read(folder):
    return Adapter(folder.name, open_checkpoint(folder), read_adapter_config(folder))


def check_same(found, expected, start, *, tolerance=1e-4):
    changed = [name for name, tensor in expected.items() if not torch.equal(tensor, start[name])]
    assert changed
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=tolerance, atol=tolerance, msg=name)


def from_factors(base, folder):
    """The base plus what `open_factors` returns."""
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for module, (first, second) in open_factors(folder, base=base).items():
        name = module if module in state else f"{module}.weight"
        change = second.flatten(1) @ first.flatten(1).to(second)
        is_transposed = isinstance(base.get_submodule(module), nn.Embedding) if name != module else False
        state[name] += (change.mT if is_transposed else change).reshape(state[name].shape)
    return state


# PEFT has no adapters with magnitudes and added biases.
GRID = [(field, crossed) for field in FIELDS for crossed in CROSSED if (field, crossed) != ("added biases", "dora")]


@pytest.mark.parametrize(("field", "crossed"), GRID)
def test_every_field_against_the_merge_of_peft(field, crossed, tmp_path):
    settings = {**FIELDS[field], **CROSSED[crossed]}
    torch.manual_seed(0)
    base = Network().requires_grad_(requires_grad=False)
    model = adapt(base, tmp_path / "a", 1, **settings)
    if "dtype" in settings:  # PEFT's own reading of the rounded file
        model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a")
    expected, start = merged(model), base.state_dict()
    mixer = AdapterMixer(copy.deepcopy(base), [read(tmp_path / "a")])
    mixer.mix([1.0])
    check_same(mixer.model.state_dict(), expected, start)
    needs_base = settings.get("use_dora") or "modules_to_save" in settings or "bias" in settings
    if needs_base:
        with pytest.raises(ValueError, match="depend on the base model; pass the base"):
            open_factors(tmp_path / "a")
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    check_same(from_factors(base, tmp_path / "a") | counters, expected, start)


@pytest.mark.parametrize("dora", [False, True])
def test_transposed_layers_are_known_by_their_type(dora, tmp_path):
    """GPT-2 stores linear maps transposed, its head not: one flag in the configuration cannot be right for both."""
    torch.manual_seed(0)
    base = gpt2()
    model = adapt(base, tmp_path / "a", 1, target_modules=["c_attn", "c_proj", "wte", "lm_head"], use_dora=dora)
    expected = merged(model)
    for flag in (True, False):
        config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": flag}))
        mixer = AdapterMixer(copy.deepcopy(base), [read(tmp_path / "a")])
        mixer.mix([1.0])
        check_same(mixer.model.state_dict(), expected, base.state_dict())


SOUPS = {
    "layers [0] and [1, 2]": (
        {"layers_to_transform": [0]},
        {"layers_to_transform": [1, 2]},
        {"target_modules": ["query"]},
    ),
    "excluded in one": ({"exclude_modules": ["value"]}, {}, {}),
    "regex and names": ({"target_modules": r"layers\.0\..*(query|room)"}, {"target_modules": ["query", "words"]}, {}),
    "a name that ends others": ({"target_modules": r"query"}, {"target_modules": r"layers\.1\.query"}, {}),
    "ranks, scales and patterns": (
        {"r": 3, "use_rslora": True},
        {"rank_pattern": {"query": 1}, "alpha_pattern": {"words": 5}},
        {},
    ),
    "layers in other words": (
        {"layers_to_transform": [1]},
        {"target_modules": r"layers\.1\.query"},
        {"target_modules": ["query"]},
    ),
    "added biases in one": ({"lora_bias": True}, {}, {"target_modules": ["query", "plane"]}),
    "added biases": (
        {"lora_alpha": 7},
        {"use_rslora": True},
        {"lora_bias": True, "target_modules": ["query", "line"]},
    ),
    "whole": ({}, {"r": 1}, {"modules_to_save": ["head", "norm"]}),
    "biases": ({"bias": "all"}, {"bias": "all", "r": 1}, {}),
    "initialisations": ({"init_lora_weights": "gaussian"}, {}, {}),
}


@pytest.mark.parametrize("soup", SOUPS)
@pytest.mark.parametrize("order", [1, -1])
def test_a_saved_soup_does_what_its_adapters_do_on_average(soup, order, tmp_path):
    *pair, common = SOUPS[soup]
    torch.manual_seed(0)
    base = Network().requires_grad_(requires_grad=False)
    states = []
    for index, settings in enumerate(pair[::order]):
        states.append(merged(adapt(base, tmp_path / str(index), index, **{**common, **settings})))
    made = average_adapters(open_adapters([tmp_path / "0", tmp_path / "1"]), [0.3, 0.7])
    folder = made.save(tmp_path / "soup")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    found = merged(loaded)
    expected = {name: 0.3 * states[0][name].double() + 0.7 * states[1][name].double() for name in found}
    check_same(found, expected, base.state_dict())
    mixer = AdapterMixer(copy.deepcopy(base), [read(folder)])  # and our own reader finds no contradiction in it
    mixer.mix([1.0])
    check_same(mixer.model.state_dict(), expected, base.state_dict())


REFUSED = {
    "whole in one": (
        {"modules_to_save": ["head"]},
        {},
        r"0 replaces \['head.bias', 'head.weight'\] \(modules_to_save \['head'\]",
    ),
    "biases in one": ({"bias": "lora_only"}, {}, r"1 replaces no others \(modules_to_save \[\], bias 'none'\)"),
    "dora": ({"use_dora": True}, {}, r"0 rescale the base \(DoRA\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_soups_that_cannot_be_one_adapter_are_refused(case, tmp_path):
    *pair, message = REFUSED[case]
    for index, settings in enumerate(pair):
        adapt(Network(), tmp_path / str(index), index, **settings)
    with pytest.raises(ValueError, match=message):
        average_adapters(open_adapters([tmp_path / "0", tmp_path / "1"]), [0.5, 0.5])


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens", "q_proj"]])
@pytest.mark.parametrize(
    "settings", [{}, {"save_embedding_layers": "auto"}, {"ensure_weight_tying": True}, {"use_dora": True}]
)
def test_adapters_on_a_tied_head(targets, settings, tmp_path):
    """PEFT runs such an adapter right, and merges it into both ends of the tie: compared are logits before that."""
    torch.manual_seed(0)
    base, words = llama(tied=True), torch.arange(11)[None]
    models = [adapt(base, tmp_path / str(index), index, target_modules=targets, **settings) for index in range(2)]
    adapters = open_adapters([tmp_path / "0", tmp_path / "1"])
    mixer = AdapterMixer(copy.deepcopy(base), adapters)
    for index, weights in enumerate(([1.0, 0.0], [0.0, 1.0])):
        mixer.mix(weights)
        with torch.no_grad():
            torch.testing.assert_close(mixer.model(words).logits, models[index](words).logits, rtol=1e-4, atol=1e-4)
    mixer.model.save_pretrained(tmp_path / "merged")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(again(words).logits, models[1](words).logits, rtol=1e-4, atol=1e-4)
    if "use_dora" in settings:
        return
    soup = average_adapters(adapters, [0.5, 0.5]).save(tmp_path / "soup")
    mixer.mix([0.5, 0.5])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(copy.deepcopy(base), soup).eval()(words).logits
        torch.testing.assert_close(mixer.model(words).logits, expected, rtol=1e-4, atol=1e-4)


def test_other_revisions_of_the_base_are_refused(tmp_path):
    for index, revision in enumerate(("main", "v2")):
        adapt(Network(), tmp_path / str(index), index)
        path = tmp_path / str(index) / "adapter_config.json"
        named = {"base_model_name_or_path": "someone/base", "revision": revision}
        path.write_text(json.dumps(json.loads(path.read_text()) | named))
    sources = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(ValueError, match="adapt different revisions of someone/base, 'main' and 'v2'"):
        open_adapters(sources)
    assert len(open_adapters(sources, base_model="someone/base")) == 2


STRANGE_FIELDS = [
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "pissa_niter_4"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "corda"},
    {"init_lora_weights": "loftq"},
    {"init_lora_weights": "lora_ga"},
    {"trainable_token_indices": [1]},
    {"target_parameters": ["experts.down"]},
    {"layer_replication": [[0, 2]]},
    {"use_qalora": True},
    {"use_bdlora": {"x": 1}},
    {"kasa_config": {"x": 1}},
    {"alora_invocation_tokens": [1]},
    {"megatron_config": {"x": 1}},
    {"arrow_config": {"x": 1}},
    {"a_field_of_next_year": True},
    {"peft_type": "LOHA"},
    {"peft_type": "ADALORA"},
    {"lora_alpha": float("nan")},
    {"r": "2"},
    {"alpha_pattern": {"query": float("inf")}},
    {"target_modules": "(query"},
    {"target_modules": 5},
    {"exclude_modules": [5]},
    {"exclude_modules": "("},
    {"modules_to_save": ["("]},
    {"modules_to_save": "head"},
    {"layers_to_transform": "all"},
    {"layers_pattern": "["},
    {"rank_pattern": []},
    {"bias": "some"},
    {"use_rslora": "yes"},
    {"use_dora": True},
    {"lora_bias": True},
    {"layers_to_transform": [1]},
    {"exclude_modules": ["query"]},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    adapt(Network(), folder, 0, target_modules=["query"])
    return folder


@pytest.mark.parametrize("change", STRANGE_FIELDS, ids=str)
def test_fields_that_are_not_understood_are_named_by_every_reader(change, plain, tmp_path):
    config = json.loads((plain / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    save_file(load_file(plain / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    ((field, value),) = change.items()
    named = value if field == "peft_type" else field
    for reader in (open_factors, lambda folder: open_adapters([plain, folder])):
        with pytest.raises(ValueError, match=named):
            reader(tmp_path)


STRANGE_TENSORS = [
    "layers.0.query.lora_mid.weight",
    "layers.0.query.hada_w1_a",
    "layers.0.query.lokr_w1",
    "layers.0.query.oft_r",
    "layers.0.query.diff",
    "layers.0.query.diff_b",
    "layers.0.query.dora_scale",
    "layers.0.query.lora_magnitude_vector",
    "layers.0.query.lora_B.bias",
    "words.token_adapter.trainable_tokens_delta",
    "experts.base_layer.lora_A.weight",
    "head.weight",
    "head.bias",
]


@pytest.mark.parametrize("name", STRANGE_TENSORS)
def test_tensors_that_are_not_understood_are_named_by_every_reader(name, plain, tmp_path):
    (tmp_path / "adapter_config.json").write_text((plain / "adapter_config.json").read_text())
    tensors = load_file(plain / "adapter_model.safetensors")
    save_file(tensors | {f"base_model.model.{name}": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    named = name if "magnitude" not in name and "lora_B" not in name else "layers.0.query"
    for reader in (open_factors, lambda folder: open_adapters([plain, folder])):
        with pytest.raises(ValueError, match=named):
            reader(tmp_path)


WRONG_SHAPES = {
    "lora_A.weight": torch.ones(()),
    "lora_B.weight": torch.ones(3),
    "lora_magnitude_vector": torch.ones(2),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_tensors_of_wrong_shapes_are_refused(name, tmp_path):
    torch.manual_seed(0)
    base = Network()
    for index in range(2):
        adapt(base, tmp_path / str(index), index, target_modules=["value"], use_dora=True)
    path = tmp_path / "1" / "adapter_model.safetensors"
    save_file(load_file(path) | {f"base_model.model.layers.1.value.{name}": WRONG_SHAPES[name]}, path)
    with pytest.raises(ValueError, match=r"layers.1.value.* in 1"):
        open_factors(tmp_path / "1", base=base)
    with pytest.raises(ValueError, match=r"layers.1.value.* in 1"):
        AdapterMixer(base, open_adapters([tmp_path / "0", tmp_path / "1"])).mix([0.5, 0.5])
