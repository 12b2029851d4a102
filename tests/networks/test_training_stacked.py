"""Training many networks at once agrees with torch's optimizers on single networks."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits, mlp
from hf_sane.networks._hyperparameters import HyperParameters, data_subset, image_order, one_cycle_factor
from hf_sane.networks._images import ImageData
from hf_sane.networks._stacked import StackedNetworks, with_settings
from hf_sane.networks._training import train_stacked

SMALL_CNN = cnn_digits(conv_channels=(3, 4), kernel_sizes=(3, 2), pool_sizes=(2, 1), hidden_sizes=(6,), num_labels=3)


def random_data(config, *, train=20, size=None):
    size = size or config.image_size
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for split, count in (("train", train), ("validation", 6), ("test", 7)):
        tensors[f"{split}_images"] = torch.randn(count, config.num_channels, size, size, generator=generator)
        tensors[f"{split}_labels"] = torch.randint(config.num_classes, (count,), generator=generator)
    return ImageData("random", **tensors, num_classes=config.num_classes)


def mixed(count, **changed):
    fields = {
        "seeds": list(range(10, 10 + count)),
        "learning_rates": [0.01 * (i + 1) for i in range(count)],
        "weight_decays": [0.0 if i == 1 else 0.01 * i for i in range(count)],
        "optimizers": [("adam", "sgd")[i % 2] for i in range(count)],
        "dropouts": [0.0] * count,
        "data_fractions": [1.0, 0.5, 0.25, 0.1, 1.0, 0.7][:count],
    }
    return HyperParameters(**{**fields, **changed})


def train_alone(config, start, data, hyper_parameters, m, *, epochs, batch_size, schedule="constant", module=None):
    """The plain way: one network, torch's optimizer, a Python loop."""
    model = build_model(config) if module is None else module
    model.load_state_dict(start)
    model.train()
    rate, decay = hyper_parameters.learning_rates[m], hyper_parameters.weight_decays[m]
    if hyper_parameters.optimizers[m] == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay, momentum=0.9)
    steps = len(data.train_images) // batch_size
    scheduler = None
    if schedule == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=epochs * steps, cycle_momentum=False
        )
    for epoch in range(1, epochs + 1):
        seed, fraction = hyper_parameters.seeds[m], hyper_parameters.data_fractions[m]
        order = image_order(seed, epoch, len(data.train_images), fraction, steps * batch_size)
        for index in torch.from_numpy(order).view(steps, batch_size):
            optimizer.zero_grad()
            output = model(data.train_images[index])
            logits = output if isinstance(output, torch.Tensor) else output.logits
            nn.functional.cross_entropy(logits, data.train_labels[index]).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return model.state_dict()


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("config", [SMALL_CNN, mlp(image_size=5, num_labels=4)], ids=["cnn", "mlp"])
def test_every_network_trains_as_it_would_alone(config, schedule, generic):
    data, hyper_parameters = random_data(config), mixed(6)
    networks = StackedNetworks.initialize(config, range(6))
    (last,) = train_stacked(
        config,
        networks.tensors,
        data,
        hyper_parameters,
        epochs=4,
        batch_size=6,
        schedule=schedule,
        generic=generic,
    )
    assert last.epoch == 4
    for m in range(6):
        alone = train_alone(
            config, networks.state_dict(m), data, hyper_parameters, m, epochs=4, batch_size=6, schedule=schedule
        )
        assert not torch.equal(alone["classifier.weight"], networks.tensors["classifier.weight"][m])
        for name, expected in alone.items():
            torch.testing.assert_close(last.tensors[name][m], expected, rtol=1e-3, atol=2e-5)


def test_batch_norm_networks_train_as_they_would_alone():
    config = cifar_resnet(20, width=2, num_labels=3)
    data, hyper_parameters = random_data(config, size=8, train=12), mixed(3)
    networks = StackedNetworks.initialize(config, range(3))
    (last,) = train_stacked(config, networks.tensors, data, hyper_parameters, epochs=1, batch_size=6)
    for m in range(3):
        alone = train_alone(config, networks.state_dict(m), data, hyper_parameters, m, epochs=1, batch_size=6)
        assert alone["bn1.num_batches_tracked"] == 2
        for name, expected in alone.items():
            torch.testing.assert_close(last.tensors[name][m], expected, rtol=1e-2, atol=1e-3)


def test_any_module_can_be_trained():
    module = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    states = [nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).state_dict() for _ in range(2)]
    data = random_data(mlp(image_size=5, num_labels=3))
    networks = StackedNetworks.from_state_dicts(module, states)
    (last,) = train_stacked(module, networks.tensors, data, mixed(2), epochs=2, batch_size=5)
    for m in range(2):
        alone = train_alone(None, states[m], data, mixed(2), m, epochs=2, batch_size=5, module=module)
        torch.testing.assert_close(last.tensors["1.weight"][m], alone["1.weight"], rtol=1e-4, atol=1e-5)


