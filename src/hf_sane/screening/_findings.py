"""Rules for faults, with one function per rule."""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from hf_sane.analysis._report import SpectrumReport
from hf_sane.records._errors import name_some, shorten
from hf_sane.records._registry import Registry
from hf_sane.screening._checkpoints import Surroundings
from hf_sane.screening._experts import expert_group
from hf_sane.screening._finding import SEVERITIES, Finding, about
from hf_sane.screening._initialization import can_be_judged, initialization_of, is_independent, is_undecided
from hf_sane.screening._quantisation import find_codes
from hf_sane.screening._statistics import TensorStatistics
from hf_sane.screening._vocabulary import are_tied, role_of

MAX_FLOAT16 = 65504.0
MIN_PEERS = 8  # least number of matrices to detect outliers
OUTLIER = 6.0  # robust standard deviations of the logarithm of the scale
LEAST_SPREAD = 0.25  # least spread of these logarithms, so that very uniform layers do not create outliers
MIN_EXPERTS = 3  # least number of siblings
SURE = 8.0  # standard errors by which two samples differ for certain
ROUNDING = 0.01  # of a standard deviation, by which types may differ
STRANGE_EXPERT = 4.0  # ratio to the median of its siblings, or its inverse


@dataclass(frozen=True)
class Evidence:
    """Input of the rules.

    Attributes:
        tensors: Statistics of all tensors.
        spectra: Spectra of the matrices that were read in full; `None` if there are none.
        surroundings: Files next to the weights.
        tables: Names of fixed tables of positions, such as sinusoids, which no rule on matrices is about.
    """

    tensors: Sequence[TensorStatistics]
    spectra: SpectrumReport | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    tables: Set[str] = frozenset()

    @property
    def matrices(self) -> list[TensorStatistics]:
        """Tensors of weights with at least two axes and different finite values, without fixed tables."""
        codes, parts = find_codes(self.tensors)
        left_out = codes.keys() | parts | self.tables
        return [
            x for x in self.tensors if len(x.shape) >= 2 and x.is_floating and x.std > 0 and x.name not in left_out
        ]


Rule = Callable[[Evidence], Iterator[Finding]]
RULES: Registry[Rule] = Registry("rule")


def register_rule(name: str) -> Callable[[Rule], Rule]:
    """Add a rule to every scan; use it as a decorator.

    Args:
        name: Name of the rule for `--fail-on` and in findings; must be new.

    Raises:
        ValueError: If the name is taken.
    """

    def add(rule: Rule) -> Rule:
        RULES.add(name, rule)
        return rule

    return add


def find_faults(evidence: Evidence) -> list[Finding]:
    """Findings of all rules, the most severe first."""
    return by_severity([finding for name in RULES for finding in RULES.find(name)(evidence)])


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in the same order, but the most severe first."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


@register_rule("nan")
def not_finite(evidence: Evidence) -> Iterator[Finding]:
    """NaN and infinite values."""
    broken = [x for x in evidence.tensors if x.nan or x.infinite]
    if broken:
        counts = [(sum(x.nan for x in broken), "NaN"), (sum(x.infinite for x in broken), "infinite")]
        what = " and ".join(f"{count:,} {word}" for count, word in counts if count)
        read = sum(x.num_read for x in broken)
        remedy = "the network cannot give sensible outputs: use an earlier checkpoint"
        message = f"{what} among {read:,} values that were read, in"
        yield about("nan", "error", message, [x.name for x in broken], remedy)


@register_rule("constant")
def constant(evidence: Evidence) -> Iterator[Finding]:
    """Matrices whose values are all equal."""
    flat = [x for x in evidence.tensors if len(x.shape) >= 2 and x.num_read > 1 and x.low == x.high]
    fresh = [x.name for x in flat if "lora_B" in x.name or "lora_up" in x.name]
    if fresh:
        message = "the adapter has no effect: the second factor is all zero in"
        yield about("untrained", "warning", message, fresh, "train it, or use the trained adapter")
    codes, _ = find_codes(evidence.tensors)
    if names := [x.name for x in flat if x.name not in fresh and (x.is_floating or x.name in codes)]:
        remedy = "such a layer passes on no information: check whether it was saved before training, or pruned"
        yield about("constant", "warning", "all values that were read are equal in", names, remedy)


