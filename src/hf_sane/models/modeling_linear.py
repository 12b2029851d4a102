"""The linear code: principal components of weight tokens, as a baseline for learned autoencoders of weights."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .autoencoder_sane import WeightAutoencoder, zero_padding
from .configuration_linear import LinearCodeConfig
from .initialization_sane import network_directions
from .outputs_sane import SANEOutput

MAX_SCALARS = 2**26  # of covariances that are accumulated at a time: 512 MiB


class LinearCode(WeightAutoencoder):
    """Principal component analysis of weight tokens, with the interface of [`SANEModel`].

    `z = V_g^T (t - mu_g)` and `t_hat = mu_g + V_g z`, where `mu_g` is the mean of the training tokens of group `g` and
    `V_g` are the `Z` leading eigenvectors of their covariance. No code with `Z` latents per token that is linear in
    each group has a smaller squared error on the training tokens (Eckart and Young, 1936). With `Z >= D` the code is
    lossless, and latents beyond `D` are zero.

    With `grouping="network"`, the components are those of whole networks, and a network has one latent of size `Z`
    instead of one per token: `z = sum_n V_n^T (t_n - mu_n)` and `t_hat_n = mu_n + V_n z`. All networks have the layout
    that the code was fitted on.

    All tokens are *normalised* and zero at padding.
    """

    config: LinearCodeConfig
    config_class = LinearCodeConfig

    def __init__(self, config: LinearCodeConfig) -> None:
        super().__init__(config)
        # These are fitted, not trained; optimizers ignore parameters without gradient.
        self.mean = nn.Parameter(torch.empty(config.num_groups, config.token_dim), requires_grad=False)
        self.directions = nn.Parameter(
            torch.empty(config.num_groups, config.token_dim, config.latent_dim), requires_grad=False
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the code to keep the first scalars of each token, until it is fitted."""
        super()._init_weights(module)
        if isinstance(module, LinearCode):
            init.zeros_(module.mean)
            init.copy_(module.directions, torch.eye(*module.directions.shape[1:]).expand_as(module.directions))

    def encode(self, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode windows of tokens as latents; arguments and errors as in [`SANEModel.encode`]."""
        self._check(tokens, positions, self.config.token_dim, "tokens [B, W, token_dim]")
        tokens = tokens.to(self.mean.dtype)
        if self.config.grouping == "network":
            self._check_length(positions)
            centred = zero_padding(tokens - self.mean, attention_mask)
            return (centred.flatten(1) @ self.directions.flatten(0, 1))[:, None]
        latents = tokens.new_empty(*tokens.shape[:2], self.config.latent_dim)
        for group, members in self._members(positions):
            latents[members] = (tokens[members] - self.mean[group]) @ self.directions[group]
        return zero_padding(latents, attention_mask)

    def decode(self, latents: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Decode windows of latents to tokens; arguments and errors as in [`SANEModel.decode`]."""
        self._check_latents(latents, positions)
        latents = latents.to(self.mean.dtype)
        if self.config.grouping == "network":
            self._check_length(positions)
            decoded = self.mean + (latents[:, 0] @ self.directions.flatten(0, 1).T).unflatten(1, self.mean.shape)
            return zero_padding(decoded, attention_mask)
        tokens = latents.new_empty(*latents.shape[:2], self.config.token_dim)
        for group, members in self._members(positions):
            tokens[members] = self.mean[group] + latents[members] @ self.directions[group].T
        return zero_padding(tokens, attention_mask)

    def forward(self, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SANEOutput:
        """Latents and reconstruction of windows."""
        latents = self.encode(tokens, positions, attention_mask)
        return SANEOutput(latents=latents, reconstruction=self.decode(latents, positions, attention_mask))

    def _check_length(self, positions: Tensor) -> None:
        if positions.shape[1] != len(self.mean):
            raise ValueError(
                f"the linear code was fitted on whole networks of {len(self.mean)} tokens, got {positions.shape[1]}; "
                "fit it on networks of this architecture, or with another grouping"
            )

    def _members(self, positions: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each group that occurs at positions `[..., 3]`, with a mask of its tokens, `[...]` bool."""
        found = token_groups(self.config, positions)
        for group in found.unique().tolist():
            yield group, found == group

    @classmethod
    @torch.no_grad()
    def fit(cls, config: LinearCodeConfig, read: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> "LinearCode":
        """Fit means and directions to the tokens of training networks.

        Covariances are accumulated in float64, for as many groups at a time as fit in memory, and training networks
        are read once for each such part. Whole networks (`grouping="network"`) are held in memory.

        Args:
            config: Sizes and groups.
            read: Yields normalised tokens `[M, N, D]` and positions `[N, 3]`, in blocks; may be called repeatedly.

        Returns:
            The code, in evaluation mode. The mean is zero for groups without tokens.

        Raises:
            ValueError: If there are no networks, or their tokens do not fit the configuration.
        """
        model = cls(config).eval()
        if config.grouping == "network":
            blocks = [tokens for tokens, _ in read()]
            if not blocks or any(block.shape[1] != len(config.groups) for block in blocks):
                raise ValueError(
                    f"expected training networks of {len(config.groups)} tokens, got "
                    f"{sorted({block.shape[1] for block in blocks}) or 'none'}; fit one code per architecture"
                )
            networks = torch.cat(blocks)
            mask = torch.ones(networks.shape[1:], dtype=torch.bool)  # padding is zero in all of them
            mean, directions, _ = network_directions(networks, mask, config.latent_dim)
            model.mean.copy_(mean)
            model.directions.copy_(directions)
            return model
        size = config.token_dim
        at_once = max(1, MAX_SCALARS // size**2)
        for start in range(0, config.num_groups, at_once):
            part = range(start, min(start + at_once, config.num_groups))
            count = torch.zeros(len(part), dtype=torch.float64)
            total = torch.zeros(len(part), size, dtype=torch.float64)
            products = torch.zeros(len(part), size, size, dtype=torch.float64)
            for tokens, positions in read():
                where = token_groups(config, positions)
                for group in {*part} & {*where.tolist()}:
                    chosen = tokens[:, where == group].flatten(0, 1).double()
                    count[group - start] += len(chosen)
                    total[group - start] += chosen.sum(0)
                    products[group - start] += chosen.T @ chosen
            if not count.any():
                raise ValueError("expected tokens of training networks, got none")
            mean = total / count.clamp_min(1)[:, None]
            covariance = products / count.clamp_min(1)[:, None, None] - mean[:, :, None] * mean[:, None, :]
            rank = min(size, config.latent_dim)
            for index, group in enumerate(part):
                model.mean[group] = mean[index]
                model.directions[group] = 0.0
                model.directions[group, :, :rank] = torch.linalg.eigh(covariance[index])[1].flip(1)[:, :rank].float()
        return model


def token_groups(config: LinearCodeConfig, positions: Tensor) -> Tensor:
    """Group of each token at positions `[..., 3]`, as `[...]` int64.

    Raises:
        ValueError: If a position is outside the range on which the code was fitted.
    """
    if config.grouping == "all":
        return torch.zeros_like(positions[..., 0])
    by_token = config.grouping == "position"
    index = positions[..., 0 if by_token else 1]
    if index.numel() and int(index.max()) >= len(config.groups):
        what = "tokens" if by_token else "layers"
        raise ValueError(
            f"the linear code was fitted on networks of {len(config.groups)} {what}, got one with more; fit it on "
            "networks of this architecture, or with grouping='all'"
        )
    return torch.tensor(config.groups, device=index.device)[index]


__all__ = ["LinearCode"]
