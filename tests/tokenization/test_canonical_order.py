"""A network has one token sequence and one embedding: module, state dict in any order, file, shards, pickle."""

import json
import random
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_s
from hf_sane.core._layout import Layout
from hf_sane.core._names import canonical_key, natural_key
from hf_sane.hub._pipeline import WeightFeatureExtractionPipeline
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._streaming import embed_checkpoint, embed_stream
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._token_stream import TokenStream

TOKEN_DIM = 24


def sane():
    torch.manual_seed(0)
    config = SANEConfig(
        token_dim=TOKEN_DIM, hidden_size=12, latent_dim=6, num_hidden_layers=1, num_attention_heads=2, window_size=17,
        position_embedding="sinusoidal",
    )  # fmt: skip
    return SANEModel(config).eval()


SANE = sane()


def resnet():
    torch.manual_seed(1)
    return build_model(cifar_resnet(width=2, depths=(1, 1, 1)))


def gpt2():
    torch.manual_seed(2)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=11, n_head=2))


def bert():
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=10,
    )  # fmt: skip
    return BertForMaskedLM(config)


def t5():
    torch.manual_seed(4)
    config = T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2)
    return T5ForConditionalGeneration(config)


NETWORKS = {"resnet": resnet(), "gpt2": gpt2(), "bert": bert(), "t5": t5()}


def extractors(network):
    """Every way of normalising: without, by layer, by kind for a network that was not fitted, and extended to it."""
    other = build_model(cnn_s())
    fresh = {"token_dim": TOKEN_DIM}
    return {
        "none": SANEFeatureExtractor(**fresh, normalization="none"),
        "layers": SANEFeatureExtractor(**fresh).fit([network]),
        "robust": SANEFeatureExtractor(**fresh, normalization="robust").fit([network]),
        "kinds": SANEFeatureExtractor(**fresh).fit([other], by_kind=True),
        "extended": SANEFeatureExtractor(**fresh).fit([other]).extended([network]),
        "dense": SANEFeatureExtractor(**fresh, token_layout="dense", normalization="none"),
        "template": SANEFeatureExtractor(**fresh, batch_norm="template", normalization="none"),
    }


