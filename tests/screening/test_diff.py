"""Two checkpoints: the same network in other clothes, or how far apart they are."""

import json
import math
from collections import OrderedDict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import hf_sane
from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_l, cnn_s, mlp
from hf_sane.networks import _modules
from hf_sane.screening._tables import is_table
from hf_sane.symmetry import permutation_spec
from hf_sane.zoo._dataset import Zoo


def network(seed: int = 0, config=None) -> tuple[dict[str, torch.Tensor], object]:
    """A network of this library with its configuration; weights are normal, so that no two channels are alike."""
    config = config or cnn_s()
    torch.manual_seed(seed)
    state = build_model(config).state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and "running" not in name:
            state[name] = torch.randn(tensor.shape) / math.sqrt(max(1, tensor[0].numel() if tensor.ndim else 1))
    return state, config


@pytest.fixture
def saved(tmp_path):
    """Write a state dict as a folder with a configuration."""

    def save(name, state, config):
        config.save_pretrained(tmp_path / name)
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / name / "model.safetensors")
        return tmp_path / name

    return save


def permuted(state, config, seed=1):
    spec = permutation_spec(config)
    moved = spec.apply(state, spec.random(generator=torch.Generator().manual_seed(seed)))
    assert any(not torch.equal(moved[name], state[name]) for name in state)
    return moved


def rescaled(state, factor=3.0):
    """Channels of the first convolution of a CNN, multiplied; the next layer divided."""
    names = list(state)
    first, following = [name for name in names if name.endswith("weight")][:2]
    factors = 1 + factor * torch.rand(state[first].shape[0], generator=torch.Generator().manual_seed(0))
    moved = dict(state)
    shape = (-1, *(1 for _ in state[first].shape[1:]))
    moved[first] = state[first] * factors.view(shape)
    bias = first.replace("weight", "bias")
    moved[bias] = state[bias] * factors
    moved[following] = state[following] / factors.view(1, -1, *(1 for _ in state[following].shape[2:]))
    return moved


def quantised(tensor):
    """To 8 bits per row, and back."""
    if tensor.ndim < 2:
        return tensor
    scale = tensor.flatten(1).abs().amax(1).view(-1, *(1 for _ in tensor.shape[1:])) / 127
    return (tensor / scale).round() * scale


CLOTHES = {
    "equal": lambda state, config: dict(state),
    "cast": lambda state, config: {name: x.half() for name, x in state.items()},
    "quantised": lambda state, config: {name: quantised(x) for name, x in state.items()},
    "permuted": permuted,
    "other scales": lambda state, config: rescaled(permuted(state, config)),
}


@pytest.mark.parametrize("relation", CLOTHES)
def test_a_network_is_recognised_in_other_clothes(relation, saved):
    state, config = network()
    result = hf_sane.diff(saved("a", state, config), saved("b", CLOTHES[relation](state, config), config))
    assert result.difference.relation == relation, result.verdict
    assert result.difference.is_permuted == (relation in ("permuted", "other scales"))
    is_named = any("as the activation tanh is not homogeneous" in note for note in result.notes)
    assert is_named == (relation == "other scales")
    if relation in ("permuted", "other scales"):
        assert result.difference.distance < 1e-6 < 0.1 < result.difference.distance_as_stored


def test_only_scales_that_keep_the_outputs_are_the_same_network(saved):
    """With ReLU they do, as running both networks shows; without a configuration, that remains a condition."""
    state, config = network(config=cnn_s(activation="relu"))
    folders = saved("a", state, config), saved("b", rescaled(permuted(state, config)), config)
    result = hf_sane.diff(*folders)
    assert result.difference.relation == "rescaled"
    assert result.verdict.startswith("the same network up to positive scales of its channels: their outputs on random")
    (folders[1] / "config.json").unlink()
    assert hf_sane.diff(*folders).verdict == result.verdict
    tanh = saved("c", rescaled(permuted(state, config), 0.01), cnn_s(activation="tanh"))  # small scales count as well
    (folders[0] / "config.json").unlink()
    result = hf_sane.diff(tanh, folders[0])
    assert result.difference.relation == "other scales"
    assert "not the same function" in result.verdict


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("spread", "dtype"), [(0.3, torch.bfloat16), (1e-3, torch.float32)])
def test_coarse_types_and_small_scales_do_not_hide_that_the_outputs_change(activation, spread, dtype, saved):
    """The effect of scales is smaller than that of rounding the weights, and is told apart from it."""
    state, config = network(config=cnn_s(activation=activation))
    other = {name: x.to(dtype) for name, x in rescaled(permuted(state, config), spread).items()}
    folders = saved("a", state, config), saved("b", other, config)
    for pair in (folders, folders[::-1]):
        result = hf_sane.diff(*pair)
        assert result.difference.relation == ("rescaled" if activation == "relu" else "other scales"), result.verdict


