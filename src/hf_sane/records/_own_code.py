"""Code of the user: a class or function from a file or package."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_sane.records._errors import describe_cause, did_you_mean


class OwnImportError(ImportError, ValueError):
    """Code of the user imports what cannot be imported."""


def load_named(place: str, *, example: str) -> Callable[..., Any]:
    """Import a class or function of the user, which runs its module.

    Args:
        place: `my_file.py:name` or `my_package.my_file:name`, the latter also relative to the working folder.
        example: Example of a name for messages, such as `MyModule`.

    Raises:
        ValueError: If the text has no `:`, the file does not define the name, or its code raises an error.
        FileNotFoundError: If the file does not exist.
        ImportError: If the package does not exist, or something that the file imports.
        TypeError: If the name is neither a class nor a function.
    """
    home, colon, name = place.rpartition(":")
    if not colon or not home or not name:
        raise ValueError(f"expected a file or package and a name, such as my_file.py:{example}, got {place!r}")
    module = _import_file(Path(home)) if home.endswith(".py") else _import_package(home)
    found = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(
            f"expected {name!r} in {home}, got {', '.join(known) or 'nothing'}{did_you_mean(name, known)}"
        )
    if not callable(found):
        raise TypeError(f"expected a class or function, got {name} of {home}, which is a {type(found).__name__}")
    return found


def _import_file(path: Path) -> Any:
    """Run a file, which may import others of its folder, as it may when Python runs it."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path} (tried {path.absolute()}); give the file of the code")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    is_new = sys.modules.setdefault(path.stem, module) is module  # dataclasses and pickles look it up there
    try:
        with _first_on_path(str(path.absolute().parent)), _running(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        if is_new:
            del sys.modules[path.stem]
        raise
    return module


def _import_package(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _running(name):
        return importlib.import_module(name)


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    """Context in which a folder is searched first for modules; afterwards last, for what its code imports later."""
    if folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.path.append(folder)


@contextmanager
def _running(home: str) -> Iterator[None]:
    """Context that imports the user's code; its errors name the file or package."""
    try:
        yield
    except ImportError as error:
        raise OwnImportError(
            f"cannot import {home}: {describe_cause(error)}; install what it imports, or start from the folder of its "
            "package and name it as my_package.my_file:MyModule",
            name=error.name,
            path=error.path,
        ) from error
    except Exception as error:
        raise ValueError(f"cannot import {home}: {describe_cause(error)}; correct its code") from error
