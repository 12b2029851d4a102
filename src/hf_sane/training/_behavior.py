"""The behavioural loss, which compares outputs of original and reconstructed networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layer_kinds import RUNNING
from hf_sane.core._layout import Layout
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.outputs_sane import SANEOutput
from hf_sane.networks._images import load_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._dataset import ZooSplit

Decode = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, positions and attention mask to tokens
MIN_SPREAD = 1e-6  # avoids a division by zero if all networks have the same outputs


def behavior_distance(original: Tensor, reconstructed: Tensor, kind: str) -> Tensor:
    """Distance between the outputs of original and reconstructed networks, relative to the spread of the originals.

    `mse`: `mean |p - q|^2 / mean |p - p_bar|^2`; `kl`: `mean KL(p || q) / mean KL(p || p_bar)`, with `p`, `q` the
    softmax outputs of original and reconstructed networks and `p_bar` the mean output of the originals. 0: equal
    outputs; 1: no better than the mean output.

    "Structure is not enough" (arXiv:2503.17138) divides each term by its value at the first step. That value depends
    on the initialisation (which may already reconstruct here) and would have to be stored to resume. Dividing by the
    spread of the original outputs makes the loss independent of scale, too, and avoids both.

    Args:
        original: `[M, B, K]` logits, without gradient.
        reconstructed: `[M, B, K]` logits.
        kind: `"mse"` or `"kl"`.

    Returns:
        Scalar, float32.
    """
    log_p = original.detach().float().log_softmax(-1)
    log_q = reconstructed.float().log_softmax(-1)
    p = log_p.exp()
    average = p.mean((0, 1))
    if kind == "mse":
        return (p - log_q.exp()).square().mean() / (p - average).square().mean().clamp_min(MIN_SPREAD)
    divergence = (p * (log_p - log_q)).sum(-1).mean()
    return divergence / (p * (log_p - average.log())).sum(-1).mean().clamp_min(MIN_SPREAD)


@dataclass(frozen=True)
class BehaviorLoss:
    """Runs original and reconstructed networks on images within a training step.

    Weights that are close in mean square can still compute different functions ("Structure is not enough",
    arXiv:2503.17138). Windows must cover whole networks of one architecture.

    Attributes:
        config: Configuration of the networks of the zoo.
        layout: Layout of the networks, with `N` tokens.
        extractor: Fitted weight tokenizer, to invert the normalisation.
        images: `[n, C, H, W]` float32, on the training device.
        weight: Share `w` of the behavioural term within the reconstruction loss.
        contrast_weight: `gamma` of the model.
        num_images: Images per step.
        num_models: Maximum number of networks per step and view.
        kind: `"mse"` or `"kl"`; see [`behavior_distance`].
        seed: Seed for the selection of images and for noise.
        latent_noise: Standard deviation of noise on latents, from which networks are decoded a second time; in
            standard deviations over the networks of a batch, 0 for none.
    """

    config: ZooConfig | nn.Module
    layout: Layout
    extractor: SANEFeatureExtractor
    images: Tensor
    weight: float
    contrast_weight: float
    num_images: int
    num_models: int
    kind: str
    seed: int
    latent_noise: float = 0.0

    @classmethod
    def from_arguments(
        cls,
        arguments: PretrainSettings,
        config: SANEConfig,
        extractor: SANEFeatureExtractor,
        splits: Sequence[ZooSplit],
        device: torch.device,
    ) -> "BehaviorLoss | None":
        """Set up the loss, or return `None` if `behavior_weight` is 0.

        Raises:
            ValueError: If the zoos have several architectures, or a network is longer than a window.
        """
        if arguments.behavior_weight == 0 or arguments.behavior_data is None:
            return None
        columns = ("layout", "architecture", "activation")
        kinds = {kind for split in splits for kind in zip(*map(split.column, columns), strict=True)}
        layout = splits[0].whole_layout(0)
        if len(kinds) != 1:
            raise ValueError(
                "expected zoos of one layout, architecture and activation for the behavioural loss, got "
                f"{sorted(kinds)}; train on one of them, or set behavior_weight=0"
            )
        if layout.num_tokens > config.window_size:
            raise ValueError(
                "expected windows that cover whole networks for the behavioural loss, got window_size="
                f"{config.window_size} for {layout.num_tokens} tokens; raise window_size, or set behavior_weight=0"
            )
        if any(tensor.is_floating_point() for tensor in layout.template.values()):
            raise ValueError(
                "expected tokens that contain all weights for the behavioural loss, got a zoo with "
                "batch_norm='template'; build it with batch_norm='tokens', or set behavior_weight=0"
            )
        network = splits[0].config(0)
        image_size = getattr(network, "image_size", None)  # networks for images of any size get them unchanged
        data = load_images(arguments.behavior_data, image_size=image_size)
        return cls(
            config=network,
            layout=layout,
            extractor=extractor,
            images=data.train_images.to(device),
            weight=arguments.behavior_weight,
            contrast_weight=float(config.contrast_weight),
            num_images=arguments.behavior_images,
            num_models=arguments.behavior_models,
            kind=arguments.behavior_loss,
            seed=arguments.seed,
            latent_noise=arguments.behavior_latent_noise,
        )

    def networks(self, tokens: Tensor) -> StackedNetworks:
        """Networks from normalised tokens `[M, N, D]`, differentiable except for running statistics.

        PyTorch's batch norm computes no gradient for them. A negative reconstructed variance is set to zero.
        """
        tensors = self.layout.tensors(self.extractor.denormalize(tokens, self.layout))
        for name, value in tensors.items():
            if name.endswith(RUNNING):
                tensors[name] = value.detach().clamp_min(0) if name.endswith("running_var") else value.detach()
        complete = self.layout.complete(tensors, [len(tokens)], device=tokens.device)
        return StackedNetworks(self.config, self.layout.for_module(complete))

    def distance(self, tokens: Tensor, reconstruction: Tensor, step: int) -> Tensor:
        """[`behavior_distance`] between networks and their reconstructions on the images of a step.

        Args:
            tokens: `[M, N, D]` normalised tokens without noise.
            reconstruction: `[M, N, D]`.
            step: Optimizer step, which determines the images together with the seed.

        Returns:
            Scalar, float32, differentiable with respect to `reconstruction`.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        picked = torch.randperm(len(self.images), generator=generator)[: self.num_images]
        images = self.images[picked.to(self.images.device)]
        with torch.no_grad():
            original = self.networks(tokens).logits(images)
        return behavior_distance(original, self.networks(reconstruction.float()).logits(images), self.kind)

    def noised_latents(self, latents: Tensor, step: int) -> Tensor:
        """Latents `[M, N, Z]` with noise in proportion to their spread over the networks, as in sampling.

        Trains the decoder to produce working networks in the neighbourhood of each latent.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return latents + self.latent_noise * latents.detach().std(dim=0, correction=0) * noise

    def combine(
        self, output: SANEOutput, batch: Mapping[str, Tensor], step: int, *, decode: Decode | None = None
    ) -> Tensor:
        """Total loss `(1 - gamma) ((1 - w) L_rec + w L_behavior) + gamma L_contrast`.

        With noise on latents, `L_behavior` is the mean of the distances without and with noise.

        Args:
            output: Output of the model, with losses.
            batch: Input of the model; each window must hold a whole network.
            step: Optimizer step, which determines the images and the noise.
            decode: Decoder of the model, for noise on latents.

        Returns:
            Scalar.
        """
        assert output.loss is not None
        assert output.reconstruction is not None
        assert output.reconstruction_loss is not None
        targets = [batch.get("target_tokens", batch["tokens"])]
        decoded = [output.reconstruction]
        if output.second_reconstruction is not None:
            targets.append(batch.get("second_target_tokens", batch["second_tokens"]))
            decoded.append(output.second_reconstruction)
        first = slice(self.num_models)
        originals = torch.cat([target[first] for target in targets])
        distance = self.distance(originals, torch.cat([part[first] for part in decoded]), step)
        if self.latent_noise > 0 and decode is not None:
            views = [part for part in (output.latents, output.second_latents) if part is not None]
            latents = torch.cat([self.noised_latents(view, step)[first] for view in views])
            where, mask = (torch.cat([batch[key][first]] * len(views)) for key in ("positions", "attention_mask"))
            distance = (distance + self.distance(originals, decode(latents, where, mask), step)) / 2
        share = self.weight * (1.0 if output.contrastive_loss is None else 1.0 - self.contrast_weight)
        return output.loss + share * (distance - output.reconstruction_loss)
