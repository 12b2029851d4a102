from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits
from hf_sane.merging._swa import SWASchedule, WeightAverager, train_stacked_swa
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.training._pretraining import prepare_run
from hf_sane.training._settings import PretrainSettings

KINDS = ["constant", "cyclical"]


def small_model(norm):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4)] if norm else [nn.Linear(3, 4)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(4, 2))


def train(model, averager, optimizer, steps, generator):
    """A training loop; yields the learning rate and the weights after every step."""
    for _ in range(steps):
        inputs = torch.randn(8, 3, generator=generator)
        rate = optimizer.param_groups[0]["lr"]
        loss = F.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averager.step()
        yield rate, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("start", "cycle", "steps"), [(0, 1, 4), (3, 2, 9), (2, 4, 14), (5, 3, 13)])
def test_against_the_definition(kind, start, cycle, steps, seeded):
    """Rates of the paper's equation, and the mean of the weights at the end of every whole cycle."""
    model = small_model(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9)
    averager = WeightAverager(model, optimizer, SWASchedule(start, cycle, 0.5, kind))
    path = list(train(model, averager, optimizer, steps, seeded))
    ends = [path[step - 1][1] for step in range(1, steps + 1) if step > start and (step - start) % cycle == 0]
    assert averager.num_averaged == len(ends) > 1
    averaged = averager.finish()
    for name, parameter in averaged.named_parameters():
        torch.testing.assert_close(parameter.detach(), torch.stack([end[name] for end in ends]).mean(0))
        assert not torch.allclose(parameter, dict(model.named_parameters())[name])
    for step, (rate, _) in enumerate(path, start=1):
        if step <= start:
            assert rate == 0.7
        elif kind == "constant":
            assert rate == 0.5
        else:
            share = ((step - start - 1) % cycle + 1) / cycle
            assert rate == pytest.approx((1 - share) * 0.5 + share * 0.005)