def test_codes_under_the_names_of_weights_have_no_scales(saved):
    """As of quantised weights whose scales were lost: they are compared, and nothing is rescaled."""
    state, config = network(config=cnn_s(activation="relu"))
    codes = {name: (20 * x).round().to(torch.int8) if x.ndim > 1 else x for name, x in permuted(state, config).items()}
    for pair in ((state, codes), (codes, state)):
        found = hf_sane.diff(saved("a", pair[0], config), saved("b", pair[1], config)).difference
        assert not found.is_rescaled
        assert found.distance > 0.5


def blocks(tensor):
    """To 8 bits per block of 32 neighbours, with a zero point, and back; in bfloat16."""
    if tensor.ndim < 2 or tensor.numel() % 32:
        return tensor.bfloat16()
    x = tensor.reshape(-1, 32)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    return (((x / scale + zero).round().clamp(0, 255) - zero) * scale).reshape(tensor.shape).bfloat16()


@pytest.mark.parametrize("quantise", [quantised, blocks])
def test_a_copy_that_was_quantised_after_it_was_reordered_is_recognised(quantise, saved):
    state, config = network(config=cnn_l())
    other = {name: quantise(x) for name, x in permuted(state, config).items()}
    folders = saved("a", state, config), saved("b", other, config)
    for pair in (folders, folders[::-1]):
        found = hf_sane.diff(*pair).difference
        assert (found.relation, found.is_permuted) == ("quantised", True)
    noisy = {name: quantise(x + 0.02 * torch.randn_like(x)) for name, x in permuted(state, config).items()}
    assert hf_sane.diff(folders[0], saved("c", noisy, config)).difference.relation == "close"


@pytest.mark.parametrize(("relation", "likeness"), [("permuted", "equal"), ("other scales", "same")])
@pytest.mark.parametrize(
    ("options", "why"), [({"align": False}, "--no-align"), ({"max_aligned": 99}, "--max-aligned 99")]
)
def test_without_alignment_it_is_not_told_to_be_another(relation, likeness, options, why, saved):
    state, config = network()
    folders = saved("a", state, config), saved("b", CLOTHES[relation](state, config), config)
    result = hf_sane.diff(*folders, **options)
    assert (result.difference.relation, result.difference.likeness) == ("undecided", likeness)
    assert result.difference.distance > 0.5
    assert "channels were not matched; by their fingerprints, " in result.verdict
    assert why in str(result)
    assert result.to_dict()["likeness"] == likeness


def test_without_alignment_independent_networks_are_still_unrelated(saved):
    (one, config), (other, _) = network(), network(seed=1)
    found = hf_sane.diff(saved("a", one, config), saved("b", other, config), max_aligned=99).difference
    assert (found.relation, found.likeness) == ("unrelated", "other")


def test_a_permuted_copy_in_half_precision_is_still_permuted(saved):
    state, config = network()
    halved = {name: x.half() for name, x in permuted(state, config).items()}
    assert hf_sane.diff(saved("a", state, config), saved("b", halved, config)).difference.relation == "permuted"


def test_batch_norm_and_residual_streams_are_permuted_too(saved):
    state, config = network(config=cifar_resnet(depth=20, width=4))
    moved = permuted(state, config)
    assert hf_sane.diff(saved("a", state, config), saved("b", moved, config)).difference.relation == "permuted"


def test_a_prefix_does_not_matter(tmp_path):
    state, _ = network()
    save_file(state, tmp_path / "a.safetensors")
    save_file({f"backbone.net.{name}": x for name, x in state.items()}, tmp_path / "b.safetensors")
    result = hf_sane.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert result.difference.relation == "equal"
    assert result.difference.tensors[0].other_name == f"backbone.net.{result.difference.tensors[0].name}"


def test_what_was_fine_tuned_is_named(saved):
    state, config = network()
    last = [name for name in state if name.endswith("weight")][-1]
    tuned = state | {last: state[last] + 0.1 * torch.randn(state[last].shape)}
    result = hf_sane.diff(saved("a", state, config), saved("b", tuned, config))
    assert result.difference.relation == "partly equal"
    assert [x.name for x in result.difference.tensors if not x.is_equal] == [last]
    rows = result.tables()[0].rows
    assert [row[0] for row in rows] == [last]


def test_distances_are_those_of_the_definition(tmp_path):
    a, b = torch.randn(30, 20), torch.randn(30, 20)
    save_file({"w": a, "v": torch.ones(3)}, tmp_path / "a.safetensors")
    save_file({"w": b, "v": 2 * torch.ones(3)}, tmp_path / "b.safetensors")
    found = hf_sane.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").difference
    (w,) = [x for x in found.tensors if x.name == "w"]
    x, y = a.double(), b.double()
    assert w.distance == pytest.approx(((x - y).norm() / (x.norm() ** 2 + y.norm() ** 2).sqrt()).item())
    assert w.cosine == pytest.approx(((x * y).sum() / x.norm() / y.norm()).item())
    assert w.largest == pytest.approx((x - y).abs().max().item())
    x, y = torch.cat([x.flatten(), torch.ones(3)]), torch.cat([y.flatten(), 2 * torch.ones(3)])
    assert found.distance == pytest.approx(((x - y).norm() / (x.norm() ** 2 + y.norm() ** 2).sqrt()).item())


