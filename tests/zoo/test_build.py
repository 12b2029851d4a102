"""Building a zoo: what its rows say, interruptions, diverged networks, several zoos in one folder, the script."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import DatasetCard

from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._manifests import MANIFEST
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings, plan_runs

TINY = {"conv_channels": [2, 3], "kernel_sizes": [3, 3], "pool_sizes": [2, 1], "hidden_sizes": [4]}
SCRIPT = Path(__file__).parents[2] / "scripts" / "build_zoo.py"


def tiny_arguments(**settings):
    defaults = {
        "architecture_settings": TINY,
        "num_models": 6,
        "epochs": 3,
        "keep_epochs": [0, 1, 3],
        "group_size": 2,
        "learning_rate": [1e-3, 1e-2],
        "weight_decay": [1e-4, 1e-2],
        "data_fraction": [0.5, 1.0],
        "optimizers": ["adam", "sgd"],
        "initializations": ["uniform", "kaiming_normal"],
        "progress_bar": False,
    }
    return ZooSettings(**{**defaults, **settings})


@pytest.fixture(scope="module")
def built(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("built")
    return build_zoo(tiny_arguments(), digits, folder), folder


def contents(folder):
    """Bytes of every file of a zoo except the run record, which holds times, and its digest."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    timed = ("run.json", MANIFEST)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in timed}


class Interruption(Exception):
    pass


def stop_after(finished, epoch=1):
    def stop(progress):
        if (progress.finished, progress.epoch) == (finished, epoch):
            raise Interruption

    return stop


def test_rows_are_runs_trained_alone(built, digits):
    zoo, _ = built
    arguments = tiny_arguments()
    config = arguments.network_config(digits)
    plans = {plan.run_id: plan for plan in plan_runs(arguments, config)}
    checked = 0
    for split in zoo.splits.values():
        for i in range(len(split)):
            plan = plans[split.run_ids[i]]
            if int(split.column("epoch")[i]) != 3:
                continue
            start = StackedNetworks.initialize(config, [plan.seed], [plan.initialization])
            one = HyperParameters.repeat(
                [plan.seed],
                learning_rate=plan.learning_rate,
                weight_decay=plan.weight_decay,
                optimizer=plan.optimizer,
                data_fraction=plan.data_fraction,
            )
            (last,) = train_stacked(config, start.tensors, digits, one, epochs=3)
            for name, tensor in split.state_dict(i).items():
                torch.testing.assert_close(tensor, last.tensors[name][0], rtol=1e-4, atol=1e-5)
            assert split.column("test_accuracy")[i] == pytest.approx(last.test_accuracy[0].item())
            gap = (last.train_accuracy - last.test_accuracy)[0].item()
            assert split.column("generalization_gap")[i] == pytest.approx(gap, abs=1e-6)
            for name in ("seed", "optimizer", "initialization"):
                assert split.column(name)[i] == getattr(plan, name)
            for name in ("learning_rate", "weight_decay", "data_fraction"):
                assert split.column(name)[i] == pytest.approx(getattr(plan, name), rel=1e-6)
            checked += 1
    assert checked == 6


def test_no_run_is_in_two_splits(built):
    zoo, _ = built
    runs = [set(split.run_ids) for split in zoo.splits.values()]
    assert list(map(len, runs)) == [4, 1, 1]
    assert len(set.union(*runs)) == 6
    for split in zoo.splits.values():
        assert sorted(set(split.column("epoch"))) == [0, 1, 3]
        assert len(split) == 3 * len(set(split.run_ids))


def test_networks_classify_as_the_columns_say(built, digits):
    zoo, _ = built
    split = zoo.splits["train"]
    for i in range(len(split)):
        with torch.no_grad():
            answers = split.model(i)(digits.test_images).logits.argmax(1)
        accuracy = (answers == digits.test_labels).float().mean().item()
        assert accuracy == pytest.approx(split.column("test_accuracy")[i], abs=0.011)  # one image of 100


