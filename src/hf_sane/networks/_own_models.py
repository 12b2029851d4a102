"""Networks of a user's own module as models of Transformers, for the Auto classes and pipelines.

Only modules that were registered are loaded: the code of a repository is never run.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_sane.networks._modules import find_architecture
from hf_sane.networks._own_configuration import OwnModuleConfig
from hf_sane.networks._stacked import logits_of
from hf_sane.tokenization._checkpoints import CheckpointSource, load_state_dict


class OwnModule(PreTrainedModel):
    """A network of a registered module, with logits as output.

    Args:
        config: Its configuration.
        module: The network.
    """

    config_class = OwnModuleConfig
    main_input_name = "pixel_values"

    def __init__(self, config: OwnModuleConfig, module: nn.Module) -> None:
        super().__init__(config)
        self.module = module

    @classmethod
    def from_pretrained(  # type: ignore[override]  # Auto classes call it with keywords only
        cls,
        source: str | Path,
        *_: Any,
        config: OwnModuleConfig | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        dtype: torch.dtype | str | None = None,
        **__: Any,
    ) -> "OwnModule":
        """Load a saved network of a registered module, in evaluation mode.

        Args:
            source: Folder or Hub repo.
            config: Its configuration.
            revision: Branch, tag or commit of a repo.
            subfolder: Subfolder with the network.
            dtype: Dtype of its weights; by default the saved ones.

        Raises:
            ValueError: If no module with its tensors is registered.
        """
        tensors = load_state_dict(CheckpointSource(source, revision=revision, subfolder=subfolder or None))
        if config is None:
            config = OwnModuleConfig.from_pretrained(source, revision=revision or "main", subfolder=subfolder or "")
        if (architecture := find_architecture(tensors)) is None:
            name = config.module_class or "MyModule"
            arguments = "".join(f", {key}={value!r}" for key, value in config.module_arguments.items())
            made = f"functools.partial({name}{arguments})" if arguments else name
            raise ValueError(
                f"{source}: expected a network of a registered module, got {name}, whose code is never fetched; "
                f"register the module first: hf_sane.register_architecture({made})"
            )
        network = architecture.network(tensors)
        return cls(config, network.to(dtype=dtype) if isinstance(dtype, torch.dtype) else network).eval()

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Save the network with the names of its own tensors, so that its class loads them, too."""
        super().save_pretrained(save_directory, *args, **{"state_dict": self.module.state_dict(), **options})

    def forward(self, pixel_values: Tensor | None = None, **texts: Any) -> ImageClassifierOutput:
        """Logits of images `[B, C, H, W]`, or of texts (`input_ids`, `attention_mask`, ...)."""
        given = (self.module(**texts)) if pixel_values is None else self.module(pixel_values)
        return ImageClassifierOutput(logits=logits_of(given))
