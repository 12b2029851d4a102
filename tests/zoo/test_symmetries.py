"""Zoos of architectures that nobody described: traced, aligned, permuted while reading, with functions kept."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
)
from window_samplers import new_sampler

from hf_sane.architectures.presets import cnn_digits
from hf_sane.core._layout import Layout
from hf_sane.symmetry._matching import weight_similarity
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry._transformers_models import transformers_spec
from hf_sane.symmetry.tracing._trace import trace_permutations
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._alignment import align_zoo, aligned_tokens
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo._symmetries import fit_spec, imported_spec, network_spec
from hf_sane.zoo._writing import writing_zoo
from hf_sane.zoo.importing._importing import import_zoo
from hf_sane.zoo.importing._settings import ImportSettings

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
KIND = ("architecture", "layout")
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}


def vit(labels=3):
    config = ViTConfig(**TINY, image_size=8, patch_size=4, num_channels=1, num_labels=labels)
    return ViTForImageClassification(config)


def convnext():
    config = ConvNextConfig(
        num_channels=1, hidden_sizes=[6, 8], depths=[1, 1], num_stages=2, patch_size=2, image_size=8
    )
    return ConvNextForImageClassification(config)


def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three ViTs, two with another number of classes, three ConvNeXts; no two channels are alike."""
    folder = tmp_path_factory.mktemp("models")
    kinds = [*["vit"] * 3, *["vit5"] * 2, *["convnext"] * 3]
    for number, kind in enumerate(kinds):
        torch.manual_seed(number)
        model = {"vit": vit, "vit5": lambda: vit(5), "convnext": convnext}[kind]()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.2 * torch.randn_like(tensor))
        model.save_pretrained(folder / f"{kind}-{number}")
    return folder


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("imported")
    return import_zoo(ImportSettings(folder=str(folder), token_dim=24, split_shares=[1, 0, 0]), output).zoo, output


@pytest.fixture(scope="module")
def aligned(imported):
    return align_zoo(imported[0])


def answers(folder, split, index, state_dict):
    """What the network of a row answers with other weights."""
    name = split.run_ids[index]
    cls = ConvNextForImageClassification if name.startswith("convnext") else ViTForImageClassification
    model = cls.from_pretrained(folder / name)
    model = cls.from_pretrained(None, config=model.config, state_dict=dict(state_dict)).double()
    with torch.no_grad():
        return model(IMAGES.double()).logits


@pytest.fixture(scope="module")
def expected(folder, imported):
    split = imported[0].splits["train"]
    return [answers(folder, split, index, split.state_dict(index)) for index in range(len(split))]


def check_same_functions(folder, split, states, expected):
    """The networks `{row: state_dict}` answer as those of the split; count those that have other weights."""
    moved = 0
    for index, state in states.items():
        torch.testing.assert_close(answers(folder, split, index, state), expected[index], rtol=1e-4, atol=1e-5)
        moved += any(not torch.equal(state[name], tensor) for name, tensor in split.state_dict(index).items())
    return moved


def test_each_architecture_and_structure_is_aligned_to_its_own_reference(aligned, folder, expected):
    split = aligned.splits["train"]
    alignment = aligned.alignment
    assert sorted(map(len, alignment.run_ids.values())) == [2, 3, 3]
    assert not any(":" in key for key in alignment.run_ids)  # the number of classes is part of the configuration
    states = {}
    for index in range(len(split)):
        (tokens,) = aligned_tokens(split.select([index]))
        states[index] = split.layout(index).tensors(tokens)
    assert check_same_functions(folder, split, states, expected) == 8 - 3
    for key, run_ids in alignment.run_ids.items():
        reference = split.state_dict(split.run_ids.index(alignment.references[key]))
        for index in (split.run_ids.index(run_id) for run_id in run_ids):
            pair = [
                weight_similarity(alignment.specs[key], reference, s) for s in (split.state_dict(index), states[index])
            ]
            assert pair[1] >= pair[0]


