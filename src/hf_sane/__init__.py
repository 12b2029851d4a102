"""Neural-network weights as a data modality: zoos of trained networks, SANE autoencoders, probing and sampling.

The names below are loaded on first use. Importing the library also registers SANE and the networks of zoos with
Transformers' Auto classes, so that `AutoModel.from_pretrained` reads a SANE folder, without loading Transformers or
PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_sane._auto_classes import register_auto_classes

if TYPE_CHECKING:
    from hf_sane.architectures.configuration_zoo import CIFARResNetConfig as CIFARResNetConfig
    from hf_sane.architectures.configuration_zoo import CNNConfig as CNNConfig
    from hf_sane.architectures.configuration_zoo import MLPConfig as MLPConfig
    from hf_sane.models.configuration_sane import SANEConfig as SANEConfig
    from hf_sane.models.modeling_sane import SANEModel
    from hf_sane.networks._images import load_images
    from hf_sane.networks._modules import register_architecture
    from hf_sane.networks._texts import load_texts as load_texts
    from hf_sane.probing._probes import RidgeProbe as RidgeProbe
    from hf_sane.symmetry.tracing._trace import trace_permutations as trace_permutations
    from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
    from hf_sane.workflows.align_zoo import align_zoo as align_zoo
    from hf_sane.workflows.analyze import analyze as analyze
    from hf_sane.workflows.build_zoo import build_zoo
    from hf_sane.workflows.compare import compare_samplers as compare_samplers
    from hf_sane.workflows.diff import diff as diff
    from hf_sane.workflows.embed import embed
    from hf_sane.workflows.explore import explore as explore
    from hf_sane.workflows.finetune import finetune
    from hf_sane.workflows.finetune_lora import finetune_lora as finetune_lora
    from hf_sane.workflows.fit_zoo import fit_zoo as fit_zoo
    from hf_sane.workflows.import_zoo import import_zoo
    from hf_sane.workflows.info import info as info
    from hf_sane.workflows.lineage import lineage as lineage
    from hf_sane.workflows.linear_code import fit_linear as fit_linear
    from hf_sane.workflows.mix_zoos import mix_zoos as mix_zoos
    from hf_sane.workflows.pretrain import pretrain
    from hf_sane.workflows.probe import probe
    from hf_sane.workflows.reconstruct import reconstruct as reconstruct
    from hf_sane.workflows.regions import map_regions as map_regions
    from hf_sane.workflows.reports import report as report
    from hf_sane.workflows.sample import sample
    from hf_sane.workflows.sane import SANE
    from hf_sane.workflows.scan import scan
    from hf_sane.workflows.search import index_networks as index_networks
    from hf_sane.workflows.search import search as search
    from hf_sane.workflows.show_zoo import load_zoo
    from hf_sane.workflows.show_zoo import show_zoo as show_zoo
    from hf_sane.workflows.soup import soup
    from hf_sane.workflows.start import start
    from hf_sane.workflows.transfer import pull as pull
    from hf_sane.workflows.transfer import push as push
    from hf_sane.workflows.zoo_structure import zoo_structure as zoo_structure
    from hf_sane.zoo._dataset import Zoo

__version__ = "0.2.0"

_HOMES = {
    "SANE": "workflows.sane",
    "SANEFeatureExtractor": "tokenization._feature_extraction_sane",
    "SANEModel": "models.modeling_sane",
    "Zoo": "zoo._dataset",
    "build_zoo": "workflows.build_zoo",
    "embed": "workflows.embed",
    "finetune": "workflows.finetune",
    "import_zoo": "workflows.import_zoo",
    "load_images": "networks._images",
    "load_zoo": "workflows.show_zoo",
    "pretrain": "workflows.pretrain",
    "probe": "workflows.probe",
    "register_architecture": "networks._modules",
    "sample": "workflows.sample",
    "scan": "workflows.scan",
    "soup": "workflows.soup",
    "start": "workflows.start",
}

# Less frequently used configurations and workflows; `dir(hf_sane)` lists them, `import *` does not import them.
_ALSO = {
    "SANEConfig": "models.configuration_sane",
    "CIFARResNetConfig": "architectures.configuration_zoo",
    "CNNConfig": "architectures.configuration_zoo",
    "MLPConfig": "architectures.configuration_zoo",
    "RidgeProbe": "probing._probes",
    "align_zoo": "workflows.align_zoo",
    "analyze": "workflows.analyze",
    "compare_samplers": "workflows.compare",
    "diff": "workflows.diff",
    "explore": "workflows.explore",
    "finetune_lora": "workflows.finetune_lora",
    "fit_linear": "workflows.linear_code",
    "fit_zoo": "workflows.fit_zoo",
    "index_networks": "workflows.search",
    "info": "workflows.info",
    "lineage": "workflows.lineage",
    "load_texts": "networks._texts",
    "map_regions": "workflows.regions",
    "mix_zoos": "workflows.mix_zoos",
    "pull": "workflows.transfer",
    "push": "workflows.transfer",
    "reconstruct": "workflows.reconstruct",
    "report": "workflows.reports",
    "search": "workflows.search",
    "show_zoo": "workflows.show_zoo",
    "trace_permutations": "symmetry.tracing._trace",
    "zoo_structure": "workflows.zoo_structure",
}

__all__ = [
    "SANE",
    "SANEFeatureExtractor",
    "SANEModel",
    "Zoo",
    "build_zoo",
    "embed",
    "finetune",
    "import_zoo",
    "load_images",
    "load_zoo",
    "pretrain",
    "probe",
    "register_architecture",
    "sample",
    "scan",
    "soup",
    "start",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name) or _ALSO.get(name)
    if home is None:
        raise AttributeError(f"module 'hf_sane' has no attribute {name!r}; its names are {', '.join(__all__)}")
    value = getattr(import_module(f"hf_sane.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ALSO})


register_auto_classes()
