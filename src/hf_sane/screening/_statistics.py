"""Statistics of a tensor from blocks of its values, with the sampling error."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COUNTS = ("values", "nan", "infinite", "zeros")
SUMS = ("first", "second", "third", "fourth")  # sums of powers


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


class Moments:
    """Sums over blocks of values, which are added one by one."""

    def __init__(self) -> None:
        self._counts: list[NDArray[np.int64]] = []
        self._sums: list[NDArray[np.float64]] = []
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
            values = torch.view_as_real(values).flatten()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.to(torch.float64 if values.dtype in (torch.int32, torch.int64) else torch.float32)
        finite = values[values.isfinite()]
        nan = int(values.isnan().sum())
        zeros = int((finite == 0).sum())
        self._counts.append(np.array([len(values), nan, len(values) - len(finite) - nan, zeros], np.int64))
        powers, sums = finite.double(), []
        square = powers * powers
        for term in (powers, square, square * powers, square * square):
            sums.append(float(term.sum()))
        self._sums.append(np.array(sums))
        if len(finite):
            low, high = (float(x) for x in finite.aminmax())
            self._low, self._high = min(self._low, low), max(self._high, high)

    def statistics(self, name: str, outline: Tensor, dtype: str | None = None) -> TensorStatistics:
        """Statistics of the tensor from all blocks; `dtype` is its type, if it is quantised."""
        counts = np.array(self._counts, np.int64).reshape(-1, len(COUNTS))
        sums = np.array(self._sums, np.float64).reshape(-1, len(SUMS))
        read, nan, infinite, zeros = (int(total) for total in counts.sum(0))
        finite = counts[:, 0] - counts[:, 1] - counts[:, 2]
        mean, std, kurtosis = (float(x) for x in _central(finite.sum(), sums.sum(0)))
        num_values = outline.numel() * (2 if outline.is_complex() else 1)
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
            std_error=_jackknife(finite, sums, 1 - read / max(1, num_values)),
            kurtosis=kurtosis,
            # That of a normal sample, the widest distribution in comparisons.
            kurtosis_error=math.sqrt(24 / finite.sum()) if finite.sum() else math.nan,
            low=self._low if finite.sum() else math.nan,
            high=self._high if finite.sum() else math.nan,
            digest=self._digest.hexdigest(),
        )


def _central(count: Any, sums: NDArray[np.float64]) -> tuple[Any, Any, Any]:
    """Mean, standard deviation and kurtosis from sums of powers `[..., 4]`; NaN for empty sums."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second, third, fourth = np.moveaxis(sums / np.asarray(count, np.float64)[..., None], -1, 0)
        variance = np.maximum(second - first**2, 0)
        # Rounding errors of values that are all equal.
        variance = np.where(variance <= 1e-12 * second, 0, variance)
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        return first, np.sqrt(variance), np.where(variance > 0, central / variance**2, np.nan)


def _jackknife(counts: NDArray[np.int64], sums: NDArray[np.float64], left_out: float) -> float:
    """Standard error of the standard deviation, by leaving out one block at a time.

    `left_out` is the share of the tensor that was not read, since reading everything leaves no error. Blocks, not
    values, were sampled, since neighbouring values are similar.
    """
    blocks = len(counts)
    if left_out <= 0:
        return 0.0
    if blocks < 2:
        return math.nan
    _, without, _ = _central(counts.sum() - counts, sums.sum(0) - sums)
    return float(np.sqrt(left_out * (blocks - 1) / blocks * np.square(without - without.mean()).sum()))


def tensor_statistics(name: str, tensor: Tensor) -> TensorStatistics:
    """Compute the statistics of a tensor in memory."""
    moments = Moments()
    flat = tensor.detach().contiguous().flatten()
    for block in flat.split(2**20) if len(flat) else ():
        moments.add(block, block.view(torch.uint8).numpy().tobytes())
    return moments.statistics(name, tensor)


def decode(content: bytes, dtype: torch.dtype) -> Tensor:
    """Decode values from bytes of a file, without partial values."""
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
