"""The SANE autoencoder and its weight tokenizer in one object."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import HfApi
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.core._types import StateDict
from hf_sane.hub._publish import find_anchors, load_record, load_sane, loaded_commit, save_sane
from hf_sane.hub._push import network_folders, push_saved
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.probing._streaming import embed_checkpoint
from hf_sane.probing._zoo_features import embed_split, stacked_features
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import setting
from hf_sane.tokenization._checkpoints import Source
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.networks import Network
from hf_sane.workflows.sample import SampleResult, sample
from hf_sane.workflows.shared import BUNDLE, SaneSettings
from hf_sane.workflows.show_zoo import is_zoo, load_zoo
from hf_sane.zoo._dataset import Zoo, ZooSplit


@dataclass(frozen=True)
class SANE:
    """A SANE autoencoder and the weight tokenizer that it was trained with.

    ```python
    sane = hf_sane.SANE.from_pretrained("org/sane-cnn")
    sane.embed("org/some-network")  # [F]
    ```

    Attributes:
        model: The autoencoder, in evaluation mode.
        extractor: Converts networks to tokens and tokens to networks.
        source: Folder or repository that it was loaded from; `None` if it was created in this process.
        revision: Commit of the repository.
        record: Record of the pre-training run, if it was trained in this process or its folder or repository has one.
        subfolder: Subfolder of the source that holds it.
    """

    model: WeightAutoencoder
    extractor: SANEFeatureExtractor
    source: str | None = None
    revision: str | None = None
    record: RunRecord | None = None
    subfolder: str | None = None

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        tokens = f"tokens of {self.extractor.token_dim} weights"
        return f"SANE({type(self.model).__name__}, {count:,} parameters, {tokens}, source={self.source!r})"

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load an autoencoder; see [`load_sane`] for errors.

        Args:
            source: Folder or Hub repo id; by default the autoencoder that comes with the package, for small CNNs that
                classify images of 32 pixels.
            revision: Branch, tag or commit of the repo.
            subfolder: Subfolder of the source that holds the autoencoder.
            dtype: Data type of the model's parameters; by default that of the file.
        """
        source = BUNDLE if source is None else source
        model, extractor = load_sane(source, revision=revision, subfolder=subfolder, dtype=dtype)
        commit = loaded_commit(str(source), revision, subfolder)
        return cls(model, extractor, str(source), commit, load_record(str(source), commit, subfolder), subfolder)

    def anchors(self) -> list[Path]:
        """Folders of the networks that were saved with it, to sample around; from best to worst.

        Raises:
            ValueError: If there are none.
        """
        source, at = self.source, {"revision": self.revision, "subfolder": self.subfolder}
        folder = find_anchors(source, **at) if source else None
        if folder is None:
            raise ValueError(
                f"expected a SANE that comes with networks to sample around, got {source or 'one'} without; save it "
                "with some: sane.save_pretrained(folder, anchors=[network, ...])"
            )
        return network_folders(folder)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Save the model, weight tokenizer, run record and card; see `hf_sane.hub.save_sane`."""
        record = self.record or RunRecord.start(arguments={"source": self.source}).finish({})
        return save_sane(folder, self.model, self.extractor, record, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        api: HfApi | None = None,
        **options: Any,
    ) -> str:
        """Publish the model, weight tokenizer, run record and card as a model repository.

        Args:
            repo_id: `user/name`; created if missing.
            private: Whether a new repository is private; if `None`, the account's default.
            revision: Branch; if `None`, the default branch.
            api: Client for another endpoint or token.
            **options: Options of `hf_sane.hub.save_sane`.

        Returns:
            URL of the commit.

        Raises:
            HFValidationError: If `repo_id` is not a valid repo id.
        """
        save = partial(self.save_pretrained, repo_id=repo_id, **options)
        return push_saved(save, repo_id, kind="model", private=private, revision=revision, api=api)

    def encode(self, network: Source, *, window_size: int | None = None, halo_size: int = 0) -> tuple[Tensor, Layout]:
        """Encode a network as latents.

        Args:
            network: Module, state dict, path (safetensors, folder, weights-only pickle) or Hub repo id.
            window_size: Tokens per window, including context; by default as in training.
            halo_size: Context tokens on each side of a window.

        Returns:
            Latents `[N, Z]` float32, one per token, and the layout that [`decode`] needs.
        """
        sequence = self.extractor.encode(network)
        latents = self.model.encode_sequences(
            sequence.tokens[None], sequence.positions, window_size=window_size, halo_size=halo_size
        )
        return latents[0], sequence.layout

    def decode(
        self, latents: Tensor, layout: Layout, *, window_size: int | None = None, halo_size: int = 0
    ) -> StateDict:
        """Rebuild a network from its latents.

        Args:
            latents: `[N, Z]`.
            layout: Layout from [`encode`], which also holds tensors that are not tokenized, such as counters.
            window_size: Tokens per window, including context; by default as in training.
            halo_size: Context tokens on each side of a window.
        """
        tokens = self.model.decode_sequences(
            latents[None], layout.positions, window_size=window_size, halo_size=halo_size
        )
        return self.extractor.decode(tokens[0], layout)

    def embed(
        self,
        networks: Source | Zoo | ZooSplit | Sequence[Source],
        *,
        pooling: str = "mean",
        align: bool | None = None,
        window_size: int | None = None,
        halo_size: int = 0,
        batch_size: int = 64,
    ) -> Tensor:
        """Embed one network, several networks or a zoo.

        Args:
            networks: A module, state dict, path or Hub repo id; a list of these; a zoo, its folder, or a split of one.
            pooling: How to combine a network's latents into one vector, see `POOLINGS`.
            align: Whether to align a zoo's networks to its reference first; by default only if the zoo is aligned.
            window_size: Tokens per window, including context; by default as in training.
            halo_size: Context tokens on each side of a window.
            batch_size: Number of networks and of windows processed at a time.

        Returns:
            `[F]` float32 on the CPU for one network, otherwise `[M, F]`; a zoo's networks are ordered by split.

        Raises:
            ValueError: If there are no networks, or their embeddings differ in length.
        """
        windows: dict[str, Any] = {"window_size": window_size, "halo_size": halo_size, "batch_size": batch_size}
        options: dict[str, Any] = {"poolings": (pooling,), **windows}
        if is_zoo(networks):
            networks = load_zoo(cast(str | Path | Zoo, networks))
        if isinstance(networks, Zoo | ZooSplit):
            splits = list(networks.splits.values()) if isinstance(networks, Zoo) else [networks]
            return stacked_features(
                [embed_split(self.model, self.extractor, x, aligned=align, **options)[pooling] for x in splits]
            )
        if not isinstance(networks, list | tuple):
            source = cast(Source, networks)
            return embed_checkpoint(self.model, self.extractor, source, **options)[1][pooling]
        if not networks:
            raise ValueError("expected at least one network, got an empty list")
        return stacked_features([self.embed(x, pooling=pooling, **windows)[None] for x in networks])

    def sample(self, anchors: str | Path | Zoo | Sequence[Network], **options: Any) -> SampleResult:
        """Sample new networks around the best networks of a zoo, or around a list of networks.

        Args:
            anchors: See `hf_sane.sample`, also for errors.
            **options: Fields of `SampleSettings`, such as `num_samples`, `method` and `images`.
        """
        return sample(anchors, self, **options)


@dataclass(kw_only=True)
class GivenSaneSettings(SaneSettings):
    """Settings of workflows that need a SANE."""

    sane: str | Path | SANE = setting("SANE (folder or Hub repo id).")


def open_sane(source: "str | Path | SANE", *, revision: str | None = None, subfolder: str | None = None) -> SANE:
    """Return a SANE unchanged, or load it from its folder or repository."""
    if isinstance(source, SANE):
        return source
    return SANE.from_pretrained(source, revision=revision, subfolder=subfolder)


__all__ = ["SANE"]
