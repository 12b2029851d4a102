"""Settings of tokens that do not depend on the networks."""

from dataclasses import dataclass

from hf_sane.core._layout import BatchNormStorage
from hf_sane.core._token_layouts import TOKEN_LAYOUTS
from hf_sane.records._settings import CheckedSettings, setting


@dataclass(kw_only=True)
class TokenSettings(CheckedSettings):
    """How the tensors of a network become tokens."""

    token_layout: str = setting(
        "Token layout: rowwise (one row per output channel), dense, or one added by a plug-in.",
        default="rowwise",
        choices=lambda: TOKEN_LAYOUTS,
    )
    batch_norm: BatchNormStorage = setting(
        "Whether BatchNorm tensors are tokenized or stored unchanged.", default="tokens"
    )
