"""Removal of access tokens from records, cards and logs, and of local folders from published files."""

import os
import re
from collections.abc import Mapping
from typing import Any

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")  # form of the Hub's tokens
MARK = "hf_***"
# An absolute path of at least two parts, the last of which is kept; not inside a URL, a word or a relative path.
START = r"(?:file://)?(?:/|[A-Za-z]:[\\/])"
PATH = re.compile(rf"(?<![\w.~:/\\-]){START}(?:[^\s/\\=,:'\"`|]+[/\\]+)+([^\s/\\=,:'\"`|]*)")
WHOLE_PATH = re.compile(rf"{START}[^/\\=,:\n][^=,:\n]*[/\\][^=,:\n]*")
QUOTED = re.compile(rf"(['\"]){START}[^'\"\n]*[/\\]([^'\"/\\\n]+)[/\\]?\1")
MIN_SECRET_LENGTH = 8  # shorter values are probably words


def redact_tokens(text: str) -> str:
    """Replace access tokens of the Hub, recognised by their form or from the environment, by `hf_***`."""
    for name in TOKEN_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= MIN_SECRET_LENGTH:
            text = text.replace(secret, MARK)
    return TOKEN.sub(MARK, text)


def holds_token(text: str) -> bool:
    """Whether a text contains an access token of the Hub."""
    return redact_tokens(text) != text


def hide_folders(text: str) -> str:
    """Shorten every absolute path to its last part, so that local folders are not published.

    `hf-sane embed /home/ann/zoo -o=out` becomes `hf-sane embed zoo -o=out`. Relative paths, URLs and repository ids
    are kept.
    """
    if WHOLE_PATH.fullmatch(text):  # a path may contain spaces
        return re.split(r"[/\\]+", text.rstrip("/\\"))[-1]
    text = QUOTED.sub(lambda found: f"{found[1]}{found[2]}{found[1]}", text)
    return PATH.sub(lambda found: found[1], text)


def hide_folders_in(value: Any) -> Any:
    """[`hide_folders`] for every text in a JSON-like value; keys that would become equal are not changed."""
    if isinstance(value, str):
        return hide_folders(value)
    if isinstance(value, list | tuple):
        return [hide_folders_in(item) for item in value]
    if isinstance(value, Mapping):
        keys = {key: hide_folders(str(key)) for key in value}
        distinct = len(set(keys.values())) == len(keys)
        return {keys[key] if distinct else key: hide_folders_in(item) for key, item in value.items()}
    return value
