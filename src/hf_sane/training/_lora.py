"""LoRA on a SANE autoencoder: adapts a model to another zoo with low-rank updates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_sane.core._adapters import attach_lora, match_modules
from hf_sane.models.modeling_sane import SANEModel

if TYPE_CHECKING:
    from peft import PeftModel

LORA_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "fc_in",
    "fc_out",
    "token_in",
    "latent_out",
    "latent_in",
    "token_out",
)
CONTRASTIVE_HEAD = "projection_head"  # shares names with the blocks, and neither encodes nor decodes


def add_lora(
    model: SANEModel, *, rank: int, alpha: float, targets: Sequence[str] = LORA_TARGETS, trained: Sequence[str] = ()
) -> "PeftModel":
    """Freeze a SANE autoencoder and give its maps low-rank partners.

    The contrastive head keeps its weights: it still shapes the latents through the loss, but is not a target, although
    its maps are called `fc_in` and `fc_out` like those of the blocks.

    Args:
        model: Pretrained; changed in place.
        rank: Rank of each pair of maps, `r`.
        alpha: Scale of their product: `alpha / r`.
        targets: Modules by name, or by the end of their name; docs/reference/adapters.md lists them.
        trained: Modules, by name in the same way, that are trained and saved whole: position tables, layer norms.

    Returns:
        The model with its adapter; `encode_sequences`, `decode_sequences` and the rest work as before.

    Raises:
        ValueError: If a name means no module.
    """
    from peft import LoraConfig

    excluded = [CONTRASTIVE_HEAD]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=match_modules(model, targets, excluded=excluded),
        modules_to_save=match_modules(model, trained, excluded=excluded) or None,
    )
    return attach_lora(model, config)
