"""Trees of networks, made here and found again from their weights."""

import itertools
import json
import math
import random
import re
import shutil
from pathlib import Path

import networkx
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import hf_sane
from hf_sane.architectures.presets import build_model, mlp
from hf_sane.screening._lineage import trace_lineage
from hf_sane.screening._scaling import canonical_scales, scalable_axes
from hf_sane.screening._trees import AVERAGED, WEIGHTS, edge_probabilities, laplacian, likeliest_forest
from hf_sane.symmetry import permutation_spec
from hf_sane.workflows.lineage import STRANGERS

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
        "b2": tuned(b, 11),
        "stranger": root(9),
        "a2_bf16": {name: x.bfloat16().float() for name, x in a2.items()},
        "a3_again": permuted(tuned(a, 7), 10),
        "a_mean": {name: (a1[name] + a2[name] + tuned(a, 7)[name]) / 3 for name in a},
    }
    folder = tmp_path_factory.mktemp("family")
    for name, state in made.items():
        CONFIG.save_pretrained(folder / name)
        save_file({key: x.contiguous() for key, x in state.items()}, folder / name / "model.safetensors")
    claims = {"a_pruned": "a", "a2": "a2_bf16", "a_mean": "org/a3", "stranger": "org/a", "a3": "org/elsewhere"}
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
        "b2": ({"b"}, "fine-tuned"),
        "a2_bf16": ({"a2"}, "copied"),
        "a3_again": ({"a3"}, "copied"),
        "a_mean": ({"a1", "a2", "a3"}, "averaged"),
    }
    assert set(map(short, found.lineage.roots)) == {"a", "b", "stranger"}
    aligned = {short(name): how for name, how in found.lineage.aligned.items()}
    assert aligned == {"a2": "permuted", "b": "permuted and rescaled", "a3_again": "permuted"}
    sure = {short(x.child): x.confidence for x in found.lineage.descents}
    assert all(sure[name] > 0.9 for name in ("a_pruned", "a1_quantised", "a2_bf16", "a_soup", "a_mean"))
    assert sure["a3_again"] == 0.5  # of two copies, either can be the first
    assert all(0.2 < sure[name] < 0.95 for name in ("a1", "a2", "a3", "a11", "b1", "b2"))


def test_claims_of_cards_are_judged(found):
    verdicts = {short(x.network): x.verdict for x in found.claims}
    assert verdicts == {
        "a_pruned": "supported",
        "a2": "contradicted",
        "a_mean": "supported",
        "stranger": "contradicted",
        "a3": "unknown",
    }


def test_a_claim_is_not_contradicted_by_a_comparison_without_alignment(family):
    folder, _ = family
    (claim,) = hf_sane.lineage(folder / "a2", folder / "a2_bf16", claims=True, max_aligned=99).claims
    assert (claim.verdict, claim.confidence) == ("unknown", 0.0)
    assert "their channels were not matched" in claim.reason


def test_children_of_a_missing_root_are_related_but_neither_is_surely_the_parent():
    state = root(0)
    result = hf_sane.lineage([tuned(state, 1), tuned(state, 2), root(3)])
    assert result.lineage.families == (("network 1", "network 2"), ("network 3",))
    assert all(descent.confidence < 0.8 for descent in result.lineage.descents)
    orphans = [name for name in result.lineage.roots if name != "network 3"]
    assert len(orphans) + len(result.lineage.descents) == 2
    assert len(orphans) < 2 or "related to network 1, but its parent is not among them" in str(result)


