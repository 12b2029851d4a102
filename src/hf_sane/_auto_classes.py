"""Registration of SANE and zoo networks with Transformers' Auto classes and pipelines, without importing either.

`import hf_sane` calls [`register_auto_classes`], which must be fast: PyTorch and Transformers take seconds to load,
and many programs that import this library never use an Auto class. Names of our classes are therefore registered when
the modules of Transformers with registers are loaded (a post-import hook, PEP 369); a class itself is loaded when it
is looked up. Neither this library nor PyTorch is imported while Transformers is being imported, which could result in
half-initialised modules or, with several threads, in a deadlock.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

TASK = "weight-feature-extraction"


class _Place(NamedTuple):
    """Location of a class, which replaces the class in a register until it is looked up."""

    module: str
    name: str

    def load(self) -> Any:
        return getattr(import_module(f"hf_sane.{self.module}"), self.name)


# Model types to configurations; configurations to models, feature extractors or image processors. `model_type` is
# repeated here because the classes that define it are not loaded yet (tests compare them).
CONFIGS = {
    "sane": _Place("models.configuration_sane", "SANEConfig"),
    "sane_linear": _Place("models.configuration_linear", "LinearCodeConfig"),
    "sane_cnn": _Place("architectures.configuration_zoo", "CNNConfig"),
    "sane_mlp": _Place("architectures.configuration_zoo", "MLPConfig"),
    "sane_resnet": _Place("architectures.configuration_zoo", "CIFARResNetConfig"),
    "sane_own_module": _Place("networks._own_configuration", "OwnModuleConfig"),
}
MODELS = {
    "sane": _Place("models.modeling_sane", "SANEModel"),
    "sane_linear": _Place("models.modeling_linear", "LinearCode"),
}
CLASSIFIERS = {
    "sane_cnn": _Place("architectures.modeling_zoo", "CNNForImageClassification"),
    "sane_mlp": _Place("architectures.modeling_zoo", "MLPForImageClassification"),
    "sane_resnet": _Place("architectures.modeling_resnet", "CIFARResNetForImageClassification"),
}
OWN = {"sane_own_module": _Place("networks._own_models", "OwnModule")}
IMAGE_PROCESSORS = dict.fromkeys(CLASSIFIERS, _Place("architectures.image_processing_zoo", "BACKENDS"))
FEATURE_EXTRACTORS = dict.fromkeys(MODELS, _Place("tokenization._feature_extraction_sane", "SANEFeatureExtractor"))
PIPELINE = "hf_sane.hub._pipeline.WeightFeatureExtractionPipeline"


class _Lookup(dict[Any, Any]):
    """A register of classes, where a [`_Place`] is replaced by its class when it is looked up."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Place):
            value = self[key] = value.load()
        return value

    def __iter__(self) -> Iterator[Any]:  # the inherited `dict(register)` would copy places
        return super().__iter__()

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


def _add(register: Any, entries: dict[Any, _Place]) -> None:
    """Add to the extra content of a lazy mapping of Transformers, without replacing existing entries."""
    content = register._extra_content
    if not isinstance(content, _Lookup):
        register._extra_content = content = _Lookup(content)
    for key, place in entries.items():
        content.setdefault(key, place)


def _by_config(entries: dict[str, _Place]) -> dict[Any, _Place]:
    # Configurations only import parts of Transformers that the calling module has loaded already.
    return {CONFIGS[model_type].load(): place for model_type, place in entries.items()}


def _register_configs(module: ModuleType) -> None:
    _add(module.CONFIG_MAPPING, CONFIGS)


def _register_models(module: ModuleType) -> None:
    _add(module.MODEL_MAPPING, _by_config(MODELS | OWN))
    _add(module.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, _by_config(CLASSIFIERS | OWN))
    _add(module.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, _by_config(OWN))


def _register_feature_extractors(module: ModuleType) -> None:
    _add(module.FEATURE_EXTRACTOR_MAPPING, _by_config(FEATURE_EXTRACTORS))


def _register_image_processors(module: ModuleType) -> None:
    _add(module.IMAGE_PROCESSOR_MAPPING, _by_config(IMAGE_PROCESSORS))


def _register_pipeline(module: ModuleType) -> None:
    entry = {"impl": PIPELINE, "pt": (module.AutoModel,), "type": "multimodal"}
    module.PIPELINE_REGISTRY.supported_tasks.setdefault(TASK, entry)


_REGISTERS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractors,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
    "transformers.pipelines": _register_pipeline,
}


class _AfterImport(Loader):
    """Loads a module with its own loader, and registers our classes in it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader  # used by `inspect` and `importlib.resources`
        self.loader.exec_module(module)
        _REGISTERS[module.__name__](module)


class _Finder(MetaPathFinder):
    """Finds the modules with registers through the other finders, and loads them with [`_AfterImport`]."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTERS:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterImport(spec.loader)
        return spec


def register_auto_classes() -> None:
    """Register our classes with the Auto classes, and the task `weight-feature-extraction` with `pipeline`.

    `import hf_sane` calls it; further calls change nothing.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name, register in _REGISTERS.items():
        if name in sys.modules:
            register(import_module(name))  # waits for another thread that is importing it