def test_the_model_in_training_is_not_changed(seeded):
    paths = []
    for averages in (True, False):
        generator = torch.Generator().manual_seed(1)
        model = small_model(norm=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        start = 2 if averages else 10**6
        averager = WeightAverager(model, optimizer, SWASchedule(start, 1, 0.5))
        paths.append([weights for _, weights in train(model, averager, optimizer, 6, generator)])
        if averages:
            averager.finish([torch.randn(8, 3, generator=seeded)])
            assert model.training
    assert all(torch.equal(a[name], b[name]) for a, b in zip(*paths, strict=True) for name in a)


def test_batch_norm_statistics_are_those_of_the_average(seeded):
    """Against the definition: mean and variance of what reaches the norm, in equal batches."""
    model = small_model(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    averager = WeightAverager(model, optimizer, SWASchedule(1, 1, 0.5))
    list(train(model, averager, optimizer, 6, seeded))
    stale = averager.averaged.module[1].running_mean.clone()
    batches = torch.randn(4, 8, 3, generator=seeded)
    averaged = averager.finish(list(batches))
    assert not averaged.training
    values = averaged[0](batches)
    torch.testing.assert_close(averaged[1].running_mean, values.mean((0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(averaged[1].running_var, values.var(1).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(averaged[1].running_mean, stale, atol=1e-3)


def test_batches_of_every_shape(seeded):
    inputs = torch.randn(16, 3, generator=seeded)
    pairs = DataLoader(TensorDataset(inputs, torch.zeros(16)), batch_size=8)
    dictionaries = [{"inputs": batch} for batch in inputs.split(8)]
    found = []
    for batches, inputs_of in ((inputs.split(8), None), (pairs, None), (dictionaries, lambda batch: batch["inputs"])):
        model = small_model(norm=True)
        averager = WeightAverager(model, torch.optim.SGD(model.parameters(), lr=0.1), SWASchedule(0, 1, 0.1))
        averager.step()
        found.append(averager.finish(batches, inputs_of=inputs_of)[1].running_mean)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_model_with_batch_norm_needs_data():
    model = small_model(norm=True)
    averager = WeightAverager(model, torch.optim.SGD(model.parameters(), lr=0.1), SWASchedule(0, 2, 0.1))
    with pytest.raises(
        RuntimeError, match="nothing has been averaged in 0 steps; averaging starts after 0 and takes 2"
    ):
        averager.finish()
    averager.step()
    averager.step()
    with pytest.raises(ValueError, match="the averaged network has batch norm; pass training batches"):
        averager.finish()
    with pytest.raises(ValueError, match="there are no batches from which to re-estimate batch-norm statistics"):
        averager.finish([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_step": -1}, "expected start_step >= 0 and cycle_steps >= 1, got -1, 1"),
        ({"cycle_steps": 0}, "expected start_step >= 0 and cycle_steps >= 1, got 0, 0"),
        ({"kind": "linear"}, "expected the schedule 'constant' or 'cyclical', got 'linear'"),
        ({"learning_rate": 0.0}, "expected 0 < final_learning_rate <= learning_rate, got None and 0.0"),
        (
            {"kind": "cyclical", "final_learning_rate": 0.2},
            "expected 0 < final_learning_rate <= learning_rate, got 0.2",
        ),
        ({"final_learning_rate": 0.05}, "a constant schedule has one learning rate"),
    ],
)
def test_schedules_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SWASchedule(**{"start_step": 0, "cycle_steps": 1, "learning_rate": 0.1, **settings})


def test_inside_the_pre_training_loop(tiny_zoo_folder, tmp_path):
    """Averages a SANE autoencoder along its own loop, under Accelerate and a scheduler of the loop."""
    arguments = PretrainSettings(
        zoo=[str(tiny_zoo_folder)],
        output=str(tmp_path / "run"),
        model={"hidden_size": 8, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "window_size": 52},
        max_steps=6,
        log_with="none",
        progress_bar=False,
    )
    run = prepare_run(arguments, None, None)
    averager = WeightAverager(run.accelerator.unwrap_model(run.model), run.optimizer, SWASchedule(2, 2, 2e-3))
    seen, rates = [], []
    while run.progress.step < run.num_steps:
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.train_step()
        averager.step()
        seen.append({name: parameter.detach().clone() for name, parameter in run.model.named_parameters()})
    assert rates[2:] == [2e-3] * 4
    for name, parameter in averager.finish().named_parameters():
        torch.testing.assert_close(parameter.detach(), (seen[3][name] + seen[5][name]) / 2)


@pytest.fixture(scope="module")
def networks():
    return StackedNetworks.initialize(cnn_digits(), [0, 1, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_many_networks_at_once_are_each_averaged(kind, networks, digits):
    settings = HyperParameters.repeat([5, 6, 7], learning_rate=5e-3)
    found = train_stacked_swa(networks, digits, settings, cycles=3, cycle_epochs=2, kind=kind)
    assert found.num_averaged == 3
    ends, tensors = [], networks.tensors
    if kind == "constant":
        for snapshot in train_stacked(networks.config, tensors, digits, settings, epochs=6, keep_epochs=[2, 4, 6]):
            ends.append(snapshot.tensors)
    else:
        for cycle in range(3):
            own = replace(settings, seeds=[seed + 1_000_003 * cycle for seed in settings.seeds])
            (snapshot,) = train_stacked(networks.config, tensors, digits, own, epochs=2, schedule="one_cycle")
            tensors = snapshot.tensors
            ends.append(tensors)
    for name, tensor in found.averaged.tensors.items():
        torch.testing.assert_close(tensor, torch.stack([end[name] for end in ends]).mean(0))
        assert torch.equal(found.last.tensors[name], ends[-1][name])
    alone = networks.select(slice(1, 2))
    single = train_stacked_swa(
        alone, digits, HyperParameters.repeat([6], learning_rate=5e-3), cycles=3, cycle_epochs=2, kind=kind
    )
    for name, tensor in single.averaged.tensors.items():
        torch.testing.assert_close(tensor[0], found.averaged.tensors[name][1], rtol=1e-3, atol=1e-4)


def test_stacked_batch_norm_is_re_estimated(digits):
    config = cifar_resnet(20, width=2, num_channels=1)
    networks = StackedNetworks.from_state_dicts(config, [build_model(config).state_dict()])
    few = replace(digits, train_images=digits.train_images[:64], train_labels=digits.train_labels[:64])
    settings = HyperParameters.repeat([0], learning_rate=1e-2, optimizer="sgd")
    found = train_stacked_swa(networks, few, settings, cycles=2, num_batches=2)
    counters = [tensor for name, tensor in found.averaged.tensors.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(int(counter) == 2 for counter in counters)


@pytest.mark.parametrize("wrong", [{"cycles": 1}, {"cycles": 2, "cycle_epochs": 0}, {"cycles": 2, "kind": "linear"}])
def test_cycles_are_checked(wrong, networks, digits):
    settings = HyperParameters.repeat([0, 1, 2], learning_rate=1e-2)
    with pytest.raises(ValueError, match="expected cycles >= 2, cycle_epochs >= 1 and the schedule"):
        train_stacked_swa(networks, digits, settings, **wrong)


def test_cycles_of_runs_that_see_a_part_of_the_images_are_refused(networks, digits):
    settings = replace(HyperParameters.repeat([0, 1, 2], learning_rate=1e-2), data_fractions=[1.0, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"cycles draw their own images, but runs see shares of 0.5 of them"):
        train_stacked_swa(networks, digits, settings, cycles=2, kind="cyclical")