@register_rule("duplicate")
def duplicate(evidence: Evidence) -> Iterator[Finding]:
    """Tensors with the same values."""
    groups: dict[tuple[object, ...], list[TensorStatistics]] = {}
    for tensor in evidence.matrices:
        groups.setdefault((tensor.shape, tensor.dtype, tensor.digest), []).append(tensor)
    for group in groups.values():
        names = [x.name for x in group]
        if len(group) < 2:
            continue
        where = "" if all(x.is_whole for x in group) else ", wherever they were read"
        if are_tied(names):
            if evidence.surroundings.are_tied is False and any(role_of(name) == "head" for name in names):
                message = f"config.json says that embeddings and head are not tied, but they are equal{where}:"
                remedy = "check whether the head was trained, or set tie_word_embeddings to true"
                yield about("tied", "warning", message, names, remedy)
                continue
            remedy = "save them once (safetensors.torch.save_model keeps one of them)"
            yield about("tied", "note", f"tied copies{where}:", names, remedy)
        else:
            remedy = "trained layers never have the same values: check whether one was copied"
            yield about("duplicate", "warning", f"the same values{where}, in", names, remedy)


@register_rule("tied")
def not_tied(evidence: Evidence) -> Iterator[Finding]:
    """Output heads that differ from the embeddings, although `config.json` says that they are the same."""
    if evidence.surroundings.are_tied is not True:
        return
    inputs = [x for x in evidence.matrices if role_of(x.name) == "input"]
    for head in (x for x in evidence.matrices if role_of(x.name) == "head"):
        same_shape = [x for x in inputs if x.shape == head.shape]
        if same_shape and all(_differ(x, head) for x in same_shape):
            names = [*(x.name for x in same_shape), head.name]
            remedy = "set tie_word_embeddings to false, or the head is replaced when the network is loaded"
            message = "config.json says that embeddings and head are tied, but they differ:"
            yield about("tied", "warning", message, names, remedy)


def _differ(a: TensorStatistics, b: TensorStatistics) -> bool:
    """Whether two tensors differ for certain; samples may have been read in different places."""
    if a.is_whole and b.is_whole and a.dtype == b.dtype:
        return a.digest != b.digest
    return abs(a.std - b.std) > SURE * math.hypot(a.std_error, b.std_error) + ROUNDING * max(a.std, b.std)


@register_rule("untrained")
def untrained(evidence: Evidence) -> Iterator[Finding]:
    """Matrices that look untrained: all of them, or single ones that were read in full."""
    spectra = {layer.name: layer for layer in evidence.spectra.layers} if evidence.spectra is not None else {}
    judged = [x for x in evidence.matrices if can_be_judged(x) and not is_undecided(x, spectra.get(x.name))]
    found = {x.name: initialization_of(x, spectra.get(x.name)) for x in judged}
    drawn = {name: kind for name, kind in found.items() if kind is not None}
    if len(drawn) < len(judged):  # a sample of a single matrix is no evidence, as there are many matrices
        drawn = {name: kind for name, kind in drawn.items() if is_independent(spectra.get(name))}
    vectors = [x for x in evidence.tensors if len(x.shape) == 1 and x.num_read > 1 and x.is_floating]
    if len(drawn) < len(judged) or any(x.low != x.high for x in vectors):
        # Matrices that were trained briefly are still normal, but biases and norms start with equal values.
        drawn = {name: kind for name, kind in drawn.items() if not kind.startswith("normal")}
    if not drawn:
        return
    kinds = ", ".join(sorted(set(drawn.values())))
    if len(drawn) == len(judged):
        total = len(evidence.matrices)
        known = "" if len(judged) == total else f" that can be judged, of {total}, "
        message = f"{len(drawn)} of {len(judged)} matrices{known or ' '}look freshly initialised ({kinds})"
        remedy = "load trained weights before using the network"
    else:
        trained = sum(kind is None for kind in found.values())
        beside = f" beside {trained} that look trained" if trained else ""
        looks, whose = ("matrix looks", "its") if len(drawn) == 1 else ("matrices look", "their")
        reason = f"{whose} values are {kinds}, and independent according to the spectrum"
        message = f"{len(drawn)} {looks} untrained{beside} ({reason}): {name_some(list(drawn))}"
        remedy = (
            "train a head that was added for fine-tuning; otherwise, trained weights were lost, for example because "
            "names did not match when they were loaded: load them again"
        )
    yield Finding("untrained", "warning", message, remedy, tuple(drawn))


