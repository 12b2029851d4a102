"""Predict test accuracy from weights across zoos: fit on the networks of one dataset, test on those of another.

After Unterthiner et al. (arXiv:2002.11448, section 5): layer statistics and flattened weights into ridge, logit-linear
and gradient-boosted regressors. Regressors are fitted on training runs of the source zoo, chosen on its validation
runs, and tested on test runs of the target zoo; the baseline is the mean accuracy of the source zoo. All networks are
aligned to the reference network of the first zoo.

    python benchmarks/accuracy_transfer.py --zoo zoos/digits zoos/mnist --output FILE
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from running import finish, new_parser, start
from torch import Tensor

from hf_sane.core._metrics import regression_scores
from hf_sane.probing._baselines import flattened_weights, layer_statistics
from hf_sane.probing._regressors import BOOSTING_GRID, FITTERS
from hf_sane.probing._transfer import transfer_table
from hf_sane.records._failures import run_script
from hf_sane.zoo._alignment import align_zoo, aligned_tokens
from hf_sane.zoo._dataset import Zoo

PROPERTY = "test_accuracy"


def read_features(zoo: Zoo) -> dict[str, dict[str, Tensor]]:
    """Layer statistics and flattened weights of every split."""
    found: dict[str, dict[str, Tensor]] = {"layer_statistics": {}, "weights": {}}
    for name, split in zoo.splits.items():
        tokens, layout = aligned_tokens(split), split.layout(0)
        found["layer_statistics"][name] = layer_statistics(tokens, layout)
        found["weights"][name] = flattened_weights(tokens, layout)
    return found


def guesses(targets: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Scores on a target zoo of predicting the mean of a source zoo's training networks."""
    table: dict[str, Any] = {}
    for source, target in ((source, target) for source in targets for target in targets):
        wanted = targets[target]["test"]
        guess = np.full(len(wanted), targets[source]["train"].mean())
        table.setdefault(source, {})[target] = regression_scores(guess, wanted) | {"kendall_tau": 0.0}
    return table


def measure(zoos: Sequence[Zoo], regressors: Sequence[Any], grid: Sequence[Any] = BOOSTING_GRID) -> dict[str, Any]:
    """One table for every regressor and kind of features, and one for predicting the mean."""
    first = zoos[0].splits["train"].final_epochs().state_dict(0)
    aligned = {zoo.facts.name: align_zoo(zoo, reference=first) for zoo in zoos}
    features = {name: read_features(zoo) for name, zoo in aligned.items()}
    targets = {
        name: {key: split.column(PROPERTY).astype(np.float64) for key, split in zoo.splits.items()}
        for name, zoo in aligned.items()
    }
    report: dict[str, Any] = {"mean_of_source": guesses(targets)}
    for regressor in regressors:
        table = transfer_table(features, targets, regressor=regressor, grid=grid)
        report[regressor] = {
            kind: {source: {target: asdict(result) for target, result in row.items()} for source, row in rows.items()}
            for kind, rows in table.items()
        }
        for kind, rows in table.items():
            for source, row in rows.items():
                shown = "  ".join(
                    f"{target} {found.r2:6.2f} {found.kendall_tau:5.2f}" for target, found in row.items()
                )
                print(f"{regressor:18} {kind:17} {source:20} R2, tau: {shown}", flush=True)
    return report


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--zoo", dest="zoos", nargs="+", required=True, help="zoo folders or Hub repo ids of one architecture"
    )
    parser.add_argument("--regressors", nargs="+", choices=list(FITTERS), default=list(FITTERS))
    parser.add_argument(
        "--boosting-grid",
        type=json.loads,
        default=BOOSTING_GRID,
        help="candidates of boosted trees as a JSON list of [leaves, learning rate, rounds]; minutes per zoo",
    )
    arguments, record = start(parser, argv)
    zoos = [Zoo.load(folder) for folder in arguments.zoos]
    report = measure(zoos, arguments.regressors, arguments.boosting_grid)
    counts = {zoo.facts.name: {key: len(split) for key, split in zoo.splits.items()} for zoo in zoos}
    facts = {"networks": counts, "property": PROPERTY, "split": "by training run"}
    return finish(record, report, arguments.output, data=facts)


if __name__ == "__main__":
    run_script(main, name="accuracy_transfer.py")
