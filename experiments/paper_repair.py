"""Sabotaged networks: which are broken, in which layer, and what they can do again after a repair without data.

    python experiments/paper_repair.py --images ../shared/data/images --work ../children --records runs/paper/repair
    python experiments/paper_repair.py ... --families usps --children 120 --broken 40     # a quick look

The networks are children of five ancestors (see paper_children.py, whose zoos in `--work` are used). In each of 400
copies of test children, one layer is broken: channels zeroed, negated or scaled, or the layer reduced to rank 1.
Detectors are calibrated on healthy training children. The detector and the repair of each kind are chosen on broken
validation children; test children are measured once. One record for each data set and seed. A data set takes about
five minutes of one CPU core.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paper_children as children_script
import torch
from children_prompts import Children, Code, Examples, Family, TokenCode, WholeCode, draw_examples
from families import families_parser, run_families
from paper_zoos import GREY
from sabotage import (
    WHOLE,
    Detector,
    LayerRepairs,
    Repair,
    SpectrumDetector,
    area_under_curve,
    draw_sabotages,
    layer_scores,
    nearest_ancestor,
    sabotage,
)
from torch import Tensor

from hf_sane.networks._images import load_images
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord

SPECIFICITY = 0.95  # of the alarm, on healthy validation networks
RESAMPLES = 2000
TEST_IMAGES = 200


class Broken:
    """Networks of a split, some of which are broken: what was done, and how well they did before and after."""

    def __init__(self, family: Family, data: Any, split: str, count: int, seed: int) -> None:
        self.family, children = family, family.splits[split]
        rows = torch.from_numpy(np.random.default_rng([seed, count]).permutation(np.arange(count) % len(children)))
        self.healthy: Children = children
        self.examples: Examples = draw_examples(data, "test", children.shifts, count=TEST_IMAGES, seed=2)
        self.before = self.accuracy(children.ancestor, children.changes, torch.arange(len(children)))
        self.rows, self.faults = rows, draw_sabotages(count, len(family.layout.layers), seed)
        tokens = family.ancestors[children.ancestor[rows]] + children.changes[rows]
        tokens = sabotage(tokens, family.layout, self.faults, seed)
        self.ancestor = nearest_ancestor(family, tokens)
        self.changes = tokens - family.ancestors[self.ancestor]
        self.layers = torch.tensor([fault.layer for fault in self.faults])
        self.after = self.accuracy(self.ancestor, self.changes, rows)

    def accuracy(self, ancestor: Tensor, changes: Tensor, rows: Tensor) -> Tensor:
        """Accuracy of networks on images of the children in `rows`."""
        return self.examples.select(rows).accuracy(self.family.networks(ancestor, changes))

    @property
    def lost(self) -> Tensor:
        """Accuracy lost by each broken network."""
        return self.before[self.rows] - self.after


def detect(broken: Broken, detectors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Suspicions of each detector: of layers of broken and of healthy networks."""
    found = {}
    for name, detector in detectors.items():
        suspicion = detector(broken.changes, broken.ancestor)
        healthy = detector(broken.healthy.changes, broken.healthy.ancestor)
        named = suspicion.argmax(dim=1)
        found[name] = {
            "auc": area_under_curve(healthy.amax(dim=1), suspicion.amax(dim=1)),
            "localized": (named == broken.layers).double().mean().item(),
            "suspicion": suspicion,
            "healthy": healthy,
        }
    return found


def share_regained(accuracy: Tensor, broken: Broken) -> float:
    """Accuracy regained by all broken networks, as a share of what they lost together."""
    return ((accuracy - broken.after).sum() / broken.lost.sum()).item()


def paired(first: Tensor, second: Tensor, lost: Tensor) -> list[float]:
    """Difference of two shares regained, and its 95% interval over networks."""
    gap, total = (first - second).double().numpy(), lost.double().numpy()
    index = np.random.default_rng(0).integers(len(gap), size=(RESAMPLES, len(gap)))
    low, high = np.quantile(gap[index].sum(axis=1) / total[index].sum(axis=1), (0.025, 0.975)).tolist()
    return [float(gap.sum() / total.sum()), low, high]


def mend(broken: Broken, repairs: Mapping[str, Repair], layers: Tensor) -> dict[str, Tensor]:
    """Accuracy after each repair of the layers, `[M]`."""
    return {
        name: broken.accuracy(broken.ancestor, repair(broken.changes, broken.ancestor, layers), broken.rows)
        for name, repair in repairs.items()
    }


