"""`transformers.pipeline("weight-feature-extraction")`: embeddings of networks."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Pipeline
from transformers.utils import ModelOutput

from hf_sane.core._types import TokenSequence
from hf_sane.models.autoencoder_sane import AUTOENCODERS, WeightAutoencoder
from hf_sane.probing._accumulation import STREAM_POOLINGS, StreamPooling
from hf_sane.probing._embeddings import embed_tokens
from hf_sane.probing._poolings import POOLINGS
from hf_sane.probing._streaming import embed_stream
from hf_sane.records._outputs import check_finished
from hf_sane.tokenization._checkpoints import Source
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import MAX_MEMORY_BYTES, stream_if_large

TASK = "weight-feature-extraction"  # `hf_sane._auto_classes` registers it
DEFAULT_BATCH_SIZE = 16


class WeightFeatureExtractionPipeline(Pipeline):
    """Embed networks with a SANE autoencoder.

    ```python
    embed = pipeline("weight-feature-extraction", model="org/sane-resnet")
    embedding = embed("org/some-resnet")  # [F]; also a path, a module, a state dict
    embeddings = embed([first, second], pooling="layer_mean_std")  # one per network
    ```

    Networks of one structure in a batch are encoded together. Networks longer than the training window are encoded in
    windows with a halo (`encode_sequences`). If the pooling allows it, networks of more than `max_memory_bytes` are
    pooled while they are read (`embed_stream`), with the same result up to rounding; safetensors files then need only
    a few megabytes of memory.

    Args:
        *args: Arguments of `transformers.Pipeline`.
        **kwargs: Arguments of `transformers.Pipeline`, and defaults for calls: `pooling` (a name in `POOLINGS`; by
            default `"mean"`, as in the paper), `window_size` (tokens; by default the training window), `halo_size`
            (tokens; 0), `input_revision` (branch, tag or commit of networks on the Hub), `max_memory_bytes` (largest
            weights that are tokenized as a whole).

    Raises:
        TypeError: If the model is not a SANE autoencoder.
        ValueError: If the pooling is unknown.
        InvalidFileError: If the folder of the model is incomplete, or files were changed or removed since it was
            written.
    """

    # mypy infers None from the base class.
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model.name_or_path:
            check_finished(self.model.name_or_path)
        if self.model.config.model_type not in AUTOENCODERS:
            raise TypeError(
                f"expected a SANE autoencoder, got {type(self.model).__name__}, a network to embed; pass it to the "
                'pipeline of a SANE model, pipeline(...)("org/network")'
            )

    def _sanitize_parameters(
        self,
        pooling: str | None = None,
        window_size: int | None = None,
        halo_size: int | None = None,
        input_revision: str | None = None,
        max_memory_bytes: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Separate keyword arguments for reading from those for embedding."""
        if unknown:
            raise TypeError(
                f"unknown arguments of {TASK}: {sorted(unknown)}; expected pooling, window_size, halo_size, "
                "input_revision or max_memory_bytes"
            )
        if pooling is not None and pooling not in POOLINGS:
            raise ValueError(f"expected pooling to be one of {', '.join(POOLINGS)}, got {pooling!r}")
        embedding = {"pooling": pooling, "window_size": window_size, "halo_size": halo_size}
        reading = {"revision": input_revision, "max_memory_bytes": max_memory_bytes}
        if pooling is not None:
            reading["pooling"] = pooling
        reading = {name: value for name, value in reading.items() if value is not None}
        return reading, {name: value for name, value in embedding.items() if value is not None}, {}

    def __call__(
        self, inputs: Source | Sequence[Source], *args: Any, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        """Embed one network or a list of networks.

        Args:
            inputs: State dict, module, path (safetensors, folder, weights-only pickle) or Hub repo id, or a list of
                these.
            *args: Not supported.
            batch_size: Number of networks to read, and of windows to encode, at a time; it does not affect the result.
            **kwargs: `pooling`, `window_size`, `halo_size`, `input_revision` and `max_memory_bytes`; see the class.

        Returns:
            `[F]` float32 on the CPU, where `F` depends on the pooling; a list of these for a list of networks.

        Raises:
            TypeError: If an input is none of the above.
            FileNotFoundError: If a path does not exist, or a repository has no safetensors files.
            ValueError: If the list is empty, weights are not finite, or a network has more tokens than there are
                learned positions.
            KeyError: If the autoencoder was trained on other architectures.
        """
        if args:
            raise TypeError(f"expected one argument, got {1 + len(args)}; pass networks as a list, options by name")
        reading, embedding, _ = self._sanitize_parameters(**kwargs)
        reading, embedding = self._preprocess_params | reading, self._forward_params | embedding
        size = batch_size or self._batch_size or DEFAULT_BATCH_SIZE
        networks = cast(list[Source], list(inputs) if isinstance(inputs, list | tuple) else [inputs])
        if not networks:
            raise ValueError("expected at least one network, got an empty list")
        found: list[Tensor] = []
        for start in range(0, len(networks), size):
            batch = [self.preprocess(network, **reading) for network in networks[start : start + size]]
            found += self._embed(batch, {**embedding, "batch_size": size})
        return found if isinstance(inputs, list | tuple) else found[0]

    def _embed(self, batch: list[dict[str, Any]], embedding: dict[str, Any]) -> list[Tensor]:
        """One embedding per network; networks of one structure are embedded together, streams one by one."""
        members: dict[Any, list[int]] = {}
        for index, network in enumerate(batch):
            key = network["sequence"].layout.signature if "sequence" in network else index
            members.setdefault(key, []).append(index)
        found: dict[int, Tensor] = {}
        for indices in members.values():
            outputs = self.forward({"networks": [batch[index] for index in indices]}, **embedding)
            found |= zip(indices, self.postprocess(outputs), strict=True)
        return [found[index] for index in range(len(batch))]

    def get_inference_context(self) -> Any:
        """`torch.no_grad`, since tensors from inference mode could not be used to train a probe."""
        return torch.no_grad

    def preprocess(self, input_: Source, **preprocess_parameters: Any) -> dict[str, Any]:
        """Read a network as tokens, or a large one as a stream of tokens."""
        extractor = cast(SANEFeatureExtractor, self.feature_extractor)
        limit = preprocess_parameters.pop("max_memory_bytes", MAX_MEMORY_BYTES)
        by_token = self.model.config.num_latents is None
        if preprocess_parameters.pop("pooling", "mean") in STREAM_POOLINGS and by_token:
            stream = stream_if_large(input_, extractor, max_memory_bytes=limit, **preprocess_parameters)
            if stream is not None:
                return {"stream": stream}
        return {"sequence": extractor.encode(input_, **preprocess_parameters)}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> ModelOutput:
        """Embed networks of one structure, or a single stream."""
        networks: list[dict[str, Any]] = input_tensors["networks"]
        pooling: str = forward_parameters.pop("pooling", "mean")
        model = cast(WeightAutoencoder, self.model)
        if "stream" in networks[0]:
            name = cast(StreamPooling, pooling)
            streamed = embed_stream(model, networks[0]["stream"], poolings=(name,), **forward_parameters)
            return ModelOutput(embeddings=streamed[name][None])
        sequences: list[TokenSequence] = [network["sequence"] for network in networks]
        tokens = torch.stack([sequence.tokens for sequence in sequences])
        found = embed_tokens(model, sequences[0].layout, tokens, poolings=(pooling,), **forward_parameters)
        return ModelOutput(embeddings=found[pooling])

    def postprocess(self, model_outputs: ModelOutput, **postprocess_parameters: Any) -> list[Tensor]:
        """One vector per network."""
        return list(model_outputs["embeddings"])