def sources(network, folder):
    """The same network from everywhere."""
    network.save_pretrained(folder / "folder")
    network.save_pretrained(folder / "shards", max_shard_size="4KB")
    state_dict = network.state_dict()
    torch.save(state_dict, folder / "network.pt")
    names = list(state_dict)
    random.Random(0).shuffle(names)
    torch.save({"state_dict": {name: state_dict[name] for name in names}}, folder / "shuffled.pth")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    return {
        "module": network,
        "wrapped": nn.DataParallel(network),
        "state dict": state_dict,
        "shuffled": {name: state_dict[name] for name in names},
        "prefixed": {f"module.{name}": state_dict[name] for name in reversed(names)},
        "file": folder / "folder" / "model.safetensors",
        "folder": folder / "folder",
        "shards": folder / "shards",
        "pickle": folder / "network.pt",
        "shuffled pickle": folder / "shuffled.pth",
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_every_source_gives_the_same_tokens_and_the_same_embedding(name, tmp_path):
    network = NETWORKS[name]
    found = sources(network, tmp_path)
    for way, extractor in extractors(network).items():
        expected = extractor.encode(network)
        pipeline = WeightFeatureExtractionPipeline(model=SANE, feature_extractor=extractor)
        raw = SANEFeatureExtractor(
            TOKEN_DIM, token_layout=extractor.token_layout, batch_norm=extractor.batch_norm, normalization="none"
        ).encode(network)
        embedding = embed_networks(SANE, extractor, raw.layout, raw.tokens[None], poolings=["layer_mean"])[
            "layer_mean"
        ][0]
        for where, source in found.items():
            sequence = extractor.encode(source)
            assert torch.equal(sequence.tokens, expected.tokens), (way, where)
            assert sequence.layout.layers == expected.layout.layers, (way, where)
            kinds = [layer.kind for layer in sequence.layout.layers]
            assert kinds == [layer.kind for layer in expected.layout.layers], (way, where)
            stream = TokenStream(source, extractor)
            assert torch.equal(torch.cat([block.tokens for block in stream]), expected.tokens), (way, where)
            _, one = embed_checkpoint(SANE, extractor, source, poolings=["layer_mean"])
            assert torch.equal(one["layer_mean"], embedding), (way, where)
            assert torch.equal(pipeline(source, pooling="layer_mean"), embedding), (way, where)
            streamed = embed_stream(SANE, stream, poolings=["layer_mean"])["layer_mean"]
            torch.testing.assert_close(streamed, embedding, rtol=1e-5, atol=1e-6)


def test_the_specimen():
    """Layers `z`, `a` of a module and its file, which sorts them: without canonical order, two embeddings."""
    module = nn.ModuleDict({"z": nn.Linear(4, 3), "a": nn.Linear(5, 2)})
    in_file = dict(sorted(module.state_dict().items()))
    extractor = SANEFeatureExtractor(TOKEN_DIM, normalization="none")
    assert [layer.name for layer in extractor.encode(module).layout.layers] == ["a", "z"]
    assert torch.equal(extractor.encode(module).tokens, extractor.encode(in_file).tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_that_sort_by_dtype_change_nothing(dtype, tmp_path):
    state_dict = {
        name: tensor.to(dtype) if tensor.is_floating_point() and "conv2" in name else tensor
        for name, tensor in NETWORKS["resnet"].state_dict().items()
    }
    save_file(state_dict, tmp_path / "mixed.safetensors")
    extractor = SANEFeatureExtractor(TOKEN_DIM, normalization="none")
    assert torch.equal(extractor.encode(state_dict).tokens, extractor.encode(tmp_path / "mixed.safetensors").tokens)


NAMES = st.lists(
    st.lists(st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=4), min_size=1, max_size=3),
    min_size=1,
    max_size=12,
    unique_by=tuple,
)


@settings(max_examples=200, deadline=None)
@given(NAMES, st.randoms(use_true_random=False), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_no_order_of_keys_changes_a_token(paths, shuffling, dtype):
    state_dict = {}
    for path in paths:
        for last, shape in (("weight", (2, 3)), ("bias", (2,)), ("running_mean", (2,)), ("weight_g", (2, 1))):
            if shuffling.random() < 0.7:
                state_dict[".".join([*path, last])] = torch.randn(shape).to(dtype)
    state_dict["final"] = torch.randn(3)
    extractor = SANEFeatureExtractor(5, normalization="none")
    expected = extractor.encode(state_dict)
    names = list(state_dict)
    shuffling.shuffle(names)
    found = extractor.encode({f"module._orig_mod.{name}": state_dict[name] for name in names})
    assert torch.equal(found.tokens, expected.tokens)
    assert found.layout.layers == expected.layout.layers
    assert found.layout.signature == expected.layout.signature
    decoded = extractor.decode(found.tokens, found.layout)
    assert list(decoded) == names
    assert all(torch.equal(decoded[name], state_dict[name]) for name in names)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("conv2.weight", "conv10.weight"),
        ("bn.weight", "bn.bias"),
        ("bn.bias", "bn.running_mean"),
        ("bn.running_mean", "bn.running_var"),
        ("block.scale", "block.conv.weight"),
        ("a.weight", "b.weight"),
        ("layer9" + "9" * 5000 + ".weight", "layer1" + "0" * 5001 + ".weight"),  # no number is too long
        ("layer01.weight", "layer1.weight"),
    ],
)
def test_what_the_canonical_order_is(first, then):
    assert sorted([then, first], key=canonical_key) == [first, then]


def test_numbers_inside_names_are_compared_by_value():
    names = ["b", "a10", "a9", "a", "10", "9", "a9b2", "a9b10"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "a9", "a9b2", "a9b10", "a10", "b"]


def test_a_fitted_architecture_keeps_its_order_and_tokens_from_elsewhere_are_put_into_it():
    network = NETWORKS["resnet"]
    own = Layout.from_state_dict(network.state_dict(), token_dim=TOKEN_DIM, order="given")
    assert [layer.name for layer in own.layers][:2] == ["conv1", "bn1"]
    canonical = SANEFeatureExtractor(TOKEN_DIM, normalization="none").encode(network)
    extractor = SANEFeatureExtractor(TOKEN_DIM).learn_orders([own])
    extractor.normalization = "none"
    sequence = extractor.encode(network)
    assert sequence.layout.layers == own.layers
    assert not torch.equal(sequence.tokens, canonical.tokens)
    layout, tokens = extractor.arrange(canonical.layout, canonical.tokens)
    assert layout.layers == own.layers
    assert torch.equal(tokens, sequence.tokens)
    one, other = (
        embed_networks(SANE, extractor, found.layout, found.tokens[None])["mean"] for found in (canonical, sequence)
    )
    assert torch.equal(one, other)
    apart = embed_networks(SANE, SANEFeatureExtractor(TOKEN_DIM, normalization="none"), own, sequence.tokens[None])[
        "mean"
    ]
    assert not torch.allclose(apart, one, atol=1e-4)  # the order does matter to SANE


