"""Neural-network weights as a data modality: zoos of trained networks, SANE autoencoders, probing and sampling.

The names below are loaded when they are first used. Importing the library also tells Transformers' Auto classes the
names of SANE and of the networks of zoos, so that `AutoModel.from_pretrained` reads a SANE folder; neither
Transformers nor PyTorch is loaded for that.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_sane.auto_classes import register_auto_classes

if TYPE_CHECKING:
    from hf_sane.architectures.configuration_zoo import CIFARResNetConfig, CNNConfig, MLPConfig
    from hf_sane.core.types import TokenSequence
    from hf_sane.hub.push import push_generated
    from hf_sane.models.configuration_sane import SANEConfig
    from hf_sane.models.modeling_sane import SANEModel
    from hf_sane.networks.images import load_images
    from hf_sane.probing.embeddings import embed_networks
    from hf_sane.probing.probes import RidgeProbe
    from hf_sane.sampling.generation import sample_networks
    from hf_sane.symmetry.tracing.trace import trace_permutations
    from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor
    from hf_sane.training.pretraining import pretrain
    from hf_sane.training.settings import PretrainSettings
    from hf_sane.zoo.building.build import build_zoo
    from hf_sane.zoo.building.settings import ZooSettings, hyperparameter_zoo, seed_zoo
    from hf_sane.zoo.dataset import Zoo

__version__ = "0.1.0"

_HOMES = {
    "CIFARResNetConfig": "architectures.configuration_zoo",
    "CNNConfig": "architectures.configuration_zoo",
    "MLPConfig": "architectures.configuration_zoo",
    "PretrainSettings": "training.settings",
    "RidgeProbe": "probing.probes",
    "SANEConfig": "models.configuration_sane",
    "SANEFeatureExtractor": "tokenization.feature_extraction_sane",
    "SANEModel": "models.modeling_sane",
    "TokenSequence": "core.types",
    "Zoo": "zoo.dataset",
    "ZooSettings": "zoo.building.settings",
    "build_zoo": "zoo.building.build",
    "embed_networks": "probing.embeddings",
    "hyperparameter_zoo": "zoo.building.settings",
    "load_images": "networks.images",
    "pretrain": "training.pretraining",
    "push_generated": "hub.push",
    "sample_networks": "sampling.generation",
    "seed_zoo": "zoo.building.settings",
    "trace_permutations": "symmetry.tracing.trace",
}

__all__ = [
    "CIFARResNetConfig",
    "CNNConfig",
    "MLPConfig",
    "PretrainSettings",
    "RidgeProbe",
    "SANEConfig",
    "SANEFeatureExtractor",
    "SANEModel",
    "TokenSequence",
    "Zoo",
    "ZooSettings",
    "build_zoo",
    "embed_networks",
    "hyperparameter_zoo",
    "load_images",
    "pretrain",
    "push_generated",
    "sample_networks",
    "seed_zoo",
    "trace_permutations",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_sane' has no attribute {name!r}; its names are {', '.join(__all__)}")
    value = getattr(import_module(f"hf_sane.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_auto_classes()