@pytest.mark.parametrize("views", [("permuted",), ("aligned", "permuted")])
def test_pretraining_views_are_the_same_functions(aligned, folder, expected, views):
    split = aligned.splits["train"]
    kinds = split.column("layout")
    layouts = {key: split.select(kinds == key) for key in sorted(set(kinds))}
    extractor = SANEFeatureExtractor(token_dim=24).fit(
        [(part.layout(0), part.stacked_tokens()) for part in layouts.values()]
    )
    settings = {"window_size": 10_000, "batch_size": len(split), "views": views, "noise": 0.0}
    batch = new_sampler([split], extractor, **settings).batch(0, with_indices=True)
    for name in ("tokens", "second_tokens")[: len(views)]:
        states = {}
        for place, index in enumerate(batch["indices"].tolist()):
            layout = split.layout(index)
            tokens = extractor.denormalize(batch[name][place, : layout.num_tokens], layout)
            states[index] = layout.tensors(tokens)
        assert check_same_functions(folder, split, states, expected) == len(split)  # normalisation rounds, too


def test_an_alignment_is_saved_with_its_symmetries_and_serves_streams(aligned, imported, tmp_path):
    aligned.alignment.save(tmp_path)
    loaded = Alignment.load(tmp_path)
    assert loaded.specs == aligned.alignment.specs
    output = imported[1]
    with writing_zoo(output, "default", replace=True) as writer:
        writer.publish_alignment(aligned.alignment)
    stream = ZooStream.open(output)
    split = Zoo.load(output).splits["train"]
    assert split.alignment.specs == aligned.alignment.specs
    kinds = split.column("layout")
    parts = [split.select(kinds == key) for key in sorted(set(kinds))]
    extractor = SANEFeatureExtractor(token_dim=24).fit([(part.layout(0), part.stacked_tokens()) for part in parts])
    sampler = new_sampler([stream], extractor, window_size=16, batch_size=4, views=("aligned", "permuted"))
    assert len(sampler.batch(1)["tokens"]) == 4


def test_specs_can_be_given_for_networks_without_a_configuration(tmp_path):
    (tmp_path / "nets").mkdir()
    for seed in range(3):
        torch.manual_seed(seed)
        save_file(plain().state_dict(), tmp_path / "nets" / f"{seed}.safetensors")
    arguments = ImportSettings(folder=str(tmp_path / "nets"), token_dim=9, split_shares=[1, 0, 0])
    zoo = import_zoo(arguments, tmp_path / "zoo").zoo
    split = zoo.splits["train"]
    message = r"symmetries of the imported networks 'imported-.*' \(layout '.*'\) are unknown .expected a Transformers"
    with pytest.raises(ValueError, match=message):
        align_zoo(zoo)
    spec = trace_permutations(plain(), torch.randn(3, 4))
    for key in ("layout", "architecture"):
        again = align_zoo(zoo, specs={split.column(key)[0]: spec})
        tokens = aligned_tokens(again.splits["train"])
        assert (tokens[1:] != split.stacked_tokens()[1:]).flatten(1).any(1).all()
        inputs = torch.randn(5, 4)
        for row, original in zip(tokens, (split.state_dict(i) for i in range(3)), strict=True):
            networks = [plain(), plain()]
            networks[0].load_state_dict(original)
            networks[1].load_state_dict(split.layout(0).tensors(row))
            torch.testing.assert_close(networks[1](inputs), networks[0](inputs))
    with pytest.raises(ValueError, match=r"4 tensors of the network are unknown to the permutation spec, .*'0.bias'"):
        align_zoo(zoo, specs={split.column("layout")[0]: permutation_spec(cnn_digits())})