def test_probabilities_of_edges_are_those_of_all_forests_counted_one_by_one():
    generator = torch.Generator().manual_seed(0)
    edges = torch.randn(4, 4, generator=generator, dtype=torch.float64).fill_diagonal_(-torch.inf)
    orphans = torch.randn(4, generator=generator, dtype=torch.float64)
    total, shares, best = 0.0, torch.zeros(4, 4, dtype=torch.float64), (-math.inf, {})
    for parents in itertools.product([None, 0, 1, 2, 3], repeat=4):
        forest = {child: parent for child, parent in enumerate(parents) if parent is not None}
        graph = networkx.DiGraph([(parent, child) for child, parent in forest.items()])
        if any(child == parent for child, parent in forest.items()) or not networkx.is_directed_acyclic_graph(graph):
            continue
        score = sum(edges[p, c] if (p := forest.get(c)) is not None else orphans[c] for c in range(4)).item()
        total += math.exp(score)
        for child, parent in forest.items():
            shares[parent, child] += math.exp(score)
        best = max(best, (score, forest), key=lambda pair: pair[0])
    torch.testing.assert_close(edge_probabilities(edges, orphans), shares / total)
    torch.testing.assert_close(torch.logdet(laplacian(edges, orphans)).exp().item(), total)
    assert likeliest_forest(edges, orphans, {}) == best[1]


def test_the_weights_of_the_model_are_those_of_its_record():
    path = Path(__file__).parents[2] / "runs" / "benchmarks" / "lineage_trees.json"
    fitted = json.loads(path.read_text())["results"]["fitted"]
    assert dict(WEIGHTS) == {name: pytest.approx(value, abs=0.006) for name, value in fitted["weights"].items()}
    assert pytest.approx(fitted["averaged"], abs=0.006) == AVERAGED
    assert pytest.approx(fitted["strangers"], abs=0.006) == STRANGERS


def test_an_adapter_is_a_child_of_its_base(tmp_path):
    state = {"fc.weight": torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) - 0.5}
    save_file(state, tmp_path / "base.safetensors")
    (tmp_path / "lora").mkdir()
    factors = {
        "base_model.model.fc.lora_A.weight": torch.randn(2, 30) / 8,
        "base_model.model.fc.lora_B.weight": torch.randn(40, 2) / 8,
    }
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    result = hf_sane.lineage(tmp_path / "lora", tmp_path / "base.safetensors", base=str(tmp_path / "base.safetensors"))
    assert result.lineage.families == ((str(tmp_path / "lora"), str(tmp_path / "base.safetensors")),)


