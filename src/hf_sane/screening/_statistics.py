"""Statistics of a tensor from blocks of its values, with the sampling error."""

import hashlib
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COUNTS = ("values", "nan", "infinite", "zeros")
MIN_NORMAL_DOUBLE = sys.float_info.min
QUARTER = 0.25  # by which values are multiplied, so that differences of huge ones do not overflow


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """Statistics of a tensor's values; moments are those of finite values.

    Attributes:
        name: Name of the tensor.
        shape: Shape of the tensor.
        dtype: Type of the tensor, such as `"float16"`.
        num_values: Number of values.
        num_read: Number of values that were read.
        nan: Number of NaN values among them.
        infinite: Number of infinite values among them.
        zeros: Number of zeros among them.
        mean: Mean; NaN if no value is finite, like all statistics below.
        std: Standard deviation.
        std_error: Standard error of `std` due to sampling; 0 if the tensor was read in full.
        kurtosis: Fourth central moment over the squared variance: 3 for a normal distribution, 1.8 for a uniform one.
        kurtosis_error: Standard error of `kurtosis`, for independent values.
        low: Smallest value read.
        high: Largest value read.
        digest: Digest of the bytes that were read, which is the same for equal tensors of the same shape and dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_values: int
    num_read: int
    nan: int
    infinite: int
    zeros: int
    mean: float
    std: float
    std_error: float
    kurtosis: float
    kurtosis_error: float
    low: float
    high: float
    digest: str

    @property
    def is_whole(self) -> bool:
        """Whether all values were read."""
        return self.num_read == self.num_values

    @property
    def is_floating(self) -> bool:
        """Whether its values are real numbers, including quantised ones."""
        return not self.dtype.startswith(("int", "uint", "bool", "complex"))

    @property
    def largest(self) -> float:
        """Largest absolute value read."""
        return max(abs(self.low), abs(self.high))

    def row(self) -> dict[str, Any]:
        """A row for JSON, with `None` for unknown numbers."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__} | {"shape": list(self.shape)}
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}


@dataclass(frozen=True)
class _Block:
    """Moments of a block of finite values, without loss of digits and without overflow.

    Values are divided by 4, the shift is subtracted, and deviations are divided by about their largest absolute
    value: neither nearly constant nor huge values lose digits.

    Attributes:
        mean: Mean of a quarter of the values, minus the shift.
        scale: Power of 2 by which deviations from the mean were divided.
        sums: Sums of the second, third and fourth power of these.
    """

    mean: float = 0.0
    scale: float = 0.0
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, reduced: Tensor, shift: float) -> "_Block":
        """Moments of float64 values."""
        values = reduced - shift
        scale = _power_of_2(float(values.abs().max()))
        values = values / scale if scale else values
        mean = float(values.mean())
        values -= mean
        inner = _power_of_2(float(values.abs().max()))
        values = values / inner if inner else values
        square = values * values
        sums = (float(square.sum()), float(square @ values), float(square @ square))
        return cls(mean * scale, inner * scale, sums)


def _power_of_2(value: float) -> float:
    """The largest power of 2 up to `value`; 0 for values near zero that float64 represents with fewer digits."""
    return math.ldexp(1.0, math.frexp(value)[1] - 1) if value >= MIN_NORMAL_DOUBLE else 0.0


