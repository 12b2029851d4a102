"""Features of every network of a zoo, from embeddings and baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.probing._baselines import flattened_weights, layer_statistics
from hf_sane.probing._choice import SetRegressorName, choice_table, make_candidates
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._evaluation import ProbeTable, probe_table
from hf_sane.probing._regressors import RegressorName
from hf_sane.probing._spectra import spectral_features, weight_profile
from hf_sane.probing._token_sets import TokenSets, describe_latents, summarize_tokens
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._alignment import token_blocks
from hf_sane.zoo._dataset import Zoo, ZooSplit


@dataclass(frozen=True)
class ZooFeatures:
    """Features and properties for probes of one zoo.

    Attributes:
        features: `{name: {split: [M, F]}}`, with networks in the order of the split.
        targets: `{property: {split: [M]}}`.
        runs: `{split: [M]}`, the training run of each network.
        is_aligned: Whether networks are aligned to the zoo's reference.
        notes: Notes about networks and features that were left out.
        tokens: `{name: {split: TokenSets}}`, if wanted.
    """

    features: dict[str, dict[str, Tensor]]
    targets: dict[str, dict[str, np.ndarray]]
    runs: dict[str, list[str]]
    is_aligned: bool
    notes: list[str] = field(default_factory=list)
    tokens: dict[str, dict[str, TokenSets]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of networks by split."""
        return {split: len(found) for split, found in self.runs.items()}

    def probe(self, *, regressor: RegressorName | SetRegressorName = "ridge", ranks: bool = False) -> ProbeTable:
        """Fit probes of all properties, choosing penalties by leaving out one training run at a time.

        `"set_transformer"` uses the tokens instead of the features, and `"best"` chooses between all probes of both,
        see [`choice_table`].
        """
        if regressor == "set_transformer" or regressor == "best":
            is_choice = regressor == "best"
            candidates = make_candidates(self.features if is_choice else {}, self.tokens)
            return choice_table(candidates, self.targets, runs=self.runs, ranks=ranks, nested=is_choice)
        return probe_table(self.features, self.targets, runs=self.runs, regressor=regressor, ranks=ranks)


def read_zoo_features(
    zoo: Zoo,
    properties: Sequence[str],
    model: WeightAutoencoder | None,
    extractor: SANEFeatureExtractor,
    *,
    aligned: bool | None = None,
    poolings: Sequence[str] | None = None,
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
    spectral: bool = False,
    profile: bool = False,
    linear: WeightAutoencoder | None = None,
    tokens: bool = False,
) -> ZooFeatures:
    """Compute features of the networks of a zoo for which all properties are known.

    Args:
        zoo: Zoo with the networks.
        properties: Columns of the zoo.
        model: SANE autoencoder, if there is one.
        extractor: Weight tokenizer of the autoencoders.
        aligned: Whether to align networks to the zoo's reference; by default if the zoo is aligned.
        poolings: Poolings of the latents; all if `None`.
        window_size: Number of tokens per window; that of training if `None`.
        halo_size: Number of context tokens on each side of a window.
        batch_size: Number of networks, and of windows, at a time.
        spectral: Whether to add the spectra of weight matrices.
        profile: Whether to add [`weight_profile`], with and without spectra.
        linear: Linear code, whose embeddings are added.
        tokens: Whether to add networks as sets of tokens, for probes that use them.

    Raises:
        KeyError: If the zoo lacks a property.
        ValueError: If all properties are known for no network of a split.
    """
    is_aligned = zoo.alignment is not None if aligned is None else aligned
    targets = {
        name: {key: split.column(name).astype(np.float64) for key, split in zoo.splits.items()} for name in properties
    }
    known, notes = known_networks(targets)
    targets = {name: {key: found[known[key]] for key, found in values.items()} for name, values in targets.items()}
    zoo = replace(zoo, splits={key: zoo.splits[key].select(rows) for key, rows in known.items()})
    features, left_out = zoo_features(
        zoo,
        model,
        extractor,
        aligned=is_aligned,
        poolings=poolings,
        window_size=window_size,
        halo_size=halo_size,
        batch_size=batch_size,
        spectral=spectral,
        profile=profile,
        linear=linear,
    )
    if left_out:
        notes.append(f"left out, since their length depends on the architecture: {', '.join(left_out)}")
    windows = {"window_size": window_size, "halo_size": halo_size, "batch_size": batch_size}
    codes = {code: found for code, found in {"sane": model, "linear": linear}.items() if found is not None}
    if tokens and (whole := [code for code, found in codes.items() if found.config.num_latents is not None]):
        notes.append(
            f"left out of set transformers, since their latents are those of whole networks: {', '.join(whole)}"
        )
        codes = {code: found for code, found in codes.items() if code not in whole}
    sets = token_sets(zoo, codes, extractor, aligned=is_aligned, **windows) if tokens else {}
    runs = {key: split.run_ids for key, split in zoo.splits.items()}
    return ZooFeatures(features, targets, runs, is_aligned, notes, sets)


