"""Access tokens do not belong into records, cards or logs."""

import os
import re

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")  # what the Hub gives out
MARK = "hf_***"
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
