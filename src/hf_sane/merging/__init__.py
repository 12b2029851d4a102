"""Average weights of networks: along a training run (SWA), over checkpoints (soups), or over LoRA adapters."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.merging._greedy import greedy_soup
    from hf_sane.merging._ingredients import Ingredient, align_ingredients, open_ingredients
    from hf_sane.merging._methods import MergeMethod, register_merge_method
    from hf_sane.merging._scoring import ImageScore
    from hf_sane.merging._soups import CheckpointMixer, Soup
    from hf_sane.merging._swa import SWAResult, SWASchedule, WeightAverager, train_stacked_swa

__all__ = [
    "CheckpointMixer",
    "ImageScore",
    "Ingredient",
    "MergeMethod",
    "SWAResult",
    "SWASchedule",
    "Soup",
    "WeightAverager",
    "align_ingredients",
    "greedy_soup",
    "open_ingredients",
    "register_merge_method",
    "train_stacked_swa",
]
_HOMES = {
    "greedy_soup": "_greedy",
    "Ingredient": "_ingredients",
    "align_ingredients": "_ingredients",
    "open_ingredients": "_ingredients",
    "MergeMethod": "_methods",
    "register_merge_method": "_methods",
    "ImageScore": "_scoring",
    "CheckpointMixer": "_soups",
    "Soup": "_soups",
    "SWAResult": "_swa",
    "SWASchedule": "_swa",
    "WeightAverager": "_swa",
    "train_stacked_swa": "_swa",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