def test_the_base_of_an_adapter_may_be_among_the_networks(tmp_path, monkeypatch, caplog):
    """An adapter names its base as its author knows it; here, a folder of that name is among the networks."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "lora"):
        (tmp_path / name).mkdir()
    state = {"fc.weight": torch.rand(40, 30, generator=generator) - 0.5}
    save_file(state, tmp_path / "base" / "model.safetensors")
    shapes = {"A": (2, 30), "B": (40, 2)}
    factors = {
        f"base_model.model.fc.lora_{part}.weight": torch.randn(*shape, generator=generator) / 8
        for part, shape in shapes.items()
    }
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]}
    config["base_model_name_or_path"] = "somewhere/base"
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    result = hf_sane.lineage(tmp_path)
    assert not result.lineage.skipped
    assert result.lineage.families == ((str(tmp_path / "base"), str(tmp_path / "lora")),)
    said = f"its base somewhere/base was not found; it is added to {tmp_path / 'base'}, which has the same name"
    assert said in caplog.text


def test_it_says_whose_channels_were_not_matched(tmp_path):
    state, other = root(0), tuned(root(0), 1)
    for name, tensors in (("a", state), ("b", other)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    text = str(hf_sane.lineage(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert re.search(r"channels were not matched for .*[ab]\.safetensors: there is no config\.json", text)


def test_the_result_is_a_frame_and_json(found):
    frame = found.to_frame()
    assert len(frame) == len(found.lineage.descents) + 3  # averages have two and three parents
    assert json.loads(found.to_json())["roots"] == list(found.lineage.roots)


def test_the_verb_prints_trees_and_writes_them(family, tmp_path, hf_sane_command):
    folder, _ = family
    text = hf_sane_command("lineage", folder / "a11", folder / "a1", folder / "b1", "-o", tmp_path / "out").stdout
    lines = text.splitlines()
    assert lines[0].endswith("a1")
    assert lines[1].startswith("  ")
    assert "fine-tuned, distance" in lines[1]
    assert len(json.loads((tmp_path / "out" / "lineage.json").read_text())["descents"]) == 1
    picture = (tmp_path / "out" / "trees.svg").read_text()
    assert (tmp_path / "out" / "report.html").read_text().count("<figure>") == 1
    assert "<svg" in picture
    assert picture.count("<!-- fine-tuned, 0.") == 1
    refused = hf_sane_command("lineage", folder / "a", exit_code=2).stderr
    assert f"expected at least two checkpoints, got {folder / 'a'} alone; name another one" in refused
    refused = hf_sane_command("lineage", folder / "a" / "model.safetensors", exit_code=2).stderr
    assert "expected at least two checkpoints, got 1; name each one, or their folder" in refused


def test_a_folder_holds_files_or_folders_of_networks(family, tmp_path):
    """Cards and settings beside the files are no networks, a damaged file is listed."""
    folder, _ = family
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    places = {"a": "set/a.safetensors", "a1": "set/deeper/a1.safetensors", "b": "set/deeper/b.safetensors"}
    for name, place in places.items():
        shutil.copy(folder / name / "model.safetensors", tmp_path / place)
    shutil.copy(folder / "a" / "config.json", tmp_path / "set")
    (tmp_path / "set" / "README.md").write_text("card")
    (tmp_path / "set" / "cut.safetensors").write_bytes(b"cut")
    found = hf_sane.lineage(tmp_path / "set").lineage
    a, a1, b = (str(tmp_path / place) for place in places.values())
    assert [(x.child, x.parents) for x in found.descents] == [(a1, (a,))]
    assert set(found.roots) == {a, b}
    assert list(found.skipped) == [str(tmp_path / "set" / "cut.safetensors")]
    assert len(hf_sane.lineage(folder, folder / "a").lineage.roots) == len(hf_sane.lineage(folder).lineage.roots)


def test_no_average_is_an_ancestor_of_what_it_was_made_from_through_another_average():
    """Network 3 is made from 1, which is made from 0: it is not the parent of 0, however likely that seems."""
    edges = torch.full((4, 4), -math.inf, dtype=torch.float64)
    edges[3, 0], edges[0, 2] = 5.0, 1.0
    orphans = torch.zeros(4, dtype=torch.float64)
    assert likeliest_forest(edges, orphans, {1: (0, 2), 3: (1, 2)}) == {2: 0}


def in_4_bits(x, how):
    """Rounded to four bits and back: in rows, in blocks of neighbours, as a whole, or to the levels of NF4."""
    if how == "NF4":
        levels = torch.special.ndtri(torch.linspace(0.03, 0.97, 15, dtype=torch.float64)).float()
        levels = torch.cat([levels / levels.abs().max(), torch.tensor([0.97])]).sort().values
        blocks = x.reshape(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        places = (blocks[..., None] / largest[..., None] - levels).abs().argmin(-1)
        return (levels[places] * largest).view(x.shape)
    blocks = {"rows": x, "blocks": x.reshape(-1, 32), "whole": x.reshape(1, -1)}[how]
    step = blocks.abs().amax(1, keepdim=True) / 7
    return ((blocks / step).round() * step).view(x.shape)


@pytest.mark.parametrize("how", ["rows", "blocks", "whole", "NF4"])
def test_few_values_are_quantisation_and_zeros_among_kept_values_pruning(how):
    state = {name: torch.randn(48, 64, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    coarse = {name: in_4_bits(x, how) for name, x in state.items()}
    assert how == "NF4" or (coarse["a"] == 0).double().mean() > 0.05
    result = hf_sane.lineage(state, coarse, pruned(state))
    assert {x.child: (x.parents, x.change) for x in result.lineage.descents} == {
        "network 2": (("network 1",), "quantised"),
        "network 3": (("network 1",), "pruned"),
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_floats_are_read(dtype):
    state = root(0)
    (descent,) = hf_sane.lineage({n: x.to(dtype) for n, x in state.items()}, root(3), state).lineage.descents
    assert (descent.child, descent.parents, descent.change) == ("network 1", ("network 3",), "quantised")


def test_adapters_with_the_same_product_are_copies_of_each_other_and_of_the_merged_network(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {"fc.weight": torch.rand(40, 30, generator=generator) - 0.5}
    save_file(base, tmp_path / "base.safetensors")
    a, b = torch.randn(2, 30, generator=generator) / 8, torch.randn(40, 2, generator=generator) / 8
    mix = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    for name, (first, second) in {"one": (a, b), "two": (mix @ a, b @ mix.inverse())}.items():
        (tmp_path / name).mkdir()
        factors = {"base_model.model.fc.lora_A.weight": first, "base_model.model.fc.lora_B.weight": second}
        save_file({key: x.contiguous() for key, x in factors.items()}, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    save_file({"model.fc.weight": (base["fc.weight"] + b @ a)}, tmp_path / "merged.safetensors")
    sources = [tmp_path / name for name in ("one", "two", "merged.safetensors")]
    found = hf_sane.lineage(*sources, base=str(tmp_path / "base.safetensors")).lineage
    assert [(x.child, x.parents, x.change) for x in found.descents] == [
        (str(tmp_path / name), (str(tmp_path / "one"),), "copied") for name in ("two", "merged.safetensors")
    ]


def test_a_bare_model_is_paired_with_one_that_has_a_head_across_dtypes():
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    headed = BertForSequenceClassification(config).eval()
    bare = {name: x.clone() for name, x in headed.bert.state_dict().items()}
    halved = {name: x.half() for name, x in headed.state_dict().items()}
    compared = hf_sane.diff(bare, halved).difference
    assert compared.relation == "partly equal"
    assert set(compared.only_other) == {"classifier.weight", "classifier.bias"}
    assert compared.equal_shares[0] > 0.8
    assert all(x.other_name == f"bert.{x.name}" for x in compared.tensors)
    tuned_body = {name: x + 0.003 * torch.randn(x.shape) if x.is_floating_point() else x for name, x in bare.items()}
    for networks in ((bare, tuned_body, headed), (headed, bare, tuned_body)):
        assert len(hf_sane.lineage(*networks).lineage.families) == 1


def card(folder, base):
    (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\n")


def test_claims_prefer_the_exact_name_and_no_network_is_its_own_base(tmp_path):
    made = {"one/bert": root(0), "two/bert": root(1), "me/bert": tuned(root(1), 2), "me/other": root(3)}
    for name, state in made.items():
        (tmp_path / name).mkdir(parents=True)
        save_file(state, tmp_path / name / "model.safetensors")
    card(tmp_path / "me/bert", "two/bert")
    card(tmp_path / "me/other", "other")
    card(tmp_path / "one/bert", "bert")
    claims = hf_sane.lineage(*(tmp_path / name for name in made), claims=True, max_aligned=0).claims
    found = {str(Path(x.network).relative_to(tmp_path)): (x.base_model, x.verdict, x.reason) for x in claims}
    assert found["me/bert"][0] == "two/bert"
    assert found["me/bert"][2] != "several networks have its name"
    assert found["me/other"] == ("other", "unknown", "only the network itself has its name")
    assert found["one/bert"] == ("bert", "unknown", "several networks have its name")


def test_claims_are_read_from_cards_although_the_networks_cannot_be(tmp_path):
    for name, base in (("base", ""), ("module", "org/base"), ("again", "org/module")):
        (tmp_path / name).mkdir()
        if base:
            torch.save(torch.nn.Linear(3, 3), tmp_path / name / "pytorch_model.bin")  # which needs the code of a class
            card(tmp_path / name, base)
    save_file(root(0), tmp_path / "base" / "model.safetensors")
    for names in (("base", "module", "again"), ("module", "again")):
        result = hf_sane.lineage(*(tmp_path / name for name in names), claims=True)
        assert len(result.lineage.skipped) == 2
        reason = "the network could not be compared" if "base" in names else "it is not among the networks"
        assert [(x.base_model, x.verdict, x.reason) for x in result.claims] == [
            ("org/base", "unknown", reason),
            ("org/module", "unknown", "the network could not be compared"),
        ]
    with pytest.raises(ValueError, match="expected networks, found none that can be read"):
        hf_sane.lineage(tmp_path / "module", tmp_path / "again")


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(tmp_path, hf_sane_command):
    state = root(0)
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    save_file(tuned(state, 1), tmp_path / "b" / "model.safetensors")
    (tmp_path / "b" / "README.md").write_text("---\nbase_model: [\n---\n")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    names = [str(tmp_path / name) for name in ("a.safetensors", "broken.safetensors", "b", "missing.safetensors")]
    result = hf_sane.lineage(*names, claims=True)
    assert result.lineage.families == ((names[0], names[2]),)
    assert set(result.lineage.skipped) == set(json.loads(result.to_json())["skipped"]) == {names[1], names[3]}
    assert f"skipped {names[1]}: " in str(result)
    with pytest.raises(ValueError, match="expected networks, found none that can be read"):
        hf_sane.lineage(names[1], names[3])


def saved(folder, **made):
    """Networks as folders."""
    for name, state in made.items():
        (folder / name).mkdir()
        save_file({key: x.contiguous() for key, x in state.items()}, folder / name / "model.safetensors")
    return [folder / name for name in made]


def test_copies_share_their_ancestors_and_descendants(tmp_path):
    base = root(0)
    half = pruned(base)
    networks = saved(tmp_path, base=base, same_base=base, half=half, same_half=half, other=root(1))
    card(tmp_path / "half", tmp_path / "same_base")
    card(tmp_path / "same_half", f"[{tmp_path / 'base'}, {tmp_path / 'base'}]")
    result = hf_sane.lineage(networks, claims=True)
    assert [(short(x.network), short(x.base_model), x.verdict) for x in result.claims] == [
        ("half", "same_base", "supported"),
        ("same_half", "base", "supported"),
    ]
    assert all(x.confidence > 0.9 for x in result.claims)
    ancestors = {short(name): sure for name, sure in result.lineage.ancestors(str(tmp_path / "same_half")).items()}
    assert ancestors["half"] == 0.5  # either came first
    assert ancestors["base"] == ancestors["same_base"] > 0.9


@pytest.mark.parametrize("base", ["3", "{a: b}", "' org/x '", "", "[3, org/x]"])
def test_a_strange_claim_stops_nothing(base, tmp_path):
    networks = saved(tmp_path, a=root(0), b=tuned(root(0), 1))
    card(tmp_path / "a", base)
    claims = hf_sane.lineage(networks, claims=True).claims
    assert {x.verdict for x in claims} <= {"unknown"}
    assert [x.base_model for x in claims if "org" in x.base_model] == (["org/x"] if "org" in base else [])


def test_networks_that_cannot_be_compared_are_listed_with_the_reason(tmp_path):
    state = root(0)
    name = next(name for name, x in state.items() if x.ndim > 1)
    broken = state | {name: state[name].clone().index_fill_(0, torch.tensor([3]), torch.nan)}
    bias = next(name for name, x in state.items() if x.ndim == 1)
    numb = state | {bias: torch.full_like(state[bias], torch.inf)}
    networks = saved(tmp_path, a=state, b=tuned(state, 1), broken=broken, numb=numb, vectors={"x": torch.ones(9)})
    card(tmp_path / "broken", tmp_path / "a")
    result = hf_sane.lineage([*networks, f"{networks[0]}/."], claims=True)
    reasons = {short(name): reason for name, reason in result.lineage.skipped.items()}
    assert reasons == {
        "broken": f"there are NaN or infinite weights in {name}",
        "numb": f"there are NaN or infinite weights in {bias}",
        "vectors": "it has no matrices of real numbers, which are compared",
    }
    assert [sorted(map(short, family)) for family in result.lineage.families] == [["a", "b"]]
    (claim,) = result.claims
    assert (claim.verdict, claim.reason) == ("unknown", "the network could not be compared")
    integers = {key: (100 * x).to(torch.int8) for key, x in state.items()}
    assert len(hf_sane.lineage(integers, state, tuned(state, 1)).lineage.families) == 1


@pytest.mark.parametrize("rows", [10, 20])
def test_an_equal_trunk_under_a_new_head_is_the_same_family(rows):
    generator = torch.Generator().manual_seed(0)
    trunk = {f"{i}.weight": torch.randn(40, 40, generator=generator) for i in range(3)}
    heads = [scale * torch.randn(count, 40, generator=generator) for scale, count in ((1, 10), (30, rows))]
    first, other = (trunk | {"head.weight": head} for head in heads)
    tuned_trunk = {name: x + 0.1 * torch.randn(x.shape, generator=generator) for name, x in first.items()}
    found = hf_sane.lineage(first, other, tuned_trunk).lineage
    assert len(found.families) == 1
    assert [x.change for x in found.descents if "network 2" in (x.child, *x.parents)] == ["partly copied"]
    strangers = {name: torch.randn(x.shape, generator=generator) for name, x in first.items()}
    assert len(hf_sane.lineage(first, strangers).lineage.families) == 2


def test_a_missing_configuration_is_called_so(tmp_path):
    networks = saved(tmp_path, a=root(0), b=tuned(root(0), 1))
    (reason,) = hf_sane.lineage(networks).lineage.unaligned.values()
    assert reason.startswith("there is no config.json next to the weights; pass the code of the network")


@pytest.mark.parametrize("described", ["a", "b"])
def test_one_configuration_is_enough_to_align_two_networks(described, tmp_path):
    networks = saved(tmp_path, a=root(0), b=permuted(tuned(root(0), 1), 2))
    CONFIG.save_pretrained(tmp_path / described)
    found = hf_sane.lineage(networks).lineage
    assert not found.unaligned
    assert len(found.families) == 1
    assert list(found.aligned.values()) == ["permuted"]


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_fixed_tables_do_not_make_independent_networks_a_family(noise, tmp_path):
    """Sinusoids, and the logarithms from which a Mamba is trained, have larger norms than all other weights."""

    def independent(seed):
        generator = torch.Generator().manual_seed(seed)
        angles = torch.arange(300)[:, None] * 10_000 ** (-torch.arange(16) / 15)
        state = {f"{i}.weight": 0.05 * torch.randn(40, 40, generator=generator) for i in range(3)}
        logarithms = torch.log(torch.arange(1.0, 17)).expand(80, 16)
        tables = {"positions": torch.cat([angles.sin(), angles.cos()], dim=1), "A_log": logarithms}
        return state | {name: x + noise * torch.randn(x.shape, generator=generator) for name, x in tables.items()}

    base = independent(0)
    small = {name: x + 0.1 * x.std() * torch.randn(x.shape) if "weight" in name else x for name, x in base.items()}
    networks = saved(tmp_path, base=base, liar=independent(1), tuned=small)
    for name in ("liar", "tuned"):
        card(tmp_path / name, tmp_path / "base")
    result = hf_sane.lineage(networks, claims=True)
    assert [list(map(short, family)) for family in result.lineage.families] == [["base", "tuned"], ["liar"]]
    liar = result.claims[0]
    assert (liar.verdict, liar.reason[:28]) == ("unknown", "their weights are far apart,")


def test_heads_are_compared_in_any_order_of_the_networks(tmp_path):
    generator = torch.Generator().manual_seed(0)
    bare = {f"layer.{i}.weight": torch.randn(40, 40, generator=generator) for i in range(3)}

    def under(prefix, trunk, head):
        return {f"{prefix}{name}": x for name, x in trunk.items()} | {f"{prefix}head.weight": head}

    heads = [torch.randn(10, 40, generator=generator) for _ in range(2)]
    moved = {name: x + 0.1 * torch.randn(x.shape, generator=generator) for name, x in bare.items()}
    later = {name: x + 0.1 * torch.randn(x.shape, generator=generator) for name, x in moved.items()}
    made = {
        "trunk": bare,
        "one": under("model.", bare, heads[0]),
        "two": under("", bare, heads[1]),
        "two_again": under("model.", bare, heads[1]),
        "tuned": under("net.", moved, heads[1] + 0.01 * torch.randn(10, 40, generator=generator)),
        "later": under("", later, heads[1] + 0.02 * torch.randn(10, 40, generator=generator)),
    }
    saved(tmp_path, **made)
    trees = []
    for order in (list(made), list(made)[::-1], ["two_again", "later", "one", "tuned", "trunk", "two"]):
        found = hf_sane.lineage([tmp_path / name for name in order]).lineage
        assert len(found.families) == 1
        edges = {short(x.child): (short(x.parents[0]), x.change, round(x.confidence, 9)) for x in found.descents}
        assert edges["one"] == ("trunk", "partly copied", 0.5)
        pair = ("two", "two_again") if order.index("two") < order.index("two_again") else ("two_again", "two")
        assert edges[pair[0]] == ("trunk", "partly copied", 0.5)
        assert edges[pair[1]] == (pair[0], "copied", 0.5)
        trees.append({name: edges[name] for name in edges if name not in ("one", *pair)})
    assert trees[0]
    assert all({n: e[1:] for n, e in t.items()} == {n: e[1:] for n, e in trees[0].items()} for t in trees)
    assert all(edge[0] not in ("one", "trunk") or name == "trunk" for t in trees for name, edge in t.items())


def test_a_copy_of_which_one_layer_was_permuted_is_aligned(tmp_path):
    state = root(0)
    spec = permutation_spec(CONFIG)
    order = spec.identity()
    axis = list(order)[-1]
    order[axis] = order[axis].flip(0)
    moved = spec.apply(state, order)
    equal = sum(x.numel() for name, x in state.items() if x.ndim > 1 and torch.equal(x, moved[name]))
    assert equal > 0.1 * sum(x.numel() for x in state.values())
    for name, network in {"a": state, "b": moved}.items():
        CONFIG.save_pretrained(tmp_path / name)
        save_file(network, tmp_path / name / "model.safetensors")
    found = hf_sane.lineage(tmp_path / "a", tmp_path / "b").lineage
    assert [(x.change, x.distance) for x in found.descents] == [("copied", 0)]
    assert list(found.aligned.values()) == ["permuted"]


def test_confidences_do_not_depend_on_the_order_of_the_networks():
    """A tree with an average, a chain whose ends are far apart, and networks that are not related to them."""
    base = root(0)
    one, two = tuned(base, 1, 0.2), tuned(base, 2)
    made = {"base": base, "one": one, "two": two, "soup": {name: (one[name] + two[name]) / 2 for name in base}}
    made |= {"pruned": pruned(one), "half": {name: x.half() for name, x in base.items()}, "grid": quantised(two)}
    chain = [root(5)]
    for seed in (6, 7, 8):
        chain.append(tuned(chain[-1], seed, 0.6))
    made |= {f"chain{i}": x for i, x in enumerate(chain)} | {"stranger": root(9), "other": root(10)}
    names = list(made)
    orders = [names, names[::-1], *(random.Random(seed).sample(names, len(names)) for seed in range(2))]
    results = []
    for order in orders:
        found = trace_lineage({name: made[name] for name in order})
        assert found.families == tuple(tuple(x for x in order if x in family) for family in found.families)
        edges = {(x.child, *sorted(x.parents)): (x.change, pytest.approx(x.confidence)) for x in found.descents}
        results.append((edges, {frozenset(family) for family in found.families}, set(found.doubtful)))
    assert all(result == results[0] for result in results)
    assert results[0][1] >= {frozenset(x) for x in (names[:7], ["stranger"], ["other"])}


def test_a_gated_network_that_was_reordered_and_rescaled_is_a_copy(tmp_path):
    """Canonical scales alone do not find its units again: each was scaled by another factor, from 0.3 to 3.3."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=96))
    model.save_pretrained(tmp_path / "first")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in model.model.layers:
            factors, order = torch.rand(48, generator=generator) * 3 + 0.3, torch.randperm(48, generator=generator)
            gate, up, down = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight
            gate.copy_(gate[order])
            up.copy_((up * factors[:, None])[order])
            down.copy_((down / factors)[:, order])
    model.save_pretrained(tmp_path / "second")
    (descent,) = hf_sane.lineage(tmp_path / "first", tmp_path / "second").lineage.descents
    assert descent.change == "copied"
    assert descent.distance < 1e-5
