"""The demo's probing part: what embeddings of the hyper-parameter zoo know, beside W and s(W)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing import _zoo_features as probing
from hf_sane.probing._evaluation import probe_table
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import Zoo

PROPERTIES = ("test_accuracy", "epoch", "generalization_gap")
SPLITS = ("train", "validation", "test")


def zoo_features(
    model: SANEModel,
    extractor: SANEFeatureExtractor,
    zoo: Zoo,
    *,
    window_size: int | None = None,
    halo_size: int = 0,
) -> dict[str, dict[str, Tensor]]:
    """W, s(W), the profile of the weights and every pooling of SANE, of all networks of a zoo.

    Args:
        model: Pre-trained autoencoder.
        extractor: Its weight tokenizer.
        zoo: Aligned zoo of one architecture.
        window_size: Tokens per window; the training window when `None`.
        halo_size: Context tokens on each side of a window.

    Returns:
        `{name: {split: [M_split, F]}}`, networks in the order of the zoo.
    """
    return probing.zoo_features(
        zoo, model, extractor, aligned=True, window_size=window_size, halo_size=halo_size, profile=True
    )[0]


def probe_zoo(
    model: SANEModel,
    extractor: SANEFeatureExtractor,
    zoo: Zoo,
    *,
    window_size: int | None = None,
    halo_size: int = 0,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Embed all networks of a zoo and probe three properties; arguments as of [`zoo_features`].

    Returns:
        `{property: {features: ProbeResult as a dict}}`, and the embeddings of the test networks by pooling.
    """
    features = zoo_features(model, extractor, zoo, window_size=window_size, halo_size=halo_size)
    return probe_features(zoo, features), {name: values["test"] for name, values in features.items()}


def probe_features(zoo: Zoo, features: Mapping[str, Mapping[str, Tensor]], *, ranks: bool = False) -> dict[str, Any]:
    """Probe three properties of a zoo, with penalties that are chosen by leaving out one training run at a time.

    Args:
        zoo: Has the properties.
        features: `{name: {split: [M_split, F]}}`, networks in the order of the zoo.
        ranks: Whether ranks of the properties are fitted, not their values, see [`probe_table`].

    Returns:
        `{property: {features: ProbeResult as a dict}}`.
    """
    targets = {p: {name: zoo.splits[name].column(p).astype(np.float64) for name in SPLITS} for p in PROPERTIES}
    runs = {name: zoo.splits[name].run_ids for name in SPLITS}
    table = probe_table(features, targets, runs=runs, ranks=ranks)
    return {p: {name: result.to_dict() for name, result in row.items()} for p, row in table.items()}


def short_table(details: dict[str, Any]) -> dict[str, dict[str, float]]:
    """R2 on test networks of the rows that the record promises."""
    rows = ("weights", "layer_statistics", "sane_mean", "sane_best")
    return {p: {name: row[name]["r2"] for name in rows} for p, row in details.items()}


__all__ = []
