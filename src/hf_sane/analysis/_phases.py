"""The training phase that a spectrum suggests, with the evidence."""

import math
from collections.abc import Mapping
from typing import Any

from hf_sane.analysis._report import Phase
from hf_sane.core._marchenko_pastur import MarchenkoPasturFit

FULL_RANK_SHARE = 0.9  # with a smaller share of non-zero singular values, the matrix has collapsed
BULK_DISTANCE = 0.1  # up to here a bulk follows the Marchenko-Pastur law
MAX_SPIKE_SHARE = 0.1  # with a larger share beyond the edge, there is no bulk
MAX_HEAVY_ALPHA = 6.0  # steeper tails are hardly distinguishable from exponential decay
MAX_TAIL_DISTANCE = 0.15


def suggest_phase(
    bulk: MarchenkoPasturFit | None,
    tail: Mapping[str, Any] | None,
    num_positive: int,
    num_values: int,
    *,
    is_partial: bool,
) -> tuple[Phase | None, str]:
    """Name the phase of training in the manner of Martin and Mahoney (arXiv:1810.01075, section 4, "5+1 phases").

    In this order: *rank collapse* if a tenth of the singular values is zero; *random-like* if all eigenvalues follow
    the Marchenko-Pastur law; *bulk + spikes* if all but a few do; *heavy-tailed* if they do not, and their tail is
    close to a power law with an exponent up to 6; otherwise undecided (which includes most cases of "bleeding-out" and
    "bulk-decay"). Martin and Mahoney judge visually; the thresholds are ours.

    Args:
        bulk: Fit of the bulk; `None` if the layer is too small.
        tail: `alpha` and `tail_distance` of the power law; `None` if the layer is too small.
        num_positive: Number of non-zero singular values.
        num_values: Number of singular values.
        is_partial: Whether only the largest eigenvalues are known.

    Returns:
        The phase (`None` if the layer is too small) and one sentence of evidence.
    """
    if not is_partial and num_positive < FULL_RANK_SHARE * num_values:
        return "rank-collapse", f"{num_values - num_positive} of {num_values} singular values are zero"
    if bulk is None or tail is None:
        return None, "too few eigenvalues"
    if is_partial or math.isnan(bulk.ks_distance):
        return "undecided", f"{bulk.num_spikes} spikes among the known eigenvalues; the bulk is unknown"
    beyond = f"{bulk.num_spikes} of {num_positive} eigenvalues beyond the bulk"
    law = f"bulk at distance {bulk.ks_distance:.2f} from the Marchenko-Pastur law"
    if bulk.ks_distance <= BULK_DISTANCE and bulk.num_spikes <= MAX_SPIKE_SHARE * num_positive:
        return ("bulk+spikes" if bulk.num_spikes else "random-like"), f"{law}, {beyond}"
    alpha, distance = tail.get("alpha"), tail.get("tail_distance")
    if alpha is None or distance is None:
        return "undecided", f"{law}, {beyond}, no tail"
    if tail.get("alpha_left_out"):
        return "undecided", f"{law}, {beyond}; {tail['alpha_left_out']}"
    power = f"tail with alpha {alpha:.2f} at distance {distance:.2f} from a power law"
    if alpha <= MAX_HEAVY_ALPHA and distance <= MAX_TAIL_DISTANCE:
        return "heavy-tailed", f"{law}, {beyond}; {power}"
    return "undecided", f"{law}, {beyond}; {power}"
