"""Each rule finds what it is for, and nothing in a network that is as it should be."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.screening._checkpoints import Surroundings
from hf_sane.screening._finding import SEVERITIES, Finding
from hf_sane.screening._findings import RULES, Evidence, find_faults, register_rule
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


def low_rank() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(80, 2, generator=generator) @ torch.randn(2, 60, generator=generator)


def drawn(std: float) -> torch.Tensor:
    return std * torch.randn(80, 60, generator=torch.Generator().manual_seed(0))


def experts(scale: float) -> dict[str, torch.Tensor]:
    return network() | {f"experts.{i}.w": trained(20 + i, scale if i == 1 else 0.1) for i in range(4)}


def with_value(value: float, dtype: torch.dtype) -> torch.Tensor:
    weight = trained(4)
    weight[0, 0] = value
    return weight.to(dtype)


def nudged(weight: torch.Tensor) -> torch.Tensor:
    weight[5, 7] += 1e-3
    return weight


CODE, PICKLES = Surroundings(code=("modeling_x.py",), licence="mit"), Surroundings(pickles=("x.bin",), licence="mit")
# Rule: what it finds, how severe that is and a part of the message; and what resembles it, but is no fault.
TABLE = {
    "nan": (
        changed("layer4.weight", with_nan()),
        "error",
        "1 NaN and 1 infinite among 4,800 values",
        changed("layer4.weight", with_value(3e38, torch.float32)),
    ),
    "constant": (
        changed("layer4.weight", torch.ones(80, 60)),
        "warning",
        "all values that were read are equal",
        network() | {"layer4.bias": torch.ones(80), "positions": torch.zeros(3, 4, dtype=torch.int64)},
    ),
    "duplicate": (
        changed("layer4.weight", trained(7)),
        "warning",
        "layer4.weight, layer7.weight",
        changed("layer4.weight", nudged(trained(7))) | {"layer0.other_shape": trained(7).T.contiguous()},
    ),
    "tied": (
        network() | {"embed.weight": trained(20), "lm_head.weight": trained(20)},
        "note",
        "embed.weight, lm_head.weight",
        network() | {"embed.weight": trained(20), "lm_head.weight": trained(21)},
    ),
    "untrained": (
        changed("layer4.weight", torch.rand(80, 60, generator=torch.Generator().manual_seed(0)) - 0.5),
        "warning",
        "1 matrix looks untrained beside 9 that look trained (its values are uniform, and independent according to "
        "the spectrum): layer4.weight",
        changed("layer4.weight", drawn(0.02)),
    ),
    "outlier": (
        changed("layer4.weight", trained(4, 10.0)),
        "warning",
        "times as large as the median of the matrices",
        changed("layer4.weight", trained(4, 0.3)),
    ),
    "expert": (experts(0.001), "warning", "as small as the median of the 4 experts", experts(0.05)),
    "rank": (
        changed("layer4.weight", low_rank()),
        "warning",
        "layer4.weight",
        changed("layer4.weight", low_rank() + drawn(1.0)),
    ),
    "overflow": (
        changed("layer4.weight", with_value(4e4, torch.float16)),
        "warning",
        "in float16, whose limit is 65,504",
        changed("layer4.weight", with_value(3e4, torch.float16)) | {"layer5.weight": with_value(6e4, torch.float32)},
    ),
    "quantised": (
        network() | {"a.weight": torch.ones(9, 8, dtype=torch.int8), "a.SCB": torch.ones(9)},
        "note",
        "codes of a quantisation (bitsandbytes, 8 bits)",
        network() | {"a.weight": torch.ones(9, 8, dtype=torch.int8)},
    ),
    "remote-code": (CODE, "warning", "modeling_x.py", PICKLES),
    "pickle": (PICKLES, "warning", "x.bin", CODE),
    "licence": (Surroundings(has_card=True), "note", "no licence", Surroundings(licence="mit", has_card=True)),
}


def judged(case: dict[str, torch.Tensor] | Surroundings, rule: str) -> list[Finding]:
    tensors, around = (network(), case) if isinstance(case, Surroundings) else (case, GOOD)
    return [
        finding for finding in findings(tensors, around, spectra=rule in ("rank", "untrained")) if finding.rule == rule
    ]


def test_every_rule_is_in_the_table():
    assert TABLE.keys() == {*RULES}


@pytest.mark.parametrize("rule", TABLE)
def test_a_rule_finds_its_fault_and_nothing_that_resembles_it(rule):
    faulty, severity, text, spared = TABLE[rule]
    (found,) = judged(faulty, rule)
    assert (found.severity, text in found.message) == (severity, True), found.message
    assert found.remedy
    assert set(found.tensors) <= (faulty.keys() if isinstance(faulty, dict) else set())
    assert judged(spared, rule) == []


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ("shared.weight encoder.embed_tokens.weight decoder.embed_tokens.weight lm_head.weight", "tied"),
        ("bert.embeddings.word_embeddings.weight cls.predictions.decoder.weight", "tied"),
        ("model.embed_tokens.weight model.layers.61.embed_tokens.weight", "tied"),
        ("gpt_neox.embed_in.weight embed_out.weight", "tied"),
        ("model.decoder.embed_tokens.weight proj_out.weight", "tied"),
        ("token_embd.weight output.weight", "tied"),
        ("model.decoder.layers.0.fc1.weight model.decoder.layers.1.fc1.weight", "duplicate"),
        ("layers.0.mlp.shared_expert.up.weight layers.1.mlp.shared_expert.up.weight", "duplicate"),
        ("layers.0.mlp.shared.weight layers.1.mlp.shared.weight", "duplicate"),
        ("encoder.embed_tokens.weight decoder.layers.0.fc1.weight", "duplicate"),
        ("lm_head.weight heads.lm_head.weight", "duplicate"),
    ],
)
def test_only_embeddings_and_output_heads_are_tied(names, rule):
    found = findings(network() | {name: trained(20) for name in names.split()})
    assert [(x.rule, x.tensors) for x in found] == [(rule, tuple(names.split()))]


def test_what_config_json_says_of_tied_embeddings_is_compared_with_the_weights():
    same = network() | {"embed_tokens.weight": trained(20), "lm_head.weight": trained(20)}
    other = same | {"lm_head.weight": trained(21)}
    one = {name: x for name, x in same.items() if "head" not in name}
    reshaped = one | {"lm_head.weight": trained(21, shape=(81, 60))}  # for another vocabulary

    def found(tensors, *, said):
        return [(x.rule, x.severity) for x in findings(tensors, replace(GOOD, are_tied=said))]

    assert found(same, said=True) == found(same, said=None) == [("tied", "note")]
    assert found(same, said=False) == found(other, said=True) == [("tied", "warning")]
    assert found(other, said=False) == found(other, said=None) == []
    assert all(found(tensors, said=said) == [] for tensors in (one, reshaped) for said in (True, False, None))
    inputs = network() | {"shared.weight": trained(20), "encoder.embed_tokens.weight": trained(20)}
    assert found(inputs, said=False) == [("tied", "note")]  # encoder and decoder, and no head


def test_single_rows_are_not_compared_with_matrices():
    assert findings(network() | {"cls_token": 1e-4 * trained(20, shape=(1, 500)).reshape(1, 1, 500)}) == []


def test_a_fresh_network_is_untrained_as_a_whole():
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(60, 80), nn.Linear(80, 60)).state_dict()
    (found,) = findings(fresh)
    assert found.message == "2 of 2 matrices look freshly initialised (uniform)"


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
    ("tensors", "scheme", "codes"),
    [
        ({"x.qweight": torch.int32, "x.qzeros": torch.int32, "x.scales": torch.float16}, "GPTQ or AWQ", "x.qweight"),
        ({"x.weight": torch.int8, "x.weight_scale": torch.float32}, "compressed-tensors", "x.weight"),
        (
            {"x.weight": torch.int8, "x.weight_scale": torch.bfloat16, "x.weight_zero_point": torch.int8},
            "compressed-tensors",
            "x.weight",
        ),
        ({"x.weight": torch.float8_e4m3fn, "x.weight_scale_inv": torch.float32}, "compressed-tensors", "x.weight"),
        ({"x.weight": torch.uint8, "x.weight.absmax": torch.float32}, "bitsandbytes, 4 bits", "x.weight"),
        (
            {"experts.down_proj_blocks": torch.uint8, "experts.down_proj_scales": torch.uint8},
            "MXFP4",
            "experts.down_proj_blocks",
        ),
    ],
)
def test_codes_of_quantisations_are_recognised_and_not_judged_as_weights(tensors, scheme, codes):
    values = {name: (30 * trained(50)).clamp(-100, 100).to(dtype) for name, dtype in tensors.items()}
    evidence = Evidence([tensor_statistics(name, x) for name, x in (network() | values).items()])
    assert {x.name for x in evidence.matrices} == {name for name in network() if name.endswith("weight")}
    (found,) = [x for x in find_faults(evidence) if x.rule in ("quantised", "outlier")]
    assert found.tensors == (codes,)
    assert scheme in found.message


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
