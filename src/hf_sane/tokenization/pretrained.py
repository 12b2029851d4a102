"""What Transformers reads (configurations, weights, settings of the tokenizer): its many exceptions become the library's one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_sane.records.errors import InvalidFileError, reading

NO_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)
REMEDY = "save it again with save_pretrained(), or load it from elsewhere"


@contextmanager
def reading_pretrained(source: str | Path, what: str) -> Iterator[None]:
    """Read something with `from_pretrained`.

    Args:
        source: Folder, file or Hub repo id, for messages.
        what: What it should hold: `"a SANE autoencoder"`.

    Raises:
        OSError: If there is no such file, or it cannot be reached.
        InvalidFileError: For whatever else Transformers raises.
    """
    with reading(source, expected=what, remedy=REMEDY, also=(StrictDataclassError, SafetensorError, RuntimeError)):
        try:
            yield
        except OSError as error:  # Transformers raises it for damaged JSON, too
            if isinstance(error.__context__, NO_JSON):
                raise InvalidFileError(source, expected=what, got=error, remedy=REMEDY) from error
            raise


__all__ = ["reading_pretrained"]
