"""Model cards from run records; unknown facts are omitted.

Each function collects the facts for one kind of card; its text and code are a template in `hf_sane/cards/templates`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict, Unpack

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import build_model
from hf_sane.cards._rendering import HERE, render_model_card
from hf_sane.cards._tables import fact_text, is_known, markdown_table
from hf_sane.models.configuration_sane import CheckedConfig, SANEConfig
from hf_sane.records._errors import shorten
from hf_sane.records._escaping import Markup, markdown_text, single_lines
from hf_sane.records._redaction import hide_folders, hide_folders_in
from hf_sane.records._run_record import RunRecord
from hf_sane.records._sources import hub_id, parse_repo
from hf_sane.sampling._export import Provenance, module_arguments
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

LIBRARY = "hf_sane"
DEMO_SANE, DEMO_NETWORK = "SANE of the demo", "Sampled digits CNN"  # titles of the demo's cards
SANE_TAGS = ["sane", "weight-space-learning", "model-zoo", "autoencoder"]
NETWORK_TAGS = ["sane", "weight-space-learning", "sampled-weights"]
SOUP_TAGS = ["model-soup", "merge", "weight-space-learning"]
SANE_SETTINGS = (
    "token_dim",
    "latent_dim",
    "num_latents",
    "latent_reader",
    "num_components",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "window_size",
    "position_embedding",
    "contrast_weight",
    "initialization",
    "grouping",
)
NETWORK_LATENTS = {"num_latents", "latent_reader", "num_components"}  # settings of latents of whole networks
# Names of settings in PEFT and on the card.
ADAPTER_SETTINGS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "layers with low-rank maps",
    "modules_to_save": "modules saved whole",
}
SOUP_SETTINGS = ("r", "lora_alpha", "target_modules", "modules_to_save", "base_model_name_or_path")
# Records of earlier versions say num_epochs.
TRAINING_SETTINGS = ("steps", "max_steps", "epochs", "num_epochs", "batch_size", "learning_rate", "weight_decay")
DECIMALS = 6  # of values in model indices, which are measured in single precision
Measured = tuple[str, str, str, float]  # task, metric, its name, value
# Keys of a configuration that do not describe the network.
BOOKKEEPING = {"transformers_version", "architectures", "dtype", "model_type", "id2label", "label2id", "auto_map"}
# Auto class, its task on the Hub, and the name of Transformers' mapping that lists its classes.
TASKS: tuple[tuple[str, str | None, str], ...] = (
    ("AutoModelForImageClassification", "image-classification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    ("AutoModelForCausalLM", "text-generation", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    ("AutoModelForImageTextToText", "image-text-to-text", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    ("AutoModelForSeq2SeqLM", None, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    ("AutoModelForMaskedLM", "fill-mask", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    ("AutoModelForSequenceClassification", "text-classification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    ("AutoModelForTokenClassification", "token-classification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"),
    ("AutoModelForQuestionAnswering", "question-answering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"),
    ("AutoModelForPreTraining", None, "MODEL_FOR_PRETRAINING_MAPPING_NAMES"),
)


class CardOptions(TypedDict, total=False):
    """Options of every model card in addition to its facts.

    Attributes:
        repo_id: Repository that the card's code loads from; by default the folder of the card.
        datasets: Hub repo ids of zoos or image datasets.
        license_id: Identifier of the licence on the Hub, such as `"mit"`.
    """

    repo_id: str | None
    datasets: Sequence[str]
    license_id: str | None


def sane_card(
    config: CheckedConfig,
    extractor: SANEFeatureExtractor,
    record: RunRecord,
    *,
    title: str = "SANE",
    network_config: ZooConfig | None = None,
    **options: Unpack[CardOptions],
) -> ModelCard:
    """Create the card of a SANE autoencoder or a linear code.

    Args:
        config: Configuration of the model.
        extractor: Its weight tokenizer.
        record: Record of the pre-training run: `data` and `results` become tables, `results["reconstruction_r2"]` an
            entry of the model index.
        title: Heading, and the model's name in the model index.
        network_config: Configuration of a network of the zoo, for the code example.
        **options: See [`CardOptions`].

    Returns:
        The card; `str(card)` is the README.
    """
    settings = {name: getattr(config, name) for name in SANE_SETTINGS if hasattr(config, name)}
    if config.num_latents is None:  # then the others are not used
        settings = {name: value for name, value in settings.items() if name not in NETWORK_LATENTS}
    settings |= {name: getattr(extractor, name) for name in ("token_layout", "batch_norm", "normalization")}
    return _card(
        "sane_model.md",
        record,
        title,
        measured=_reconstruction(record),
        hub={"tags": SANE_TAGS},
        options=options,
        settings=settings,
        standardised=None,
        **_sane_code(config, extractor, network_config),
    )


def network_card(
    network: PreTrainedConfig | nn.Module,
    record: RunRecord,
    *,
    title: str = "Sampled network",
    base_model: str | None = None,
    with_code: bool = False,
    provenance: Provenance | None = None,
    origin: str | None = None,
    **options: Unpack[CardOptions],
) -> ModelCard:
    """Create the card of a network that was sampled with a SANE autoencoder, or is a baseline for sampled networks.

    Args:
        network: Configuration of the network, or a module without one.
        record: Record of the sampling run: `data`, `arguments` and `results` become tables, `results["test_accuracy"]`
            and `results["validation_accuracy"]` entries of the model index. `data["images"]` may be a mapping with
            `name`, `image_size`, `mean` and `std`; `results["fine_tuning_epochs"]` is the number of epochs of
            fine-tuning.
        title: Heading, and the model's name in the model index.
        base_model: Hub repo id of the autoencoder.
        with_code: Whether the folder contains the modelling code, so that the network loads without this library.
        provenance: Autoencoder, zoo, anchors and settings of the sampled network.
        origin: Origin of a network that was not sampled, as a relative clause: "that was trained from scratch".
        **options: See [`CardOptions`].

    Returns:
        The card; `str(card)` is the README.
    """
    if isinstance(network, PreTrainedConfig):
        architecture = network.model_type.removeprefix("sane_").upper().replace("RESNET", "ResNet")
        settings, code = describe_config(network), _network_code(network, record, with_code=with_code)
        tag = auto_class(network)[1]
    else:
        architecture = type(network).__name__
        tag = TASKS[0][1] if record.data.get("images") else None
        settings, code = _describe_module(network), _module_code(network, record)
    return _card(
        "sampled_network.md",
        record,
        title,
        measured=_accuracies(record, tag),
        hub={"tags": NETWORK_TAGS, "base_model": base_model, "pipeline_tag": tag},
        options=options,
        settings=settings,
        architecture=architecture,
        fine_tuning_epochs=record.results.get("fine_tuning_epochs"),
        origin=origin,
        sampling=hide_folders_in(record.arguments if provenance is None else _origin(provenance)),
        **code,
    )


def adapter_card(
    base_config: ZooConfig | SANEConfig,
    adapter: Mapping[str, Any],
    record: RunRecord,
    *,
    title: str = "LoRA adapter",
    extractor: SANEFeatureExtractor | None = None,
    network_config: ZooConfig | None = None,
    **options: Unpack[CardOptions],
) -> ModelCard:
    """Create the card of a LoRA adapter of a SANE autoencoder or of a zoo network.

    Args:
        base_config: Configuration of the base model.
        adapter: PEFT's settings, from `read_adapter_config`; the code example is omitted if they name no base model.
        record: Record of the training run: `data`, `results` and the training settings in `arguments` become tables.
        title: Heading, and the adapter's name in the model index.
        extractor: Weight tokenizer of a SANE autoencoder.
        network_config: Configuration of a network of the zoo, for the code example of a SANE autoencoder's adapter.
        **options: See [`CardOptions`].

    Returns:
        The card; `str(card)` is the README.
    """
    base = hub_id(adapter["base_model_name_or_path"])  # local folders do not belong in code and links
    if isinstance(base_config, SANEConfig):
        assert extractor is not None
        kind, tags, measured = "SANE autoencoder", SANE_TAGS, _reconstruction(record)
        code = _sane_code(base_config, extractor, network_config) | {"standardised": _standardised(record)}
    else:
        kind, tags, measured = "image classifier", NETWORK_TAGS, _accuracies(record)
        code = _network_code(base_config, record)
    return _card(
        "lora_adapter.md",
        record,
        title,
        measured=measured,
        hub={
            "tags": [*tags, "lora"],
            "library_name": "peft",
            "base_model": base,
            "base_model_relation": "adapter" if base else None,
        },
        options=options,
        base=base,
        kind=kind,
        settings={key: adapter.get(name) for name, key in ADAPTER_SETTINGS.items()},
        training=hide_folders_in({name: record.arguments.get(name) for name in TRAINING_SETTINGS}),
        **(code if base else code | {"code": None}),
    )


# Task of the networks by the name of their data in the run record.
TASKS_OF_DATA = {"texts": "text-classification", "images": "image-classification"}


def soup_card(
    config: PreTrainedConfig | nn.Module | None,
    record: RunRecord,
    *,
    title: str = "Model soup",
    with_code: bool = False,
    adapter: Mapping[str, Any] | None = None,
    **options: Unpack[CardOptions],
) -> ModelCard:
    """Create the card of a soup.

    Args:
        config: Configuration of the network, or of the base of adapters, or a module without one; `None` if unknown.
        record: Record of the run: `arguments` with `recipe` (`"greedy"` or `"uniform"`), `metric`, `aligned`,
            `recalibrated`; `results["ingredients"]` as `{name: {"weight": ..., "held_out_score": ...}}`; other results
            become tables, those called `test_...` and `validation_...` entries of the model index.
        title: Heading, and the model's name in the model index.
        with_code: Whether the folder contains the modelling code.
        adapter: Content of adapter_config.json, for a soup of adapters.
        **options: See [`CardOptions`].

    Returns:
        The card; `str(card)` is the README.
    """
    rows: Mapping[str, Mapping[str, Any]] = record.results["ingredients"]
    others = {name: value for name, value in record.results.items() if name != "ingredients"}
    metric = str(record.arguments.get("metric", "accuracy"))
    task = next((tag for kind, tag in TASKS_OF_DATA.items() if kind in record.data), "other")
    measured = [
        (task, metric, f"{split} {metric}", others[f"{split}_{metric}"])
        for split in ("test", "validation")
        if others.get(f"{split}_{metric}") is not None
    ]
    base = None if adapter is None else hub_id(adapter.get("base_model_name_or_path"))
    parents = [parse_repo(name).repo_id for name, row in rows.items() if row["weight"] and _is_repo_id(name)]
    base_model = ([base] if base and _is_repo_id(base) else list(dict.fromkeys(parents))) or None
    own = config if isinstance(config, nn.Module) else None
    config = None if isinstance(config, nn.Module) else config
    code = _network_code(config, record, with_code=with_code) if own is None else _module_code(own, record)
    if own is not None:
        settings = _describe_module(own)
    elif adapter is None:
        settings = {} if config is None else describe_config(config)
    else:
        settings = {name: adapter.get(name) for name in SOUP_SETTINGS}
        code |= {} if base else {"code": None}  # without a base there is nothing to load them onto
    return _card(
        "soup.md",
        replace(record, results=others),
        title,
        measured=measured,
        hub={
            "tags": SOUP_TAGS,
            "library_name": LIBRARY if adapter is None else "peft",
            "base_model": base_model,
            "base_model_relation": ("merge" if adapter is None else "adapter") if base_model else None,
            "pipeline_tag": None if config is None else auto_class(config)[1],
        },
        options=options,
        settings=settings,
        base=base,
        kind=code.get("class_name") if config is None else config.model_type.removeprefix("sane_"),
        metric=metric,
        is_adapter=adapter is not None,
        is_greedy=record.arguments.get("recipe") == "greedy",
        is_aligned=record.arguments.get("aligned"),
        is_recalibrated=record.arguments.get("recalibrated"),
        num_used=sum(row["weight"] > 0 for row in rows.values()),
        num_ingredients=len(rows),
        ingredients=_ingredients_table(rows, metric),
        **code,
    )


def _card(
    template: str,
    record: RunRecord,
    title: str,
    *,
    measured: Sequence[Measured],
    hub: Mapping[str, Any],
    options: CardOptions,
    base: str | None = None,
    **facts: Any,
) -> ModelCard:
    """Fill a template; `hub` is the metadata of this kind of card, `base` the base model of an adapter."""
    named = _measured_on(record, measured)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=named,
            dataset_name=named,
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, DECIMALS),
        )
        for task, metric, name, value in measured
    ]
    metadata = ModelCardData(
        license=options.get("license_id"),
        datasets=single_lines(list(options.get("datasets", ()))) or None,
        model_name=shorten(title) if results else None,
        eval_results=results or None,
        **{"library_name": LIBRARY, **hub},
    )
    source = options.get("repo_id") or HERE
    return render_model_card(template, metadata, record, title=title, source=source, base=base, **facts)


def _measured_on(record: RunRecord, measured: Sequence[Measured]) -> str:
    """Name of the data in the model index that values were measured on: images, texts or a zoo."""
    data = record.data.get("images", record.data.get("texts"))
    if measured and measured[0][0] in TASKS_OF_DATA.values():
        named = data.get("name") if isinstance(data, Mapping) else data
    else:
        named = record.data.get("zoo")
    text = ", ".join(map(str, named)) if isinstance(named, list | tuple) else str(named or "a model zoo")
    return shorten(hide_folders(text))


def _reconstruction(record: RunRecord) -> list[Measured]:
    r2 = record.results.get("reconstruction_r2")
    if r2 is None or not is_known(r2):
        return []
    if r2 > 1:
        raise ValueError(f"results.reconstruction_r2 of the run record is {r2}, expected at most 1; measure it again")
    return [("weight-reconstruction", "r2", "R2 on networks that were not trained on", r2)]


def _accuracies(record: RunRecord, task: str | None = TASKS[0][1]) -> list[Measured]:
    known = {split: record.results.get(f"{split}_accuracy") for split in ("test", "validation")}
    found = {split: accuracy for split, accuracy in known.items() if accuracy is not None and is_known(accuracy)}
    for split, accuracy in found.items():
        if not 0 <= accuracy <= 1:
            raise ValueError(
                f"results.{split}_accuracy of the run record is {accuracy}, expected a share in [0, 1]; measure it "
                "again"
            )
    return [(task or "other", "accuracy", f"{split} accuracy", accuracy) for split, accuracy in found.items()]


def _standardised(record: RunRecord) -> str | None:
    """Standardisation of the images, if the record contains it."""
    images = record.data.get("images")
    if not isinstance(images, Mapping) or not images.get("mean"):
        return None
    return f"(pixels - {images['mean']}) / {images['std']}"


def _origin(provenance: Provenance) -> dict[str, Any]:
    """Origin of a sampled network, without measurements, which have their own section of the card."""
    facts = {entry.name: getattr(provenance, entry.name) for entry in fields(provenance)}
    anchors = [f"{len(provenance.anchors)} runs: {', '.join(provenance.anchors)}"] if provenance.anchors else []
    measured = ("validation_accuracy", "test_accuracy", "scores", "nearest_training_distance")
    return {name: value for name, value in facts.items() if name not in measured} | {"anchors": anchors}


def _is_repo_id(name: str) -> bool:
    """Whether an ingredient is named after a Hub repository (`owner/name`), not after a local folder."""
    return "/" in name and hub_id(name) is not None


def _ingredients_table(rows: Mapping[str, Mapping[str, Any]], metric: str) -> Markup:
    columns = {"weight": "weight"}
    if all("held_out_score" in row for row in rows.values()):
        columns["held_out_score"] = f"held-out {markdown_text(metric)}"
    lines = [
        [markdown_text(hide_folders(name)), *(fact_text(row[column]) for column in columns)]
        for name, row in rows.items()
    ]
    return markdown_table(["ingredient", *columns.values()], lines, numbers=True)


def _sane_code(config: Any, extractor: SANEFeatureExtractor, network_config: ZooConfig | None) -> dict[str, Any]:
    """Facts for the code that reconstructs a network."""
    count = config.num_latents
    facts = {
        "is_linear": config.model_type != SANEConfig.model_type,
        "token_dim": config.token_dim,
        "latent_dim": config.latent_dim,
        "num_latents": count,
        "latents": "one latent vector per token"
        if count is None
        else f"{count} latent vector{'s' * (count > 1)} per network",
        # A linear code of whole networks takes one length only.
        "window_size": len(config.groups) if getattr(config, "grouping", "") == "network" else config.window_size,
    }
    network: dict[str, Any] = {}
    if network_config is not None:
        with torch.device("meta"):
            num_tokens = extractor.layout(build_model(network_config)).num_tokens
        defaults = describe_config(type(network_config)())
        own = {key: value for key, value in describe_config(network_config).items() if value != defaults[key]}
        network = {"name": Markup(type(network_config).__name__), "settings": own, "num_tokens": num_tokens}
    return {"code": "sane", "network": network, **facts}


def _network_code(config: PreTrainedConfig | None, record: RunRecord, *, with_code: bool = False) -> dict[str, Any]:
    """Facts for the code that loads a network and, if it is an image classifier, classifies an image."""
    name, images = "AutoModel" if config is None else auto_class(config)[0], record.data.get("images")
    facts: dict[str, Any] = {"code": "model", "auto_class": name, "standardised": _standardised(record)}
    if name != TASKS[0][0]:
        return facts
    described = images.get("image_size") if isinstance(images, Mapping) else None
    described = described if isinstance(described, int) else None  # two numbers if images are not square
    return facts | {
        "code": "network",
        "with_code": with_code,
        "needs_library": not with_code and isinstance(config, ZooConfig),
        "num_channels": getattr(config, "num_channels", 3),
        "image_size": getattr(config, "image_size", None) or described or 32,
    }


def _module_code(network: nn.Module, record: RunRecord) -> dict[str, Any]:
    """Facts for the code that loads a user's own module."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in module_arguments(network).items())
    facts = {"class_name": type(network).__name__, "arguments": arguments, "standardised": _standardised(record)}
    return {"code": "module", **facts}


def _describe_module(network: nn.Module) -> dict[str, Any]:
    return {"class": type(network).__name__, "parameters": sum(p.numel() for p in network.parameters())}


def auto_class(config: PreTrainedConfig) -> tuple[str, str | None]:
    """Auto class that loads a network, and its task on the Hub, if any.

    Networks of this library, and configurations that name no class, are image classifiers.
    """
    architecture = config.architectures[0] if config.architectures else None
    if architecture is None or isinstance(config, ZooConfig):
        return TASKS[0][:2]
    for name, task, mapping in TASKS:
        if architecture in getattr(modeling_auto, mapping).values():
            return name, task
    return "AutoModel", None


def describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Fields that define a network, and its number of classes; equal for all networks of one architecture."""
    inherited = PreTrainedConfig().to_dict().keys()
    own = {key: value for key, value in config.to_dict().items() if key not in inherited and key not in BOOKKEEPING}
    return {**{key: tuple(v) if isinstance(v, list) else v for key, v in own.items()}, "num_labels": config.num_labels}
