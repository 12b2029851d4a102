"""Whether the values of a tensor look as an initialisation left them."""

import math

from hf_sane.screening._statistics import TensorStatistics

MIN_VALUES = 2000  # below that, nothing can be told from a sample
UNIFORM_KURTOSIS = 1.8
NORMAL_KURTOSIS = 3.0
# Of a normal distribution that is cut at two standard deviations, as Flax and Keras draw: moments of
# `scipy.stats.truncnorm(-2, 2)`.
TRUNCATED_KURTOSIS, TRUNCATED_REACH = 2.3655, 2.2737
SLACK = 0.01  # relative: what a few steps of training move more than that
ERRORS = 4  # standard errors that chance may add
FIXED_SCALES = (0.02, 0.01, 1.0)  # that libraries draw embeddings and transformers with


def can_be_judged(tensor: TensorStatistics) -> bool:
    """Whether a tensor is a matrix, or kernels, of which enough finite values were read."""
    is_finite = not tensor.nan and not tensor.infinite
    return len(tensor.shape) >= 2 and tensor.num_read >= MIN_VALUES and is_finite and tensor.std > 0


def initialization_of(tensor: TensorStatistics) -> str | None:
    """The distribution that a matrix seems to be drawn from and not trained since, or `None`.

    Uniform and truncated normal distributions have a kurtosis and a reach that training destroys at once, so their
    scale does not matter. A normal distribution is what trained weights resemble, too: it counts only with a standard
    deviation that an initialisation would have, `sqrt(gain / fan)` or a common constant, to within a per cent.

    Args:
        tensor: Statistics of a matrix or of kernels.

    Returns:
        Such as `"uniform"` or `"normal with std 0.02"`.
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
    farthest = math.sqrt(2 * math.log(tensor.num_read)) + 1.5  # of so many normal values
    if has(NORMAL_KURTOSIS, 1.0) and reach < farthest:
        for scale in _scales(tensor.shape):
            if abs(tensor.std / scale - 1) < slack:
                return f"normal with std {scale:.3g}"
    return None


def _scales(shape: tuple[int, ...]) -> list[float]:
    """Standard deviations of initialisations, for weights `[out, in, ...]` and for those stored the other way."""
    kernel = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * kernel, shape[0] * kernel
    fans = (fan_in, fan_out, (fan_in + fan_out) / 2)
    return [*FIXED_SCALES, *(math.sqrt(gain / fan) for fan in fans for gain in (1, 2))]