def test_result_does_not_depend_on_company_threads_or_order():
    config, data = SMALL_CNN, random_data(SMALL_CNN)
    networks, hyper_parameters = StackedNetworks.initialize(config, range(6)), mixed(6)
    (together,) = train_stacked(config, networks.tensors, data, hyper_parameters, epochs=2, batch_size=5)
    order = [4, 1, 5]
    (some,) = train_stacked(
        config, networks.select(order).tensors, data, hyper_parameters.select(order), epochs=2, batch_size=5
    )
    for name, tensor in some.tensors.items():
        torch.testing.assert_close(tensor, together.tensors[name][order])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (threaded,) = train_stacked(config, networks.tensors, data, hyper_parameters, epochs=2, batch_size=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    for name, tensor in threaded.tensors.items():
        assert torch.equal(tensor, together.tensors[name])


def test_snapshots_measure_the_networks_they_hold():
    config = SMALL_CNN
    data, hyper_parameters = random_data(config), mixed(4)
    networks = StackedNetworks.initialize(config, range(4))
    epochs_seen = []
    snapshots = list(
        train_stacked(
            config,
            networks.tensors,
            data,
            hyper_parameters,
            epochs=3,
            keep_epochs=[3, 0, 2, 2],
            batch_size=5,
            on_epoch=epochs_seen.append,
        )
    )
    assert [snapshot.epoch for snapshot in snapshots] == [0, 2, 3]
    assert epochs_seen == [1, 2, 3]
    for name, tensor in snapshots[0].tensors.items():
        assert torch.equal(tensor, networks.tensors[name])
    for snapshot in snapshots:
        held = StackedNetworks(config, snapshot.tensors)
        for split in ("validation", "test"):
            loss, accuracy = held.evaluate(*data.split(split))
            torch.testing.assert_close(getattr(snapshot, f"{split}_loss"), loss)
            torch.testing.assert_close(getattr(snapshot, f"{split}_accuracy"), accuracy)
        for m in range(4):
            subset = data_subset(hyper_parameters.seeds[m], 20, hyper_parameters.data_fractions[m])
            loss, accuracy = held.select([m]).evaluate(data.train_images[subset], data.train_labels[subset])
            torch.testing.assert_close(snapshot.train_loss[m], loss[0])
            torch.testing.assert_close(snapshot.train_accuracy[m], accuracy[0])


def test_training_learns_the_digits(digits):
    config = cnn_digits()
    networks = StackedNetworks.initialize(config, range(4))
    hyper_parameters = HyperParameters.repeat(range(4), learning_rate=1e-2)
    first, last = train_stacked(config, networks.tensors, digits, hyper_parameters, epochs=12, keep_epochs=[0, 12])
    assert first.test_accuracy.mean() < 0.3
    assert last.test_accuracy.mean() > 0.7
    assert (last.train_loss < first.train_loss).all()


def test_fine_tuning_starts_where_it_is_told(digits):
    config = cnn_digits()
    hyper_parameters = HyperParameters.repeat([0, 1], learning_rate=1e-2)
    fresh = StackedNetworks.initialize(config, [0, 1])
    (trained,) = train_stacked(config, fresh.tensors, digits, hyper_parameters, epochs=8)
    before = {name: tensor.clone() for name, tensor in trained.tensors.items()}
    start, further = train_stacked(config, trained.tensors, digits, hyper_parameters, epochs=4, keep_epochs=[0, 4])
    torch.testing.assert_close(start.test_accuracy, trained.test_accuracy)
    assert (further.train_loss < start.train_loss).all()
    for name, tensor in before.items():
        assert torch.equal(trained.tensors[name], tensor), "the start must not be changed"


def test_dropout_trains_differently_and_repeatably():
    config, data = with_settings(SMALL_CNN, dropout=0.0), random_data(SMALL_CNN)
    networks = StackedNetworks.initialize(config, [0, 0, 0])
    hyper_parameters = mixed(
        3,
        seeds=[1, 1, 1],
        learning_rates=[0.01] * 3,
        weight_decays=[0.0] * 3,
        optimizers=["adam"] * 3,
        data_fractions=[1.0] * 3,
        dropouts=[0.0, 0.0, 0.5],
    )
    runs = [next(train_stacked(config, networks.tensors, data, hyper_parameters, epochs=3)) for _ in range(2)]
    for name, tensor in runs[0].tensors.items():
        assert torch.equal(tensor, runs[1].tensors[name])
    weights = runs[0].tensors["hidden.0.weight"]
    torch.testing.assert_close(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], atol=1e-3)