@register_rule("outlier")
def outlier(evidence: Evidence) -> Iterator[Finding]:
    """Matrices on a different scale than all others."""
    # A single row, such as the token of a class, is a vector.
    matrices = [x for x in evidence.matrices if min(x.shape[0], math.prod(x.shape[1:])) > 1]
    if len(matrices) < MIN_PEERS:
        return
    scales = np.log([x.std for x in matrices])
    middle = np.median(scales)
    spread = max(1.4826 * float(np.median(np.abs(scales - middle))), LEAST_SPREAD)
    for tensor, scale in zip(matrices, scales, strict=True):
        if abs(scale - middle) > OUTLIER * spread:
            yield Finding(
                "outlier",
                "warning",
                f"{shorten(tensor.name)} has a standard deviation of {tensor.std:.3g}, "
                f"{math.exp(abs(scale - middle)):.0f} times as {'large' if scale > middle else 'small'} as the median "
                "of the matrices",
                "check whether training diverged there, or the layer was rescaled",
                (tensor.name,),
            )


@register_rule("expert")
def strange_expert(evidence: Evidence) -> Iterator[Finding]:
    """Experts on a different scale than their siblings."""
    groups: dict[str, list[TensorStatistics]] = {}
    for tensor in evidence.matrices:
        if (group := expert_group(tensor.name)) is not None:
            groups.setdefault(group, []).append(tensor)
    for siblings in groups.values():
        middle = float(np.median([x.std for x in siblings]))
        for tensor in siblings if len(siblings) >= MIN_EXPERTS else ():
            ratio = tensor.std / middle
            if max(ratio, 1 / ratio) > STRANGE_EXPERT:
                size = f"{ratio:.3g} times as large as" if ratio > 1 else f"{1 / ratio:.3g} times as small as"
                yield Finding(
                    "expert",
                    "warning",
                    f"{shorten(tensor.name)} has a standard deviation of {tensor.std:.3g}, {size} the median of the "
                    f"{len(siblings)} experts",
                    "a small expert may be dead: check how often it is chosen",
                    (tensor.name,),
                )


@register_rule("rank")
def rank_collapse(evidence: Evidence) -> Iterator[Finding]:
    """Matrices of low rank."""
    layers = evidence.spectra.layers if evidence.spectra is not None else ()
    collapsed = [layer.name for layer in layers if layer.phase == "rank-collapse"]
    if names := [name for name in collapsed if name not in evidence.tables]:
        remedy = "the layer uses few directions: see hf-sane analyze; a smaller rank may be enough"
        yield about("rank", "warning", "rank collapse in", names, remedy)


@register_rule("overflow")
def overflow(evidence: Evidence) -> Iterator[Finding]:
    """Values that the type can barely represent, or that a common cast would lose."""
    finite = [x for x in evidence.tensors if math.isfinite(x.largest)]
    if near := [x for x in finite if x.dtype == "float16" and x.largest > MAX_FLOAT16 / 2]:
        message = f"values up to {max(x.largest for x in near):,.0f} in float16, whose limit is {MAX_FLOAT16:,.0f}, in"
        yield about("overflow", "warning", message, [x.name for x in near], "store them as bfloat16 or float32")
    wide = [x for x in finite if x.dtype in ("bfloat16", "float32", "float64") and x.largest > MAX_FLOAT16]
    if wide:
        message, remedy = (
            f"values up to {max(x.largest for x in wide):.3g} in",
            "a cast to float16 would make them infinite",
        )
        yield about("overflow", "note", message, [x.name for x in wide], remedy)


@register_rule("quantised")
def quantised(evidence: Evidence) -> Iterator[Finding]:
    """Codes in place of weights."""
    codes, _ = find_codes(evidence.tensors)
    for scheme in dict.fromkeys(codes.values()):
        names = [name for name, found in codes.items() if found == scheme]
        message = f"codes of a quantisation ({scheme}), whose statistics are not those of the weights, in"
        remedy = "scan the checkpoint that was quantised to judge the weights"
        yield about("quantised", "note", message, names, remedy)


@register_rule("remote-code")
def remote_code(evidence: Evidence) -> Iterator[Finding]:
    """Code that comes with the weights."""
    if code := evidence.surroundings.code:
        yield Finding(
            "remote-code",
            "warning",
            f"code comes with the weights: {name_some(code)}",
            "read it before trust_remote_code=True; this scan ran none of it",
        )


@register_rule("pickle")
def pickles(evidence: Evidence) -> Iterator[Finding]:
    """Files that could run code when opened."""
    if names := evidence.surroundings.pickles:
        yield Finding(
            "pickle",
            "warning",
            f"pickles, which could run code when opened: {name_some(names)}",
            "load safetensors instead; open pickles with weights_only=True",
        )


@register_rule("licence")
def missing_licence(evidence: Evidence) -> Iterator[Finding]:
    """A repository whose card names no licence."""
    if evidence.surroundings.has_card and evidence.surroundings.licence is None:
        yield Finding("licence", "note", "no licence is named", "add `license:` to the front matter of README.md")
