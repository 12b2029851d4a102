"""Policies and networks of ACAS Xu, made up and tiny: the record, and the parts that could be wrong unseen."""

from itertools import pairwise

import beyond_vision
import pytest
import torch
from safetensors.torch import save_file

from hf_sane.core._layout import Layout
from hf_sane.records._run_record import RunRecord

ENVIRONMENTS = {
    "CartPole-v1": (4, 2), "Pendulum-v1": (3, 1), "Ant-v3": (5, 3), "Hopper-v3": (6, 2), "LunarLander-v2": (3, 2),
    "BipedalWalker-v3": (6, 3), "AntBulletEnv-v0": (5, 3), "HopperBulletEnv-v0": (4, 3),
}  # fmt: skip


def policy(inputs, outputs, *, hidden=4, spread=()):
    def linear(name, fan_in, fan_out):
        return {f"{name}.weight": torch.randn(fan_out, fan_in), f"{name}.bias": torch.randn(fan_out)}

    tensors = {}
    for net in ("policy_net", "value_net"):
        tensors |= linear(f"mlp_extractor.{net}.0", inputs, hidden) | linear(f"mlp_extractor.{net}.2", hidden, hidden)
    tensors |= linear("action_net", hidden, outputs) | linear("value_net", hidden, 1)
    return tensors | ({"log_std": torch.randn(*spread)} if spread else {})


def write_policies(folder):
    torch.manual_seed(0)
    folder.mkdir()
    for number, (name, (inputs, outputs)) in enumerate(ENVIRONMENTS.items()):
        for algorithm in ("a2c", "trpo"):
            save_file(policy(inputs, outputs), folder / f"{algorithm}__{name}.safetensors")
        if number % 3 == 0:  # linear ones, and one with a hidden layer
            tensors = {"action_net.weight": torch.randn(outputs, inputs)}
            if number == 3:
                tensors = {
                    "action_net.0.weight": torch.randn(4, inputs), "action_net.0.bias": torch.randn(4),
                    "action_net.2.weight": torch.randn(outputs, 4), "action_net.2.bias": torch.randn(outputs),
                }  # fmt: skip
            save_file(tensors, folder / f"ars__{name}.safetensors")


def write_acas_xu(folder):
    torch.manual_seed(1)
    folder.mkdir()
    sizes = (5, 4, 4, 5)
    for advisory in range(1, 4):
        for tau in range(1, 4):
            tensors = {}
            for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
                tensors[f"layers.{layer}.weight"] = torch.randn(fan_out, fan_in)
                tensors[f"layers.{layer}.bias"] = torch.randn(fan_out)
            save_file(tensors, folder / f"ACASXU_run2a_{advisory}_{tau}_batch_2000.safetensors")


def test_the_record(tmp_path):
    write_policies(tmp_path / "policies")
    write_acas_xu(tmp_path / "acas")
    tiny = (
        "--seeds 0 --folds 2 --steps 2 --batch-size 2 --window-size 12 --hidden-size 8 --latent-dim 4 --num-layers 1 "
        "--num-permutations 1 --trees 2"
    )
    report = beyond_vision.main([
        "--policies", str(tmp_path / "policies"), "--acasxu", str(tmp_path / "acas"), *tiny.split(),
        "--output", str(tmp_path / "record.json"),
    ])  # fmt: skip
    algorithm = report["policies"]["tasks"]["algorithm"]
    assert algorithm["labels"] == {"a2c": 8, "ars": 3, "trpo": 8}
    assert report["policies"]["tasks"]["algorithm_actor_critic"]["networks"] == 16
    assert (
        report["policies"]["tasks"]["algorithm_same_shape"]["groups"] == 7
    )  # Ant is of one shape with and without Bullet
    assert report["policies"]["tasks"]["family_new_environment"]["groups"] == 8
    sane = {f"sane_{name}" for name in (*beyond_vision.POOLINGS, "best")}
    both = {"statistics", "statistics_overall", "tokens", *sane}
    assert algorithm["features"].keys() == {"shape", "shape_trees", *both}
    acas = report["acas_xu"]["tasks"]
    assert acas["advisory"]["features"].keys() == {"weights", *both}
    assert acas["advisory_new_tau"]["groups"] == acas["tau_new_advisory"]["groups"] == 3
    assert acas["tau_number"]["features"]["sane_best"][0].keys() >= {"r2", "kendall_tau", "p_value"}
    assert len(report["acas_xu"]["reconstruction_r2"]) == 2
    record = RunRecord.load(tmp_path / "record.json")
    assert record.results["acas_xu"]["tasks"].keys() == acas.keys()
    assert record.data["split"]


def test_a_part_of_the_work_prints_what_it_found(tmp_path, capsys):
    write_acas_xu(tmp_path / "acas")
    report = beyond_vision.main(["--acasxu", str(tmp_path / "acas"), "--parts", "baselines", "--permutations", "0"])
    assert report["acas_xu"]["reconstruction_r2"] == []
    assert report["acas_xu"]["tasks"]["tau"]["features"].keys() == {
        "weights",
        "statistics",
        "statistics_overall",
        "tokens",
    }
    assert "acas_xu tau_number {'statistics_overall': [" in capsys.readouterr().out