def test_a_diverging_network_harms_nobody_else():
    config, data = SMALL_CNN, random_data(SMALL_CNN)
    networks = StackedNetworks.initialize(config, range(3))
    tame = mixed(3, optimizers=["sgd"] * 3)
    wild = dataclasses.replace(tame, learning_rates=[tame.learning_rates[0], 1e30, tame.learning_rates[2]])
    (calm,) = train_stacked(config, networks.tensors, data, tame, epochs=2, batch_size=5)
    (diverged,) = train_stacked(config, networks.tensors, data, wild, epochs=2, batch_size=5)
    assert not diverged.tensors["classifier.weight"][1].isfinite().all()
    for name, tensor in diverged.tensors.items():
        torch.testing.assert_close(tensor[[0, 2]], calm.tensors[name][[0, 2]])
    torch.testing.assert_close(diverged.train_loss[[0, 2]], calm.train_loss[[0, 2]])


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25, 0.04])
@pytest.mark.parametrize("num_images", [10, 33])
def test_a_data_fraction_is_revisited_evenly(fraction, num_images):
    subset = data_subset(3, num_images, fraction)
    assert len(subset) == len(set(subset.tolist())) == max(1, round(fraction * num_images))
    order = image_order(3, 5, num_images, fraction, num_images)
    assert len(order) == num_images
    assert set(order.tolist()) <= set(subset.tolist())
    counts = np.bincount(order, minlength=num_images)[subset]
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(order, image_order(3, 5, num_images, fraction, num_images))


def test_orders_differ_between_epochs_and_seeds():
    orders = {tuple(image_order(seed, epoch, 50, 1.0, 50)) for seed in range(3) for epoch in range(1, 4)}
    assert len(orders) == 9
    assert not np.array_equal(np.sort(data_subset(0, 50, 0.5)), np.sort(data_subset(1, 50, 0.5)))


@pytest.mark.parametrize("total", [4, 7, 30, 101])
def test_one_cycle_is_torchs(total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2.0, total_steps=total)
    for step in range(total):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            2.0 * one_cycle_factor(step, total), rel=1e-6, abs=1e-9
        )
        optimizer.step()
        if step < total - 1:
            scheduler.step()


def test_training_accuracy_of_few_images():
    config, data = SMALL_CNN, random_data(SMALL_CNN)
    networks = StackedNetworks.initialize(config, range(2))
    hyper_parameters = mixed(2, data_fractions=[1.0, 0.05])
    (limited,) = train_stacked(config, networks.tensors, data, hyper_parameters, epochs=0, train_evaluation_limit=4)
    loss, _ = networks.evaluate(data.train_images[:4], data.train_labels[:4])
    torch.testing.assert_close(limited.train_loss[0], loss[0])
    assert limited.train_loss.isfinite().all()  # the second may see none of the four: all of them count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "expected epochs >= 0, batch_size >= 1, momentum in .* got -1, 32, 0.9 and None"),
        ({"batch_size": 0}, "got 1, 0, 0.9 and None"),
        ({"momentum": 1.0}, "got 1, 32, 1.0 and None"),
        ({"train_evaluation_limit": 0}, "got 1, 32, 0.9 and 0"),
        ({"schedule": "cosine"}, "expected schedule 'constant' or 'one_cycle', got 'cosine'"),
        ({"keep_epochs": [2]}, r"keep_epochs must be at least one epoch in \[0, 1\], got \[2\]"),
        ({"keep_epochs": []}, r"at least one epoch in .*, got \[\]"),
    ],
)
def test_bad_settings_are_refused_before_training(settings, message):
    networks = StackedNetworks.initialize(SMALL_CNN, [0, 1])
    with pytest.raises(ValueError, match=message):
        train_stacked(SMALL_CNN, networks.tensors, random_data(SMALL_CNN), mixed(2), **{"epochs": 1, **settings})


def test_what_does_not_fit_together_is_refused():
    networks = StackedNetworks.initialize(SMALL_CNN, [0, 1])
    with pytest.raises(ValueError, match="got 3 hyper-parameters for 2 networks"):
        train_stacked(SMALL_CNN, networks.tensors, random_data(SMALL_CNN), mixed(3), epochs=1)
    other = random_data(cnn_digits(num_channels=3))
    with pytest.raises(
        ValueError, match="the networks expect 1 channels of 8 pixels and 3 classes, the images of random have 3"
    ):
        train_stacked(SMALL_CNN, networks.tensors, other, mixed(2), epochs=1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seeds", [1, -1], "seeds must be >= 0, got .-1."),
        ("learning_rates", [0.0, 0.1], "learning rates must be > 0, got .0.0."),
        ("learning_rates", [float("nan"), 0.1], "learning rates must be > 0, got .nan."),
        ("weight_decays", [-0.1, 0.1], "weight decays must be >= 0, got .-0.1."),
        ("optimizers", ["adamw", "sgd"], "optimizers must be 'adam' or 'sgd', got .'adamw'."),
        ("dropouts", [1.0, 0.1], r"dropouts must lie in \[0, 1\), got .1.0."),
        ("data_fractions", [0.0, 1.5], r"data fractions must lie in \(0, 1\], got .0.0, 1.5."),
        ("seeds", [1], "expected one entry per network in every field, .*'seeds': 1"),
    ],
)
def test_bad_hyper_parameters_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        mixed(2, **{field: value})


def test_no_networks_are_refused():
    with pytest.raises(ValueError, match="and at least one network"):
        HyperParameters.repeat([], learning_rate=0.1)
