"""Shifts of images: what each does to pixels, how combinations are drawn, and networks that are trained on them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_sane.architectures.presets import cnn_digits
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._shifts import KINDS, STRENGTHS, UNCHANGED, Shift, StackedShifts
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked


def shifted(images, *shifts):
    return StackedShifts(shifts, *images.shape[-2:])(images)


def test_rotations_are_counterclockwise_and_images_stay_apart():
    images = torch.rand(3, 2, 7, 7)
    once, twice, never = shifted(images, Shift(rotation=90.0), Shift(rotation=180.0), UNCHANGED)
    torch.testing.assert_close(once, images.rot90(1, (2, 3)))
    torch.testing.assert_close(twice, images.rot90(2, (2, 3)))
    torch.testing.assert_close(never, images)
    own = torch.stack([images, images.flip(0), 2 * images])  # every network has its own batch
    expected = torch.stack([own[0].rot90(1, (2, 3)), own[1], own[2].rot90(-1, (2, 3))])
    torch.testing.assert_close(shifted(own, Shift(rotation=90.0), UNCHANGED, Shift(rotation=-90.0)), expected)


def test_scale_enlarges_and_shear_moves_rows_sideways():
    rows, columns = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(9.0) - 4, indexing="ij")
    (larger,), (sheared,) = shifted(columns[None, None], Shift(scale=2.0), Shift(shear=0.5))
    torch.testing.assert_close(larger[0], columns / 2)
    inner = (slice(2, 7), slice(2, 7))  # beyond it, the border is repeated
    torch.testing.assert_close(sheared[0][inner], (columns - 0.5 * rows)[inner])


def test_blur_has_its_width_and_contrast_keeps_the_mean():
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1.0
    (blurred,), (flat,), (weak,) = shifted(point, Shift(blur=0.05), Shift(blur=0.3), Shift(contrast=0.25))
    offsets = torch.arange(41.0) - 20
    assert (blurred[0].sum(0) * offsets**2).sum() == pytest.approx((0.05 * 41) ** 2, rel=1e-3)
    assert flat.max() < 0.01
    torch.testing.assert_close(weak - weak.mean(), 0.25 * (point[0] - point.mean()))
    constant = torch.full((1, 1, 8, 8), 3.0)
    torch.testing.assert_close(shifted(constant, Shift(rotation=30, scale=0.5, blur=0.2, contrast=0.5))[0], constant)


def test_combinations_are_equally_likely_and_strengths_visible():
    kinds = ("blur", "rotation", "classes")
    drawn = [Shift.draw(kinds, range(10), np.random.default_rng(i)) for i in range(700)]
    counts = Counter(shift.combination for shift in drawn)
    assert set(counts) == {
        *("rotation", "blur", "classes", "rotation+blur", "rotation+classes", "blur+classes"),
        "rotation+blur+classes",
    }
    assert min(counts.values()) > 70
    rotations = np.array([shift.rotation for shift in drawn if shift.rotation])
    assert rotations.min() < -15 < 15 < rotations.max()
    assert (np.abs(rotations) >= 15).all()
    assert (np.abs(rotations) <= 60).all()
    assert {len(shift.classes) for shift in drawn if shift.classes} == {3, 4, 5, 6, 7}
    assert all(shift.is_single == ("+" not in shift.combination) for shift in drawn)
    assert set(UNCHANGED.properties()) == {"combination", *(f"shift_{kind}" for kind in (*STRENGTHS, "classes"))}
    with pytest.raises(ValueError, match="expected more than 2 classes to omit some, got 2"):
        Shift.draw(KINDS, [0, 1], np.random.default_rng(0))


def test_networks_learn_as_if_they_were_alone_on_shifted_images(digits):
    shifts = [Shift(rotation=40.0, blur=0.05), Shift(scale=1.4, classes=(1, 4, 7))]
    config, count = cnn_digits(), 320
    few = HyperParameters.repeat([3, 4], learning_rate=3e-3, data_fraction=0.5)
    start = StackedNetworks.initialize(config, [3, 4])
    (found,) = train_stacked(config, start.tensors, digits, few, epochs=2, shifts=shifts)
    for i, shift in enumerate(shifts):
        (images,) = shifted(digits.train_images, shift)
        own = replace(digits, train_images=images)
        for part in ("validation", "test"):
            own = replace(own, **{f"{part}_images": shifted(digits.split(part)[0], shift)[0]})
        if shift.classes is not None:  # only these classes, as often as there were images
            for part in ("train", "validation", "test"):
                pixels, labels = own.split(part)
                seen = torch.isin(labels, torch.tensor(shift.classes))
                own = replace(own, **{f"{part}_images": pixels[seen], f"{part}_labels": labels[seen]})
            assert set(own.train_labels.tolist()) == set(shift.classes)
        steps = len(own.train_labels) // 32
        one = few.select([i])
        epochs = 2 if shift.classes is None else 2 * (count // 32) // steps
        (alone,) = train_stacked(config, start.select([i]).tensors, own, one, epochs=epochs)
        for part in ("train", "validation", "test"):
            close = 1e-3 if shift.classes is None else 0.25  # the order of images differs with their number
            assert getattr(found, f"{part}_loss")[i].item() == pytest.approx(
                getattr(alone, f"{part}_loss")[0].item(), rel=close
            )
    with pytest.raises(ValueError, match="a shift for each of 2 networks, got digits and 1 shifts"):
        train_stacked(config, start.tensors, digits, few, epochs=1, shifts=shifts[:1])
