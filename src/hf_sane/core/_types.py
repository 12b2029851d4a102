"""The two representations of a network: a state dict and a sequence of tokens."""

from dataclasses import dataclass

from torch import Tensor

from hf_sane.core._layout import Layout

StateDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One network as a sequence of weight tokens.

    Attributes:
        tokens: `[N, D]` float; zero at padding.
        weight_mask: `[N, D]` bool, `True` at real weights. Read-only, since `layout` shares it.
        positions: `[N, 3]` int64 columns `(token, layer, channel)`, from 0. Read-only, since `layout` shares it.
        layout: Position of each scalar, which `decode` requires.

    Raises:
        ValueError: If the shapes are inconsistent.
    """

    tokens: Tensor
    weight_mask: Tensor
    positions: Tensor
    layout: Layout

    def __post_init__(self) -> None:
        expected = (self.layout.num_tokens, self.layout.token_dim)
        if (
            self.tokens.shape != expected
            or self.weight_mask.shape != expected
            or self.positions.shape != (expected[0], 3)
        ):
            raise ValueError(
                f"inconsistent sequence: the layout has {expected[0]} tokens of {expected[1]}, got tokens "
                f"{tuple(self.tokens.shape)}, weight_mask {tuple(self.weight_mask.shape)}, positions "
                f"{tuple(self.positions.shape)}; use all four from the same encode()"
            )

    def __len__(self) -> int:
        return self.layout.num_tokens
