"""The weight tokenizer, which converts networks to tokens and tokens to networks, and the readers of checkpoints."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.tokenization._checkpoints import CheckpointSource, load_state_dict
    from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
    from hf_sane.tokenization._formats import register_format
    from hf_sane.tokenization._headers import read_meta_state_dict
    from hf_sane.tokenization._token_stream import TokenStream

__all__ = [
    "CheckpointSource",
    "SANEFeatureExtractor",
    "TokenStream",
    "load_state_dict",
    "read_meta_state_dict",
    "register_format",
]
_HOMES = {
    "CheckpointSource": "_checkpoints",
    "load_state_dict": "_checkpoints",
    "SANEFeatureExtractor": "_feature_extraction_sane",
    "register_format": "_formats",
    "read_meta_state_dict": "_headers",
    "TokenStream": "_token_stream",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
