"""Sample networks from the latent space of a zoo: anchors, densities, selection, baselines, diversity, export."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.sampling._diversity import error_overlap
    from hf_sane.sampling._generation import Density, NetworkCodec
    from hf_sane.sampling._rates import (
        accuracy_kept,
        area_under,
        latent_groups,
        measure_rates,
        rate_points,
        rounded_weights,
    )
    from hf_sane.sampling._samplers import SamplingTask, register_sampler
    from hf_sane.sampling._selection import SelectedNetworks, keep_best

__all__ = [
    "Density",
    "NetworkCodec",
    "SamplingTask",
    "SelectedNetworks",
    "accuracy_kept",
    "area_under",
    "error_overlap",
    "keep_best",
    "latent_groups",
    "measure_rates",
    "rate_points",
    "register_sampler",
    "rounded_weights",
]
_HOMES = {
    "error_overlap": "_diversity",
    "Density": "_generation",
    "NetworkCodec": "_generation",
    "accuracy_kept": "_rates",
    "area_under": "_rates",
    "latent_groups": "_rates",
    "measure_rates": "_rates",
    "rate_points": "_rates",
    "rounded_weights": "_rates",
    "SamplingTask": "_samplers",
    "register_sampler": "_samplers",
    "SelectedNetworks": "_selection",
    "keep_best": "_selection",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
