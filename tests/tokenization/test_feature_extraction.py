import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoFeatureExtractor, GPT2Config, GPT2LMHeadModel

import hf_sane  # noqa: F401 (registers the Auto classes)
from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_s
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._reading import Checkpoint


def encoded(source, **settings):
    extractor = SANEFeatureExtractor(**{"token_dim": 37, "normalization": "none", **settings})
    return extractor, extractor.encode(source)


def assert_same_state(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("batch_norm", ["tokens", "template"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_round_trip_is_bit_exact(dtype, batch_norm, token_layout):
    model = build_model(cifar_resnet(20, width=4)).to(dtype)
    for _ in range(2):  # statistics that are not those of the initialisation
        model.train()(torch.randn(4, 3, 16, 16, dtype=dtype))
    extractor, sequence = encoded(model, token_layout=token_layout, batch_norm=batch_norm)
    assert_same_state(extractor.decode(sequence.tokens, sequence.layout), model.state_dict())
    assert sequence.layout.template["bn1.num_batches_tracked"] == 2
    assert ("bn1.running_var" in sequence.layout.template) == (batch_norm == "template")


def test_decoded_network_computes_the_same():
    model = build_model(cnn_s()).eval()
    extractor = SANEFeatureExtractor(token_dim=201).fit([build_model(cnn_s()) for _ in range(3)])
    sequence = extractor.encode(model)
    again = build_model(cnn_s()).eval()
    images = torch.randn(5, 1, 28, 28)
    assert not torch.allclose(again(images).logits, model(images).logits, atol=1e-3)
    again.load_state_dict(extractor.decode(sequence.tokens, sequence.layout))
    assert torch.allclose(again(images).logits, model(images).logits, atol=1e-5)


def test_shared_tensors_are_tokenized_once_and_shared_again():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    extractor, sequence = encoded(model)
    assert sequence.layout.num_weights == 20
    state_dict = extractor.decode(sequence.tokens, sequence.layout)
    assert state_dict["0.weight"] is state_dict["1.weight"]
    _, apart = encoded(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)))
    assert apart.layout.num_weights == 40


def test_zero_size_and_non_contiguous_tensors():
    state_dict = {"w.weight": torch.randn(6, 4).T, "none": torch.zeros(0, 3), "half": torch.randn(8)[::2]}
    extractor, sequence = encoded(state_dict)
    assert_same_state(extractor.decode(sequence.tokens, sequence.layout), state_dict)


@pytest.mark.parametrize("normalization", ["standardize", "robust"])
def test_normalisation_is_fitted_saved_and_inverted(tmp_path, normalization):
    models = [build_model(cifar_resnet(20, width=4)) for _ in range(3)]
    extractor = SANEFeatureExtractor(token_dim=37, normalization=normalization).fit(models)
    sequence = extractor.encode(models[0])
    decoded = extractor.decode(sequence.tokens, sequence.layout)
    for name, tensor in models[0].state_dict().items():
        assert torch.allclose(decoded[name].float(), tensor.float(), atol=1e-6)
    _, raw = encoded(models[0])
    assert torch.allclose(extractor.normalize(raw.tokens, raw.layout), sequence.tokens, atol=1e-6)
    assert torch.allclose(extractor.denormalize(sequence.tokens, raw.layout), raw.tokens, atol=1e-6)
    assert not torch.allclose(sequence.tokens, raw.tokens, atol=0.1)
    extractor.save_pretrained(tmp_path)
    again = SANEFeatureExtractor.from_pretrained(tmp_path)
    assert torch.equal(again.encode(models[0]).tokens, sequence.tokens)
    assert again.to_dict() == extractor.to_dict()


def test_auto_feature_extractor(tmp_path):
    SANEConfig().save_pretrained(tmp_path)
    SANEFeatureExtractor(token_dim=11, normalization="none").save_pretrained(tmp_path)
    found = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(found, SANEFeatureExtractor)
    assert found.token_dim == 11


def test_planted_diverged_network_changes_nothing_for_the_others():
    models = [build_model(cnn_s()) for _ in range(4)]
    diverged = {name: tensor * 1e9 for name, tensor in models[0].state_dict().items()}
    plain = SANEFeatureExtractor(token_dim=201).fit(models)
    filtered = SANEFeatureExtractor(token_dim=201).fit([*models, diverged], max_abs_weight=100.0)
    assert filtered.statistics == plain.statistics
    spoilt = SANEFeatureExtractor(token_dim=201).fit([*models, diverged])
    ratio = spoilt.encode(models[1]).tokens.std() / plain.encode(models[1]).tokens.std()
    assert ratio < 0.1
    robust = SANEFeatureExtractor(token_dim=201, normalization="robust").fit([*models, diverged])
    ratio = robust.encode(models[1]).tokens.std() / plain.encode(models[1]).tokens.std()
    assert 0.5 < ratio < 2


def test_batch_pads_to_the_longest():
    short, long = build_model(cnn_s()), build_model(cnn_s(conv_channels=(8, 6, 5)))
    extractor = SANEFeatureExtractor(token_dim=201, normalization="none")
    batch = extractor([short, long])
    assert batch["tokens"].shape == (2, 49, 201)
    assert batch["positions"].shape == (2, 49, 3)
    assert batch["attention_mask"].sum(dim=1).tolist() == [48, 49]
    assert torch.equal(batch["tokens"][0, :48], extractor.encode(short).tokens)
    assert not batch["tokens"][0, 48].any()
    assert not batch["weight_mask"][0, 48].any()
    assert extractor(long)["tokens"].shape == (1, 49, 201)


def test_sources_agree(tmp_path):
    model = build_model(cnn_s())
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    model.save_pretrained(tmp_path / "folder")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "net.pt")
    extractor = SANEFeatureExtractor(token_dim=201).fit([build_model(cnn_s())])
    sequence = extractor.encode(model)
    paths = [tmp_path / "net.safetensors", str(tmp_path / "folder"), tmp_path / "net.pt"]
    for path in paths:
        other = extractor.encode(path)
        assert other.layout.signature == sequence.layout.signature
        assert torch.equal(other.tokens, sequence.tokens)
        assert torch.equal(other.positions, sequence.positions)
        decoded = extractor.decode(other.tokens, other.layout)
        assert all(torch.allclose(decoded[name], tensor, atol=1e-6) for name, tensor in model.state_dict().items())
    assert len(sequence) == 48


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_refused_and_named(value):
    state_dict = build_model(cnn_s()).state_dict()
    state_dict["hidden.0.weight"][3, 5] = value
    with pytest.raises(ValueError, match=r"NaN or infinite weights .*'hidden.0.weight': 1.*repair or leave out"):
        encoded(state_dict)


