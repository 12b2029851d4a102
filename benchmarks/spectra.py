"""Compare spectra of released networks with those of `powerlaw` and `weightwatcher`: agreement and speed.

    python benchmarks/spectra.py --checkpoints FOLDER --output runs/benchmarks/spectra.json

`FOLDER` contains the `.th` files of akamaster/pytorch_resnet_cifar10; without it, a network with random weights is
used. The two packages are not dependencies; install them for the comparison (`pip install --no-deps weightwatcher
powerlaw`), or they are omitted from the record. Convolutions are pooled over kernel positions, as in `weightwatcher`.
Only layers with at least 20 eigenvalues are compared, because `weightwatcher` uses another estimator for smaller ones;
the bound of `powerlaw`, which keeps alpha below 3 by default, is lifted. Alphas are compared layer by layer if both
choose the same tail. Times are medians over rounds in one process, with and without bootstrap (`weightwatcher` has
none). Two minutes on 2 cores.
"""

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from released_cifar import load_released_cifar_resnet
from running import finish, new_parser, start
from torch import nn

from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.architectures.presets import build_model, cifar_resnet
from hf_sane.core._power_law import fit_power_law
from hf_sane.records._failures import run_script

PACKAGES = ("powerlaw", "weightwatcher")
PLAIN = SpectrumSettings(conv="pooled", min_values=20, num_bootstrap=0)
BOOTSTRAPPED = SpectrumSettings(conv="pooled", min_values=20)
SAME_TAIL = 1e-4  # relative difference of the tail's start, in units of the largest eigenvalue


def quietly(work: Callable[[], Any]) -> Any:
    """Call a function without the output, warnings and logs of the packages."""
    logging.disable(logging.CRITICAL)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        found = work()
    logging.disable(logging.NOTSET)
    return found


def powerlaw_fit(values: np.ndarray) -> tuple[float, float, float]:
    """Alpha, tail start and distance by the package `powerlaw`."""
    import powerlaw

    fit = powerlaw.Fit(values, verbose=False, parameter_ranges={"alpha": [1, 1e3]})
    return float(fit.alpha), float(fit.xmin), float(fit.D)


