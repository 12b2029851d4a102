"""LoRA for SANE autoencoders: adapts a model to another zoo with low-rank updates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_sane.core._adapters import attach_lora, match_modules
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._extras import require_package

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
CONTRASTIVE_HEAD = "projection_head"  # its layers have the names of the blocks' layers


def add_lora(
    model: SANEModel, *, rank: int, alpha: float, targets: Sequence[str] = LORA_TARGETS, trained: Sequence[str] = ()
) -> "PeftModel":
    """Freeze a SANE autoencoder and add low-rank adapters to its linear layers.

    The contrastive head is never a target, although its layers are called `fc_in` and `fc_out` like those of the
    blocks. Its frozen weights still affect the latents through the loss.

    Args:
        model: Pretrained model, which is changed in place.
        rank: Rank `r` of the adapters.
        alpha: Numerator of their scale `alpha / r`.
        targets: Modules to adapt, by name or end of the name; docs/reference/adapters.md lists them.
        trained: Modules to train and save in full, such as position tables and layer norms; by name or its end.

    Returns:
        The model with its adapter, which has the same methods.

    Raises:
        ValueError: If a name matches no module.
    """
    require_package("peft", "LoRA")
    from peft import LoraConfig

    excluded = [CONTRASTIVE_HEAD]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=match_modules(model, targets, excluded=excluded),
        modules_to_save=match_modules(model, trained, excluded=excluded) or None,
    )
    return attach_lora(model, config)
