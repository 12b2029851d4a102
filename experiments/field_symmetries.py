"""Order and signs of hidden units of SIREN networks: since sines are odd, a unit and what it feeds may be negated."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Fields = dict[str, Tensor]


def rearranged(fields: Fields, layer: int, order: Tensor, signs: Tensor) -> Fields:
    """Networks of the same function, with the units of a hidden layer in another order and negated.

    Args:
        fields: `{name: [M, *shape]}`.
        layer: Number of the hidden layer.
        order: `[M, width]`, the unit that comes at each place.
        signs: `[M, width]`, 1 or -1 for each place.
    """
    name = f"hidden.{layer}"
    after = f"hidden.{layer + 1}" if f"hidden.{layer + 1}.weight" in fields else "output"
    weight, bias, following = fields[f"{name}.weight"], fields[f"{name}.bias"], fields[f"{after}.weight"]
    rows = order.unsqueeze(2).expand(-1, -1, weight.shape[2])
    columns = order.unsqueeze(1).expand(-1, following.shape[1], -1)
    return {
        **fields,
        f"{name}.weight": weight.gather(1, rows) * signs.unsqueeze(2),
        f"{name}.bias": bias.gather(1, order) * signs,
        f"{after}.weight": following.gather(2, columns) * signs.unsqueeze(1),
    }


def depth(fields: Fields) -> int:
    """Number of hidden layers."""
    return sum(name.startswith("hidden.") and name.endswith(".weight") for name in fields)


def canonical(fields: Fields) -> Fields:
    """Each unit with a positive bias, in the order of biases: one network for all that differ by symmetries only."""
    for layer in range(depth(fields)):
        bias = fields[f"hidden.{layer}.bias"]
        signs = torch.where(bias < 0, -1.0, 1.0)
        order = (bias * signs).argsort(dim=1)
        fields = rearranged(fields, layer, order, signs.gather(1, order))
    return fields


def aligned(fields: Fields, reference: Fields) -> Fields:
    """Networks whose units are matched with those of a reference, layer by layer, with signs.

    Args:
        fields: `{name: [M, *shape]}`.
        reference: `{name: [1, *shape]}`.
    """
    for layer in range(depth(fields)):
        name = f"hidden.{layer}"
        own, wanted = (
            torch.cat([part[f"{name}.weight"], part[f"{name}.bias"].unsqueeze(2)], dim=2)
            for part in (fields, reference)
        )
        likeness = (wanted @ own.mT).double()  # [M, place, unit]
        matched = [linear_sum_assignment(-row.abs().numpy())[1] for row in likeness]
        order = torch.from_numpy(np.stack(matched))
        chosen = likeness.gather(2, order.unsqueeze(2)).squeeze(2)
        fields = rearranged(fields, layer, order, torch.where(chosen < 0, -1.0, 1.0).float())
    return fields