def weightwatcher_table(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    """Alpha, tail start in units of the largest eigenvalue and distance of every layer, by name of the module."""
    import weightwatcher

    table = weightwatcher.WeightWatcher(model=model).analyze()
    return {row.longname: (row.alpha, row.xmin / row.xmax, row.D) for row in table.itertuples()}


def compared(pairs: Sequence[tuple[float, float, float, float]]) -> dict[str, Any]:
    """Differences of alpha from pairs `(our alpha, our start, their alpha, their start)`."""
    same = [abs(ours - theirs) for ours, start, theirs, other in pairs if abs(start / other - 1) < SAME_TAIL]
    return {
        "layers": len(pairs),
        "same_tail": len(same),
        "largest_alpha_difference_same_tail": max(same, default=None),
        "largest_alpha_difference": max((abs(pair[0] - pair[2]) for pair in pairs), default=None),
    }


def agreement(model: nn.Module, installed: Sequence[str]) -> dict[str, Any]:
    """Alpha of every layer, compared with the installed packages."""
    layers = [layer for layer in analyze_spectrum(model, PLAIN).layers if layer.alpha is not None]
    found: dict[str, Any] = {}
    if "powerlaw" in installed:
        pairs = []
        for layer in layers:
            alpha, start, _ = quietly(lambda layer=layer: powerlaw_fit(layer.eigenvalues[: layer.rank]))
            pairs.append((layer.alpha, layer.xmin, alpha, start))
        found["powerlaw"] = compared(pairs)
    if "weightwatcher" in installed:
        table = quietly(lambda: weightwatcher_table(model))
        pairs = [
            (layer.alpha, layer.xmin / layer.eigenvalues[0], *table[layer.name.removesuffix(".weight")][:2])
            for layer in layers
        ]
        found["weightwatcher"] = compared(pairs)
    return found


def medians(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each function; all are called once per round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            quietly(work)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def speed_of_analysis(model: nn.Module, installed: Sequence[str], rounds: int) -> dict[str, float]:
    """The whole network."""
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: analyze_spectrum(model, PLAIN),
        "ours_bootstrapped": lambda: analyze_spectrum(model, BOOTSTRAPPED),
    }
    if "weightwatcher" in installed:
        sides["weightwatcher"] = lambda: weightwatcher_table(model)
    found = medians(sides, rounds)
    if "weightwatcher" in found:
        found["weightwatcher_over_ours"] = found["weightwatcher"] / found["ours"]
        found["weightwatcher_over_ours_bootstrapped"] = found["weightwatcher"] / found["ours_bootstrapped"]
    return found


def speed_of_fit(size: int, installed: Sequence[str], rounds: int) -> dict[str, Any]:
    """One sample from a power law with a body, as long as the spectrum of a large layer."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(size, generator=generator, dtype=torch.float64) ** (-1 / 1.8)
    values[: size // 2] = torch.rand(size // 2, generator=generator, dtype=torch.float64) * 1.5
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: fit_power_law(values[None])}
    if "powerlaw" in installed:
        sides["powerlaw"] = lambda: powerlaw_fit(values.numpy())
    found: dict[str, Any] = medians(sides, rounds)
    found["values"] = size
    if "powerlaw" in found:
        found["powerlaw_over_ours"] = found["powerlaw"] / found["ours"]
        ours = fit_power_law(values[None])
        alpha, start, _ = quietly(lambda: powerlaw_fit(values.numpy()))
        found["agreement"] = compared([(ours.alpha.item(), ours.xmin.item(), alpha, start)])
    return found


def summary(networks: dict[str, Any], fit: dict[str, Any]) -> dict[str, float]:
    """Worst results over all networks, for docs/results/performance.md."""
    found: dict[str, float] = {}
    differences = [
        part["largest_alpha_difference_same_tail"]
        for row in networks.values()
        for part in row["agreement"].values()
        if part["largest_alpha_difference_same_tail"] is not None
    ]
    if differences:
        found["largest_alpha_difference_same_tail"] = max(differences)
        parts = [part for row in networks.values() for part in row["agreement"].values()]
        found["share_of_layers_with_the_same_tail"] = sum(p["same_tail"] for p in parts) / sum(
            p["layers"] for p in parts
        )
    for name in ("weightwatcher_over_ours", "weightwatcher_over_ours_bootstrapped"):
        ratios = [row["seconds"][name] for row in networks.values() if name in row["seconds"]]
        if ratios:
            found[name] = min(ratios)
    if "powerlaw_over_ours" in fit:
        found["powerlaw_over_ours"] = fit["powerlaw_over_ours"]
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--values": "--num-values"})
    parser.add_argument("--checkpoints", type=Path, help="folder with the .th files")
    parser.add_argument("--width", type=int, default=16, help="channels of the random network that replaces them")
    parser.add_argument(
        "--num-values", dest="values", type=int, default=1024, help="length of the sample for timing a fit"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments, record = start(parser, argv)
    installed = [name for name in PACKAGES if find_spec(name) is not None]
    print(f"compared with: {', '.join(installed) or 'nothing, neither powerlaw nor weightwatcher is installed'}")
    torch.manual_seed(0)
    if arguments.checkpoints is None:
        models: dict[str, nn.Module] = {"random": build_model(cifar_resnet(20, width=arguments.width))}
    else:
        paths = sorted(arguments.checkpoints.glob("*.th"))
        if not paths:
            raise FileNotFoundError(f"expected .th files in {arguments.checkpoints}, found none")
        models = {path.name: load_released_cifar_resnet(path) for path in paths}
    networks = {
        name: {
            "agreement": agreement(model, installed),
            "seconds": speed_of_analysis(model, installed, arguments.rounds),
        }
        for name, model in models.items()
    }
    fit = speed_of_fit(arguments.values, installed, arguments.rounds)
    results = {
        "ratios": summary(networks, fit),
        "networks": networks,
        "fit": fit,
        "compared_with": {name: version(name) for name in installed},
    }
    for name, row in networks.items():
        print(name, row)
    print(fit)
    print(results["ratios"])
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    run_script(main, name="spectra.py")