@pytest.mark.parametrize(("finished", "epoch"), [(0, 1), (2, 1), (2, 3), (4, 2)])
def test_an_interrupted_build_continues_to_the_same_bytes(tmp_path, digits, built, finished, epoch):
    with pytest.raises(Interruption):
        build_zoo(tiny_arguments(), digits, tmp_path, on_progress=stop_after(finished, epoch))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".build" / "default").glob("group-*")}
    assert len(kept) == finished // 2
    trained = []
    build_zoo(tiny_arguments(progress_bar=True), digits, tmp_path, on_progress=lambda p: trained.append(p.finished))
    assert sorted(set(trained)) == list(range(finished, 6, 2)), "finished groups must not be trained again"
    expected, found = contents(built[1]), contents(tmp_path)
    assert len(expected) == 6  # three parquet files, alignment, zoo.json, card
    assert expected.keys() == found.keys()
    for name in expected:
        settings = expected[name].replace(b'"progress_bar": false', b'"progress_bar": true')
        assert found[name] in (expected[name], settings), name


def test_a_damaged_group_is_trained_again(tmp_path, digits, built):
    with pytest.raises(Interruption):
        build_zoo(tiny_arguments(), digits, tmp_path, on_progress=stop_after(4, 2))
    _, second = sorted((tmp_path / ".build" / "default").glob("group-*"))
    second.write_bytes(second.read_bytes()[:-8])
    trained = []
    build_zoo(tiny_arguments(), digits, tmp_path, on_progress=lambda p: trained.append(p.finished))
    assert sorted(set(trained)) == [2, 4], "the first group is whole"
    assert contents(tmp_path) == contents(built[1])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_group_in_training_is_kept_and_continues_to_the_same_bytes(tmp_path, digits, monkeypatch, epoch, dropout):
    arguments = tiny_arguments(group_size=6, dropout=[dropout], activations=["relu"])
    build_zoo(arguments, digits, tmp_path / "whole")
    monkeypatch.setattr("hf_sane.zoo.building._build.SAVE_SECONDS", 1e-9)
    monkeypatch.setattr("hf_sane.records._cadence.MAX_SHARE", math.inf)
    with pytest.raises(Interruption):
        build_zoo(arguments, digits, tmp_path / "cut", on_progress=stop_after(0, epoch))
    assert [path.name for path in (tmp_path / "cut" / ".build" / "default").glob("*.safetensors")] == [
        "state-00000.safetensors"
    ]
    shutil.copytree(tmp_path / "cut", tmp_path / "damaged")
    state = next((tmp_path / "damaged").rglob("state-*"))
    state.write_bytes(state.read_bytes()[:-8])
    build_zoo(arguments, digits, tmp_path / "damaged")
    assert contents(tmp_path / "damaged") == contents(tmp_path / "whole")
    trained = []
    build_zoo(arguments, digits, tmp_path / "cut", on_progress=lambda progress: trained.append(progress.epoch))
    assert trained == [*range(epoch, 4)], "epochs that were kept are not trained again"
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_build_interrupted_while_it_writes_continues(tmp_path, digits, built, monkeypatch):
    def fail(*_, **__):
        raise Interruption

    with monkeypatch.context() as patched:
        patched.setattr("hf_sane.zoo._writing.finish_folder", fail)
        with pytest.raises(Interruption):
            build_zoo(tiny_arguments(), digits, tmp_path)
    build_zoo(tiny_arguments(), digits, tmp_path, on_progress=stop_after(0))
    assert contents(tmp_path) == contents(built[1])


def test_a_finished_build_is_loaded(built, digits):
    _, folder = built
    again = build_zoo(tiny_arguments(), digits, folder, on_progress=stop_after(0))
    assert len(again) == 18
    assert again.alignment is not None


def test_nothing_but_the_zoo_is_left(built):
    _, folder = built
    assert {path.name for path in folder.iterdir()} == {"README.md", "zoo.json", "data", ".cache"}


