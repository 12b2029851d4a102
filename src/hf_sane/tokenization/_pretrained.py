"""Load with Transformers, and convert its exceptions to `InvalidFileError`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_sane.records._errors import InvalidFileError, name_some, reading
from hf_sane.records._outputs import check_finished
from hf_sane.records._patience import patiently
from hf_sane.records._sources import pretrained_arguments

NO_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)
LACKS = "does not appear to have a file named"  # part of Transformers' message about a repository
LISTED = 5  # files to name in a message
REMEDY = "save it again with save_pretrained(), or load it from elsewhere"


@contextmanager
def reading_pretrained(source: str | Path, what: str) -> Iterator[None]:
    """Context in which `from_pretrained` is called.

    Args:
        source: Folder, file or Hub repo id, for messages.
        what: What the source should hold: `"a SANE autoencoder"`.

    Raises:
        OSError: If there is no such file, or it cannot be reached.
        InvalidFileError: If Transformers raises any other exception.
    """
    with reading(source, expected=what, remedy=REMEDY, also=(StrictDataclassError, SafetensorError, RuntimeError)):
        try:
            yield
        except OSError as error:  # Transformers also raises it for damaged JSON
            if isinstance(error.__context__, NO_JSON):
                raise InvalidFileError(source, expected=what, got=error, remedy=REMEDY) from error
            # For every file that it does not find, Transformers refers to an address on the Hub.
            folder = next((path for path in (Path(source), Path(source).parent) if path.is_dir()), None)
            if error.errno is None and folder is not None:
                raise FileNotFoundError(_describe_lack(folder, what)) from error
            if error.errno is None and LACKS in str(error):
                raise FileNotFoundError(
                    f"{source}: expected {what}, got a repository without its files there; if they are in a "
                    "subfolder, pass that, too (subfolder=; --sane-subfolder for a SANE)"
                ) from error
            raise


def _describe_lack(folder: Path, what: str) -> str:
    """Message about a folder without the expected files, which names the files that it holds."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    remedy = f"give {inside[0]}" if len(inside) == 1 else "pass a folder that holds one"
    return f"{folder}: expected {what}, got a folder with {name_some(names, LISTED) or 'nothing'}; {remedy}"


def load_pretrained(
    cls: Any,
    source: str | Path,
    what: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    **options: Any,
) -> Any:
    """Call `from_pretrained` of a Transformers class: checked, with retries, and without remote code.

    Args:
        cls: A class such as `SANEModel` or `AutoConfig`.
        source: Folder or Hub repo, `owner/name` or `owner/name@revision`.
        what: What the source should hold, for messages: `"a SANE autoencoder"`.
        revision: Branch, tag or commit of a repo.
        subfolder: Subfolder of the source.
        **options: Options of `from_pretrained`, such as `dtype`.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a repository.
        OSError: If the source does not hold the file, or cannot be reached.
        InvalidFileError: If a file is damaged, or the folder is unfinished, or lost or changed files since it was
            written.
    """
    name, where = pretrained_arguments(source, revision=revision, subfolder=subfolder)
    check_finished(name)
    with reading_pretrained(source if subfolder is None else name, what):
        return patiently(cls.from_pretrained, name, trust_remote_code=False, **options, **where)
