"""Model zoos: build, read, align and mix populations of networks, and draw batches of windows from them."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.zoo._dataset import Zoo, ZooSplit

__all__ = [
    "Zoo",
    "ZooSplit",
]
_HOMES = {
    "Zoo": "_dataset",
    "ZooSplit": "_dataset",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
