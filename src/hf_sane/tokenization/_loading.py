"""Load Transformers models and configurations from folders and the Hub without running code from there.

Without `trust_remote_code`, Transformers asks on the terminal and runs the code after "y", or times out. This library
calls Auto classes only through this module, which always answers no.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._pretrained import load_pretrained

OWN_MODULE = "sane_own_module"  # model type of saved networks of users' own modules
NO_TYPE = "Should have a `model_type` key"  # part of Transformers' message about other modules


def load_config(source: str | Path, **options: Any) -> PreTrainedConfig:
    """`AutoConfig.from_pretrained`, without the code of the repository.

    Args:
        source: Folder or Hub repo, `owner/name` or `owner/name@revision`.
        **options: Options of `AutoConfig.from_pretrained`, such as `revision`.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If the configuration can be read only by running its code.
        InvalidFileError: If it is damaged or that of a module that is not part of Transformers, or the folder is
            incomplete or was changed.
    """
    with _refusing_code(source):
        try:
            config: PreTrainedConfig = load_pretrained(AutoConfig, source, "a configuration", **options)
        except InvalidFileError as error:
            if NO_TYPE not in str(error):
                raise
            raise _unknown_module(source) from error
        if config.model_type == OWN_MODULE:
            raise _unknown_module(source)
        return config


def is_own_module(settings: Mapping[str, Any]) -> bool:
    """Whether the content of config.json is that of a module that neither Transformers nor this library has."""
    return settings.get("model_type") in (None, OWN_MODULE)


def _unknown_module(source: str | Path) -> InvalidFileError:
    return InvalidFileError(
        source,
        expected="a network of Transformers or hf_sane",
        got="the config.json of a module of your own",
        remedy="pass the code of the module: --module my_file.py:MyModule, or hf_sane.register_architecture(MyModule)",
    )


def load_model(auto_class: Any, source: str | Path, **options: Any) -> Any:
    """`auto_class.from_pretrained`, without the code of the repository.

    Args:
        auto_class: An Auto class such as `AutoModelForImageClassification`.
        source: Folder or Hub repo, `owner/name` or `owner/name@revision`.
        **options: Options of `from_pretrained`, such as `revision` and `dtype`.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If the model can be loaded only by running its code.
        InvalidFileError: If the folder is incomplete, or files in it were removed or changed.
    """
    with _refusing_code(source):
        return load_pretrained(auto_class, source, "a saved model", **options)


def initial_model(auto_class: Any, config: PreTrainedConfig, **options: Any) -> Any:
    """`auto_class.from_config`, without the code that the configuration may name.

    Args:
        auto_class: An Auto class such as `AutoModelForImageClassification`.
        config: Configuration from [`load_config`].
        **options: Options of `from_config`, such as `dtype`.

    Raises:
        ValueError: If the model can be built only by running code that the configuration names.
    """
    with _refusing_code(config.name_or_path or type(config).__name__):
        return auto_class.from_config(config, trust_remote_code=False, **options)


@contextmanager
def _refusing_code(source: str | Path) -> Iterator[None]:
    """Replace Transformers' advice to pass `trust_remote_code=True` with advice that works here."""
    try:
        yield
    except ValueError as error:
        if not any("trust_remote_code" in str(part) for part in (error, error.__cause__)):
            raise
        raise ValueError(
            f"{source} has an architecture that requires Python code from its repository, which is never run here: "
            "expected an architecture of Transformers or hf_sane; if you have read that code and trust it, load the "
            "model with Transformers yourself and pass it as a module, or save its weights as safetensors without "
            "auto_map"
        ) from error