def test_other_arguments_are_refused(tmp_path, built, digits):
    with pytest.raises(
        ValueError, match=r"holds a zoo 'default' with other settings of epochs, keep_epochs: expected"
    ):
        build_zoo(tiny_arguments(epochs=2, keep_epochs=[2]), digits, built[1])
    with pytest.raises(Interruption):
        build_zoo(tiny_arguments(), digits, tmp_path, on_progress=stop_after(2))
    with pytest.raises(ValueError, match="other settings of seed: expected .0., got .1.; use those, another folder"):
        build_zoo(tiny_arguments(seed=1), digits, tmp_path)


def test_other_images_are_refused(tmp_path, digits):
    with pytest.raises(Interruption):
        build_zoo(tiny_arguments(), digits, tmp_path, on_progress=stop_after(2))
    digits.test_images[0, 0, 0, 0] += 1
    try:
        with pytest.raises(ValueError, match="other settings of data"):
            build_zoo(tiny_arguments(), digits, tmp_path)
    finally:
        digits.test_images[0, 0, 0, 0] -= 1


def test_the_last_digits_of_moments_do_not_matter(tmp_path, digits):
    with pytest.raises(Interruption):
        build_zoo(tiny_arguments(), digits, tmp_path, on_progress=stop_after(2))
    path = next(tmp_path.rglob("build.json"))
    settings = json.loads(path.read_text())
    settings["data"]["std"] = [value * (1 + 1e-13) for value in settings["data"]["std"]]
    path.write_text(json.dumps(settings))
    assert len(build_zoo(tiny_arguments(), digits, tmp_path).splits["train"])


@pytest.fixture(scope="module")
def explosive(tmp_path_factory, digits):
    """Zoos of one plan, half of whose runs diverge: the usual one, and one that keeps them."""
    folder = tmp_path_factory.mktemp("explosive")
    arguments = {
        "num_models": 10,
        "optimizers": ["sgd"],
        "learning_rate": [1e-3, 1e3],
        "epochs": 2,
        "keep_epochs": [0, 2],
    }
    plain = build_zoo(tiny_arguments(**arguments), digits, folder)
    kept = build_zoo(tiny_arguments(**arguments, include_excluded=True), digits, folder, config="all")
    return plain, kept


def test_diverged_networks_are_left_out_and_listed(explosive):
    plain, kept = explosive
    excluded = {entry["run_id"]: entry for entry in plain.facts.excluded}
    assert 2 <= len(excluded) <= 7
    assert {entry["epoch"] for entry in excluded.values()} == {2}
    assert any(entry["reason"].startswith("diverged: largest weight") for entry in excluded.values())
    assert any(entry["reason"] == "not finite" for entry in excluded.values())
    rates = {}
    for split in kept.splits.values():
        rates |= dict(zip(split.run_ids, split.column("learning_rate").tolist(), strict=True))
    assert len(rates) == 10
    assert min(rates[run_id] for run_id in excluded) > max(
        rate for run_id, rate in rates.items() if run_id not in excluded
    )
    for split in plain.splits.values():
        assert not set(split.run_ids) & excluded.keys()
        assert split.stacked_tokens().abs().max() <= 5
    assert kept.facts.excluded == plain.facts.excluded
    assert not all(split.stacked_tokens().isfinite().all() for split in kept.splits.values())


def test_diverged_networks_change_nothing_for_the_others(explosive, tmp_path, digits):
    """The same runs, trained without the wild ones in their groups, and what normalisation makes of them."""
    plain, kept = explosive
    layout = plain.splits["train"].layout(0)
    found = {}
    for name, zoo in (("plain", plain), ("kept", kept)):
        tokens = torch.cat([split.stacked_tokens() for split in zoo.splits.values()])
        ids = [
            (run, epoch) for s in zoo.splits.values() for run, epoch in zip(s.run_ids, s.column("epoch"), strict=True)
        ]
        found[name] = dict(zip(ids, tokens, strict=True))
    for key, tokens in found["plain"].items():
        assert torch.equal(tokens, found["kept"][key])
    calm = torch.stack(list(found["plain"].values()))
    extractor = SANEFeatureExtractor(token_dim=layout.token_dim).fit([(layout, calm)])
    wild = torch.stack([tokens for tokens in found["kept"].values() if tokens.isfinite().all()])
    spoiled = SANEFeatureExtractor(token_dim=layout.token_dim).fit([(layout, wild)])
    spread = extractor.normalize(calm, layout)[:, layout.weight_mask].std()
    assert 0.7 < spread < 1.5
    assert spoiled.normalize(calm, layout)[:, layout.weight_mask].std() < 0.5 * spread, "what the threshold is for"


