"""Detect whether a tensor's values look freshly initialised."""

import math

from hf_sane.screening._statistics import TensorStatistics

MIN_VALUES = 2000  # smaller samples are inconclusive
UNIFORM_KURTOSIS = 1.8
NORMAL_KURTOSIS = 3.0
# Moments of a normal distribution truncated at two standard deviations, as in Flax and Keras:
# `scipy.stats.truncnorm(-2, 2)`.
TRUNCATED_KURTOSIS, TRUNCATED_REACH = 2.3655, 2.2737
SLACK = 0.01  # relative tolerance, which a few training steps exceed
ERRORS = 4  # standard errors allowed for chance
FIXED_SCALES = (0.02, 0.01, 1.0)  # common constants for embeddings and transformers


def can_be_judged(tensor: TensorStatistics) -> bool:
    """Whether a tensor is a matrix or convolution with enough finite values read."""
    is_finite = not tensor.nan and not tensor.infinite
    return len(tensor.shape) >= 2 and tensor.num_read >= MIN_VALUES and is_finite and tensor.std > 0


def initialization_of(tensor: TensorStatistics) -> str | None:
    """The initialisation that a matrix seems to be drawn from without training, or `None`.

    Training quickly destroys the kurtosis and range of uniform and truncated normal distributions, so their scale does
    not matter. Trained weights may also resemble a normal distribution, which therefore counts only if its standard
    deviation is that of an initialisation, `sqrt(gain / fan)` or a common constant, to within one per cent.

    Args:
        tensor: Statistics of a matrix or convolution.

    Returns: A description such as `"uniform"` or `"normal with std 0.02"`.
    """
    if not can_be_judged(tensor):
        return None
    error = max(tensor.std_error / tensor.std, 1 / math.sqrt(2 * tensor.num_read))
    slack, reach = SLACK + ERRORS * error, tensor.largest / tensor.std

    def has(kurtosis: float, share: float) -> bool:
        return abs(tensor.kurtosis - kurtosis) < 0.01 * kurtosis + ERRORS * share * tensor.kurtosis_error

    if has(UNIFORM_KURTOSIS, 0.2) and abs(reach / math.sqrt(3) - 1) < slack:
        return "uniform"
    if has(TRUNCATED_KURTOSIS, 0.5) and abs(reach / TRUNCATED_REACH - 1) < slack:
        return "truncated normal"
    farthest = math.sqrt(2 * math.log(tensor.num_read)) + 1.5  # range of this many normal values
    if has(NORMAL_KURTOSIS, 1.0) and reach < farthest:
        for scale in _scales(tensor.shape):
            if abs(tensor.std / scale - 1) < slack:
                return f"normal with std {scale:.3g}"
    return None


def _scales(shape: tuple[int, ...]) -> list[float]:
    """Standard deviations of initialisations, for weights `[out, in, ...]` and their transposes."""
    kernel = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * kernel, shape[0] * kernel
    fans = (fan_in, fan_out, (fan_in + fan_out) / 2)
    return [*FIXED_SCALES, *(math.sqrt(gain / fan) for fan in fans for gain in (1, 2))]