def test_independent_networks_are_unrelated_and_epochs_of_one_run_are_close(tiny_zoo: Zoo, saved):
    split = tiny_zoo.splits["train"]
    runs = sorted(set(split.run_ids))[:2]
    epochs = sorted(set(split.column("epoch").tolist()))[-2:]
    rows = {(run, epoch): i for i, (run, epoch) in enumerate(zip(split.run_ids, split.column("epoch"), strict=True))}
    last = saved("last", split.state_dict(rows[runs[0], epochs[1]]), split.config(0))
    before = saved("before", split.state_dict(rows[runs[0], epochs[0]]), split.config(0))
    other = saved("other", split.state_dict(rows[runs[1], epochs[1]]), split.config(0))
    near, far = hf_sane.diff(last, before).difference, hf_sane.diff(last, other).difference
    assert near.relation == "close"
    assert far.relation in ("far", "unrelated")
    assert near.distance < 0.5 * far.distance
    assert far.distance < far.distance_as_stored  # channels of other runs are matched as well as they can be


def test_a_module_of_ones_own_is_aligned(tmp_path):
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))

    torch.manual_seed(0)
    one = Net()
    hf_sane.register_architecture(Net, torch.zeros(2, 6))
    order = torch.randperm(9)
    other = Net()
    other.load_state_dict(
        {
            "0.weight": one[0].weight[order],
            "0.bias": one[0].bias[order],
            "2.weight": one[2].weight[:, order],
            "2.bias": one[2].bias,
        }
    )
    assert hf_sane.diff(one, other).difference.relation == "permuted"


