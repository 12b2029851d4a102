"""Train, evaluate and condition many networks of one architecture at once, in a stack."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.networks._images import ImageData, load_images
    from hf_sane.networks._modules import ModuleArchitecture, register_architecture
    from hf_sane.networks._stacked import StackedNetworks
    from hf_sane.networks._texts import TextData

__all__ = [
    "ImageData",
    "ModuleArchitecture",
    "StackedNetworks",
    "TextData",
    "load_images",
    "register_architecture",
]
_HOMES = {
    "ImageData": "_images",
    "load_images": "_images",
    "ModuleArchitecture": "_modules",
    "register_architecture": "_modules",
    "StackedNetworks": "_stacked",
    "TextData": "_texts",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
