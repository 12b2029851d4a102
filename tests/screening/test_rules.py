"""Each rule finds what it is for, and nothing in a network that is as it should be."""

import pytest
import torch
from torch import nn

from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.screening._checkpoints import Surroundings
from hf_sane.screening._findings import RULES, SEVERITIES, Evidence, Finding, find_faults, register_rule
from hf_sane.screening._statistics import tensor_statistics

GOOD = Surroundings(licence="mit", has_card=True)


def trained(seed: int, scale: float = 0.1, shape: tuple[int, int] = (80, 60)) -> torch.Tensor:
    """Values with the heavy tail and the large directions of trained layers."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randn(size, 3, generator=generator) for size in shape)
    return scale * (torch.randn(shape, generator=generator) + rows @ columns.mT)


def network() -> dict[str, torch.Tensor]:
    return {f"layer{index}.weight": trained(index) for index in range(10)} | {"layer0.bias": torch.zeros(80)}


def findings(tensors: dict[str, torch.Tensor], around: Surroundings = GOOD, *, spectra: bool = False) -> list[Finding]:
    report = analyze_spectrum(tensors, SpectrumSettings(num_bootstrap=0)) if spectra else None
    return find_faults(Evidence([tensor_statistics(name, x) for name, x in tensors.items()], report, around))


def test_nothing_is_wrong_with_a_trained_network():
    assert findings(network(), spectra=True) == []


def changed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return network() | {name: value}


def with_nan() -> torch.Tensor:
    weight = trained(4)
    weight[3, 5], weight[0, 0] = torch.nan, torch.inf
    return weight


FAULTY = {
    "nan": (changed("layer4.weight", with_nan()), "error", "1 NaN and 1 infinite of 4,800 values"),
    "constant": (changed("layer4.weight", torch.ones(80, 60)), "warning", "all values that were read are equal"),
    "duplicate": (
        changed("layer4.weight", trained(7)),
        "warning",
        "the same values, in layer4.weight, layer7.weight",
    ),
    "tied": (
        network() | {"embed.weight": trained(20), "lm_head.weight": trained(20)},
        "note",
        "tied copies: embed.weight, lm_head.weight",
    ),
    "untrained": (
        changed("layer4.weight", 0.02 * torch.randn(80, 60, generator=torch.Generator().manual_seed(0))),
        "warning",
        "as an initialisation draws them (normal with std 0.02), unlike the other matrices: layer4.weight",
    ),
    "outlier": (changed("layer4.weight", trained(4, 10.0)), "warning", "times as large as the median of the matrices"),
    "overflow": (
        changed("layer4.weight", trained(4, 1e4).half()),
        "warning",
        "in float16, which ends at 65,504, in layer4.weight",
    ),
}


@pytest.mark.parametrize("rule", FAULTY)
def test_a_fault_is_found(rule):
    tensors, severity, text = FAULTY[rule]
    found = [finding for finding in findings(tensors) if finding.rule == rule]
    assert len(found) == 1
    assert (found[0].severity, text in found[0].message) == (severity, True), found[0].message
    assert set(found[0].tensors) <= tensors.keys()
    assert found[0].remedy


def test_rank_collapse_is_found():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(80, 2, generator=generator) @ torch.randn(2, 60, generator=generator)
    found = findings(changed("layer4.weight", low), spectra=True)
    assert [(x.rule, x.tensors) for x in found if x.rule == "rank"] == [("rank", ("layer4.weight",))]


def test_a_fresh_network_is_untrained_as_a_whole():
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(60, 80), nn.Linear(80, 60)).state_dict()
    (found,) = findings(fresh)
    assert found.message == "2 of 2 matrices are as an initialisation draws them (uniform)"


def test_an_adapter_that_changes_nothing_is_untrained():
    tensors = {"a.lora_A.weight": trained(0), "a.lora_B.weight": torch.zeros(60, 8)}
    (found,) = findings(tensors)
    assert (found.rule, found.tensors) == ("untrained", ("a.lora_B.weight",))


def test_what_a_cast_would_lose_is_a_note():
    wide = trained(4)
    wide[0, 0] = 1e6
    found = [x for x in findings(changed("layer4.weight", wide)) if x.rule == "overflow"]
    assert [(x.severity, x.message) for x in found] == [("note", "values up to 1e+06 in layer4.weight")]


@pytest.mark.parametrize(
    ("around", "rule", "severity"),
    [
        (Surroundings(code=("modeling_x.py",), licence="mit"), "remote-code", "warning"),
        (Surroundings(pickles=("pytorch_model.bin",), licence="mit"), "pickle", "warning"),
        (Surroundings(has_card=True), "licence", "note"),
    ],
)
def test_what_lies_beside_the_weights(around, rule, severity):
    assert [(x.rule, x.severity) for x in findings(network(), around)] == [(rule, severity)]


def test_a_single_file_needs_no_licence():
    assert findings(network(), Surroundings()) == []


def test_the_gravest_comes_first():
    tensors = changed("layer4.weight", with_nan()) | {"embed.a": trained(30), "embed.b": trained(30)}
    order = [SEVERITIES.index(x.severity) for x in findings(tensors, Surroundings(has_card=True))]
    assert order == sorted(order)
    assert len(set(order)) > 1


def test_a_rule_can_be_added(monkeypatch):
    monkeypatch.setattr(RULES, "_entries", dict(RULES._entries))

    @register_rule("many")
    def many(evidence):
        yield Finding("many", "note", f"{len(evidence.tensors)} tensors", "none")

    assert [x.message for x in findings(network())] == ["11 tensors"]
    with pytest.raises(ValueError, match="there is a rule 'many' already"):
        register_rule("many")(many)