def test_networks_of_two_architectures_are_refused(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    save_file({"b": torch.ones(4)}, tmp_path / "b.safetensors")
    with pytest.raises(
        ValueError, match="no layers in common: no matrix has the same name .* compare networks of one"
    ):
        hf_sane.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said_and_not_aligned(value, saved):
    state, config = network()
    broken, _ = network(seed=1)
    name = next(iter(broken))
    broken[name] = torch.full_like(broken[name], value)
    result = hf_sane.diff(saved("a", state, config), saved("b", broken, config))
    assert "there are NaN or infinite weights" in str(result)
    assert result.difference.relation == "undecided"
    assert json.loads(result.to_json())["distance"] is None


def test_the_verb_writes_a_comparison_and_a_picture(saved, tmp_path, hf_sane_command):
    state, config = network()
    folders = saved("a", state, config), saved("b", permuted(state, config), config)
    text = hf_sane_command("diff", *folders, "--output", tmp_path / "out").stdout
    assert "the same network: equal once the channels are in the same order" in text
    found = json.loads((tmp_path / "out" / "difference.json").read_text())
    assert found["relation"] == "permuted"
    assert (tmp_path / "out" / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(hf_sane_command("diff", *folders, "--json").stdout)["relation"] == "permuted"


def test_adapters_are_compared_by_their_products(tmp_path):
    """`A -> M A`, `B -> B M^-1` changes nothing else."""
    a, b = torch.randn(2, 6), torch.randn(5, 2)
    mix = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    for name, (first, second) in {"one": (a, b), "two": (mix @ a, b @ mix.inverse())}.items():
        (tmp_path / name).mkdir()
        save_file(
            {"base_model.model.fc.lora_A.weight": first, "base_model.model.fc.lora_B.weight": second},
            tmp_path / name / "adapter_model.safetensors",
        )
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
    result = hf_sane.diff(tmp_path / "one", tmp_path / "two")
    found = result.difference
    assert found.distance < 1e-6
    assert found.relation == "rounded"
    assert result.verdict == "the same change of the base: the products of the factors are equal up to rounding"
    assert [x.name for x in found.tensors] == ["fc"]


@pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor")  # the bias of a factor
def test_an_adapter_is_compared_with_a_model_through_its_base(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(OrderedDict(fc=nn.Linear(6, 5), last=nn.Linear(5, 3)))
    save_file({name: x.clone() for name, x in base.state_dict().items()}, tmp_path / "base.safetensors")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["fc"], init_lora_weights=False, lora_bias=True)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload().state_dict()
    save_file({name: x.clone() for name, x in merged.items()}, tmp_path / "merged.safetensors")
    found = hf_sane.diff(tmp_path / "adapter", tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    assert found.difference.distance < 1e-6
    assert found.difference.relation in ("equal", "rounded")
    frame = found.to_frame()
    assert sorted(frame["name"]) == ["fc.bias", "fc.weight", "last.bias", "last.weight"]
    apart = hf_sane.diff(tmp_path / "base.safetensors", tmp_path / "adapter", base=str(tmp_path / "base.safetensors"))
    assert {x.name for x in apart.difference.tensors if not x.is_equal} == {"fc.weight", "fc.bias"}
    with pytest.raises(ValueError, match="adapter does not name its base model; pass it"):
        hf_sane.diff(tmp_path / "adapter", tmp_path / "merged.safetensors")
    save_file({"other.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"the base of adapter lacks \['fc.weight', 'fc.bias'\]; pass the model"):
        hf_sane.diff(tmp_path / "adapter", tmp_path / "merged.safetensors", base=tmp_path / "other.safetensors")


FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_8_bit_floats_are_compared_like_other_types(dtype, saved):
    state, config = network()
    plain, coarse = saved("a", state, config), saved("b", {name: x.to(dtype) for name, x in state.items()}, config)
    moved = saved("c", {name: x.to(dtype) for name, x in permuted(state, config).items()}, config)
    strange = saved("d", {name: x.to(dtype) for name, x in network(seed=1)[0].items()}, config)
    assert hf_sane.diff(plain, coarse).difference.relation == "cast"
    assert hf_sane.diff(coarse, coarse).difference.relation == "equal"
    assert hf_sane.diff(plain, moved).difference.relation == "permuted"
    assert hf_sane.diff(coarse, moved).difference.relation == "permuted"
    assert hf_sane.diff(coarse, strange).difference.relation in ("far", "unrelated")
    assert hf_sane.diff(coarse, moved, align=False).difference.relation == "undecided"


def test_a_fine_tuned_network_in_half_precision_is_not_told_to_be_the_same(saved):
    """Differences below eight machine epsilons of bfloat16 are more than its rounding."""
    state, config = network()
    tuned = {name: x + 0.04 * x.std() * torch.randn(x.shape) if x.numel() > 1 else x for name, x in state.items()}
    halved = {name: x.bfloat16() for name, x in permuted(tuned, config).items()}
    found = hf_sane.diff(saved("a", {n: x.bfloat16() for n, x in state.items()}, config), saved("b", halved, config))
    assert found.difference.relation == "close"
    assert found.difference.is_permuted
    assert 0.01 < found.difference.distance < 0.05


def with_head(state, rows, size=1.0):
    """Another last layer."""
    weight, bias = list(state)[-2:]
    return state | {weight: size * torch.randn(rows, *state[weight].shape[1:]), bias: torch.randn(rows)}


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("change", [lambda state, config: state, permuted])
def test_an_equal_trunk_is_seen_under_another_head_even_a_large_one(rows, change, saved):
    state, config = network()
    head = list(state)[-2:]
    other = with_head(change(state, config), rows or len(state[head[1]]), size=50.0)
    result = hf_sane.diff(saved("a", state, config), saved("b", other, config))
    found = result.difference
    assert found.relation == "partly equal", result.verdict
    assert {x.name for x in found.tensors if not x.is_equal} == (set() if rows else set(head))
    sizes = [sum(x.numel() for x in side.values()) for side in (state, other)]
    trunk = sum(x.numel() for name, x in state.items() if name not in head)
    assert found.equal_shares == pytest.approx([trunk / size for size in sizes])
    assert f"{trunk / sizes[0]:.1%} of the weights of the first" in str(result)
    assert found.is_permuted == (change is permuted)


@pytest.mark.parametrize("rows", [None, 4])
def test_a_fine_tuned_trunk_is_close_whatever_its_head(rows, saved):
    state, config = network()
    tuned = {name: x + 0.1 * x.std() * torch.randn(x.shape) if x.numel() > 1 else x for name, x in state.items()}
    head = list(state)[-2:]
    other = with_head(permuted(tuned, config), rows or len(state[head[1]]), size=50.0)
    found = hf_sane.diff(saved("a", state, config), saved("b", other, config)).difference
    assert (found.relation, found.is_permuted, found.is_rescaled) == ("close", True, False)
    assert all(x.distance < 0.2 for x in found.tensors if x.name not in head)


def test_other_layers_make_two_networks_partly_equal_but_counters_and_tied_weights_do_not(saved):
    state, config = network()
    first = saved("a", state, config)
    more = state | {"extra.weight": torch.randn(20, 20)}
    found = hf_sane.diff(first, saved("b", more, config)).difference
    assert (found.relation, found.only_other) == ("partly equal", ("extra.weight",))
    assert found.equal_shares[0] == 1 > found.equal_shares[1]
    tied = state | {"tied.weight": state[next(iter(state))].clone(), "steps": torch.tensor(7)}
    assert hf_sane.diff(first, saved("c", tied, config)).difference.relation == "equal"


def test_a_fine_tuned_copy_is_close_after_its_scales_were_undone(saved):
    state, config = network()
    tuned = {name: x + 0.1 * x.std() * torch.randn(x.shape) if x.numel() > 1 else x for name, x in state.items()}
    found = hf_sane.diff(saved("a", state, config), saved("b", rescaled(permuted(tuned, config)), config)).difference
    assert (found.relation, found.is_permuted, found.is_rescaled) == ("close", True, True)
    assert found.distance < 0.15 < 0.5 < found.distance_as_stored


def test_a_quantised_copy_is_recognised_in_another_order(saved):
    state, config = network()
    other = {name: quantised(x) for name, x in permuted(state, config).items()}
    found = hf_sane.diff(saved("a", state, config), saved("b", other, config)).difference
    assert (found.relation, found.is_permuted) == ("quantised", True)


def test_what_alignment_does_not_find_is_not_contradicted(saved, monkeypatch):
    """Weight matching that fails leaves the verdict to the fingerprints."""
    monkeypatch.setattr("hf_sane.screening._differences.match_weights", lambda spec, *_, **__: spec.identity())
    state, config = network()
    result = hf_sane.diff(saved("a", state, config), saved("b", permuted(state, config), config))
    assert (result.difference.relation, result.difference.likeness) == ("undecided", "equal")
    assert result.difference.unaligned is None
    assert "far apart even with the channels matched, but by their fingerprints, equal weights" in result.verdict


def test_a_module_without_example_inputs_is_called_so(monkeypatch):
    monkeypatch.setattr(_modules, "_REGISTERED", {})

    def make_untraced():
        return nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2))

    first, other = make_untraced().state_dict(), make_untraced().state_dict()
    assert "pass the code of the network" in hf_sane.diff(first, other).difference.unaligned
    name = hf_sane.register_architecture(make_untraced).name
    reason = hf_sane.diff(first, other).difference.unaligned
    assert reason == (
        f"tracing the symmetries requires example inputs of the module {name}; pass the shape of its inputs: "
        f"hf_sane.register_architecture({name}, example_inputs), or --module-input 1,28,28"
    )


def test_networks_without_provable_symmetries_are_compared_as_they_are(monkeypatch):
    monkeypatch.setattr(_modules, "_REGISTERED", {})

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, inputs):
            return self.head(self.cells(inputs)[0][:, -1])

    hf_sane.register_architecture(Recurrent, torch.randn(2, 5, 4))
    first, other = Recurrent().state_dict(), Recurrent().state_dict()
    found = hf_sane.diff(first, other).difference
    assert found.relation == "unrelated"
    assert found.unaligned.startswith("Recurrent has no permutation symmetry that could be proven (used in an unsupp")
    assert found.unaligned.endswith("; use its networks without alignment")
    assert hf_sane.diff(first, first).difference.relation == "equal"
    assert len(hf_sane.lineage([first, other, {name: 1.001 * x for name, x in first.items()}]).lineage.families) == 2


def test_nan_are_equal_to_themselves(saved):
    state, config = network()
    name = next(iter(state))
    state[name] = torch.full_like(state[name], math.nan)
    result = hf_sane.diff(saved("a", state, config), saved("b", state, config))
    assert (result.difference.relation, result.difference.distance) == ("equal", 0)


def test_a_copy_that_was_rounded_and_stored_as_before_is_a_cast(saved):
    state, config = network()
    rounded = {name: x.bfloat16().float() for name, x in state.items()}
    found = hf_sane.diff(saved("a", state, config), saved("b", rounded, config)).difference
    assert (found.relation, set(found.tensors[0].dtypes)) == ("cast", {"float32"})


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (
            {"0.weight": (8, 6), "2.weight": (6, 8)},
            {"1.weight": (8, 6), "3.weight": (4, 8)},
        ),  # some layer, not the first
        ({"a.0.fc.weight": (6, 6), "a.1.fc.weight": (6, 5)}, {"b.3.fc.weight": (6, 6), "b.4.fc.weight": (6, 7)}),
        ({"fc.weight": (8, 6), "fc.bias": (8,)}, {"fc.weight": (8, 7), "fc.bias": (8,)}),  # only a bias
        (
            {"x.q.weight": (4, 4), "x.k.weight": (3, 4), "x.v.weight": (2, 4)},
            {"y.q.weight": (4, 4), **{f"y.{i}.weight": (3, 3) for i in range(3)}},
        ),
    ],
)
def test_layers_that_only_happen_to_have_one_shape_are_not_paired(first, other):
    one, two = ({name: torch.randn(shape) for name, shape in shapes.items()} for shapes in (first, other))
    with pytest.raises(ValueError, match="no layers in common"):
        hf_sane.diff(one, two)