def test_too_few_usable_runs_are_refused(tmp_path, digits):
    with pytest.raises(ValueError, match="expected at least 3 usable runs for 3 splits, got 0; train more"):
        build_zoo(tiny_arguments(num_models=3, epochs=0, keep_epochs=[0], max_abs_weight=1e-6), digits, tmp_path)


@pytest.mark.parametrize("batch_norm", ["tokens", "template"])
def test_networks_with_batch_norm_come_back_whole(tmp_path, digits, batch_norm):
    arguments = ZooSettings(
        architecture="cifar_resnet",
        architecture_settings={"width": 2},
        num_models=3,
        epochs=1,
        batch_size=80,
        keep_epochs=[0, 1],
        batch_norm=batch_norm,
        token_dim=20,
        progress_bar=False,
    )
    zoo = build_zoo(arguments, digits, tmp_path)
    split = zoo.splits["test"].final_epochs()
    assert split.column("activation").tolist() == ["relu"]
    state = split.state_dict(0)
    assert state["bn1.num_batches_tracked"] == 4  # 320 images, batches of 80
    assert (state["bn1.running_mean"] != 0).any()
    accuracy = split.networks().evaluate(digits.test_images, digits.test_labels)[1]
    assert accuracy[0] == pytest.approx(split.column("test_accuracy")[0], abs=0.011)


def test_dense_tokens_and_several_activations(tmp_path, digits):
    arguments = tiny_arguments(token_layout="dense", token_dim=16, activations=["relu", "tanh"], dropout=[0.0, 0.3])
    zoo = build_zoo(arguments, digits, tmp_path)
    split = zoo.splits["train"]
    assert split.layout(0).token_layout == "dense"
    kinds = set(split.column("activation"))
    assert kinds == {"relu", "tanh"}
    for i in (0, len(split) - 1):
        assert split.config(i).activation == split.column("activation")[i]
        assert split.config(i).dropout == pytest.approx(split.column("dropout")[i])
    with pytest.raises(ValueError, match="expected networks of one activation, got .'relu', 'tanh'."):
        split.networks()


def test_several_zoos_in_one_folder(explosive, tmp_path, digits):
    first = build_zoo(tiny_arguments(), digits, tmp_path)
    build_zoo(tiny_arguments(num_models=3, group_size=3), digits, tmp_path, config="small")
    assert len(Zoo.load(tmp_path)) == len(first) == 18
    assert len(Zoo.load(tmp_path, "small")) == 9
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "zoo.json", "data", "small", ".cache"}
    names = [entry["config_name"] for entry in DatasetCard.load(tmp_path / "README.md").data.configs]
    assert names == ["default", "small"]


def test_images_are_loaded_as_the_arguments_say(tmp_path):
    arguments = tiny_arguments(
        train_limit=64, validation_limit=20, test_limit=10, num_models=3, epochs=0, keep_epochs=[0]
    )
    zoo = build_zoo(arguments, None, tmp_path)
    assert [zoo.facts.data[name] for name in ("train", "validation", "test")] == [64, 20, 10]
    assert zoo.run_record is not None
    assert zoo.run_record.results["excluded"] == 0


def test_script_builds_and_reports(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("build_zoo_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    command = ["--output_dir", str(tmp_path), "--num_models", "3", "--epochs", "1", "--train_limit", "64"]
    zoo = script.main([*command, "--architecture_settings", json.dumps(TINY)]).zoo
    output = capsys.readouterr()
    assert "--num_models is now --num-models" in output.err
    row = next(line.split() for line in output.out.splitlines() if line.startswith("train"))
    assert row[:4] == ["train", "1", "2", "0,1"]
    assert len(zoo) == 6
