"""Publishing to and loading from the Hugging Face Hub, and model cards."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.hub._publish import load_sane, save_network, save_sane

__all__ = [
    "load_sane",
    "save_network",
    "save_sane",
]
_HOMES = {
    "load_sane": "_publish",
    "save_network": "_publish",
    "save_sane": "_publish",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
