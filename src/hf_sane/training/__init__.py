"""Training on zoos: pre-training of SANE autoencoders with Accelerate, the behavioural loss, and evaluation."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.training._lora import add_lora
    from hf_sane.training._settings import PretrainSettings

__all__ = [
    "PretrainSettings",
    "add_lora",
]
_HOMES = {
    "add_lora": "_lora",
    "PretrainSettings": "_settings",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
