"""Removal of access tokens from records, cards and logs, and of local folders from published files."""

import os
import re
from collections.abc import Mapping
from typing import Any

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")  # what the Hub gives out
MARK = "hf_***"
# An absolute path of at least two parts, of which the last is kept; not inside an address, a word or a relative path.
START = r"(?:file://)?(?:/|[A-Za-z]:[\\/])"
PATH = re.compile(rf"(?<![\w.~:/\\-]){START}(?:[^\s/\\=,:'\"`|]+[/\\]+)+([^\s/\\=,:'\"`|]*)")
WHOLE_PATH = re.compile(rf"{START}[^/\\=,:\n][^=,:\n]*[/\\][^=,:\n]*")
QUOTED = re.compile(rf"(['\"]){START}[^'\"\n]*[/\\]([^'\"/\\\n]+)[/\\]?\1")
MIN_SECRET_LENGTH = 8  # shorter values are more likely a word than a secret


def redact_tokens(text: str) -> str:
    """Replace access tokens of the Hub, by their form or because the environment holds them, by `hf_***`."""
    for name in TOKEN_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= MIN_SECRET_LENGTH:
            text = text.replace(secret, MARK)
    return TOKEN.sub(MARK, text)


def holds_token(text: str) -> bool:
    """Whether a text holds an access token of the Hub."""
    return redact_tokens(text) != text


def hide_folders(text: str) -> str:
    """Shorten every absolute path to its last part, so that folders of this machine are not published.

    `hf-sane embed /home/ann/zoo -o=out` becomes `hf-sane embed zoo -o=out`. Relative paths, addresses and ids of
    repositories stay.
    """
    if WHOLE_PATH.fullmatch(text):  # a value that is a path may have blanks in it
        return re.split(r"[/\\]+", text.rstrip("/\\"))[-1]
    text = QUOTED.sub(lambda found: f"{found[1]}{found[2]}{found[1]}", text)
    return PATH.sub(lambda found: found[1], text)


def hide_folders_in(value: Any) -> Any:
    """The same for every text in a JSON-like value; keys that would be equal without their folders keep them."""
    if isinstance(value, str):
        return hide_folders(value)
    if isinstance(value, list | tuple):
        return [hide_folders_in(item) for item in value]
    if isinstance(value, Mapping):
        keys = {key: hide_folders(str(key)) for key in value}
        distinct = len(set(keys.values())) == len(keys)
        return {keys[key] if distinct else key: hide_folders_in(item) for key, item in value.items()}
    return value
