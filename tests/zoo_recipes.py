"""Settings of the two recipes for zoos."""

from typing import Any

from hf_sane.zoo.building._settings import RECIPES, ZooSettings


def seed_zoo(**settings: Any) -> ZooSettings:
    """Settings of a zoo whose networks differ only in their seed."""
    return ZooSettings(**{**RECIPES["seed"], **settings})


def hyperparameter_zoo(**settings: Any) -> ZooSettings:
    """Settings of a zoo whose networks differ in all hyper-parameters."""
    return ZooSettings(**{**RECIPES["hyperparameter"], **settings})