def test_two_orders_of_one_architecture_do_not_change_places():
    state_dict = NETWORKS["resnet"].state_dict()
    own, names = (Layout.from_state_dict(state_dict, token_dim=TOKEN_DIM, order=order) for order in ("given", "names"))
    orders = [[f"{layer.name}:{layer.row_length}" for layer in layout.layers] for layout in (own, names)]
    extractor = SANEFeatureExtractor(TOKEN_DIM, normalization="none", layer_orders=orders)
    assert extractor.layout(state_dict).layers == own.layers
    assert extractor.arranged(own).layers == extractor.arranged(names).layers == own.layers
    assert extractor.learn_orders([names]).layer_orders == orders


def test_extractors_without_statistics_know_orders_too(tmp_path):
    network = NETWORKS["resnet"]
    own = SANEFeatureExtractor(TOKEN_DIM, normalization="none")
    layout = Layout.from_state_dict(network.state_dict(), token_dim=TOKEN_DIM, order="given")
    own.fit([(layout, torch.zeros(1, layout.num_tokens, TOKEN_DIM))]).save_pretrained(tmp_path)
    again = SANEFeatureExtractor.from_pretrained(tmp_path)
    assert again.layout(dict(reversed(network.state_dict().items()))).layers == layout.layers


def test_configurations_without_a_version_are_read_as_they_were_made(tmp_path):
    extractor = SANEFeatureExtractor(TOKEN_DIM, normalization="none")
    extractor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    stored = json.loads(file.read_text())
    assert stored.pop("format_version") == 2
    file.write_text(json.dumps(stored))
    old = SANEFeatureExtractor.from_pretrained(tmp_path)
    assert old.format_version == 1
    module = nn.ModuleDict({"z": nn.Linear(4, 3), "a": nn.Linear(5, 2)})
    assert [layer.name for layer in old.encode(module).layout.layers] == ["z", "a"]
    old.save_pretrained(tmp_path)
    assert SANEFeatureExtractor.from_pretrained(tmp_path).format_version == 1
    old.format_version = 2
    assert torch.equal(old.encode(module).tokens, extractor.encode(module).tokens)
    file.write_text(json.dumps({**stored, "format_version": 3}))
    with pytest.raises(ValueError, match="expected a format_version from 1 to 2, got 3, written by a newer hf_sane"):
        SANEFeatureExtractor.from_pretrained(tmp_path)


def test_layers_of_one_title_are_both_kept():
    state_dict = {"a.weight": torch.randn(2, 3), "a": torch.randn(2, 3)}
    extractor = SANEFeatureExtractor(4).fit([state_dict])
    assert extractor.layer_orders == [["a:3", "a:3"]]
    again = dict(reversed(state_dict.items()))
    assert torch.equal(extractor.encode(again).tokens, extractor.encode(state_dict).tokens)
    assert extractor.encode(again).layout.layers[0].weight.name == "a"


def test_what_is_shared_is_known_without_values(tmp_path):
    expected = {"lm_head.weight": "transformer.wte.weight"}
    torch.save(NETWORKS["gpt2"].state_dict(), tmp_path / "gpt2.pt")
    config = NETWORKS["gpt2"].config
    with torch.device("meta"):
        meta = GPT2LMHeadModel(config)
    with FakeTensorMode():
        fake = GPT2LMHeadModel(config)
        layout = Layout.from_state_dict(fake.state_dict(), token_dim=TOKEN_DIM)
    extractor = SANEFeatureExtractor(TOKEN_DIM, normalization="none")
    assert layout.aliases == expected
    for source in (meta, meta.state_dict(), read_meta_state_dict(tmp_path / "gpt2.pt"), NETWORKS["gpt2"].state_dict()):
        found = extractor.layout(source)
        assert found.aliases == expected
        assert found == extractor.layout(NETWORKS["gpt2"])


def test_a_tied_tensor_goes_by_the_name_that_files_keep():
    """Names alone say it for the usual ties; a module of Transformers says it for all."""
    shared = torch.randn(5, 4)
    for kept, left_out in [
        ("embed.weight", "head.weight"),
        ("shared.weight", "encoder.embed_tokens.weight"),
        ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
        ("encoder.out.weight", "ctc_head.weight"),
        ("layers.2.shared_transf.weight", "layers.10.shared_transf.weight"),
    ]:
        for state_dict in ({kept: shared, left_out: shared}, {left_out: shared, kept: shared}):
            assert Layout.from_state_dict(state_dict, token_dim=4).aliases == {left_out: kept}
    names = {"a.embed.weight": shared, "b.weight": shared}
    layout = Layout.from_state_dict(names, token_dim=4, ties={"a.embed.weight": "b.weight"})
    assert layout.aliases == {"a.embed.weight": "b.weight"}


def test_orders_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="expected order 'names' or 'given', got 'file'"):
        Layout.from_state_dict({"w": torch.ones(2)}, token_dim=1, order="file")