def test_large_finite_weights_are_fine():
    state_dict = {"w": torch.full((4, 4), 3e38)}
    extractor, sequence = encoded(state_dict)
    assert torch.equal(extractor.decode(sequence.tokens, sequence.layout)["w"], state_dict["w"])


def test_meta_tensors_have_a_layout_but_no_tokens():
    with torch.device("meta"):
        model = build_model(cnn_s())
    extractor = SANEFeatureExtractor(token_dim=201, normalization="none")
    assert extractor.layout(model).num_tokens == 48
    with pytest.raises(ValueError, match="tensors without values .meta device.*load the weights, or use layout"):
        extractor.encode(model)


def test_what_is_shared_is_known_on_the_meta_device_too():
    config = GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    layout = SANEFeatureExtractor(token_dim=9, normalization="none").layout(model)
    assert layout.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert layout == SANEFeatureExtractor(token_dim=9, normalization="none").layout(GPT2LMHeadModel(config))


def test_unfitted_and_foreign_networks_are_refused():
    with pytest.raises(ValueError, match="normalization='standardize' needs statistics: call fit"):
        SANEFeatureExtractor().encode(build_model(cnn_s()))
    extractor = SANEFeatureExtractor(token_dim=201).fit([build_model(cnn_s())])
    with pytest.raises(KeyError, match="fitted on another layout: no statistics for"):
        extractor.encode(build_model(cifar_resnet(20, width=4)))


def test_decode_wants_the_layouts_shape():
    extractor, sequence = encoded(build_model(cnn_s()))
    with pytest.raises(ValueError, match="decode with the layout returned by encode"):
        extractor.decode(sequence.tokens[:-1], sequence.layout)


