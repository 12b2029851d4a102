"""Sample networks from the latent space of a zoo: anchors, densities, selection, baselines, diversity, export."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.sampling._diversity import agreement, error_overlap
    from hf_sane.sampling._export import Provenance
    from hf_sane.sampling._generation import Density, NetworkCodec
    from hf_sane.sampling._samplers import SamplingTask, register_sampler
    from hf_sane.sampling._selection import SelectedNetworks, keep_best

__all__ = [
    "Density",
    "NetworkCodec",
    "Provenance",
    "SamplingTask",
    "SelectedNetworks",
    "agreement",
    "error_overlap",
    "keep_best",
    "register_sampler",
]
_HOMES = {
    "agreement": "_diversity",
    "error_overlap": "_diversity",
    "Provenance": "_export",
    "Density": "_generation",
    "NetworkCodec": "_generation",
    "SamplingTask": "_samplers",
    "register_sampler": "_samplers",
    "SelectedNetworks": "_selection",
    "keep_best": "_selection",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
