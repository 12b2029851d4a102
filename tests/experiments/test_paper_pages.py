"""The page of paper-scale results says what its records say: on invented records whose answer is known."""

import json

import pytest
from results import paper

SEEDS = (0, 1)


def record(seed, results):
    return {"seed": seed, "seconds": 90.0, "hardware": {"usable_cores": 2}, "results": results}


def method(accuracy):
    epochs = {"0": [accuracy, accuracy], "1": [accuracy + 0.1, accuracy + 0.1]}
    return {"accuracy": epochs, "nearest_training_distance": 1.0, "pairwise_distance": 2.0, "agreement": None}


def sampling(seed, bootstrapped):
    accuracies = {
        "anchors": 0.8,
        "sane_kde": 0.6,
        "sane_subsampled": 0.7,
        "sane_bootstrapped": bootstrapped + 0.02 * seed,
    }
    accuracies |= {"anchor_noise": 0.5, "anchor_noise_selected": 0.65, "anchor_average": 0.2, "scratch": 0.1}
    return {
        "methods": {name: method(value) for name, value in accuracies.items()},
        "num_anchors": 9, "num_kept": 2, "num_candidates": 20, "bandwidth": 0.2,
        "bootstrap_validation_accuracy": [0.5, 0.61234],
    }  # fmt: skip


def probe(seed):
    rows = {"weights": 0.1, "layer_statistics": 0.7, "sane_mean": 0.3}
    rows |= {"weight_profile": 0.8, "weight_distribution": 0.85}
    winner = {"test_accuracy": 0.9, "epoch": 0.6, "generalization_gap": 0.75}
    return {
        name: {
            kind: {"r2": r2, "kendall_tau": r2 / 2, "validation_r2": -r2}  # of the profiles, the worse one on test
            for kind, r2 in {**rows, "sane_best": best + 0.02 * seed}.items()
        }
        for name, best in winner.items()
    }


def ranks(probed):
    """Of probes of ranks: tau is .1 higher, and s(W) reaches .5."""
    return {
        name: {
            **{kind: {**row[kind], "kendall_tau": row[kind]["kendall_tau"] + 0.1} for kind in row},
            "layer_statistics": {"r2": 0.7, "kendall_tau": 0.5},
            "spectral_features": {"r2": 0.4, "kendall_tau": 0.3},
        }
        for name, row in probed.items()
    }


def tradeoff(seed):
    def row(accuracy, distance):
        return {"test_accuracy": [accuracy - 0.01, accuracy + 0.01], "nearest_training_distance": distance}

    def methods(bootstrapped, distance):
        names = {"sane_subsampled": 0.7, "sane_bootstrapped": bootstrapped, "anchor_noise_selected": 0.6}
        return {name: row(accuracy, distance) for name, accuracy in names.items()}

    bandwidths = {"0.1": methods(0.79 + 0.04 * seed, 0.2), "0.6": methods(0.75, 0.5)}
    return {"references": {"anchors": row(0.8, 0.0)}, "bandwidths": bandwidths}


@pytest.fixture
def folder(tmp_path):
    zoo = {
        "arguments": {"architecture": "cnn_s", "epochs": 8}, "excluded": 3,
        "splits": {
            name: {"runs": runs, "test_accuracy": 0.9} for name, runs in (("train", 7), ("validation", 2), ("test", 1))
        },
    }  # fmt: skip
    rebuilt = {"usps_seed": {"r2": 0.9, "accuracy_original": 0.9, "accuracy_reconstructed": 0.8}}
    files = {"zoos/usps_seed": record(0, zoo)}
    for seed in SEEDS:
        results = {"reconstruction": rebuilt, "probe": {"usps_seed": probe(seed)}, "sampling": sampling(seed, 0.82)}
        spectra = {"spectral_features": {"r2": 0.4, "kendall_tau": 0.2}}
        results["spectra"] = {"usps_seed": dict.fromkeys(results["probe"]["usps_seed"], spectra)}
        results["ranks"] = {"usps_seed": ranks(results["probe"]["usps_seed"])}
        files[f"usps_{seed}"] = record(seed, results)
        files[f"transfer/usps_few_3_{seed}"] = record(seed, sampling(seed, 0.3))
        files[f"tradeoff/usps_{seed}"] = record(seed, tradeoff(seed))
    files["transfer/mnist_to_usps_0"] = record(0, sampling(0, 0.6))
    for name, content in files.items():
        path = tmp_path / "runs" / "paper" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path


def test_zoos_and_reconstruction(folder):
    blocks = paper.blocks(folder)
    assert "| cnn_s | 7/2/1 | 3 | 8 | 0.900 | 2 |" in blocks["zoos"]
    assert "on 2 CPU cores, shared" in blocks["zoos"]
    assert [paper.minutes(seconds) for seconds in (14.0, 50.0, 100.0)] == ["<1", "1", "2"]
    assert "| USPS, CNN-s: usps_seed | 0.900 ± 0.000 | 0.900 | 0.800 ± 0.000 | 2 |" in blocks["reconstruction"]


