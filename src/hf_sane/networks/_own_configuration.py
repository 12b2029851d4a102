"""The configuration of a user's own module, so that the Auto classes know its saved networks.

It is loaded together with Transformers' Auto classes, so it imports nothing else.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

DESCRIPTION = {"architectures", "id2label", "label2id", "_commit_hash", "_name_or_path"}
OTHERS = {"library_name", "model_type", "transformers_version", "dtype", "auto_map"}  # no arguments, either


class OwnModuleConfig(PreTrainedConfig):
    """Names of the module and of the classes of a saved network; the module itself must be registered.

    Args:
        module_class: Name of the module's class.
        module_arguments: Keyword arguments with which the class made the network.
        **kwargs: Settings of every configuration.
    """

    model_type = "sane_own_module"

    def __init__(
        self, module_class: str | None = None, module_arguments: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.module_class = module_class
        self.module_arguments = dict(module_arguments or {})
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration from the content of config.json, where arguments are settings among others."""
        arguments = {name: value for name, value in config_dict.items() if name not in DESCRIPTION | OTHERS}
        known = {name: config_dict[name] for name in DESCRIPTION & config_dict.keys()}
        (name, *_) = known.get("architectures") or [None]
        return super().from_dict({**known, "module_class": name, "module_arguments": arguments}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, in the form that [`from_dict`] reads."""
        settings: dict[str, Any] = super().to_dict()
        name, arguments = settings.pop("module_class"), settings.pop("module_arguments")
        return {**settings, **({} if name is None else {"architectures": [name]}), **arguments}
