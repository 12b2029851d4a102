import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits, mlp
from hf_sane.merging._averaging import average_checkpoints, average_tensors, pour, uniform_weights
from hf_sane.merging._ingredients import open_ingredients

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]


def random_states(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (4, 3), "bias": (4,), "scale": (), "empty": (0, 2)}
    return [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_definition(count, dtype):
    states = random_states(count, dtype)
    weights = torch.arange(1.0, count + 1).double()
    weights = (weights / weights.sum()).tolist()
    ingredients = open_ingredients(states)
    exact = torch.complex128 if dtype.is_complex else torch.float64
    for chosen in (weights, uniform_weights(states)):
        found = average_checkpoints(ingredients, chosen)
        assert found.keys() == states[0].keys()
        for name, tensor in found.items():
            expected = torch.zeros(tensor.shape, dtype=exact)
            for state, weight in zip(states, chosen, strict=True):
                expected += weight * state[name].to(exact)
            assert tensor.dtype == dtype
            torch.testing.assert_close(tensor, expected.to(dtype))
    assert all(torch.equal(found[name], tensor) for name, tensor in average_checkpoints(ingredients).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", range(2, 12))
def test_the_average_of_equal_checkpoints_is_that_checkpoint(count, dtype):
    (state,) = random_states(1, dtype)
    found = average_checkpoints(open_ingredients([state] * count))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert all(found[name].data_ptr() != state[name].data_ptr() for name in ("weight", "bias"))


def test_the_order_of_ingredients_does_not_matter_but_weights_do():
    states = random_states(3)
    there = average_checkpoints(open_ingredients(states), [0.5, 0.3, 0.2])
    back = average_checkpoints(open_ingredients(states[::-1]), [0.2, 0.3, 0.5])
    other = average_checkpoints(open_ingredients(states), [0.2, 0.3, 0.5])
    for name in ("weight", "bias", "scale"):
        torch.testing.assert_close(there[name], back[name])
        assert not torch.allclose(there[name], other[name])


def test_ingredients_without_weight_are_not_read():
    states = random_states(3)
    states[1]["weight"].fill_(torch.nan)
    found = average_checkpoints(open_ingredients(states), [0.5, 0, 0.5])
    torch.testing.assert_close(found["weight"], (states[0]["weight"] + states[2]["weight"]) / 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [(torch.float32, torch.bfloat16), (torch.float16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_mixed_precision_takes_the_dtype_that_holds_both(first, second):
    states = [random_states(1, dtype)[0] for dtype in (first, second)]
    for order in (1, -1):
        assert average_checkpoints(open_ingredients(states[::order]))["weight"].dtype == torch.float32


def test_values_that_one_dtype_does_not_hold():
    """2e5 is an ordinary number in bfloat16, and infinite in float16."""
    half, wide = (
        {"weight": torch.ones(2, dtype=torch.float16)},
        {"weight": torch.full((2,), 2e5, dtype=torch.bfloat16)},
    )
    (value, _) = average_checkpoints(open_ingredients([half, wide]))["weight"]
    assert value.item() == pytest.approx((1 + wide["weight"][0].item()) / 2)
    module = nn.Linear(2, 1, bias=False, dtype=torch.float16)
    states = [{name: tensor[None] for name, tensor in state.items()} for state in (half, wide)]
    with pytest.raises(
        ValueError, match=r"'weight' has values up to 9.98e\+04, too large for torch.float16, whose maximum is"
    ):
        pour(module, open_ingredients(states), [0.5, 0.5])


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [0.5, float("nan")]])
def test_weights_must_be_shares(weights):
    with pytest.raises(ValueError, match="expected weights >= 0 with sum 1, got"):
        average_checkpoints(open_ingredients(random_states(2)), weights)


def test_one_weight_per_ingredient():
    with pytest.raises(ValueError, match="one weight per ingredient, 2, got 3"):
        list(average_tensors(open_ingredients(random_states(2)), [0.2, 0.3, 0.5]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("weights", [[0.25, 0.75], [0, 1]])
def test_layers_that_are_not_finite_are_named(value, weights):
    states = random_states(2)
    states[1]["bias"][2] = value
    with pytest.raises(ValueError, match=r"'bias' is not finite \(NaN or infinite weights\) in b; leave out"):
        average_checkpoints(open_ingredients(states, names=["a", "b"]), weights)


def test_counters_take_the_largest_and_other_integers_must_agree():
    states = random_states(3)
    for index, state in enumerate(states):
        state["norm.num_batches_tracked"] = torch.tensor([5, 9, 7][index])
        state["position_ids"] = torch.arange(4)
        state["mask"] = torch.tensor([True, False])
    found = average_checkpoints(open_ingredients(states))
    assert found["norm.num_batches_tracked"] == 9
    assert found["norm.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(found["position_ids"], torch.arange(4))
    assert torch.equal(found["mask"], torch.tensor([True, False]))
    states[2]["position_ids"] = torch.arange(4).flip(0)
    with pytest.raises(
        ValueError, match="integer tensor 'position_ids' differs between ingredient_0 and ingredient_2"
    ):
        average_checkpoints(open_ingredients(states))


def test_pouring_into_a_model_gives_the_average(fine_tuned, folders):
    ingredients = open_ingredients(folders)
    model = build_model(fine_tuned.config)
    for weights in (uniform_weights(folders), [0, 1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4, 0]):
        pour(model, ingredients, weights)
        expected = average_checkpoints(ingredients, weights)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embedding.weight


def test_other_names_on_disk_than_in_memory(tmp_path):
    """Transformers renames the tensors of some architectures when it saves and loads them."""
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(**shape, image_size=8, patch_size=4)
    models = [ViTForImageClassification(config) for _ in range(2)]
    for index, model in enumerate(models):
        model.save_pretrained(tmp_path / str(index))
    ingredients = open_ingredients([tmp_path / "0", tmp_path / "1"])
    poured = ViTForImageClassification(config)
    assert ingredients[0].outlines.keys() != poured.state_dict().keys()
    pour(poured, ingredients, [0.25, 0.75])
    for name, tensor in poured.state_dict().items():
        first, second = (model.state_dict()[name] for model in models)
        torch.testing.assert_close(tensor, 0.25 * first + 0.75 * second)
    deeper = ViTForImageClassification(ViTConfig(**shape | {"num_hidden_layers": 2}, image_size=8, patch_size=4))
    with pytest.raises(ValueError, match=r"not of the architecture of 0: the checkpoint lacks \['vit.layers.1"):
        pour(deeper, ingredients, [0.25, 0.75])


def test_tied_weights_stay_tied():
    states = [{"embedding.weight": torch.full((5, 3), float(value))} for value in (1, 3)]
    model = Tied()
    pour(model, open_ingredients(states), [0.5, 0.5])
    assert model.output.weight is model.embedding.weight
    assert torch.equal(model.output.weight, torch.full((5, 3), 2.0))


def test_pouring_into_another_architecture_is_refused(folders):
    ingredients = open_ingredients(folders)
    with pytest.raises(ValueError, match="MLPForImageClassification is not of the architecture of run_0: .* lacks"):
        pour(build_model(mlp()), ingredients, uniform_weights(ingredients))
    with pytest.raises(
        ValueError, match=r"'classifier.bias' is \[7\] in CNNForImageClassification and \[10\] in run_0"
    ):
        pour(build_model(cnn_digits(num_labels=7)), ingredients, uniform_weights(ingredients))


def test_averaging_independent_batch_norm_counters_of_a_real_network():
    states = [build_model(cifar_resnet(20, width=2)).state_dict() for _ in range(2)]
    states[1]["bn1.num_batches_tracked"] += 3
    found = average_checkpoints(open_ingredients(states))
    assert found["bn1.num_batches_tracked"] == 3
    assert found["bn1.num_batches_tracked"].dtype == torch.int64


# Anonymous memory of a process that makes soups of files, in sizes of a checkpoint; mapped file pages belong to
# nobody.
MEMORY = """
import re, sys, threading, time
from pathlib import Path

import torch
torch.set_num_threads(1)
from hf_sane.merging._averaging import average_checkpoints
from hf_sane.merging._ingredients import open_ingredients
from hf_sane.merging._greedy import greedy_soup
from hf_sane.merging._soups import CheckpointMixer

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak_of(job):
    peak, done, start = 0, False, anonymous()
    def watch():
        nonlocal peak
        while not done:
            peak = max(peak, anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = job()
    done = True
    watcher.join()
    return (peak - start) / size

def greedy():
    model = torch.nn.Module()
    for name in ingredients[0].outlines:
        model.register_parameter(name, torch.nn.Parameter(torch.zeros(512, 512)))
    mixer = CheckpointMixer(model, ingredients)
    greedy_soup(mixer, lambda model: model.state_dict()["layer_0"].square().mean().item())
    return model

ingredients = open_ingredients(sorted(Path(sys.argv[1]).glob("*.safetensors")))
size = sum(tensor.nbytes for tensor in average_checkpoints(ingredients[:2], [0.5, 0.5]).values())  # and a warm-up
print(len(ingredients), peak_of(lambda: average_checkpoints(ingredients)), peak_of(greedy))
"""


def test_twenty_checkpoints_need_the_memory_of_less_than_two(tmp_path):
    """Without streaming it would be twenty; 1 is the result itself."""
    for index in range(20):
        generator = torch.Generator().manual_seed(index)
        state = {f"layer_{i}": torch.randn(512, 512, generator=generator) for i in range(8)}
        save_file(state, tmp_path / f"{index:02d}.safetensors")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # every tensor is given back when it is freed: nothing is hidden
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    assert not ran.returncode, ran.stderr
    count, uniform, greedy = ran.stdout.split()
    assert count == "20", ran.stdout
    assert 1 <= float(uniform) < 2
    assert 1 <= float(greedy) < 2