def test_probing_counts_the_cells_that_are_won(folder):
    block = paper.blocks(folder)["probing"]
    assert "| usps_seed: accuracy | 0.100 | 0.700 | 0.400 | 0.800 | 0.300 ± 0.000 | **0.910 ± 0.014** |" in block
    assert "| usps_seed: epoch | 0.100 | 0.700 | 0.400 | **0.800** | 0.300 ± 0.000 | 0.610 ± 0.014 |" in block
    assert "the profile of W, which needs no autoencoder, in 1 and 1" in block
    assert "exceeds s(W) in 2 of 3 cells for R2, the metric by which it is chosen, in 2 for Kendall's tau" in block
    assert "in 1 for Kendall's tau of rank probes" in block
    assert "exceeds all of W, s(W) and spectra in 2 cells for R2 and in 1 for rank probes" in block
    values, ranks = block.index("Kendall's tau, probes of values"), block.index("Kendall's tau, probes of ranks")
    line = "| usps_seed: epoch | 0.050 | 0.350 | 0.200 | **0.400** | 0.150 ± 0.000 | 0.305 ± 0.007 |"
    assert values < block.index(line) < ranks
    line = "| usps_seed: accuracy | 0.150 | 0.500 | 0.300 | 0.500 | 0.250 ± 0.000 | **0.555 ± 0.007** |"
    assert ranks < block.index(line)
    assert "| usps_seed: gap | 0.150 | **0.500** | 0.300 | 0.500 | 0.250 ± 0.000 | 0.480 ± 0.007 |" in block


def test_probing_counts_the_cells_that_spectra_win(folder):
    for seed in SEEDS:
        path = folder / "runs" / "paper" / f"usps_{seed}.json"
        known = json.loads(path.read_text())
        known["results"]["spectra"]["usps_seed"]["test_accuracy"]["spectral_features"]["r2"] = 0.95
        path.write_text(json.dumps(known))
    block = paper.blocks(folder)["probing"]
    assert "exceeds s(W) in 2 of 3 cells" in block
    assert "all of W, s(W) and spectra in 1 cells for R2" in block


def test_sampling_says_whether_the_goals_are_reached(folder):
    block = paper.blocks(folder)["sampling"]
    assert "| SANE, BOOT | 0.830 ± 0.014 | 0.930 ± 0.014 | 1.00 ± 0.00 | 2.00 ± 0.00 | - |" in block
    assert "Epoch 0: SANE, BOOT 0.830, above the best other new network (anchor + noise, selected, 0.650)" in block
    assert "BOOT reaches the anchors (+0.030)" in block
    assert "[usps_1.json](../../runs/paper/usps_1.json)" in block


def test_the_rounds_of_bootstrapping_are_shown(folder):
    assert (
        "Validation accuracy after each round of BOOT, first seed: 0.500, 0.612. " in paper.blocks(folder)["sampling"]
    )


def test_bandwidths_that_differ_between_seeds_are_all_named(folder):
    assert "bandwidth 0.2, 2 seeds" in paper.blocks(folder)["sampling"]
    path = folder / "runs" / "paper" / "usps_1.json"
    known = json.loads(path.read_text())
    known["results"]["sampling"]["bandwidth"] = 0.3
    path.write_text(json.dumps(known))
    assert "bandwidth 0.2, 0.3, 2 seeds" in paper.blocks(folder)["sampling"]


def test_epochs_that_fewer_seeds_reached_are_named(folder):
    assert ", 2 seeds. Validation" in paper.blocks(folder)["sampling"]
    path = folder / "runs" / "paper" / "usps_1.json"
    known = json.loads(path.read_text())
    for row in known["results"]["sampling"]["methods"].values():
        row["accuracy"] |= {"5": [0.9], "25": [0.95]}
    path.write_text(json.dumps(known))
    assert ", 2 seeds (epoch 5: 1, epoch 25: 1). Validation" in paper.blocks(folder)["sampling"]
    del known["results"]["sampling"]
    path.write_text(json.dumps(known))
    assert ", 1 seed. Validation" in paper.blocks(folder)["sampling"]


def test_goals_that_are_missed_are_called_so(folder):
    far = paper.load_runs(folder / "runs" / "paper" / "transfer", "mnist_to_usps")
    assert "BOOT does not reach the anchors (-0.200)" in paper.goals(far)
    for methods in paper.sampled(far):
        methods["scratch"]["accuracy"]["1"] = [0.95, 0.97]
    assert "epoch 1: SANE, SUB 0.800, not above the best other new network (scratch, 0.960)" in paper.goals(far)


def test_the_tradeoff_says_where_anchors_are_reached(folder):
    block = paper.blocks(folder)["tradeoff"]
    cells = "0.20 ± 0.00 | 0.700 ± 0.000 | 0.810 ± 0.028 | 0.600 ± 0.000 | 0.20 ± 0.00 | 0.800 ± 0.000"
    assert f"| USPS, CNN-s: 0.1 | {cells} |" in block
    assert "SUB exceeds noise in 2 of 2 rows" in block
    assert "BOOT reaches the anchors as follows: USPS, CNN-s at bandwidth 0.1 (distance 0.20)." in block
    for seed in SEEDS:
        path = folder / "runs" / "paper" / "tradeoff" / f"usps_{seed}.json"
        known = json.loads(path.read_text())
        known["results"]["references"]["anchors"]["test_accuracy"] = [0.9]
        path.write_text(json.dumps(known))
    assert "USPS, CNN-s at none of these bandwidths." in paper.blocks(folder)["tradeoff"]


def test_transfer_groups_studies_by_target(folder):
    block = paper.blocks(folder)["transfer"]
    assert "### MNIST to USPS: anchors of MNIST" in block
    assert "| 3 anchors: SANE, SUB | 0.700 ± 0.000 | 0.800 ± 0.000 |" in block
    assert "Fashion" not in block


def test_without_records_there_is_nothing_to_say(tmp_path):
    assert paper.blocks(tmp_path)["sampling"] == ""
    assert paper.blocks(tmp_path)["transfer"] == ""
    assert paper.blocks(tmp_path)["tradeoff"] == ""
