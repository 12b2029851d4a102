"""Convert properties to normal scores of their ranks, for probes that rank networks."""

from collections.abc import Mapping

import torch
from torch import Tensor

FITTED = ("train", "validation")


def normal_scores(values: Tensor, reference: Tensor, *, name: str = "a property") -> Tensor:
    """Convert values to standard normal quantiles by their ranks in a reference.

    `z(v) = Phi^-1((r(v) + 1/2) / (n + 1))` with `r(v) = (|{u < v}| + |{u <= v}|) / 2` over the n values u of the
    reference. For the reference itself, without ties, these are the scores `Phi^-1(rank / (n + 1))` of van der Waerden
    (1952). Accuracies during training are crowded near their final value, so that least squares mostly fits the first
    epochs; with scores, all pairs of neighbours count.

    Args:
        values: `[M]` float.
        reference: `[n]` float, at least one value.
        name: Name of the property, for errors.

    Returns:
        `[M]` float64, in standard deviations: non-decreasing in `values`, unchanged by increasing maps of both.

    Raises:
        ValueError: If the reference is empty, or values are not finite.
    """
    values, reference = values.double(), reference.double()
    if not len(reference):
        raise ValueError(f"expected at least one value of {name} as the reference of ranks, got none")
    for found in (values, reference):
        if bad := int((~found.isfinite()).sum()):
            raise ValueError(f"{bad} of {len(found)} values of {name} are NaN or infinite; leave those networks out")
    ordered = reference.sort().values
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return torch.special.ndtri(((below + up_to).double() / 2 + 0.5) / (len(ordered) + 1))


def rank_targets(targets: Mapping[str, Tensor], *, name: str = "a property") -> dict[str, Tensor]:
    """Normal scores of one property in every split, among the training and validation networks.

    Args:
        targets: `{split: [M_split]}` with the splits `train` and `validation`.
        name: Name of the property, for errors.

    Returns:
        The same splits, `[M_split]` float64.

    Raises:
        ValueError: If values are not finite.
    """
    reference = torch.cat([targets[split] for split in FITTED])
    return {split: normal_scores(values, reference, name=name) for split, values in targets.items()}
