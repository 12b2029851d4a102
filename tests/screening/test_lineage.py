"""Trees of networks, made here and found again from their weights."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import hf_sane
from hf_sane.architectures.presets import build_model, mlp
from hf_sane.screening._scaling import canonical_scales, scalable_axes
from hf_sane.symmetry import permutation_spec

CONFIG = mlp(image_size=8, hidden_sizes=(48, 32))


def root(seed):
    """Uniform weights, as an initialisation draws them: what is added to them raises their kurtosis."""
    torch.manual_seed(seed)
    state = build_model(CONFIG).state_dict()
    return {
        name: (2 * torch.rand(x.shape) - 1) * math.sqrt(3 / (x[0].numel() if x.ndim > 1 else 10))
        for name, x in state.items()
    }


def tuned(state, seed, size=0.15):
    generator = torch.Generator().manual_seed(seed)
    return {name: x + size * x.std() * torch.randn(x.shape, generator=generator) for name, x in state.items()}


def merged(state, seed, rank=2):
    """A LoRA adapter, merged."""
    generator = torch.Generator().manual_seed(seed)
    moved = dict(state)
    for name, x in state.items():
        if x.ndim > 1:
            change = torch.randn(len(x), rank, generator=generator) @ torch.randn(
                rank, x[0].numel(), generator=generator
            )
            moved[name] = x + 0.2 * x.norm() / change.norm() * change.view(x.shape)
    return moved


def pruned(state, share=0.3):
    return {name: torch.where(x.abs() > x.abs().flatten().quantile(share), x, 0.0) for name, x in state.items()}


def quantised(state):
    scales = {name: x.abs().amax(-1, keepdim=True) / 127 for name, x in state.items()}
    return {name: (x / scales[name]).round() * scales[name] if x.ndim > 1 else x for name, x in state.items()}


def permuted(state, seed):
    spec = permutation_spec(CONFIG)
    return spec.apply(state, spec.random(generator=torch.Generator().manual_seed(seed)))


def rescaled(state, seed):
    generator = torch.Generator().manual_seed(seed)
    like = {
        name: x * (torch.rand((len(x), *[1] * (x.ndim - 1)), generator=generator) + 0.5) for name, x in state.items()
    }
    spec = permutation_spec(CONFIG)
    assert scalable_axes(spec)
    return {name: x.float() for name, x in canonical_scales(spec, permuted(state, seed), like=like).items()}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Two roots and their descendants, some of them reordered, and a stranger; with cards."""
    a, b = root(0), root(1)
    a1, a2, b1 = tuned(a, 2), merged(a, 3), tuned(b, 4)
    made = {
        "a1": a1,
        "a": a,
        "a2": permuted(a2, 5),
        "a11": tuned(a1, 6, 0.1),
        "a_pruned": pruned(a),
        "a1_quantised": quantised(a1),
        "a_soup": {name: 0.5 * (a1[name] + tuned(a, 7)[name]) for name in a},
        "a3": tuned(a, 7),
        "b1": b1,
        "b": rescaled(b, 8),
        "b_pruned": pruned(b),
        "stranger": root(9),
        "a_bf16": {name: x.bfloat16().float() for name, x in a.items()},
        "a3_again": permuted(tuned(a, 7), 10),
        "a_mean": {name: (a1[name] + a2[name] + tuned(a, 7)[name]) / 3 for name in a},
    }
    folder = tmp_path_factory.mktemp("family")
    for name, state in made.items():
        CONFIG.save_pretrained(folder / name)
        save_file({key: x.contiguous() for key, x in state.items()}, folder / name / "model.safetensors")
    claims = {"a1": "a", "a": "a3", "b1": "org/b", "stranger": "org/a", "a2": "org/elsewhere"}
    for name, base in claims.items():
        (folder / name / "README.md").write_text(f"---\nbase_model: {base if '/' in base else folder / base}\n---\n")
    return folder, [folder / name for name in made]


@pytest.fixture(scope="module")
def found(family):
    return hf_sane.lineage(*family[1], claims=True)


def short(name):
    return name.rpartition("/")[2]


def test_parents_changes_and_roots_are_found(found):
    edges = {short(x.child): ({short(p) for p in x.parents}, x.change) for x in found.lineage.descents}
    assert edges == {
        "a1": ({"a"}, "fine-tuned"),
        "a2": ({"a"}, "fine-tuned"),
        "a3": ({"a"}, "fine-tuned"),
        "a11": ({"a1"}, "fine-tuned"),
        "a_pruned": ({"a"}, "pruned"),
        "a1_quantised": ({"a1"}, "quantised"),
        "a_soup": ({"a1", "a3"}, "averaged"),
        "b1": ({"b"}, "fine-tuned"),
        "b_pruned": ({"b"}, "pruned"),
        "a_bf16": ({"a"}, "copied"),
        "a3_again": ({"a3"}, "copied"),
        "a_mean": ({"a1", "a2", "a3"}, "averaged"),
    }
    assert set(map(short, found.lineage.roots)) == {"a", "b", "stranger"}
    aligned = {short(name): how for name, how in found.lineage.aligned.items()}
    assert aligned == {"a2": "permuted", "b": "permuted and rescaled"}
    assert all(x.confidence > 0.9 for x in found.lineage.descents)


def test_claims_of_cards_are_judged(found):
    verdicts = {short(x.network): x.verdict for x in found.claims}
    assert verdicts == {
        "a1": "supported",
        "a": "contradicted",
        "b1": "supported",
        "stranger": "contradicted",
        "a2": "unknown",
    }


def test_children_of_a_missing_root_are_related_but_neither_is_surely_the_parent():
    state = root(0)
    result = hf_sane.lineage(tuned(state, 1), tuned(state, 2))
    (descent,) = result.lineage.descents
    assert descent.confidence < 0.8


def test_the_result_is_a_frame_and_json(found):
    frame = found.to_frame()
    assert len(frame) == 9  # the average has two parents
    assert json.loads(found.to_json())["roots"] == list(found.lineage.roots)


def test_the_verb_prints_trees_and_writes_them(family, tmp_path, hf_sane_command):
    folder, _ = family
    text = hf_sane_command("lineage", folder / "a11", folder / "a1", folder / "b1", "-o", tmp_path / "out").stdout
    lines = text.splitlines()
    assert lines[0].endswith("a1")
    assert lines[1].startswith("  ")
    assert "fine-tuned, distance" in lines[1]
    assert len(json.loads((tmp_path / "out" / "lineage.json").read_text())["descents"]) == 1
    assert "expected at least two checkpoints, got 1" in hf_sane_command("lineage", folder / "a", exit_code=2).stderr