class Moments:
    """Moments over blocks of values, which are added one by one."""

    def __init__(self) -> None:
        self._counts: list[NDArray[np.int64]] = []
        self._blocks: list[_Block] = []
        self._shift: float | None = None  # a quarter of the first finite value
        self._low, self._high = math.inf, -math.inf
        self._digest = hashlib.sha256()

    def add(self, values: Tensor, content: bytes) -> None:
        """Add one block.

        Args:
            values: Flat values of the block.
            content: Their bytes in the file.
        """
        self._digest.update(content)
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj()).flatten()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.to(torch.float64 if values.dtype in (torch.int32, torch.int64) else torch.float32)
        finite = values[values.isfinite()]
        nan = int(values.isnan().sum())
        zeros = int((finite == 0).sum())
        self._counts.append(np.array([len(values), nan, len(values) - len(finite) - nan, zeros], np.int64))
        if not len(finite):
            self._blocks.append(_Block())
            return
        reduced = finite.double() * QUARTER
        self._shift = float(reduced[0]) if self._shift is None else self._shift
        self._blocks.append(_Block.of(reduced, self._shift))
        low, high = (float(x) for x in finite.aminmax())
        self._low, self._high = min(self._low, low), max(self._high, high)

    def statistics(self, name: str, outline: Tensor, dtype: str | None = None) -> TensorStatistics:
        """Statistics of the tensor from all blocks; `dtype` is its type, if it is quantised."""
        counts = np.array(self._counts, np.int64).reshape(-1, len(COUNTS))
        read, nan, infinite, zeros = (int(total) for total in counts.sum(0))
        finite = counts[:, 0] - counts[:, 1] - counts[:, 2]
        num_values = outline.numel() * (2 if outline.is_complex() else 1)
        mean, std, std_error, kurtosis = self._combine(finite, 1 - read / max(1, num_values))
        return TensorStatistics(
            name=name,
            shape=tuple(outline.shape),
            dtype=dtype or str(outline.dtype).removeprefix("torch."),
            num_values=num_values,
            num_read=read,
            nan=nan,
            infinite=infinite,
            zeros=zeros,
            mean=mean,
            std=std,
            std_error=std_error,
            kurtosis=kurtosis,
            # That of a normal sample, the widest distribution in comparisons.
            kurtosis_error=math.sqrt(24 / finite.sum()) if finite.sum() else math.nan,
            low=self._low if finite.sum() else math.nan,
            high=self._high if finite.sum() else math.nan,
            digest=self._digest.hexdigest(),
        )

    def _combine(self, counts: NDArray[np.int64], left_out: float) -> tuple[float, float, float, float]:
        """Mean, standard deviation, its standard error and kurtosis; NaN without finite values.

        Args:
            counts: Number of finite values of each block.
            left_out: Share of the tensor that was not read, since reading everything leaves no error.
        """
        total = int(counts.sum())
        if self._shift is None or not total:
            return math.nan, math.nan, 0.0 if left_out <= 0 else math.nan, math.nan
        means = np.array([block.mean for block in self._blocks])
        mean = float((means * (counts / total)).sum())
        offsets = np.where(counts > 0, means - mean, 0.0)
        scales = np.array([block.scale for block in self._blocks])
        scale = _power_of_2(max(float(scales.max()), float(np.abs(offsets).max())))
        if not scale:
            spread = 0.0 if self._low == self._high else math.nan  # differences too small for a float
            return (self._shift + mean) / QUARTER, spread, spread, math.nan
        ratio, offset = scales / scale, offsets / scale
        second, third, fourth = np.array([block.sums for block in self._blocks]).T
        second, third, fourth = second * ratio**2, third * ratio**3, fourth * ratio**4
        # Sums of powers of deviations from the common mean.
        squares = second + counts * offset**2
        fourths = fourth + 4 * offset * third + 6 * offset**2 * second + counts * offset**4
        variance = float(squares.sum()) / total
        return (
            (self._shift + mean) / QUARTER,
            math.sqrt(variance) * scale / QUARTER,
            _jackknife(counts, offset, squares, left_out) * scale / QUARTER,
            float(fourths.sum()) / total / variance**2 if variance > 0 else math.nan,
        )


def _jackknife(
    counts: NDArray[np.int64], offsets: NDArray[np.float64], squares: NDArray[np.float64], left_out: float
) -> float:
    """Standard error of the standard deviation, by leaving out one block at a time.

    Blocks, not values, were sampled, since neighbouring values are similar.

    Args:
        counts: Number of finite values of each block.
        offsets: Mean of each block, minus the common mean.
        squares: Sum of squared deviations from the common mean of each block.
        left_out: Share of the tensor that was not read.
    """
    blocks = len(counts)
    if left_out <= 0:
        return 0.0
    if blocks < 2 or (counts == counts.sum()).any():
        return math.nan
    others = counts.sum() - counts
    moved = counts * offsets / others  # by how much the mean moves without the block
    without = np.sqrt(np.maximum((squares.sum() - squares) / others - moved**2, 0))
    return float(np.sqrt(left_out * (blocks - 1) / blocks * np.square(without - without.mean()).sum()))


def tensor_statistics(name: str, tensor: Tensor) -> TensorStatistics:
    """Compute the statistics of a tensor in memory."""
    moments = Moments()
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    for block in flat.split(2**20) if len(flat) else ():
        moments.add(block, block.view(torch.uint8).numpy().tobytes())
    return moments.statistics(name, tensor)


def decode(content: bytes, dtype: torch.dtype) -> Tensor:
    """Decode values from bytes of a file, without partial values."""
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
