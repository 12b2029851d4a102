"""Detect whether a tensor's values look freshly initialised."""

import math

from hf_sane.analysis._report import LayerSpectrum
from hf_sane.screening._statistics import TensorStatistics

MIN_VALUES = 2000  # smaller samples are inconclusive
MIN_NORMAL = 20_000  # values of a normal distribution whose spectrum is unknown, as trained weights may be normal, too
MAX_BULK_DISTANCE = 0.15  # between the spectrum and that of independent values, which training destroys
UNIFORM_KURTOSIS = 1.8
NORMAL_KURTOSIS = 3.0
# Moments of a normal distribution truncated at two standard deviations, as in Flax and Keras:
# `scipy.stats.truncnorm(-2, 2)`.
TRUNCATED_KURTOSIS, TRUNCATED_REACH = 2.3655, 2.2737
SLACK = 0.003  # relative tolerance, which a few training steps exceed
ERRORS = 4  # standard errors allowed for chance
# Relative distance of the extremes from the limits of the distribution, times the number of values. Training moves
# some values beyond the limits, and not equally far on both sides.
UNIFORM_EXTREMES, TRUNCATED_EXTREMES = 20, 200
ROUNDING = {"float64": 1e-9, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}  # relative errors of values
COARSE = 0.02  # relative error of quantised values
FIXED_SCALES = (0.02, 0.01, 1.0)  # common constants for embeddings and transformers


def can_be_judged(tensor: TensorStatistics) -> bool:
    """Whether a tensor is a matrix or convolution with enough finite values read."""
    is_finite = not tensor.nan and not tensor.infinite
    return len(tensor.shape) >= 2 and tensor.num_read >= MIN_VALUES and is_finite and tensor.std > 0


def is_independent(spectrum: LayerSpectrum | None) -> bool | None:
    """Whether a spectrum is that of independent values; `None` if it is unknown or too small to tell."""
    if spectrum is None or spectrum.bulk_distance is None:
        return None
    return not spectrum.num_spikes and spectrum.bulk_distance < MAX_BULK_DISTANCE


def is_undecided(tensor: TensorStatistics, spectrum: LayerSpectrum | None = None) -> bool:
    """Whether a matrix is like a normal initialisation, but too small for a verdict."""
    is_like = initialization_of(tensor, spectrum, min_normal=0) is not None
    return is_like and initialization_of(tensor, spectrum) is None


def initialization_of(
    tensor: TensorStatistics, spectrum: LayerSpectrum | None = None, *, min_normal: int = MIN_NORMAL
) -> str | None:
    """The initialisation that a matrix seems to be drawn from without training, or `None`.

    The mean must be zero and the kurtosis that of the distribution, to within the error of the sample. Uniform and
    truncated normal distributions have limits, which training steps exceed, so their scale does not matter. Trained
    weights may also resemble a normal distribution, which therefore counts only if its standard deviation is that of
    an initialisation, `sqrt(gain / fan)` or a common constant, and if the spectrum is that of independent values or,
    where it is unknown, if many values were read.

    Args:
        tensor: Statistics of a matrix or convolution.
        spectrum: Its spectrum, if the tensor was read in full.
        min_normal: Number of values of a normal distribution that are enough without a spectrum.

    Returns: A description such as `"uniform"` or `"normal with std 0.02"`.
    """
    independent = is_independent(spectrum)
    if not can_be_judged(tensor) or independent is False:
        return None
    count, rounding = tensor.num_read, ROUNDING.get(tensor.dtype, COARSE)
    if abs(tensor.mean) > ERRORS * tensor.std / math.sqrt(count):
        return None
    error = max(tensor.std_error / tensor.std, 1 / math.sqrt(2 * count))
    reach = tensor.largest / tensor.std

    def has(kurtosis: float, share: float) -> bool:
        return abs(tensor.kurtosis - kurtosis) < SLACK * kurtosis + ERRORS * share * tensor.kurtosis_error

    def ends_at(limit: float, extremes: int) -> bool:
        is_even = abs(tensor.high + tensor.low) < (extremes / count + rounding) * tensor.largest
        return is_even and abs(reach / limit - 1) < SLACK + rounding + ERRORS * error + extremes / count

    if has(UNIFORM_KURTOSIS, 0.2) and ends_at(math.sqrt(3), UNIFORM_EXTREMES):
        return "uniform"
    if has(TRUNCATED_KURTOSIS, 0.5) and ends_at(TRUNCATED_REACH, TRUNCATED_EXTREMES):
        return "truncated normal"
    farthest = math.sqrt(2 * math.log(count)) + 1.5  # range of this many normal values
    if (independent or count >= min_normal) and has(NORMAL_KURTOSIS, 1.0) and reach < farthest:
        for scale in _scales(tensor.shape):
            if abs(tensor.std / scale - 1) < SLACK + ERRORS * error:
                return f"normal with std {scale:.3g}"
    return None


def _scales(shape: tuple[int, ...]) -> list[float]:
    """Standard deviations of initialisations, for weights `[out, in, ...]` and their transposes."""
    kernel = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * kernel, shape[0] * kernel
    fans = (fan_in, fan_out, (fan_in + fan_out) / 2)
    return [*FIXED_SCALES, *(math.sqrt(gain / fan) for fan in fans for gain in (1, 2))]
