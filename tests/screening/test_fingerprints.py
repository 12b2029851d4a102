"""Fingerprints: what changes them, what does not, and how networks are found by them."""

import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from traced_networks import network, traced

import hf_sane
from hf_sane.records._errors import InvalidFileError
from hf_sane.screening._fingerprints import Fingerprint, fingerprint, fingerprint_many, matrix_features
from hf_sane.screening._index import NetworkIndex, likeness
from hf_sane.zoo._dataset import Zoo


def distance(a, b):
    return (a.features - b.features).square().mean().sqrt().item()


def state_dict(name):
    return dict(network(name)[0].state_dict())


def permuted(name, state, seed=0):
    spec = traced(name)
    known = {key: tensor for key, tensor in state.items() if key in spec.axes}
    return state | spec.apply(known, spec.random(generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", ["resnet_20", "dense", "grouped", "bert"])
def test_no_symmetry_of_a_traced_network_changes_its_fingerprint(name):
    state = state_dict(name)
    moved = permuted(name, state)
    assert any(not torch.equal(moved[key], state[key]) for key in state)
    assert fingerprint(moved).digest == fingerprint(state).digest
    assert distance(fingerprint(moved), fingerprint(state)) < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_order_of_any_dimension_leaves_the_digest_and_any_other_value_changes_it(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    moved = tensor
    for dim, size in enumerate(shape):
        moved = moved.index_select(dim, torch.tensor(data.draw(st.permutations(range(size)))))
    assert fingerprint({"b": moved}).digest == fingerprint({"a": tensor}).digest
    place = data.draw(st.integers(0, tensor.numel() - 1))
    changed = moved.flatten().clone()
    changed[place] = torch.nextafter(changed[place], torch.tensor(math.inf))
    assert fingerprint({"a": changed.view(shape)}).digest != fingerprint({"a": tensor}).digest


def test_the_values_of_a_matrix_in_an_order_that_tears_rows_apart_are_another_network():
    tensor = torch.randn(6, 5)
    torn = tensor.clone()
    torn[0, 0], torn[1, 1] = tensor[1, 1], tensor[0, 0]
    assert fingerprint({"w": torn}).digest != fingerprint({"w": tensor}).digest


def test_names_exact_casts_signs_of_zero_and_ties_do_not_change_the_digest():
    state = {"w": torch.randn(9, 4).half(), "b": torch.tensor([0.0, 1.5])}
    saved_otherwise = {
        "net.body.w": state["w"].double(),
        "net.head.w": state["w"],
        "net.body.b": torch.tensor([1.5, -0.0]).bfloat16(),
        "net.steps": torch.tensor(7),
    }
    assert fingerprint(saved_otherwise).digest == fingerprint(state).digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_survive_rounding_and_tell_independent_networks_apart(dtype):
    state = state_dict("resnet_20")
    rounded = {name: x.to(dtype) if x.is_floating_point() else x for name, x in permuted("resnet_20", state).items()}
    other = {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}
    mine = fingerprint(state)
    assert fingerprint(rounded).digest != mine.digest
    assert distance(fingerprint(rounded), mine) < 0.01 < 0.8 < distance(fingerprint(other), mine)


def test_features_are_those_of_the_class_of_rescaled_matrices_and_not_of_their_signs():
    matrix, rows, columns = torch.randn(1, 12, 7, 3), torch.rand(12, 1, 1) * 9 + 0.1, torch.rand(7, 1) * 9 + 0.1
    found = matrix_features(matrix)
    torch.testing.assert_close(matrix_features(matrix * rows * columns), found, atol=1e-5, rtol=1e-5)
    flipped = matrix.clone()
    flipped[:, 0] *= -1
    assert (matrix_features(flipped) - found).abs().max() > 0.1


def test_stacked_networks_have_the_fingerprints_that_each_has(tiny_zoo: Zoo):
    split = tiny_zoo.splits["train"].select(range(3))
    for i, found in enumerate(fingerprint_many(split.stacked_tensors())):
        alone = fingerprint(split.state_dict(i))
        assert found.digest == alone.digest
        assert found.shapes == alone.shapes
        torch.testing.assert_close(found.features, alone.features, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def index(tiny_zoo_folder, tmp_path_factory):
    """Networks of a zoo, of a folder, and a file that is none."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "mixed").mkdir()
    save_file({name: x.contiguous() for name, x in state_dict("vgg").items()}, folder / "mixed" / "vgg.safetensors")
    (folder / "mixed" / "broken.safetensors").write_bytes(b"nothing")
    made = hf_sane.index_networks([tiny_zoo_folder, folder / "mixed"], folder / "known")
    assert list(made.skipped) == [str(folder / "mixed" / "broken.safetensors")]
    assert made.to_dict()["networks"] == len(Zoo.load(tiny_zoo_folder)) + 1
    return folder / "known"


def clothed(kind, split, row):
    """A network of a zoo as a stranger might publish it."""
    state = split.state_dict(row)
    spec = hf_sane.trace_permutations(split.model(row), {"pixel_values": torch.randn(2, 1, 8, 8)})
    moved = spec.apply(state, spec.random(generator=torch.Generator().manual_seed(3)))
    if kind == "half":
        return {f"model.{name}": x.half() for name, x in moved.items()}
    if kind == "rescaled":
        first, bias, following = [name for name in state if "running" not in name][:3]
        factors = torch.rand(len(moved[first])) + 0.5
        moved[first] = moved[first] * factors.view(-1, 1, 1, 1)
        moved[bias] = moved[bias] * factors
        moved[following] = moved[following] / factors.view(1, -1, 1, 1)
    if kind == "fine-tuned":
        moved = {name: x + 0.05 * x.std().nan_to_num() * torch.randn_like(x) for name, x in moved.items()}
    return moved


@pytest.mark.parametrize(
    ("kind", "likeness"), [("permuted", "equal"), ("half", "same"), ("rescaled", "same"), ("fine-tuned", "related")]
)
def test_a_copy_is_found_in_an_index(kind, likeness, index, tiny_zoo: Zoo):
    split = tiny_zoo.splits["train"]
    result = hf_sane.search(clothed(kind, split, 11), index)
    nearest = result.neighbours[0]
    assert nearest.source.endswith(f"{split.run_ids[11]}, epoch {split.column('epoch')[11]}")
    assert nearest.likeness == likeness
    assert result.to_frame()["source"][0] == nearest.source


def test_a_stranger_is_not_related_and_another_architecture_has_no_neighbours(index, tiny_zoo: Zoo):
    state = {name: torch.randn_like(x) for name, x in tiny_zoo.splits["train"].state_dict(0).items()}
    assert hf_sane.search(state, index).notes == []
    for factor in (0, math.nan):
        (note,) = hf_sane.search({name: factor * x for name, x in state.items()}, index).notes
        assert "zero or not finite" in note
    assert {near.likeness for near in hf_sane.search(state, index).neighbours} == {"other"}
    assert hf_sane.search({"w": torch.randn(3, 4)}, index).neighbours == []


def test_the_verbs_build_and_search(index, tmp_path, hf_sane_command):
    save_file({name: x.contiguous() for name, x in state_dict("vgg").items()}, tmp_path / "copy.safetensors")
    text = hf_sane_command("index", tmp_path / "copy.safetensors", "--output", tmp_path / "known").stdout
    assert "1 networks" not in text
    assert "1 network" in text
    found = json.loads(
        hf_sane_command("search", tmp_path / "copy.safetensors", "--index", index, "--count", 1, "--json").stdout
    )
    assert [near["likeness"] for near in found["neighbours"]] == ["equal"]
    assert (
        "no index.json"
        in hf_sane_command("search", tmp_path / "copy.safetensors", "--index", tmp_path, exit_code=2).stderr
    )


def test_a_damaged_index_is_refused(index, tmp_path):
    text = json.loads((index / "index.json").read_text())
    text["groups"][0]["sources"].append("another")
    (tmp_path / "index.json").write_text(json.dumps(text))
    (tmp_path / "fingerprints.safetensors").write_bytes((index / "fingerprints.safetensors").read_bytes())
    with pytest.raises(InvalidFileError, match=r"groups\[0\]\.digests: expected a list of"):
        hf_sane.search({"w": torch.randn(3, 4)}, tmp_path)


def test_what_is_not_indexed_is_listed(tmp_path):
    state = {"w": torch.randn(9, 8, generator=torch.Generator().manual_seed(0))}
    (tmp_path / "one" / "below").mkdir(parents=True)
    for name in ("model.safetensors", "below/other.safetensors"):
        save_file(state, tmp_path / "one" / name)
    (tmp_path / "damaged.safetensors").write_bytes(b"?" * 40)
    result = hf_sane.index_networks([tmp_path / "one", tmp_path / "damaged.safetensors"], tmp_path / "known")
    below = str(tmp_path / "one" / "below" / "other.safetensors")
    assert set(result.skipped) == {below, str(tmp_path / "damaged.safetensors")}
    assert result.skipped[below].endswith(f"checkpoint {tmp_path / 'one'}, not indexed; pass it by its path")
    with pytest.raises(ValueError, match=r"found none that can be read: /.*damaged.safetensors \(/"):
        hf_sane.index_networks([tmp_path / "damaged.safetensors"], tmp_path / "none")
    with pytest.raises(ValueError, match="found none that can be read: no files"):
        hf_sane.index_networks([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_repeated_layers_are_not_equal_but_tied_tensors_are():
    generator = torch.Generator().manual_seed(0)
    first = {f"layers.{i}.{n}.weight": torch.randn(24, 24, generator=generator) for i in range(6) for n in "qkv"}
    first["embed.weight"] = torch.randn(50, 24, generator=generator)
    deep = {"embed.weight": first["embed.weight"]}
    for place, layer in enumerate([0, 1, 2, 3, 2, 3, 4, 5]):
        deep |= {f"layers.{place}.{n}.weight": first[f"layers.{layer}.{n}.weight"].clone() for n in "qkv"}
    tied = first | {"lm_head.weight": first["embed.weight"].clone()}
    for other, kind in ((deep, "related"), (tied, "equal"), (first, "equal")):
        for pair in ((first, other), (other, first)):
            known = NetworkIndex()
            known.add("known", fingerprint(pair[0]))
            assert [near.likeness for near in known.nearest(fingerprint(pair[1]))] == [kind]


UNREADABLE = {
    "sparse": lambda: torch.eye(5).to_sparse(),
    "csr": lambda: torch.eye(5).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(5, 5), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(5, 5, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_without_plain_values_are_named_and_stop_nothing_else(kind, tmp_path):
    state = {"a.weight": torch.randn(20, 20), "b.weight": torch.randn(20, 20)}
    torch.save(state | {"odd": UNREADABLE[kind]()}, tmp_path / "odd.pt")
    for name in ("a", "b"):
        torch.save({key: x + 0.01 * torch.randn(x.shape) for key, x in state.items()}, tmp_path / f"{name}.pt")
    a, b, odd = (tmp_path / f"{name}.pt" for name in ("a", "b", "odd"))
    what = r"expected tensors of plain values, got odd \("
    for pair in ((odd, a), (a, odd), (odd, odd)):
        with pytest.raises(ValueError, match=what):
            hf_sane.diff(*pair)
    found = hf_sane.lineage(a, odd, b).lineage
    assert [len(family) for family in found.families] == [2]
    assert re.match(what, found.skipped[str(odd)])
    made = hf_sane.index_networks([a, odd, {}, state], tmp_path / "known")
    assert (len(made.index), len(made.skipped)) == (2, 2)
    assert re.match(what, made.skipped[str(odd)])
    with pytest.raises(ValueError, match=what):
        hf_sane.search(odd, tmp_path / "known")


def test_values_behind_a_sign_or_conjugation_bit_are_read(tmp_path):
    plain = torch.randn(5, 5, dtype=torch.complex64)
    state = {"a.weight": torch.randn(20, 20), "b.weight": plain}
    for view, other in ((plain.conj(), plain.conj().resolve_conj()), (plain.conj().imag, -plain.imag)):
        torch.save(state | {"b.weight": view}, tmp_path / "view.pt")
        torch.save(state | {"b.weight": other}, tmp_path / "plain.pt")
        assert hf_sane.diff(tmp_path / "view.pt", tmp_path / "plain.pt").difference.relation == "equal"
        prints = [fingerprint(torch.load(tmp_path / f"{name}.pt")) for name in ("view", "plain")]
        assert prints[0].digest == prints[1].digest


def test_matrices_without_values_are_compared_as_nothing():
    state = {"a.weight": torch.randn(20, 20), "none": torch.empty(0, 5)}
    tuned = state | {"a.weight": state["a.weight"] + 0.01 * torch.randn(20, 20)}
    assert hf_sane.diff(state, tuned).difference.relation == "close"
    assert len(hf_sane.lineage(state, tuned).lineage.families) == 1


@pytest.mark.parametrize("shape", [(4, 4), (10, 10), (20, 20)])
def test_small_independent_matrices_are_rarely_related(shape):
    generator = torch.Generator().manual_seed(0)
    features = matrix_features(torch.randn(400, *shape, generator=generator)).float()
    prints = [Fingerprint(f"{i:032d}", {"weight": shape}, features[i : i + 1]) for i in range(400)]
    related = sum(likeness(a, b) != "other" for a, b in zip(prints[:200], prints[200:], strict=True))
    assert related <= 2
    assert likeness(prints[0], Fingerprint("", {"weight": shape}, features[:1] + 0.05)) == "related"
