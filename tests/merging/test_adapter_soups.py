"""Soups of adapters, made and read back by PEFT itself."""

import copy
import json
import warnings
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_sane.merging._adapters import AdapterMixer, average_adapters, open_adapters
from hf_sane.merging._greedy import greedy_soup
from hf_sane.merging._uniform import uniform_soup

TARGETS = ["linear", "convolution", "embedding"]


class Base(nn.Module):
    """One layer of every kind that LoRA adapts, and a head that is saved whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.ModuleDict({"linear": nn.Linear(6, 5), "other": nn.Linear(5, 5)})
        self.head = nn.Linear(5, 2)

    def forward(self, words: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        values = self.embedding(words).mean(1)
        values = self.inner["linear"](values) + self.convolution(images).mean((1, 2, 3))[:, None]
        return self.head(self.inner["other"](values).tanh())


def adapt(base, folder, seed, **settings):
    """Save an adapter with random factors; returns what it makes of the base, merged by PEFT."""
    torch.manual_seed(seed)
    defaults = {"r": 2, "lora_alpha": 3, "target_modules": TARGETS}
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{**defaults, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT looks for a vocabulary that the base has not
        model.save_pretrained(folder, save_embedding_layers=False)
    return model.merge_and_unload().state_dict()


def load_merged(base, folder):
    return PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload().state_dict()


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return Base().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def merged(base, tmp_path_factory):
    """Folders of three adapters of different ranks, scales and targets, and the merged model of each."""
    root = tmp_path_factory.mktemp("adapters")
    settings = [
        {"r": 2, "lora_alpha": 3},
        {"r": 4, "lora_alpha": 2, "use_rslora": True, "target_modules": ["linear", "convolution"]},
        {"r": 3, "rank_pattern": {"linear": 1}, "alpha_pattern": {"inner.linear": 5, "embedding": 2}},
    ]
    return {root / f"run_{i}": adapt(base, root / f"run_{i}", i, **kind) for i, kind in enumerate(settings)}


@pytest.fixture(scope="module")
def alike(base, tmp_path_factory):
    """Three adapters of one configuration, with a head that is saved whole."""
    root = tmp_path_factory.mktemp("alike")
    return {root / f"{i}": adapt(base, root / f"{i}", 10 + i, modules_to_save=["head"]) for i in range(3)}


def expected_average(merged, weights):
    states = list(merged.values())
    return {name: sum(w * s[name].double() for w, s in zip(weights, states, strict=True)) for name in states[0]}


@pytest.mark.parametrize("kind", ["merged", "alike"])
@pytest.mark.parametrize("weights", [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.2, 0.3], [0, 0.4, 0.6], [0, 1, 0]])
def test_the_soup_is_the_average_of_the_merged_models(kind, weights, base, tmp_path, request):
    """Through PEFT's own reader and merger, for every kind of layer."""
    merged = request.getfixturevalue(kind)
    adapters = open_adapters(list(merged))
    soup = average_adapters(adapters, weights)
    assert set(soup.errors.values()) == {0}
    found = load_merged(base, soup.save(tmp_path / "soup"))
    mixer = AdapterMixer(copy.deepcopy(base), adapters)
    mixer.mix(weights)
    expected = expected_average(merged, weights)
    changed = 0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixer.model.state_dict()[name].double(), tensor, rtol=1e-4, atol=1e-5)
        changed += not torch.equal(found[name], base.state_dict()[name])
    assert changed >= 2


def test_transposed_layers(tmp_path):
    """GPT-2 stores the weights of its linear maps as [inputs, outputs]."""
    torch.manual_seed(0)
    base = nn.Sequential(Conv1D(5, 3), Conv1D(2, 5))
    settings = {"target_modules": ["0"], "fan_in_fan_out": True}
    merged = {tmp_path / f"{seed}": adapt(base, tmp_path / f"{seed}", seed, **settings) for seed in range(2)}
    adapters = open_adapters(list(merged))
    expected = expected_average(merged, [0.3, 0.7])["0.weight"]
    found = load_merged(base, average_adapters(adapters, [0.3, 0.7]).save(tmp_path / "soup"))
    torch.testing.assert_close(found["0.weight"].double(), expected, rtol=1e-5, atol=1e-5)
    mixer = AdapterMixer(base, adapters)
    mixer.mix([0.3, 0.7])
    torch.testing.assert_close(base[0].weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_averaging_the_factors_is_wrong(base, alike, tmp_path):
    """The mistake this module exists to avoid; it cannot be told from a good soup by its names and shapes."""
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in alike]
    naive = {name: sum(state[name] for state in tensors) / 3 for name in tensors[0]}
    first = next(iter(alike))
    (tmp_path / "naive").mkdir()
    (tmp_path / "naive" / "adapter_config.json").write_text((first / "adapter_config.json").read_text())
    save_file(naive, tmp_path / "naive" / "adapter_model.safetensors")
    expected = expected_average(alike, [1 / 3] * 3)
    wrong = load_merged(base, tmp_path / "naive")
    for name in ("embedding.weight", "convolution.weight", "inner.linear.weight"):
        start = base.state_dict()[name].double()
        error = (wrong[name].double() - expected[name]).norm() / (expected[name] - start).norm()
        assert error > 0.3
    torch.testing.assert_close(wrong["head.weight"].double(), expected["head.weight"])  # saved whole: a plain average