def test_networks_of_unknown_symmetries_stay_as_they_are_beside_others(tmp_path, caplog):
    for seed in range(3):
        torch.manual_seed(seed)
        (tmp_path / f"nets/{seed}").mkdir(parents=True)
        save_file(plain().state_dict(), tmp_path / f"nets/{seed}/network.safetensors")
    (tmp_path / "nets/stray").mkdir()
    save_file(nn.Linear(3, 4).state_dict(), tmp_path / "nets/stray/network.safetensors")
    arguments = ImportSettings(folder=str(tmp_path / "nets"), token_dim=9, split_shares=[1, 0, 0])
    zoo = import_zoo(arguments, tmp_path / "zoo").zoo
    split = zoo.splits["train"]
    stray = split.run_ids.index("stray/network.safetensors")
    of_others = split.column("layout")[(stray + 1) % 4]
    aligned = align_zoo(zoo, specs={of_others: trace_permutations(plain(), torch.randn(3, 4))})
    assert "symmetries are unknown: 1 of the runs, stray/network.safetensors (" in caplog.text
    aligned.save(tmp_path / "aligned")
    for found in (aligned, Zoo.load(tmp_path / "aligned")):
        part = found.splits["train"]
        assert torch.equal(aligned_tokens(part.select([stray]))[0], split.tokens(stray))
        moved = [
            not torch.equal(aligned_tokens(part.select([index]))[0], split.tokens(index))
            for index in range(4)
            if index != stray
        ]
        assert sorted(moved) == [False, True, True]  # one of them is the reference
        reasons = found.alignment.specs[found.alignment.key(*(split.column(n)[stray] for n in KIND))].reasons
        assert reasons == {"symmetries unknown": ["bias[0]", "weight[0]", "weight[1]"]}


@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_specs_fit_files_that_leave_out_tied_tensors(kind, tmp_path):
    """Files hold a tied tensor once and call tensors as older versions did; integers that no spec knows stay."""
    if kind == "gpt2":
        config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8, **SPECIAL)
        model = GPT2LMHeadModel(config)
    else:
        model = vit()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors") | {"position_ids": torch.arange(8)}
    spec = imported_spec(
        json.loads((tmp_path / "config.json").read_text()), Layout.from_state_dict(stored, token_dim=16)
    )
    whole = transformers_spec(model.config)
    assert list(spec.axes) == list(stored)
    assert len(stored) <= len(whole.axes) + 1 - (kind != "vit")
    assert spec.sizes == whole.sizes
    assert spec.axes["position_ids"] == (None,)
    permutation = spec.random(generator=torch.Generator().manual_seed(0))
    moved = spec.apply(stored, permutation)
    save_file(moved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = whole.apply(model.state_dict(), permutation)
    found = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_is_not_in_a_file_takes_its_axes_along():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    spec = trace_permutations(network, torch.randn(3, 4))
    state = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("0.")}
    fitted = fit_spec(spec, Layout.from_state_dict(state, token_dim=5))
    assert fitted.sizes == {"0": 6}
    assert fitted.fixed == {"0.weight": {1: "inputs of the network"}}
    wider = {name: torch.zeros(7, *tensor.shape[1:]) for name, tensor in state.items()}
    with pytest.raises(ValueError, match="dimension 0 of '0.weight' must have 6 entries"):
        fit_spec(spec, Layout.from_state_dict(wider, token_dim=5))


def test_what_cannot_be_traced_says_why(aligned):
    layout = Layout.from_state_dict(plain().state_dict(), token_dim=9)
    with pytest.raises(
        ValueError, match="expected a Transformers configuration next to the weights, got model_type='x'"
    ):
        imported_spec({"model_type": "x"}, layout)
    with pytest.raises(
        TypeError, match="whose 'architectures' name a class .* got BertConfig with architectures=None; for"
    ):
        imported_spec({"model_type": "bert"}, layout)
    with pytest.raises(
        TypeError, match="expected the configuration of an image classifier.*architectures=.'Gone'.; for"
    ):
        transformers_spec(ViTConfig(architectures=["Gone"]))
    with pytest.raises(
        TypeError, match="expected a model of images or tokens, got Wav2Vec2Model, which takes 'input_values'"
    ):
        transformers_spec(Wav2Vec2Config(architectures=["Wav2Vec2Model"]))
    facts = dataclasses.replace(aligned.facts, architectures={"a": {"model_type": "imported", "config": {}}})
    with pytest.raises(ValueError, match="of the imported networks 'a' .* unknown .expected a Transformers conf"):
        network_spec(facts, "a", next(iter(facts.layouts)))


def test_a_spec_survives_json(aligned):
    for spec in aligned.alignment.specs.values():
        assert PermutationSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert any(spec.parts for spec in aligned.alignment.specs.values())
    house = permutation_spec(cnn_digits())
    assert PermutationSpec.from_dict(json.loads(json.dumps(house.to_dict()))) == house
