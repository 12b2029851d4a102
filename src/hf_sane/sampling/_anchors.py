"""Choose the trained networks that serve as anchors of sampling."""

import numpy as np

from hf_sane.zoo._dataset import ZooSplit

TOP_FRACTION = 0.3


def choose_anchors(
    split: ZooSplit,
    *,
    num_anchors: int | None = None,
    top_fraction: float = TOP_FRACTION,
    epoch: int | None = None,
    accuracy: np.ndarray | None = None,
) -> np.ndarray:
    """Choose anchors among training networks: the top 30% by accuracy, or the best few of these (KDE30 in SANE).

    There is one checkpoint per training run: at `epoch`, or the run's last. They are ranked by accuracy on validation
    images, so that neither test images nor test networks are used.

    Args:
        split: The *training* split of a zoo, since test networks must not become anchors.
        num_anchors: Number of anchors; the whole top fraction if `None`.
        top_fraction: Share of the runs to choose from, in (0, 1]; at least one run.
        epoch: Epoch of the checkpoints; the last of each run if `None`.
        accuracy: `[M]` on validation images, instead of the zoo's values.

    Returns:
        `[A]` int64 indices into `split`, best first.

    Raises:
        ValueError: If there are no candidates or fewer than `num_anchors`, or a number is out of range.
    """
    if not 0 < top_fraction <= 1 or (num_anchors is not None and num_anchors < 1):
        raise ValueError(f"expected top_fraction in (0, 1] and num_anchors >= 1, got {top_fraction} and {num_anchors}")
    was_measured = accuracy is not None
    known = split.column("validation_accuracy") if accuracy is None else accuracy
    accuracy = np.asarray(known, dtype=np.float64)
    epochs = np.asarray(split.column("epoch"))
    candidates = np.flatnonzero(epochs == epoch) if epoch is not None else _last_checkpoints(split, epochs)
    if len(candidates) and not np.isfinite(accuracy[candidates]).any():
        if was_measured:
            raise ValueError(
                f"expected a finite score of at least one of {len(candidates)} training networks, got none; check the "
                "networks, and the function or images that judge them"
            )
        raise ValueError(
            "the accuracy of the networks on validation images is unknown; name images to judge them by (--images)"
        )
    candidates = candidates[np.isfinite(accuracy[candidates])]
    if not len(candidates):
        raise ValueError(
            f"no networks to choose from at epoch {epoch}; the split has epochs {sorted(set(epochs.tolist()))}"
        )
    ranked = candidates[np.argsort(-accuracy[candidates], kind="stable")]
    top = ranked[: max(1, round(top_fraction * len(ranked)))]
    if num_anchors is not None and len(top) < num_anchors:
        raise ValueError(
            f"expected at most {len(top)} anchors, the top {top_fraction:.0%} of {len(ranked)} runs, got "
            f"{num_anchors}; request fewer, raise top_fraction, or build a larger zoo"
        )
    return top[:num_anchors]


def _last_checkpoints(split: ZooSplit, epochs: np.ndarray) -> np.ndarray:
    """Index of the last checkpoint of each run, in order of first appearance."""
    last: dict[str, int] = {}
    for index, run in enumerate(split.column("run_id")):
        if run not in last or epochs[index] > epochs[last[run]]:
            last[run] = index
    return np.fromiter(last.values(), dtype=np.int64, count=len(last))
