"""Tables that any network of an architecture has, such as sinusoids, which are no evidence that two are related."""

import torch
from torch import Tensor

from hf_sane.screening._float8 import readable

LEAST = 8  # places along an axis of which a table can be recognised
EXACT = 1e-3  # of the scale of a column, that rounding may add to a value that follows from its neighbours
IN_TABLE = 0.5  # share of the values that follow from their neighbours in a table
SAMPLED = 64  # columns from which a table is recognised
FOLLOWS = 0.5  # share of the squares that neighbours leave in tables that were trained


def is_table(tensor: Tensor) -> bool:
    """Whether a matrix follows from a rule: sinusoids, equally spaced values, equal rows, a diagonal, or a constant.

    In a sinusoid, `x[n + 1] + x[n - 1] = c x[n]`, with one `c` per column; in equally spaced values, `c` is 2.
    """
    values = readable(tensor.detach())
    values = torch.view_as_real(values) if values.is_complex() else values
    if values.ndim < 2 or values.numel() < 2:
        return values.numel() < 2 or bool((values == values.flatten()[0]).all())
    if values.ndim == 2 and int((values != 0).sum()) <= max(values.shape):
        return True
    exact = max(EXACT, 4 * torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else EXACT
    for every in _columns(values):
        columns = _sampled(every).double()
        left, middle = _left(columns, _factors(columns)), columns[1:-1]
        scale = columns.square().mean(0).sqrt()
        is_hit = (left.abs() <= exact * scale) & (scale > 0)
        is_value = (middle != 0) | (columns[2:] != 0) | (columns[:-2] != 0)
        if int((is_hit & is_value).sum()) >= IN_TABLE * max(1, int(is_value.sum())):
            return True
    return False


def without_table(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of two matrices beside a common table from which both were trained; most matrices have none.

    Networks that were trained from the same table, such as the logarithms in a Mamba, share it however independent
    they are. The rest, which does not follow from neighbouring values, is their own.
    """
    for one, other in zip(_columns(a), _columns(b), strict=True):
        if _own(_sampled(one), _sampled(other)) is not None and (found := _own(one, other)) is not None:
            return found
    return a, b


def _columns(values: Tensor) -> list[Tensor]:
    """The values as columns along each of their axes that is long enough, without axes of length 1."""
    values = values.squeeze()
    if values.ndim < 2:
        return []
    return [values.movedim(axis, 0).flatten(1) for axis, size in enumerate(values.shape) if size >= LEAST]


def _factors(columns: Tensor) -> Tensor:
    """The factor of each column, `(x[n + 1] + x[n - 1]) / x[n]` in the median."""
    middle = columns[1:-1]
    ratios = (columns[2:] + columns[:-2]) / torch.where(middle != 0, middle, 1.0)
    return ratios.masked_fill(middle == 0, torch.nan).nanmedian(0).values.nan_to_num()


def _left(columns: Tensor, factors: Tensor) -> Tensor:
    return columns[2:] + columns[:-2] - factors * columns[1:-1]


def _own(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """The parts of two matrices that do not follow from neighbouring values, if most of both does."""
    factors = _factors(a + b)
    x, y = _left(a, factors), _left(b, factors)
    return (x, y) if _follows(x, a, factors) and _follows(y, b, factors) else None


def _sampled(columns: Tensor) -> Tensor:
    return columns[:, :: -(-columns.shape[1] // SAMPLED)]


def _follows(left: Tensor, columns: Tensor, factors: Tensor) -> bool:
    """Whether neighbours explain most of the values: independent ones would leave `2 + c^2` squares."""
    by_chance = float(((2 + factors.square()) * columns.square().mean(0)).sum()) * len(left)
    return float(left.square().sum()) < FOLLOWS * by_chance