def test_misspelt_settings_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"unknown settings \['token_size'\]; expected token_dim"):
        SANEFeatureExtractor(token_size=7)
    with pytest.raises(ValueError, match="expected normalization 'standardize', 'robust' or 'none', got 'zscore'"):
        SANEFeatureExtractor(normalization="zscore")
    SANEFeatureExtractor(normalization="none").save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "token_lay": "dense"}))
    with pytest.raises(InvalidFileError, match="preprocessor_config.json: .*unknown settings .'token_lay'."):
        SANEFeatureExtractor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(token_dim="289"), "token_dim to be a whole number >= 1, got '289'"),
        (lambda s: s.update(token_dim=0), "token_dim to be a whole number >= 1, got 0"),
        (lambda s: s.update(token_layout="columns"), "expected a token layout, one of"),
        (lambda s: s.update(batch_norm=None), "expected batch_norm among"),
        (lambda s: s["statistics"]["means"].update({"0:4": float("nan")}), "expected a finite mean"),
        (lambda s: s["statistics"]["stds"].update({"0:4": 0.0}), "a finite standard deviation above 0 for '0:4'"),
        (lambda s: s["statistics"]["stds"].update({"0:4": "1"}), "a finite standard deviation above 0 for '0:4'"),
        (lambda s: s["statistics"]["stds"].popitem(), "mean and standard deviation of every layer"),
        (lambda s: s.update(statistics=3), "got an error: "),
        (lambda s: s["statistics"]["means"].update({"0:4": 0.5}), "they were changed after they were saved"),
        (lambda s: s["layer_orders"][0].reverse(), "they were changed after they were saved"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(change, message, tmp_path):
    networks = [nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)) for _ in range(2)]
    SANEFeatureExtractor(token_dim=4).fit(networks).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    assert SANEFeatureExtractor.from_pretrained(tmp_path).to_dict() == settings
    change(settings)
    file.write_text(json.dumps(settings))
    with pytest.raises(InvalidFileError, match=message):
        SANEFeatureExtractor.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_file_of_settings_is_refused(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(InvalidFileError, match="preprocessor_config.json: expected a weight tokenizer"):
        SANEFeatureExtractor.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="no_such_folder"):
        SANEFeatureExtractor.from_pretrained(tmp_path / "no_such_folder")


def test_sequence_checks_its_parts():
    _, sequence = encoded(build_model(cnn_s()))
    with pytest.raises(ValueError, match="inconsistent sequence: the layout has"):
        type(sequence)(sequence.tokens[1:], sequence.weight_mask, sequence.positions, sequence.layout)


def test_layers_that_no_training_network_had_come_from_prompts(tmp_path):
    short, deep = build_model(cifar_resnet(20, width=2)), build_model(cifar_resnet(32, width=2))
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter.mul_(3)
    extractor = SANEFeatureExtractor(37).fit([short])
    before = extractor.encode(short).tokens
    with pytest.raises(KeyError, match=r"layer1\.3\."):
        extractor.encode(deep)
    wider = extractor.extended([deep])
    assert torch.equal(wider.encode(short).tokens, before)
    known = set(extractor.statistics["means"])
    fresh = SANEFeatureExtractor(37).fit([deep])
    for name in fresh.statistics["stds"]:
        assert wider.statistics["stds"][name] == (extractor if name in known else fresh).statistics["stds"][name]
    assert len(wider.layer_orders) == 2
    wider.save_pretrained(tmp_path)
    again = SANEFeatureExtractor.from_pretrained(tmp_path)
    sequence = again.encode(deep)
    decoded = again.decode(sequence.tokens, sequence.layout)
    assert all(torch.allclose(decoded[key], value, atol=1e-6) for key, value in deep.state_dict().items())
    with pytest.raises(KeyError, match=r"layer1\.3\."):  # the original is as it was
        extractor.encode(deep)


def test_what_cannot_be_extended():
    plain = SANEFeatureExtractor(37, normalization="none")
    assert plain.extended([]).to_dict() == plain.to_dict()
    with pytest.raises(ValueError, match="needs statistics: call fit"):
        SANEFeatureExtractor(37).extended([build_model(cnn_s())])
    with pytest.raises(ValueError, match="at least one network to fit on, got none"):
        SANEFeatureExtractor(37).fit([build_model(cnn_s())]).extended([])


@pytest.mark.parametrize("content", ["{}", '{"auto_map": {"AutoFeatureExtractor": "a.B"}}'])
def test_settings_of_something_else_are_no_weight_tokenizer(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InvalidFileError, match="weight tokenizer, got an error: expected settings such as"):
        SANEFeatureExtractor.load(tmp_path)


def test_encode_takes_what_a_reader_knows():
    """Kinds, order and shared tensors of a `Checkpoint`; without a reader they are guessed."""
    table, other = torch.randn(3, 4), torch.randn(2, 4)
    tensors = {"z.weight": table, "a.weight": other, "tied.weight": table}
    guessed = Checkpoint.of(tensors)
    assert guessed.kinds == dict.fromkeys(tensors, "linear")
    assert guessed.order == ("z.weight", "a.weight", "tied.weight")
    extractor = SANEFeatureExtractor(token_dim=4, normalization="none")
    assert extractor.encode(guessed).layout == extractor.encode(tensors).layout
    known = Checkpoint(
        tensors, {"z.weight": "embedding"}, ("tied.weight", "a.weight", "z.weight"), {"tied.weight": "z.weight"}
    )
    sequence = extractor.encode(known)
    assert {layer.name: layer.kind for layer in sequence.layout.layers} == {"a": "linear", "z": "embedding"}
    assert sequence.layout.aliases == {"tied.weight": "z.weight"}
    assert list(extractor.decode(sequence.tokens, sequence.layout)) == ["tied.weight", "a.weight", "z.weight"]