@pytest.mark.parametrize(("mine", "theirs"), [("", "bert."), ("0.", ""), ("module.", "backbone."), ("", "a.b.")])
def test_wrappers_on_either_side_are_seen_through(mine, theirs):
    torch.manual_seed(0)
    network = {
        "emb.weight": torch.randn(7, 4),
        "layer.0.fc.weight": torch.randn(4, 4),
        "layer.1.fc.weight": torch.randn(4, 4),
    }
    one = {mine + name: x for name, x in network.items()} | {"classifier.weight": torch.randn(2, 4)}
    two = {theirs + name: x for name, x in network.items()}
    found = hf_sane.diff(one, two).difference
    assert {x.name: x.other_name for x in found.tensors} == {mine + name: theirs + name for name in network}
    assert found.relation == "partly equal"


def test_heads_that_share_keys_stay_together(tmp_path):
    """The order of heads is one of queries, keys and values: taken back for some of them, it would be none."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 20}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16)
    states = {}
    for seed, name in enumerate(("first", "other")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        model.save_pretrained(tmp_path / name)
        states[name] = model.state_dict()
    turned = dict(states["first"])
    for layer in range(2):  # the two groups of queries with their keys and values change places
        prefix = f"model.layers.{layer}.self_attn."
        for key in ("q_proj", "k_proj", "v_proj"):
            turned[f"{prefix}{key}.weight"] = torch.cat(turned[f"{prefix}{key}.weight"].chunk(2)[::-1])
        turned[f"{prefix}o_proj.weight"] = torch.cat(turned[f"{prefix}o_proj.weight"].chunk(2, dim=1)[::-1], dim=1)
    model.load_state_dict(turned)
    model.save_pretrained(tmp_path / "turned")
    assert hf_sane.diff(tmp_path / "first", tmp_path / "other").difference.relation == "unrelated"
    assert hf_sane.diff(tmp_path / "first", tmp_path / "turned").difference.relation == "permuted"


def gated(seed: int = 0) -> tuple[LlamaForCausalLM, dict[str, torch.Tensor]]:
    """A LLaMA, and its weights with gated layers whose channels are reordered and scaled."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    config.architectures = ["LlamaForCausalLM"]
    state = {name: torch.randn_like(x) if x.ndim > 1 else x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(state)
    for layer in range(2):
        gate, up, down = (f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        order, factors = torch.randperm(48), 0.3 + 3 * torch.rand(48)
        state[gate], state[up] = state[gate][order], (state[up] * factors[:, None])[order]
        state[down] = (state[down] / factors)[:, order]
    return model, state


def test_a_gated_layer_with_scaled_values_is_the_same_network(saved):
    model, state = gated()
    found = hf_sane.diff(model, state).difference  # aligned by the configuration of the module
    assert (found.relation, found.unaligned) == ("rescaled", None)
    words = torch.arange(10)[None]
    with torch.no_grad():
        before = model(words).logits
        copy = LlamaForCausalLM(model.config).eval()
        copy.load_state_dict(state)
        torch.testing.assert_close(copy(words).logits, before, rtol=1e-3, atol=1e-3)
    found = hf_sane.diff(saved("a", model.state_dict(), model.config), saved("b", state, model.config)).difference
    assert (found.relation, found.is_permuted, found.is_rescaled) == ("rescaled", True, True)
    wrong = dict(state)
    wrong["model.layers.0.mlp.gate_proj.weight"] = 2 * state["model.layers.0.mlp.gate_proj.weight"]  # no symmetry
    found = hf_sane.diff(saved("a", model.state_dict(), model.config), saved("c", wrong, model.config)).difference
    assert found.relation == "partly equal"


def with_adapter(state, rank, names, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    merged = dict(state)
    for name in names:
        rows, columns = state[name].shape
        factors = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        merged[name] = (state[name].float() + 0.05 * factors[0] @ factors[1]).to(dtype)
    return merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_merged_adapter_is_a_change_of_its_rank(rank, dtype):
    generator = torch.Generator().manual_seed(0)
    state = {f"{i}.weight": torch.randn(96, 64, generator=generator).to(dtype) for i in range(3)}
    result = hf_sane.diff(state, with_adapter(state, rank, ["0.weight", "2.weight"], dtype))
    assert result.difference.relation == "low rank"
    assert [x.rank for x in result.difference.tensors] == [rank, None, rank]
    assert f"low rank of the difference: rank {rank}, in 2 of 3 tensors" in str(result)
    tuned = {name: x + 0.05 * torch.randn(x.shape, generator=generator) for name, x in state.items()}
    assert {x.rank for x in hf_sane.diff(state, tuned).difference.tensors} == {None}
    one_row = dict(state)
    one_row["0.weight"] = torch.cat([state["0.weight"][:1] + 1, state["0.weight"][1:]])
    found = hf_sane.diff(state, one_row).difference
    assert (found.relation, found.tensors[0].rank) == ("partly equal", None)


def test_ranks_of_large_matrices_are_found_from_a_sketch():
    generator = torch.Generator().manual_seed(0)
    state = {"0.weight": torch.randn(300, 310, generator=generator)}
    for rank in (3, 75, 90):
        (found,) = hf_sane.diff(state, with_adapter(state, rank, ["0.weight"])).difference.tensors
        assert found.rank == (rank if rank <= 75 else None)


def test_a_merged_adapter_is_found_in_a_reordered_copy(saved):
    state, config = network(config=mlp(image_size=8, hidden_sizes=(48, 32)))
    names = [name for name, x in state.items() if x.ndim == 2][:2]
    moved = permuted(with_adapter(state, 2, names), config)
    found = hf_sane.diff(saved("a", state, config), saved("b", moved, config)).difference
    assert (found.relation, found.is_permuted) == ("low rank", True)
    assert {x.name: x.rank for x in found.tensors if x.rank is not None} == dict.fromkeys(names, 2)


def test_top_level_tensors_are_paired_under_the_prefix_of_the_layers():
    generator = torch.Generator().manual_seed(0)
    state = {
        "q.weight": torch.randn(9, 8, generator=generator),
        "cls_token": torch.randn(1, 1, 8),
        "scale": torch.ones(8),
    }
    assert hf_sane.diff(state, {f"model.{name}": x for name, x in state.items()}).difference.relation == "equal"


def test_complex_weights_and_integers_of_another_type_are_compared():
    state = {"w": torch.randn(20, 20, dtype=torch.complex64), "ids": torch.arange(9)}
    for other, relation in (
        (state, "equal"),
        (state | {"w": state["w"].to(torch.complex128)}, "cast"),
        (state | {"ids": torch.arange(9, dtype=torch.int32)}, "cast"),
        (state | {"w": torch.randn(20, 20, dtype=torch.complex64)}, "unrelated"),
    ):
        assert hf_sane.diff(state, other).difference.relation == relation
    real = hf_sane.diff(state, state | {"w": state["w"].real.clone()}).difference
    assert real.distance == pytest.approx(
        float(state["w"].imag.norm() / math.hypot(*(float(x.norm()) for x in (state["w"], state["w"].real)))), rel=1e-5
    )


def test_counters_that_differ_are_named_and_indices_do_not_dilute_distances():
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    first = {"w": weight, "num_batches_tracked": torch.tensor(9), "ids": torch.arange(512)[None]}
    result = hf_sane.diff(first, first | {"num_batches_tracked": torch.tensor(5)})
    assert result.difference.relation == "equal"
    assert result.verdict == "the same network, bit by bit, apart from num_batches_tracked"
    found = hf_sane.diff(first, first | {"w": -weight}).difference
    assert found.distance == pytest.approx(math.sqrt(2))
    text = str(hf_sane.diff(first, first | {"w": weight * torch.nan}))
    assert "the distance is undefined: NaN or infinite weights in w" in text
    assert "nan" not in text.replace("NaN", "")


def with_norms(weight):
    """A network with norms."""
    generator = torch.Generator().manual_seed(0)
    state = {f"{i}.fc.weight": torch.randn(64, 64, generator=generator) for i in range(3)}
    return state | {f"{i}.norm.weight": weight + 0 * state[f"{i}.fc.weight"][0] for i in range(3)}


@pytest.mark.parametrize("spread", [1e-4, 0.01, 0.02, 0.05, 0.2, 0.4])
def test_tuned_norms_are_not_told_to_be_rounded_or_quantised(spread):
    base = with_norms(1.0)
    tuned = with_norms(1 + spread * torch.randn(64, generator=torch.Generator().manual_seed(1)))
    for pair in ((base, tuned), (tuned, base)):
        found = hf_sane.diff(*pair).difference
        assert found.relation == "partly equal"
        assert not any(x.is_same for x in found.tensors if "norm" in x.name)
    coarse = {name: x if "norm" in name else quantised(x) for name, x in tuned.items()}
    assert hf_sane.diff(base, coarse).difference.relation == "close"
    assert hf_sane.diff(tuned, coarse).difference.relation == "quantised"
    assert hf_sane.diff(with_norms(1 + 1e-4 * base["0.fc.weight"][0]), base).difference.relation == "partly equal"


def test_one_change_explains_all_tensors_of_the_same_network():
    state = with_norms(1 + 1e-4 * torch.randn(64, generator=torch.Generator().manual_seed(1)))
    to = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}

    def stored(matrices, norms):
        return {name: x.to(to[norms] if "norm" in name else to[matrices]) for name, x in state.items()}

    assert not any(x.sub(1).any() for name, x in stored("float8", "bfloat16").items() if "norm" in name)
    for kinds in (("bfloat16", "bfloat16"), ("float8", "bfloat16")):  # as stored
        found = hf_sane.diff(state, stored(*kinds)).difference
        assert (found.relation, found.tensors[0].changes[0]) == ("cast", "other as stored")
    mixed = {name: x.to(list(to.values())[name > "1"]).float() for name, x in state.items()}
    assert hf_sane.diff(state, mixed).difference.relation != "cast"
    one, other = dict(state), dict(state)
    one["0.fc.weight"], other["1.fc.weight"] = (state[f"{i}.fc.weight"].bfloat16().float() for i in range(2))
    assert hf_sane.diff(one, other).difference.relation == "partly equal"


def test_values_beyond_the_largest_of_a_type_make_another_network():
    state = {"weight": torch.randn(64, 64)}
    state["weight"][3, 5] = 1e6
    found = hf_sane.diff(state, {name: x.half() for name, x in state.items()}).difference
    assert found.relation == "undecided"
    assert not found.tensors[0].is_cast


def sinusoids(rows, columns):
    angles = torch.arange(rows)[:, None] * 10_000 ** (-torch.arange(columns // 2) / (columns / 2 - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_sinusoids(side, columns):
    """As in masked autoencoders, after zeros for the class token."""
    one = sinusoids(side, columns // 2)
    both = torch.cat([one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)], dim=2)
    return torch.cat([torch.zeros(1, columns), both.reshape(-1, columns)])[None]


TABLES = {
    "sinusoids": sinusoids(300, 32),
    "sinusoids in bfloat16": sinusoids(300, 32).bfloat16(),
    "sinusoids of a grid": grid_sinusoids(12, 32),
    "logarithms": torch.log(torch.arange(1.0, 17)).expand(600, 16),
    "whole numbers": torch.arange(9600.0).view(300, 32),
    "ones": torch.ones(300, 32),
    "diagonal": 30 * torch.eye(90),
}


@pytest.mark.parametrize("table", TABLES)
def test_fixed_tables_do_not_make_independent_networks_related(table):
    def independent(seed, noise=0.0):
        generator = torch.Generator().manual_seed(seed)
        state = {f"{i}.weight": 0.05 * torch.randn(40, 40, generator=generator) for i in range(3)}
        trained = TABLES[table] + noise * torch.randn(TABLES[table].shape, generator=generator)
        return state | {"table.weight": trained if noise else TABLES[table].clone()}

    assert is_table(TABLES[table])
    first, other = independent(0), independent(1)
    found = hf_sane.diff(first, other).difference
    assert (found.relation, found.tables) == ("unrelated", ("table.weight",))
    bare = {"table.weight": TABLES[table].clone(), "1.weight": torch.randn(30, 50)}
    alone = hf_sane.diff(first, bare)
    assert alone.difference.relation == "undecided"
    assert "nothing in common but constants and tables" in alone.verdict
    assert hf_sane.diff(first, dict(first)).difference.relation == "equal"
    tuned = {name: x + 0.2 * x.float().std() * torch.randn(x.shape) for name, x in first.items()}
    assert hf_sane.diff(first, tuned).difference.relation == "close"
    if table in ("sinusoids", "logarithms"):
        trained = hf_sane.diff(independent(0, 0.02), independent(1, 0.02))
        assert (trained.difference.relation, trained.difference.tables) == ("unrelated", ("table.weight",))
        assert "not evidence, as their values follow from a rule (sinusoids, equal rows): table.weight" in str(trained)


def test_weights_are_no_tables():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 90, generator=generator)
    kept = torch.rand(90, 90, generator=generator)
    for weights in (x, x + 3, x.bfloat16(), x.sign(), x.round(), x * (kept > 0.9), quantised(x), x.view(90, 10, 3, 3)):
        assert not is_table(weights)


def test_other_settings_beside_equal_weights_are_noted(tmp_path):
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=24))
    for name, options in {"a": {}, "b": {"hidden_act": "relu"}, "c": {"attention_dropout": 0.1}}.items():
        network.save_pretrained(tmp_path / name)
        LlamaConfig(**sizes, intermediate_size=24, **options).save_pretrained(tmp_path / name)
    result = hf_sane.diff(tmp_path / "a", tmp_path / "b")
    assert result.difference.relation == "equal"
    assert result.notes == ["the weights are the same, but config.json differs in hidden_act"]
    assert result.verdict == "the same weights, bit by bit"
    same = hf_sane.diff(tmp_path / "a", tmp_path / "c")
    assert (same.notes, same.verdict) == ([], "the same network, bit by bit")


def test_a_quantised_copy_with_one_wrong_weight_is_another_network():
    generator = torch.Generator().manual_seed(3)
    state = {f"{i}.weight": torch.rand(96, 64, generator=generator) - 0.5 for i in range(2)}
    coarse = {name: quantised(x) for name, x in state.items()}
    for edit in (lambda x: 8 * x, lambda x: -x, lambda x: 0 * x):
        wrong = coarse["1.weight"].clone()
        wrong[5, 7] = edit(wrong[5, 7])
        assert hf_sane.diff(state, coarse | {"1.weight": wrong}).difference.relation == "close"
    rounded = hf_sane.diff(state, {name: x.bfloat16() for name, x in coarse.items()}).difference
    assert (rounded.relation, rounded.tensors[0].rank) == ("quantised", None)
    noisy = {name: x + 0.002 * (torch.rand(x.shape, generator=generator) - 0.5) for name, x in state.items()}
    found = hf_sane.diff({n: x.bfloat16() for n, x in state.items()}, {n: x.bfloat16() for n, x in noisy.items()})
    assert (found.difference.relation, found.difference.tensors[0].rank) == ("close", None)


def test_one_value_that_moved_far_is_not_rounding():
    generator = torch.Generator().manual_seed(3)
    state = {f"{i}.weight": torch.rand(96, 64, generator=generator) - 0.5 for i in range(2)}
    state["0.weight"][0, 0] = 1e5  # beside which all other values vanish
    other = {name: x.clone() for name, x in state.items()}
    other["0.weight"][3, 3] += 0.05
    found = hf_sane.diff(state, other).difference
    assert found.tensors[0].distance < 1e-6
    assert found.relation == "partly equal"