@torch.no_grad()
def token_sets(
    zoo: Zoo,
    codes: Mapping[str, WeightAutoencoder],
    extractor: SANEFeatureExtractor,
    *,
    aligned: bool,
    **windows: Any,
) -> dict[str, dict[str, TokenSets]]:
    """The networks of every split as sets of tokens.

    Args:
        zoo: Zoo with the networks.
        codes: Autoencoders by name.
        extractor: Weight tokenizer of the autoencoders.
        aligned: Whether to align networks to the zoo's reference.
        **windows: As in [`read_zoo_features`].

    Returns:
        `{name: {split: TokenSets}}`: the statistics of tokens ([`summarize_tokens`]) as `token_statistics`, and the
        latents of each code and their statistics ([`describe_latents`]) as `sane_tokens` and `linear_tokens`.
    """
    found: dict[str, dict[str, TokenSets]] = {}
    for split_name, split in zoo.splits.items():
        blocks: dict[str, list[TokenSets]] = {}
        order = [np.zeros(0, dtype=np.int64)]
        for members, layout, raw in token_blocks(split, aligned=aligned):
            order.append(members)
            arranged, batch = extractor.arrange(layout, raw)
            normalized = extractor.normalize(batch, arranged)
            values = {"token_statistics": summarize_tokens(normalized, arranged)}
            for code, encoder in codes.items():
                latents = encoder.encode_sequences(normalized, arranged.positions, **windows)
                values[f"{code}_tokens"] = describe_latents(latents)
            for name, features in values.items():
                blocks.setdefault(name, []).append(TokenSets.of_layout(features, arranged))
        places = np.argsort(np.concatenate(order))
        for name, parts in blocks.items():
            found.setdefault(name, {})[split_name] = TokenSets.joined(parts)[places]
    return found


def zoo_features(
    zoo: Zoo,
    model: WeightAutoencoder | None,
    extractor: SANEFeatureExtractor,
    *,
    aligned: bool,
    poolings: Sequence[str] | None = None,
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
    spectral: bool = False,
    profile: bool = False,
    linear: WeightAutoencoder | None = None,
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """W, s(W) and embeddings of every split; arguments as in [`read_zoo_features`].

    Returns:
        `{name: {split: [M, F]}}`, and the names of features that were left out because their length depends on the
        architecture (unless all do).
    """
    collected: dict[str, dict[str, list[Tensor]]] = {}
    places = {}
    for split_name, split in zoo.splits.items():
        parts: dict[str, list[Tensor]] = {}
        order = [np.zeros(0, dtype=np.int64)]
        for members, layout, tokens in token_blocks(split, aligned=aligned):
            order.append(members)
            found = {
                "weights": flattened_weights(tokens, layout),
                "layer_statistics": layer_statistics(tokens, layout),
            }
            if spectral:
                found["spectral_features"] = spectral_features(tokens, layout)
            if profile:
                normalized = extractor.normalize(tokens, layout)  # like the profiles of decoded weights
                found["weight_profile"] = weight_profile(normalized, layout)
                found["weight_distribution"] = weight_profile(normalized, layout, with_spectrum=False)
            for code, encoder in {"sane": model, "linear": linear}.items():
                if encoder is None:
                    continue
                embedded = embed_networks(
                    encoder,
                    extractor,
                    layout,
                    tokens,
                    poolings=["all"] if poolings is None else poolings,
                    window_size=window_size,
                    halo_size=halo_size,
                    batch_size=batch_size,
                )
                found |= {f"{code}_{name}": values for name, values in embedded.items()}
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        places[split_name] = np.argsort(np.concatenate(order))
        for name, blocks in parts.items():
            collected.setdefault(name, {})[split_name] = blocks
    kept = {name: found for name, found in collected.items() if len(_lengths(found)) == 1} or collected
    features = {
        name: {split: stacked_features(parts)[places[split]] for split, parts in found.items()}
        for name, found in kept.items()
    }
    return features, [name for name in collected if name not in kept]


def embed_split(
    model: WeightAutoencoder,
    extractor: SANEFeatureExtractor,
    split: ZooSplit,
    *,
    poolings: Sequence[str],
    aligned: bool | None = None,
    **windows: Any,
) -> dict[str, Tensor]:
    """Embed the networks of a split; arguments as in [`read_zoo_features`].

    Returns:
        `{pooling: [M, F]}`, in the order of the split.

    Raises:
        ValueError: If embeddings have different lengths for different layouts.
    """
    is_aligned = split.alignment is not None if aligned is None else aligned
    parts: dict[str, list[Tensor]] = {name: [] for name in poolings}
    order = []
    for members, layout, tokens in token_blocks(split, aligned=is_aligned):
        order.append(members)
        found = embed_networks(model, extractor, layout, tokens, poolings=poolings, **windows)
        for name, values in found.items():
            parts[name].append(values)
    places = np.argsort(np.concatenate(order))
    return {name: stacked_features(values)[places] for name, values in parts.items()}


def stacked_features(parts: Sequence[Tensor]) -> Tensor:
    """Join the features of blocks `[m, F]`.

    Raises:
        ValueError: If the blocks have different numbers of features.
    """
    if len(lengths := sorted({part.shape[1] for part in parts})) > 1:
        raise ValueError(
            f"features of networks of different architectures have lengths {lengths}; use the pooling 'mean', or "
            "a zoo of one architecture"
        )
    return torch.cat(list(parts))


def known_networks(targets: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Indices `{split: [m]}` of networks for which all properties are known, and a note on the others.

    Raises:
        ValueError: If a split has no such network.
    """
    splits = next(iter(targets.values()))
    known = {key: np.isfinite([values[key] for values in targets.values()]).all(axis=0) for key in splits}
    if empty := [key for key, mask in known.items() if not mask.any()]:
        counts = {name: [int(np.isfinite(values[key]).sum()) for key in splits] for name, values in targets.items()}
        raise ValueError(
            f"expected networks with all of {', '.join(targets)} in every split, got none in {', '.join(empty)}; "
            f"known in {', '.join(splits)}: {counts}; choose other properties (--properties)"
        )
    missing = sum(int((~mask).sum()) for mask in known.values())
    notes = [f"networks left out, since not all of their properties are known: {missing}"] if missing else []
    return {key: np.flatnonzero(mask) for key, mask in known.items()}, notes


def _lengths(found: Mapping[str, Sequence[Tensor]]) -> set[int]:
    return {part.shape[1] for parts in found.values() for part in parts}
