"""Preparation of a pre-training run: weight tokenizer, autoencoder, sampler and schedule from its arguments."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import gt
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from hf_sane.core._layout import Layout
from hf_sane.models.configuration_linear import Grouping
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization._feature_extraction_sane import Normalization, SANEFeatureExtractor
from hf_sane.tokenization._linear_code import fit_linear_code
from hf_sane.tokenization._pretrained import load_pretrained
from hf_sane.training._evaluation import group_by_layout, read_models
from hf_sane.training._lora import add_lora
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._alignment import token_blocks
from hf_sane.zoo._dataset import ZooSplit

LINEAR_LATENTS = 64  # per token, unless a SANE says otherwise
logger = logging.getLogger(__name__)


def fit_extractor(
    splits: Sequence[ZooSplit], normalization: Normalization, *, by_kind: bool = False
) -> SANEFeatureExtractor:
    """Fit a weight tokenizer on training networks, with the token size and layout of their zoos."""
    layouts = [split.layout(0) for split in splits]
    shapes = {(layout.token_dim, layout.token_layout, layout.batch_norm) for layout in layouts}
    if len(shapes) > 1:
        raise ValueError(
            f"expected zoos with equal (token_dim, token_layout, batch_norm), got {sorted(shapes)}; build them alike"
        )
    extractor = SANEFeatureExtractor(
        token_dim=layouts[0].token_dim,
        token_layout=layouts[0].token_layout,
        batch_norm=layouts[0].batch_norm,
        normalization=normalization,
    )
    if normalization == "none":
        return extractor.learn_orders(
            layout for split in splits for layout, _ in group_by_layout(split, range(len(split)))
        )
    networks = (pair for split in splits for pair in read_models(split, range(len(split))))
    return extractor.fit(networks, by_kind=by_kind)


def fit_code(
    splits: Sequence[ZooSplit],
    extractor: SANEFeatureExtractor | None = None,
    *,
    latent_dim: int | None = None,
    grouping: Grouping,
) -> tuple[LinearCode, SANEFeatureExtractor]:
    """Fit a linear code to training splits, see [`fit_linear_code`]; their networks are aligned if the zoo is.

    Args:
        splits: Training splits.
        extractor: Weight tokenizer; by default one that is fitted to the splits, and returned, too.
        latent_dim: Latents per token; `LINEAR_LATENTS` by default.
        grouping: Which tokens share principal components, see `LinearCodeConfig`.
    """
    extractor = extractor or fit_extractor(splits, "standardize")
    layouts = [layout for split in splits for layout in split.facts.parsed_layouts.values()]
    blocks = partial(split_blocks, splits)
    size = latent_dim or LINEAR_LATENTS
    return fit_linear_code(blocks, layouts, extractor, latent_dim=size, grouping=grouping), extractor


def split_blocks(splits: Sequence[ZooSplit]) -> Iterator[tuple[Layout, Tensor]]:
    """Yield layouts and raw tokens `[M, N, D]` of all networks, aligned if the zoo is."""
    for split in splits:
        for _, layout, raw in token_blocks(split, aligned=split.alignment is not None):
            yield layout, raw


def check_fits(model: SANEModel, extractor: SANEFeatureExtractor, layouts: Mapping[str, Layout]) -> None:
    """Check before the first step that all networks can be processed, since zoos may contain several architectures.

    Args:
        model: The autoencoder.
        extractor: Its weight tokenizer.
        layouts: Layouts of all networks to train or evaluate on, by their names in messages.

    Raises:
        KeyError: If a network has layers that the extractor was not fitted on.
        ValueError: If a network exceeds the learned positions, or the model has latents of whole networks and these
            differ in layout or exceed its windows.
    """
    if model.config.num_latents is not None:
        if len({layout.signature for layout in layouts.values()}) > 1:
            raise ValueError(
                f"expected networks of one layout for num_latents={model.config.num_latents}, got {len(layouts)} "
                "layouts; train on one of them, or leave num_latents out"
            )
        for layout in layouts.values():
            model.check_whole(layout.num_tokens)
    for name, layout in layouts.items():
        try:
            extractor.normalize(torch.zeros(0, layout.num_tokens, layout.token_dim), layout)
        except KeyError as error:
            raise KeyError(f"{name}: {error.args[0]} (--statistics-by-kind)") from error
        sizes = layout.max_positions
        limits = model.config.max_positions
        if model.config.position_embedding == "learned" and any(map(gt, sizes, limits)):
            raise ValueError(
                f"{name} has {sizes[0]} tokens, {sizes[1]} layers and up to {sizes[2]} channels, more than the "
                f"learned positions of the model, {list(limits)}; raise max_positions, or use "
                "position_embedding='sinusoidal', which has no limit"
            )


def sample_tokens(
    splits: Sequence[ZooSplit], extractor: SANEFeatureExtractor, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """About `num_tokens` normalised training tokens with their weight masks, evenly spread over models and layouts.

    Args:
        splits: Training splits.
        extractor: Fitted weight tokenizer.
        num_tokens: Total number of tokens; fewer are returned if there are no more.

    Returns:
        `tokens` `[n, D]` float32 and `weight_mask` `[n, D]` bool.
    """
    groups = [(split, *group) for split in splits for group in group_by_layout(split, range(len(split)))]
    available = sum(len(members) * layout.num_tokens for _, layout, members in groups)
    share = min(1.0, num_tokens / available)
    tokens, masks = [], []
    for split, layout, members in groups:
        num_models = min(len(members), math.ceil(share * len(members)))
        picked = [members[i * len(members) // num_models] for i in range(num_models)]
        stride = max(1, round(num_models / (share * len(members))))
        for _, raw in read_models(split, picked):
            tokens.append(extractor.normalize(raw, layout).flatten(0, 1)[::stride])
            masks.append(layout.weight_mask.repeat(len(raw), 1)[::stride])
    return torch.cat(tokens), torch.cat(masks)


def build_model(arguments: PretrainSettings, extractor: SANEFeatureExtractor, splits: Sequence[ZooSplit]) -> SANEModel:
    """Create or load the autoencoder; if it compresses, fit its linear path to the zoo's tokens or networks.

    With `lora`, the result is a `PeftModel` that wraps the autoencoder and forwards its methods.
    """
    if arguments.from_ is not None:
        settings = {"dtype": torch.float32, "subfolder": arguments.from_subfolder, **arguments.model_settings}
        model = load_pretrained(SANEModel, arguments.from_, "a SANE autoencoder", **settings).train()
        vars(model.config).pop("auto_map", None)  # remote code next to the loaded weights is not saved with the result
    else:
        model = SANEModel(SANEConfig(**{"token_dim": extractor.token_dim, **arguments.model_settings}))
    config = model.config
    if config.token_dim != extractor.token_dim:
        raise ValueError(
            f"expected tokens of {config.token_dim} scalars, got a zoo with {extractor.token_dim}; remove token_dim "
            "from the model settings, or build the zoo with that token_dim"
        )
    fresh = arguments.from_ is None and config.initialization == "linear_path" and arguments.initial_tokens > 0
    if fresh and config.num_latents is not None:
        r2 = model.initialize_from_networks(*_whole_networks(splits, extractor, model))
        logger.info("R2 of the linear path before training: %.4f", r2)
    elif fresh and config.latent_dim < config.token_dim:
        r2 = model.initialize_from_tokens(*sample_tokens(splits, extractor, arguments.initial_tokens))
        logger.info("R2 of the linear path before training: %.4f", r2)
    if model.config.contrast_weight == 0 or len(arguments.views) == 1:
        model.projection_head.requires_grad_(
            requires_grad=False
        )  # data parallelism does not allow parameters without a gradient
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable()
    if arguments.lora:
        adapted = add_lora(
            model,
            rank=arguments.lora_rank,
            alpha=arguments.lora_alpha,
            targets=arguments.lora_targets,
            trained=arguments.lora_trained,
        )
        return cast(SANEModel, adapted)
    return model


def _whole_networks(
    splits: Sequence[ZooSplit], extractor: SANEFeatureExtractor, model: SANEModel
) -> tuple[Tensor, Tensor]:
    """Normalised tokens `[T, N, D]` of all training networks, aligned if the zoo is, and their mask `[N, D]`."""
    layout = splits[0].whole_layout(0)
    layouts = [found for split in splits for found in split.facts.parsed_layouts.values()]
    check_fits(model, extractor, {f"layout {index}": found for index, found in enumerate(layouts)})
    tokens = [extractor.normalize(raw, layout) for _, raw in split_blocks(splits)]
    return torch.cat(tokens), layout.weight_mask


def one_cycle(optimizer: Optimizer, arguments: PretrainSettings, num_steps: int) -> OneCycleLR:
    """One cosine cycle (released settings: 30% warm-up, from 1/25 of the peak, to 1/250,000)."""
    total = max(num_steps, 4)  # the schedule divides by the lengths of its phases
    warmup = min(max(arguments.warmup_share, 2 / total), 1 - 2 / total)
    return OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=total, pct_start=warmup, div_factor=25.0, final_div_factor=1e4
    )