def test_a_change_of_gauge_changes_the_factors_and_not_the_soup(base, alike, tmp_path):
    generator = torch.Generator().manual_seed(0)
    folders = []
    for index, folder in enumerate(alike):
        tensors = load_file(folder / "adapter_model.safetensors")
        for name in [name for name in tensors if name.endswith("linear.lora_A.weight")]:
            other = name.replace("lora_A", "lora_B")
            gauge = torch.randn(2, 2, generator=generator) + 2 * torch.eye(2)
            tensors[name], tensors[other] = gauge @ tensors[name], tensors[other] @ gauge.inverse()
        folders.append(tmp_path / str(index))
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
        save_file(tensors, folders[-1] / "adapter_model.safetensors")
    soups = [average_adapters(open_adapters(paths), [0.2, 0.3, 0.5]) for paths in (list(alike), folders)]
    results = [load_merged(base, soup.save(tmp_path / f"soup_{i}")) for i, soup in enumerate(soups)]
    name = "base_model.model.inner.linear.lora_A.weight"
    assert not torch.allclose(soups[0].tensors[name], soups[1].tensors[name], atol=0.1)
    for tensor in results[0]:
        torch.testing.assert_close(results[0][tensor], results[1][tensor], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_re_factorisation_is_the_best_of_its_rank_and_reports_its_error(rank, base, alike, tmp_path):
    adapters = open_adapters(list(alike))
    weights = [0.5, 0.2, 0.3]
    soup = average_adapters(adapters, weights, rank=rank)
    found = load_merged(base, soup.save(tmp_path / "soup"))
    expected = expected_average(alike, weights)
    for module in ("convolution", "inner.linear", "embedding"):
        start = base.state_dict()[f"{module}.weight"].double()
        change = (expected[f"{module}.weight"] - start).flatten(1)
        values = torch.linalg.svdvals(change)
        best = (values[rank:].square().sum() / values.square().sum()).sqrt().item()
        reached = ((found[f"{module}.weight"] - start).flatten(1) - change).norm() / change.norm()
        assert soup.errors[module] == pytest.approx(best, abs=1e-5)
        assert reached.item() == pytest.approx(best, abs=1e-4)
    assert soup.config["r"] == rank


def test_errors_fall_with_the_rank_to_zero(alike):
    adapters = open_adapters(list(alike))
    errors = [average_adapters(adapters, [0.2, 0.3, 0.5], rank=rank).errors["inner.linear"] for rank in range(1, 7)]
    assert all(earlier > later for earlier, later in pairwise(errors[:5]))
    assert errors[5] == 0  # three adapters of rank 2


def test_adapters_that_cancel_give_zero_at_any_rank(alike, tmp_path, base):
    folder = next(iter(alike))
    tensors = load_file(folder / "adapter_model.safetensors")
    negated = {name: -tensor if "lora" in name and "B" in name else tensor for name, tensor in tensors.items()}
    (tmp_path / "negated").mkdir()
    (tmp_path / "negated" / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    save_file(negated, tmp_path / "negated" / "adapter_model.safetensors")
    soup = average_adapters(open_adapters([folder, tmp_path / "negated"]), [0.5, 0.5], rank=1)
    found = load_merged(base, soup.save(tmp_path / "soup"))
    torch.testing.assert_close(
        found["inner.linear.weight"], base.state_dict()["inner.linear.weight"], atol=1e-5, rtol=0
    )


def test_greedy_and_uniform_soups_of_adapters(base, alike):
    """Selected by how close the adapted model comes to the middle of the first two."""
    adapters = open_adapters(list(alike))
    words, images = torch.arange(14).view(2, 7) % 7, torch.randn(2, 3, 4, 4)
    mixer = AdapterMixer(copy.deepcopy(base), adapters)
    mixer.mix([0.5, 0.5, 0])
    wanted = mixer.model(words, images)

    def loss(model):
        return (model(words, images) - wanted).square().mean().item()

    soup = greedy_soup(mixer, loss, higher_is_better=False)
    assert soup.score <= min(soup.ingredient_scores.values())
    assert soup.score == loss(mixer.model)
    uniform_soup(mixer)
    mixer.mix(list(soup.weights.values()))  # mixtures start from the base, not from each other
    assert soup.score == pytest.approx(loss(mixer.model), abs=1e-6)


def with_config(folder, target, **changes):
    target.mkdir()
    config = json.loads((folder / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(config | changes))
    (target / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize("sources", [[], ["a"], "someone/adapter"])
def test_a_single_adapter_is_no_soup(sources):
    with pytest.raises(ValueError, match="a list of at least two adapters, got (0|1|the single source)"):
        open_adapters(sources)


def test_names_and_folders_must_exist(alike, tmp_path):
    with pytest.raises(ValueError, match="one name for each of 3 adapters, got 1"):
        open_adapters(list(alike), names=["a"])
    with pytest.raises(FileNotFoundError, match=r"no adapter_config.json in .*; pass a folder"):
        open_adapters([next(iter(alike)), tmp_path])


def test_adapters_of_different_bases_are_refused_unless_they_are_one(alike, tmp_path):
    sources = [
        with_config(folder, tmp_path / f"{i}", base_model_name_or_path=f"someone/base-{i}")
        for i, folder in enumerate(alike)
    ]
    with pytest.raises(ValueError, match="0 and 1 adapt different base models, 'someone/base-0' and 'someone/base-1'"):
        open_adapters(sources)
    adapters = open_adapters(sources, base_model="someone/base")
    assert average_adapters(adapters, [0.2, 0.3, 0.5]).config["base_model_name_or_path"] == "someone/base"


def edited(folder, target, edit):
    with_config(folder, target)
    tensors = load_file(target / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, target / "adapter_model.safetensors")
    return target


FIRST, SECOND = (f"base_model.model.inner.linear.lora_{side}.weight" for side in "AB")


def test_mismatched_shapes_are_refused(alike, tmp_path):
    first, second, _ = alike
    wider = edited(second, tmp_path / "b", lambda tensors: tensors.update({FIRST: torch.zeros(2, 9)}))
    with pytest.raises(ValueError, match=r"'inner.linear' is \[5, 6\] in 0 and \[5, 9\] in b"):
        open_adapters([first, wider])


def test_a_missing_factor_is_refused(alike, tmp_path):
    first, second, _ = alike
    half = edited(second, tmp_path / "b", lambda tensors: tensors.pop(SECOND))
    with pytest.raises(ValueError, match=r"b lacks one of the factors A and B of \['inner.linear'\]"):
        open_adapters([first, half])


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_factors_that_are_not_finite_are_named(name, base, alike, tmp_path):
    first, second, _ = alike
    broken = edited(second, tmp_path / "b", lambda tensors: tensors[name].fill_(torch.nan))
    adapters = open_adapters([first, broken])
    with pytest.raises(ValueError, match=r"'inner.linear' is not finite \(NaN or infinite weights\) in b"):
        average_adapters(adapters, [0.5, 0.5])
    with pytest.raises(ValueError, match="'inner.linear' is not finite"):
        AdapterMixer(copy.deepcopy(base), adapters).mix([0.5, 0.5])


def test_factors_that_do_not_fit_the_configuration_are_refused(alike, tmp_path):
    first, second, _ = alike
    adapters = open_adapters([first, with_config(second, tmp_path / "b", r=5)])
    with pytest.raises(
        ValueError, match=r"factors of .* in b are \[2, .*\] and .*, but the configuration says rank 5"
    ):
        average_adapters(adapters, [0.5, 0.5])


def test_weights_and_rank_are_checked(base, alike):
    adapters = open_adapters(list(alike))
    with pytest.raises(ValueError, match="one weight per ingredient, 3, got 1"):
        average_adapters(adapters, [1.0])
    with pytest.raises(ValueError, match="expected weights >= 0 with sum 1"):
        AdapterMixer(copy.deepcopy(base), adapters).mix([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="the rank must be at least 1, got 0"):
        average_adapters(adapters, [0.2, 0.3, 0.5], rank=0)


def test_another_base_is_refused(base, alike):
    adapters = open_adapters(list(alike))
    with pytest.raises(ValueError, match=r"Linear is not the base of these adapters: it lacks \['convolution.weight'"):
        AdapterMixer(nn.Linear(2, 2), adapters)
    other = copy.deepcopy(base)
    other.inner["linear"] = nn.Linear(6, 8)
    with pytest.raises(ValueError, match=r"0 changes 'inner.linear' by \[5, 6\], but the model has \[8, 6\]"):
        AdapterMixer(other, adapters).mix([1.0, 0.0, 0.0])