def measure(
    family: Family, codes: dict[str, Code], judged: Mapping[str, Broken], repairs: Mapping[str, Repair]
) -> dict[str, Any]:
    """Detection, repair of the true and of the suspected layer, and harm to healthy networks."""
    scores, train = layer_scores(family, codes), family.splits["train"]
    detectors: dict[str, Any] = {
        name: Detector.fit(score, train, two_sided=name == "norms") for name, score in scores.items()
    }
    detectors["spectra"] = SpectrumDetector(family)
    seen = {part: detect(broken, detectors) for part, broken in judged.items()}
    chosen = {
        "all": max(detectors, key=lambda name: seen["validation"][name]["localized"]),
        "sane": max(
            (name for name in detectors if name.startswith("sane")),
            key=lambda name: seen["validation"][name]["localized"],
        ),
    }
    test = judged["test"]
    results: dict[str, Any] = {
        "detection": {name: {key: found[key] for key in ("auc", "localized")} for name, found in seen["test"].items()},
        "detection_validation": {
            name: {key: found[key] for key in ("auc", "localized")} for name, found in seen["validation"].items()
        },
        "chosen": chosen,
        "accuracy": {"healthy": test.before[test.rows].mean().item(), "broken": test.after.mean().item()},
        "by_fault": {},
        "repair": {},
    }
    valid = {
        name: share_regained(a, judged["validation"]) for name, a in mend_true(judged["validation"], repairs).items()
    }
    true = mend_true(test, repairs)
    reference = max((name for name in repairs if not name.startswith("sane")), key=lambda name: valid[name])
    detector = chosen["all"]
    alarm = np.quantile(seen["validation"][detector]["healthy"].amax(dim=1).numpy(), SPECIFICITY)
    suspicion, healthy = seen["test"][detector]["suspicion"], seen["test"][detector]["healthy"]
    found = mend(test, repairs, suspicion.argmax(dim=1))
    rung = suspicion.amax(dim=1) > alarm
    false = healthy.amax(dim=1) > alarm
    for name, repair in repairs.items():
        kept = torch.where(rung, found[name], test.after)
        own = repair(test.healthy.changes, test.healthy.ancestor, healthy.argmax(dim=1))
        harmed = test.accuracy(test.healthy.ancestor, own, torch.arange(len(test.healthy)))
        results["repair"][name] = {
            "validation": valid[name],
            "true_layer": share_regained(true[name], test),
            "suspected_layer": share_regained(kept, test),
            "gap": paired(true[name], true[reference], test.lost),
            "healthy_loss": (torch.where(false, test.before - harmed, 0.0)).mean().item(),
        }
    results |= {
        "reference": reference,
        "alarms": rung.double().mean().item(),
        "false_alarms": false.double().mean().item(),
    }
    best = max((name for name in repairs if name.startswith("sane")), key=lambda name: valid[name])
    results["best_sane"] = best
    for fault in dict.fromkeys(one.fault for one in test.faults):
        rows = torch.tensor([one.fault == fault for one in test.faults])
        lost = test.lost[rows].sum()
        results["by_fault"][fault] = {
            "lost": test.lost[rows].mean().item(),
            "detected": rung[rows].double().mean().item(),
            **{
                key: ((true[name] - test.after)[rows].sum() / lost).item()
                for key, name in (("sane", best), ("reference", reference))
            },
        }
    return results


def mend_true(broken: Broken, repairs: Mapping[str, Repair]) -> dict[str, Tensor]:
    """Accuracy after repairs of the layers that are really broken."""
    return mend(broken, repairs, broken.layers)


def run_family(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one data set; read from its record if that exists."""
    path = options.records / f"{name}_{options.seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    arguments = {key: getattr(options, key) for key in ("children", "broken", "epochs", "hidden_size")}
    record = RunRecord.start(seed=options.seed, arguments={"data": name, **arguments})
    zoo = children_script.build_family(name, options)
    limits = {
        key: children_script.NETWORKS[key] for key in ("image_size", "train_limit", "validation_limit", "test_limit")
    }
    data, family = load_images(options.images / GREY[name], **limits), Family.open(zoo)
    codes: dict[str, Code] = {}
    for size, codec in children_script.train_codes(name, zoo, family, options).items():
        codes[f"sane{size}"] = TokenCode(codec)
        codes[f"linear{size}"] = TokenCode(codec.linear(family.splits["train"].changes, "position"))
    codes[f"whole{WHOLE}"] = WholeCode.fit(family.splits["train"], len(family.ancestors), WHOLE)
    judged = {
        part: Broken(family, data, part, count, options.seed)
        for part, count in (("validation", options.broken // 2), ("test", options.broken))
    }
    results = measure(family, codes, judged, LayerRepairs(family, codes).all())
    facts = {part: len(found) for part, found in family.splits.items()}
    facts |= {"broken": options.broken, "weights": family.layout.num_weights, "layers": len(family.layout.layers)}
    record.finish(results, data={"images": data.describe(), "networks": facts}).save(path)
    detection = {key: (round(v["auc"], 3), round(v["localized"], 3)) for key, v in results["detection"].items()}
    print(name, detection, {key: round(v["true_layer"], 3) for key, v in results["repair"].items()}, flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, then one data set after the other."""
    parser = families_parser(__doc__)
    parser.add_argument("--broken", type=int, default=400, help="sabotaged test networks")
    run_families(run_family, parser, argv)


if __name__ == "__main__":
    run_script(main, name="paper_repair.py")