def test_nothing_to_do_is_refused(capsys):
    with pytest.raises(SystemExit):
        beyond_vision.main([])
    assert "expected --policies, --acasxu or both, got neither" in capsys.readouterr().err


def test_a_folder_of_which_something_cannot_be_read_is_refused(tmp_path):
    write_acas_xu(tmp_path / "acas")
    (tmp_path / "acas" / "ACASXU_run2a_9_9_batch_2000.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="could not take \\['ACASXU_run2a_9_9_batch_2000.safetensors'\\]"):
        beyond_vision.read_population(str(tmp_path / "acas"), tmp_path / "zoo", 51)


def run(tensors, inputs):
    """Outputs of actor and critic, and the standard deviations of gSDE's noise."""
    found = []
    for net, head in (("policy_net", "action_net"), ("value_net", "value_net")):
        hidden = inputs
        for layer in (f"mlp_extractor.{net}.0", f"mlp_extractor.{net}.2"):
            hidden = (hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]).tanh()
        found.append(hidden @ tensors[f"{head}.weight"].T + tensors[f"{head}.bias"])
        if net == "policy_net":
            found.append(hidden.square() @ (2 * tensors["log_std"]).exp())
    return torch.cat(found, dim=1)


def test_symmetries_change_no_output_and_move_every_hidden_neuron():
    tensors = {name: value.double() for name, value in policy(3, 2, spread=(4, 2)).items()}
    spec = beyond_vision.symmetries(Layout.from_state_dict(tensors, token_dim=65))
    assert set(spec.sizes) == {
        f"mlp_extractor.{net}.{layer}" for net in ("policy_net", "value_net") for layer in (0, 2)
    }
    permutation = {axis: torch.tensor([2, 0, 3, 1]) for axis in spec.sizes}
    moved = spec.apply(tensors, permutation)
    inputs = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(run(moved, inputs), run(tensors, inputs))
    for name, value in tensors.items():
        assert torch.equal(moved[name], value) == (name in ("action_net.bias", "value_net.bias"))
    broken = {**moved, "log_std": tensors["log_std"]}
    assert not torch.allclose(run(broken, inputs), run(tensors, inputs))


def test_symmetries_of_other_shapes():
    linear = Layout.from_state_dict({"action_net.weight": torch.ones(2, 3)}, token_dim=65)
    assert beyond_vision.symmetries(linear).sizes == {}
    vector = Layout.from_state_dict(policy(3, 2, spread=(2,)), token_dim=65)
    assert beyond_vision.symmetries(vector).axes["log_std"] == (None,)


@pytest.mark.parametrize(
    ("environment", "suite"),
    [
        ("MountainCarContinuous-v0", "classic control"), ("LunarLanderContinuous-v2", "Box2D"),
        ("BipedalWalker-v3", "Box2D"), ("Walker2DBulletEnv-v0", "PyBullet"), ("Walker2d-v3", "MuJoCo"),
    ],
)  # fmt: skip
def test_families(environment, suite):
    assert beyond_vision.family(environment) == suite


def test_folds_keep_groups_together_and_are_of_one_size():
    groups = [f"g{index // 3}" for index in range(30)] + ["h"] * 2
    folds = beyond_vision.deal(groups, 4, seed=0)
    assert {len({fold for fold, group in zip(folds, groups, strict=True) if group == name}) for name in groups} == {1}
    counts = [folds.count(fold) for fold in range(4)]
    assert max(counts) - min(counts) <= 3
    assert folds == beyond_vision.deal(groups, 4, seed=0)
    assert folds != beyond_vision.deal(groups, 4, seed=1)


def test_features_stand_under_the_names_of_their_layers(tmp_path):
    write_policies(tmp_path / "policies")
    population, _ = beyond_vision.policies(str(tmp_path / "policies"), tmp_path / "zoo", 12)
    names = list(dict.fromkeys(layer.name for layout, _ in population.parts for layer in layout.layers))
    found = beyond_vision.baselines(population)["statistics"].view(len(population.networks), len(names), 7)
    for index, run_id in enumerate(population.networks.run_ids):
        state = population.networks.state_dict(index)
        for place, name in enumerate(names):
            if f"{name}.weight" not in state:
                assert found[index, place].isnan().all(), (run_id, name)
                continue
            values = [state[f"{name}.{part}"].flatten() for part in ("weight", "bias") if f"{name}.{part}" in state]
            assert found[index, place, 0].item() == pytest.approx(torch.cat(values).mean().item(), abs=1e-6)


def test_the_tokenizer_knows_layers_by_name_only_where_all_networks_have_them(tmp_path):
    write_policies(tmp_path / "policies")
    write_acas_xu(tmp_path / "acas")
    mixed, _ = beyond_vision.policies(str(tmp_path / "policies"), tmp_path / "zoo", 12)
    equal, _ = beyond_vision.acas_xu(str(tmp_path / "acas"), tmp_path / "other", 12)
    assert all(key.startswith("*") for key in beyond_vision.tokenizer(mixed.networks).statistics["means"])
    assert {"layers.0:6", "layers.1:5", "layers.2:5", "*", "*:linear"} == set(
        beyond_vision.tokenizer(equal.networks).statistics["stds"]
    )
