"""The spread of a layer's latents, for comparison with its spectrum."""

import torch

from hf_sane.core._finite import check_results, check_sizes
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.tokenization._checkpoints import Source
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


@torch.no_grad()
def layer_embedding_spread(
    model: WeightAutoencoder, extractor: SANEFeatureExtractor, source: Source
) -> dict[str, float]:
    """Standard deviation over the token latents of each layer (SANE, arXiv:2406.09997, section 4.2).

    The paper plots this scalar over depth next to the metrics of spectra.

    Args:
        model: SANE autoencoder.
        extractor: Its weight tokenizer, fitted on the architecture of the network.
        source: The network, as in `load_state_dict`.

    Returns:
        `{name of the weight tensor: spread}` for the layers that are tokenized.

    Raises:
        ValueError: If weights or latents are not finite, or too large for single precision.
        KeyError: If the extractor was fitted on another architecture.
    """
    sequence = extractor.encode(source)
    layout = sequence.layout
    check_sizes(sequence.tokens[None], layout)
    latents = model.encode_sequences(sequence.tokens[None], sequence.positions)[0]
    check_results(latents[None], "latents")
    return {
        layer.weight.name: latents[part].std(unbiased=False).item()
        for layer, part in zip(layout.layers, layout.token_slices, strict=True)
    }
