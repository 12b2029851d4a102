"""Adapt networks to another task by fitting classifiers to a few labelled images, on pre-trained features."""

import torch
from torch import Tensor, nn

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.networks._images import ImageData
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import Classification
from hf_sane.sampling._generation import classifier_name, for_num_labels

RIDGE = 0.01  # for standardised features
# Least standard deviation of a feature, as a share of the largest one of its network. A feature that is nearly
# constant on the training images must not get a huge weight, since it may vary on others.
LEAST_SPREAD = 0.01
HEAD_SCALE = 5.0  # margin of the true class's logit in an exact fit


def fit_heads(networks: StackedNetworks, data: ImageData) -> StackedNetworks:
    """The same networks with a new classifier, fitted to the training images by ridge regression.

    All other layers are kept, so that networks trained on other classes can be compared and fine-tuned on these. The
    fit is exact and takes no steps; fine-tuning starts from it (Kumar et al., arXiv:2202.10054).

    Args:
        networks: `M` networks of a zoo configuration, whose last layer is the classifier.
        data: Images whose classes the new classifiers distinguish.

    Returns:
        Networks with `data.num_classes` outputs.
    """
    images, labels = data.split("train")
    features = _features(networks, images)  # [M, n, H]
    mean = features.mean(dim=1, keepdim=True)
    std = features.std(dim=1, correction=0, keepdim=True)
    std = std.maximum(LEAST_SPREAD * std.amax(dim=2, keepdim=True)).clamp_min(1e-6)
    inputs = ((features - mean) / std).double()
    targets = HEAD_SCALE * nn.functional.one_hot(labels, data.num_classes).to(inputs)
    centre = targets.mean(dim=0)
    gram = inputs.mT @ inputs / len(labels) + RIDGE * torch.eye(inputs.shape[2], dtype=inputs.dtype)
    solved = torch.linalg.solve(gram, inputs.mT @ (targets - centre) / len(labels))  # [M, H, K]
    weight = solved.mT / std
    bias = centre - (weight * mean).sum(dim=2)
    return _with_classifier(networks, weight.float(), bias.float())


def _features(networks: StackedNetworks, images: Tensor) -> Tensor:
    """Inputs `[M, n, H]` of the classifier, computed with the identity as classifier."""
    models, _, width = networks.tensors[f"{classifier_name(_config(networks))}.weight"].shape
    opened = _with_classifier(networks, torch.eye(width).expand(models, -1, -1), torch.zeros(models, width))
    with torch.no_grad():
        return opened.logits(images)


def _with_classifier(networks: StackedNetworks, weight: Tensor, bias: Tensor) -> StackedNetworks:
    """The networks with classifiers `[M, K, H]` and `[M, K]`; all other tensors are shared."""
    config = _config(networks)
    name = classifier_name(config)
    classifier = {f"{name}.weight": weight.contiguous(), f"{name}.bias": bias.contiguous()}
    return StackedNetworks(for_num_labels(config, weight.shape[1]), networks.tensors | classifier)


def _config(networks: StackedNetworks) -> ZooConfig:
    if not isinstance(networks.config, ZooConfig):
        raise TypeError(f"expected networks of a zoo configuration, got {type(networks.config).__name__}")
    return networks.config


class FittedHeads(Classification):
    """Judges the features of networks by the accuracy of classifiers that are fitted to the training images."""

    data: ImageData

    def measure(self, networks: StackedNetworks, split: str) -> tuple[Tensor, Tensor]:
        """Accuracies and cross-entropies with fitted classifiers."""
        return super().measure(fit_heads(networks, self.data), split)

    def measure_one(self, network: nn.Module, split: str) -> float:
        """Accuracy of one network of this library."""
        stack = StackedNetworks.from_state_dicts(network.config, [network.state_dict()])  # type: ignore[arg-type]
        return self.measure(stack, split)[0].item()
