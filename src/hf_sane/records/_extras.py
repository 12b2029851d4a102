"""Optional packages: which extra of this package installs each of them, and what to say where one is missing."""

from importlib.util import find_spec

# Modules of optional packages, with the name of the package and an extra that installs it.
PACKAGES = {
    "sklearn": ("scikit-learn", "analysis"),
    "matplotlib": ("matplotlib", "analysis"),
    "peft": ("peft", "train"),
    "tensorboard": ("tensorboard", "train"),
    "picklescan": ("picklescan", "scan"),
    "gguf": ("gguf", "scan"),
    "onnx": ("onnx", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
    "gradio": ("gradio", "explore"),
}


def require_package(module: str, purpose: str) -> None:
    """Check that an optional package is installed.

    Args:
        module: A key of `PACKAGES`.
        purpose: What needs it, for the message.

    Raises:
        ImportError: If it is not, with the command that installs it.
    """
    if find_spec(module) is None:
        package, extra = PACKAGES[module]
        raise ImportError(f"expected the package {package} for {purpose}, got none; pip install 'hf_sane[{extra}]'")


def describe_missing(error: ImportError) -> str | None:
    """A message with the command that installs a missing optional package; `None` for all other errors."""
    if "hf_sane[" in str(error):
        return str(error)
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] not in PACKAGES:
        return None
    package, extra = PACKAGES[(error.name or "").partition(".")[0]]
    return f"expected the package {package}, got none; pip install 'hf_sane[{extra}]'"
