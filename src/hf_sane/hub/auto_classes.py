"""Tell Transformers' Auto classes and pipelines about SANE and the networks of zoos."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification

from hf_sane.architectures.presets import MODEL_CLASSES
from hf_sane.hub.pipeline import register_pipeline
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor


def register_auto_classes() -> None:
    """Let `AutoModel`, `AutoFeatureExtractor` and `AutoModelForImageClassification` find the classes of this library.

    And `pipeline` the task `weight-feature-extraction`. `import hf_sane` calls it. Calling it again changes nothing.
    """
    AutoConfig.register(SANEConfig.model_type, SANEConfig, exist_ok=True)
    AutoModel.register(SANEConfig, SANEModel, exist_ok=True)
    AutoFeatureExtractor.register(SANEConfig, SANEFeatureExtractor, exist_ok=True)
    for config_class, model_class in MODEL_CLASSES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForImageClassification.register(config_class, model_class, exist_ok=True)
    register_pipeline()
