"""Permutation symmetries of a zoo's networks, generated from their structure or traced."""

from transformers import PreTrainedConfig

from hf_sane.architectures.configuration_zoo import CIFARResNetConfig, CNNConfig, MLPConfig
from hf_sane.symmetry._permutation import AxisSlice, Dimension, PermutationSpec
from hf_sane.symmetry._transformers_models import model_class, transformers_spec

Axes = dict[str, tuple[Dimension, ...]]


def permutation_spec(config: PreTrainedConfig) -> PermutationSpec:
    """Describe which channels of a network can be reordered without changing its function.

    For the architectures of this package the spec follows from the configuration:

    - Hidden layers and convolutions: the outputs of one layer and the inputs of the next move together. Between the
      last convolution and the first fully connected layer, a channel moves with the block of its pixels.
    - ResNet blocks: the inner channels of each block move freely; all blocks of a stage share the residual stream.
    - Projection shortcuts start a new residual stream with its own permutation.
    - Option-A shortcuts copy the old stream into the middle of the new one, between zeros. That middle part moves with
    the old stream; the channels that start from zero move freely among themselves, across both sides; the two kinds
    cannot be exchanged.

    Transformers models are built from their configuration and traced: image classifiers, and all models of images or
    text whose class the configuration names in `architectures`; see [`trace_permutations`], which also works for any
    other network.

    Args:
        config: Configuration of a CNN, MLP or ResNet of this package, or of a Transformers model.

    Returns:
        The spec; its tensors are those of the state dict, in the same order. Running statistics are `unmatched`.

    Raises:
        TypeError: If `config` is neither.
        ValueError: If the traced spec fails verification.
    """
    if isinstance(config, CNNConfig):
        return _cnn_spec(config)
    if isinstance(config, MLPConfig):
        return _mlp_spec(config)
    if isinstance(config, CIFARResNetConfig):
        return _resnet_spec(config)
    if model_class(config) is not None:
        return transformers_spec(config)
    raise TypeError(
        "expected CNNConfig, MLPConfig or CIFARResNetConfig, or the configuration of an image classifier of "
        f"Transformers or with 'architectures', got {type(config).__name__}; for other networks call "
        "trace_permutations(model, example_inputs)"
    )


def _affine(name: str, inputs: Dimension, outputs: Dimension, *, kernel_dims: int = 0, bias: bool = True) -> Axes:
    """Axes of a linear layer or convolution: `weight` `[outputs, inputs, *kernel]`, `bias` `[outputs]`."""
    axes: Axes = {f"{name}.weight": (outputs, inputs, *(None for _ in range(kernel_dims)))}
    return axes | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, channels: Dimension) -> Axes:
    """Axes of a batch norm: affine, running statistics and the counter."""
    moving = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{tensor}": (channels,) for tensor in moving}, f"{name}.num_batches_tracked": ()}


def _spec(axes: Axes, sizes: dict[str, int]) -> PermutationSpec:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return PermutationSpec(axes, sizes, frozenset(name for name in axes if name.endswith(statistics)))


def _fully_connected(inputs: Dimension, hidden_sizes: tuple[int, ...]) -> tuple[Axes, dict[str, int]]:
    axes: Axes = {}
    sizes = {}
    for i, size in enumerate(hidden_sizes):
        axes |= _affine(f"hidden.{i}", inputs, f"hidden.{i}")
        inputs, sizes[f"hidden.{i}"] = f"hidden.{i}", size
    return axes | _affine("classifier", inputs, None), sizes


def _mlp_spec(config: MLPConfig) -> PermutationSpec:
    return _spec(*_fully_connected(None, tuple(config.hidden_sizes)))


def _cnn_spec(config: CNNConfig) -> PermutationSpec:
    axes: Axes = {}
    sizes: dict[str, int] = {}
    inputs: Dimension = None
    for i, channels in enumerate(config.conv_channels):
        axes |= _affine(f"convolutions.{i}", inputs, f"convolutions.{i}", kernel_dims=2)
        inputs, sizes[f"convolutions.{i}"] = f"convolutions.{i}", channels
    last = f"convolutions.{len(config.conv_channels) - 1}"
    flattened = (AxisSlice(last, 0, sizes[last], block=config.feature_map_size**2),)
    connected_axes, connected_sizes = _fully_connected(flattened, tuple(config.hidden_sizes))
    return _spec(axes | connected_axes, sizes | connected_sizes)


def _padded_stream(stream: tuple[AxisSlice, ...], channels: int, name: str) -> tuple[AxisSlice, ...]:
    """The residual stream after an option-A shortcut: the old stream between two parts of the new axis `name`."""
    new = channels - sum(part.size for part in stream)
    before = new // 2
    head = (AxisSlice(name, 0, before),) if before else ()
    tail = (AxisSlice(name, before, new),) if new > before else ()
    return (*head, *stream, *tail)


def _resnet_spec(config: CIFARResNetConfig) -> PermutationSpec:
    channels = config.stage_channels
    num_convolutions = 2 if config.block == "basic" else 3
    stream: tuple[AxisSlice, ...] = (AxisSlice("stem", 0, channels[0]),)
    sizes = {"stem": channels[0]}
    axes = _affine("conv1", None, stream, kernel_dims=2, bias=False) | _norm("bn1", stream)
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True), start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            inputs, outputs = stream, stream
            changes = block == 0 and (stage > 1 or channels[stage] != channels[stage - 1])
            if changes and config.shortcut == "projection":
                outputs = (AxisSlice(f"layer{stage}", 0, channels[stage]),)
                sizes[f"layer{stage}"] = channels[stage]
            elif changes and channels[stage] > channels[stage - 1]:
                outputs = _padded_stream(stream, channels[stage], f"layer{stage}.padded")
                sizes[f"layer{stage}.padded"] = channels[stage] - channels[stage - 1]
            inner = [f"{name}.inner{i}" for i in range(1, num_convolutions)]
            sizes |= dict.fromkeys(inner, width)
            chain: list[Dimension] = [inputs, *inner, outputs]
            for i in range(1, num_convolutions + 1):
                axes |= _affine(f"{name}.conv{i}", chain[i - 1], chain[i], kernel_dims=2, bias=False)
                axes |= _norm(f"{name}.bn{i}", chain[i])
            if changes and config.shortcut == "projection":
                axes |= _affine(f"{name}.downsample.0", inputs, outputs, kernel_dims=2, bias=False)
                axes |= _norm(f"{name}.downsample.1", outputs)
            stream = outputs
    return _spec(axes | _affine("fc", stream, None), sizes)
