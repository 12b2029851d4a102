"""Model cards from run records: what is known is written down, what is not known is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.resources import files
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import build_model
from hf_sane.hub._tables import fact_table, is_known, result_tables
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.records._errors import shorten
from hf_sane.records._escaping import markdown_code, markdown_text, python_literal, single_lines
from hf_sane.records._redaction import hide_folders, hide_folders_in
from hf_sane.records._run_record import RunRecord
from hf_sane.records._sources import hub_id
from hf_sane.sampling._export import Provenance
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

LIBRARY = "hf_sane"
SANE_TAGS = ["sane", "weight-space-learning", "model-zoo", "autoencoder"]
NETWORK_TAGS = ["sane", "weight-space-learning", "sampled-weights"]
SANE_SETTINGS = (
    "token_dim",
    "latent_dim",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "window_size",
    "position_embedding",
    "contrast_weight",
    "initialization",
)
# PEFT's name of a setting to ours.
ADAPTER_SETTINGS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "layers with low-rank maps",
    "modules_to_save": "modules saved whole",
}
TRAINING_SETTINGS = ("steps", "max_steps", "num_epochs", "batch_size", "learning_rate", "weight_decay")
Measured = tuple[str, str, str, float]  # task, metric, its name, value
# Keys of a configuration that say nothing about the network.
BOOKKEEPING = {"transformers_version", "architectures", "dtype", "model_type", "id2label", "label2id", "auto_map"}

SANE_CODE = """\
from hf_sane import {imports}SANEFeatureExtractor, SANEModel

model = SANEModel.from_pretrained({base})
{adapter}weight_tokenizer = SANEFeatureExtractor.from_pretrained({source})
"""
SANE_ON_NETWORK = """
network = AutoModelForImageClassification.from_config(  # or a trained one
    {call}
)
sequence = weight_tokenizer.encode(network)  # {num_tokens} tokens of {token_dim} weights
latents = model.encode_sequences(sequence.tokens[None], sequence.positions)  # [1, {num_tokens}, {latent_dim}]
decoded = model.decode_sequences(latents, sequence.positions)  # [1, {num_tokens}, {token_dim}]
network.load_state_dict(weight_tokenizer.decode(decoded[0], sequence.layout))  # the reconstructed network"""
SANE_ON_TOKENS = """
tokens = torch.randn(1, {window_size}, {token_dim})  # in practice: weight_tokenizer.encode(network).tokens[None]
positions = torch.zeros({window_size}, 3, dtype=torch.long)  # and .positions
latents = model.encode_sequences(tokens, positions)  # [1, {window_size}, {latent_dim}]
decoded = model.decode_sequences(latents, positions)  # [1, {window_size}, {token_dim}]"""
# Auto class, task on the Hub, and where Transformers lists the classes.
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
NETWORK_CODE = """\
{imports}

network = AutoModelForImageClassification.from_pretrained({base}{trust})
{adapter}pixel_values = torch.zeros(1, {channels}, {size}, {size})  # your images
predicted = network(pixel_values).logits.argmax(-1)"""
WITH_ADAPTER = """\
{name} = PeftModel.from_pretrained({name}, {source}).merge_and_unload()  # an ordinary model again
"""


def sane_card(
    config: SANEConfig,
    extractor: SANEFeatureExtractor,
    record: RunRecord,
    *,
    source: str = ".",
    title: str = "SANE",
    network_config: ZooConfig | None = None,
    datasets: Sequence[str] = (),
    license_id: str | None = None,
) -> ModelCard:
    """Describe a SANE autoencoder.

    Args:
        config: Of the model.
        extractor: Its weight tokenizer.
        record: Of the pre-training run: `data` and `results` become tables, `results["reconstruction_r2"]` an entry of
            the model index.
        source: Repo id or path that the code of the card loads from; `"."` for code run inside the folder.
        title: Headline, and the model's name in the model index.
        network_config: A network of the zoo, for the code of the card.
        datasets: Hub ids of the zoos.
        license_id: Hub licence identifier, such as `"mit"`.

    Returns:
        The card; `str(card)` is the README.
    """
    metadata = card_metadata(
        record, title, _reconstruction(record), SANE_TAGS, datasets=datasets, license_id=license_id
    )
    settings = {name: getattr(config, name) for name in SANE_SETTINGS}
    settings |= {name: getattr(extractor, name) for name in ("token_layout", "batch_norm", "normalization")}
    return fill_template(
        "sane_model.md",
        metadata,
        record,
        title=title,
        source=source,
        code=_sane_code(config, extractor, source, network_config),
        settings=settings,
    )


def network_card(
    config: ZooConfig,
    record: RunRecord,
    *,
    source: str = ".",
    title: str = "Sampled network",
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license_id: str | None = None,
    with_code: bool = False,
    provenance: Provenance | None = None,
) -> ModelCard:
    """Describe a network that was sampled with a SANE autoencoder.

    Args:
        config: Of the network.
        record: Of the sampling run: `data`, `arguments` and `results` become tables, `results["test_accuracy"]` and
            `results["validation_accuracy"]` entries of the model index. `data["images"]` may be a mapping with `name`,
            `image_size`, `mean` and `std`; `results["fine_tuning_epochs"]` says for how long it was fine-tuned.
        source: Repo id or path that the code of the card loads from; `"."` for code run inside the folder.
        title: Headline, and the model's name in the model index.
        base_model: Hub id of the autoencoder.
        datasets: Hub ids of the zoos or image data.
        license_id: Hub licence identifier, such as `"mit"`.
        with_code: Whether the folder carries its modelling code, so that nobody needs this library.
        provenance: Autoencoder, zoo, anchors and settings it was drawn with.

    Returns:
        The card; `str(card)` is the README.
    """
    metadata = card_metadata(
        record, title, _accuracies(record), NETWORK_TAGS, datasets=datasets, license_id=license_id
    )
    metadata.base_model = base_model
    metadata.pipeline_tag = "image-classification"
    images = record.data.get("images")
    return fill_template(
        "sampled_network.md",
        metadata,
        record,
        title=title,
        source=source,
        code=network_code(config, source, images, with_code=with_code),
        settings=describe_config(config),
        architecture=config.model_type.removeprefix("sane_").upper().replace("RESNET", "ResNet"),
        preprocessing=preprocessing_note(images),
        fine_tuning_epochs=record.results.get("fine_tuning_epochs"),
        sampling_table=fact_table(hide_folders_in(record.arguments if provenance is None else _origin(provenance))),
    )


def adapter_card(
    base_config: ZooConfig | SANEConfig,
    adapter: Mapping[str, Any],
    record: RunRecord,
    *,
    source: str = ".",
    title: str = "LoRA adapter",
    extractor: SANEFeatureExtractor | None = None,
    network_config: ZooConfig | None = None,
    datasets: Sequence[str] = (),
    license_id: str | None = None,
) -> ModelCard:
    """Describe a LoRA adapter of a SANE autoencoder or of a zoo network.

    Args:
        base_config: Of the base model.
        adapter: PEFT's settings, from `read_adapter_config`; the code of the card needs the base that they name, and
            is left out when they name none.
        record: Of the training run: `data`, training settings among the `arguments` and `results` become tables.
        source: Repo id or path that the code of the card loads from; `"."` for code run inside the folder.
        title: Headline, and the adapter's name in the model index.
        extractor: Weight tokenizer of a SANE autoencoder.
        network_config: A network of the zoo, for the code of a SANE autoencoder's adapter.
        datasets: Hub ids of zoos or image data.
        license_id: Hub licence identifier.

    Returns:
        The card; `str(card)` is the README.
    """
    base = hub_id(adapter["base_model_name_or_path"])  # what is no repository id has no place in code or links
    images = record.data.get("images")
    if isinstance(base_config, SANEConfig):
        assert extractor is not None
        kind, tags, results = "SANE autoencoder", SANE_TAGS, _reconstruction(record)
        code = _sane_code(base_config, extractor, source, network_config, base) if base else None
    else:
        kind, tags, results = "image classifier", NETWORK_TAGS, _accuracies(record)
        code = network_code(base_config, source, images, base=base) if base else None
    metadata = card_metadata(record, title, results, [*tags, "lora"], datasets=datasets, license_id=license_id)
    metadata.library_name, metadata.base_model = "peft", base
    if base:
        metadata["base_model_relation"] = "adapter"
    return fill_template(
        "lora_adapter.md",
        metadata,
        record,
        title=title,
        source=source,
        code=code,
        base=base,
        kind=kind,
        settings={key: adapter.get(name) for name, key in ADAPTER_SETTINGS.items()},
        preprocessing=preprocessing_note(images),
        training_table=fact_table(hide_folders_in({name: record.arguments.get(name) for name in TRAINING_SETTINGS})),
    )


def _reconstruction(record: RunRecord) -> list[Measured]:
    r2 = record.results.get("reconstruction_r2")
    if r2 is None or not is_known(r2):
        return []
    if r2 > 1:
        raise ValueError(f"results.reconstruction_r2 of the run record is {r2}, expected at most 1; measure it again")
    return [("weight-reconstruction", "r2", "R2 on networks that were not trained on", r2)]


def _accuracies(record: RunRecord) -> list[Measured]:
    known = {split: record.results.get(f"{split}_accuracy") for split in ("test", "validation")}
    found = {split: accuracy for split, accuracy in known.items() if accuracy is not None and is_known(accuracy)}
    for split, accuracy in found.items():
        if not 0 <= accuracy <= 1:
            raise ValueError(
                f"results.{split}_accuracy of the run record is {accuracy}, expected a share in [0, 1]; measure it "
                "again"
            )
    return [("image-classification", "accuracy", f"{split} accuracy", accuracy) for split, accuracy in found.items()]


def preprocessing_note(images: Any) -> str | None:
    """How images were standardised, if the record knows."""
    if not isinstance(images, Mapping) or not images.get("mean"):
        return None
    formula = markdown_code(f"(pixels - {images['mean']}) / {images['std']}")
    return f"Images: channels first, standardised as {formula}."


def _origin(provenance: Provenance) -> dict[str, Any]:
    """How a network was drawn; what was measured on it stands elsewhere on the card."""
    facts = {entry.name: getattr(provenance, entry.name) for entry in fields(provenance)}
    anchors = [f"{len(provenance.anchors)} runs: {', '.join(provenance.anchors)}"] if provenance.anchors else []
    measured = ("validation_accuracy", "test_accuracy", "nearest_training_distance")
    return {name: value for name, value in facts.items() if name not in measured} | {"anchors": anchors}


def fill_template(
    template: str,
    metadata: ModelCardData,
    record: RunRecord,
    *,
    settings: Mapping[str, Any],
    **parts: Any,
) -> ModelCard:
    """Render a template of this package.

    Args:
        template: File in `templates/`.
        metadata: For the front matter.
        record: Its data, results and provenance become tables.
        settings: Become the table of settings.
        **parts: Whatever else the template names.
    """
    facts = hide_folders_in(record.to_dict())
    provenance = {
        "command": markdown_code(facts["command"]),
        **{name: facts[name] for name in ("seed", "commit", "has_uncommitted_changes", "started_at") if name in facts},
        **{name: facts[name] for name in ("seconds", "peak_rss_bytes") if name in facts},
        **{name: facts["hardware"][name] for name in ("cpu", "cores", "gpus") if name in facts.get("hardware", {})},
        **facts.get("versions", {}),
    }
    parts |= {name: markdown_text(parts[name]) for name in ("title", "kind", "architecture") if name in parts}
    card = ModelCard.from_template(
        metadata,
        template_str=files("hf_sane.hub").joinpath("templates", template).read_text(encoding="utf-8"),
        settings_table=fact_table(settings),
        data_table=fact_table(facts.get("data", {})),
        results_table=result_tables(facts.get("results", {})),
        provenance_table=fact_table(provenance),
        **parts,
    )
    card.text = card.text.rstrip() + "\n"
    return card


def card_metadata(
    record: RunRecord,
    title: str,
    measured: Sequence[Measured],
    tags: Sequence[str],
    *,
    datasets: Sequence[str],
    license_id: str | None,
) -> ModelCardData:
    """Metadata of the Hub; each measured value is `(task, metric, its name, value)`."""
    images = record.data.get("images")
    of_images = images.get("name") if isinstance(images, Mapping) else images
    zoo = record.data.get("zoo")
    named = of_images if measured and measured[0][0] == "image-classification" else zoo
    named = ", ".join(map(str, named)) if isinstance(named, list | tuple) else str(named or "a model zoo")
    named, title = shorten(hide_folders(named)), shorten(title)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=named,
            dataset_name=named,
            metric_type=metric,
            metric_name=name,
            metric_value=value,
        )
        for task, metric, name, value in measured
    ]
    return ModelCardData(
        library_name=LIBRARY,
        license=license_id,
        tags=list(tags),
        datasets=single_lines(list(datasets)) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _sane_code(
    config: SANEConfig,
    extractor: SANEFeatureExtractor,
    source: str,
    network_config: ZooConfig | None,
    base: str | None = None,
) -> str:
    """Code that reconstructs a network; with `base`, `source` is an adapter of it."""
    facts = {"token_dim": config.token_dim, "latent_dim": config.latent_dim, "window_size": config.window_size}
    parts = {"source": python_literal(source), "base": python_literal(base or source), "adapter": ""}
    peft = ""
    if base is not None:
        parts["adapter"], peft = (
            WITH_ADAPTER.format(name="model", source=python_literal(source)),
            "from peft import PeftModel\n",
        )
    if network_config is None:
        return f"import torch\n{peft}" + SANE_CODE.format(imports="", **parts) + SANE_ON_TOKENS.format(**facts)
    with torch.device("meta"):
        facts["num_tokens"] = extractor.layout(build_model(network_config)).num_tokens
    name = type(network_config).__name__
    defaults = describe_config(type(network_config)())
    own = {key: value for key, value in describe_config(network_config).items() if value != defaults[key]}
    arguments = "".join(f"        {key}={python_literal(value)},\n" for key, value in own.items())
    call = f"{name}(\n{arguments}    )" if own else f"{name}()"
    return (
        f"{peft}from transformers import AutoModelForImageClassification\n\n"
        + SANE_CODE.format(imports=f"{name}, ", **parts)
        + SANE_ON_NETWORK.format(call=call, **facts)
    )


def network_code(
    config: PreTrainedConfig, source: str, images: Any, *, with_code: bool = False, base: str | None = None
) -> str:
    """Code that classifies an image; with `base`, `source` is an adapter of it."""
    described = images.get("image_size") if isinstance(images, Mapping) else None
    imports = ["import torch", "from transformers import AutoModelForImageClassification"]
    if not with_code and isinstance(config, ZooConfig):
        imports.insert(1, "import hf_sane  # makes its architectures known to Transformers")
    adapter = ""
    if base is not None:
        adapter = WITH_ADAPTER.format(name="network", source=python_literal(source))
        imports.insert(-1, "from peft import PeftModel")
    return NETWORK_CODE.format(
        imports="\n".join(imports),
        base=python_literal(base or source),
        adapter=adapter,
        trust=", trust_remote_code=True" if with_code else "",
        channels=getattr(config, "num_channels", 3),
        size=getattr(config, "image_size", None) or described or 32,
    )


def auto_class(config: PreTrainedConfig) -> tuple[str, str | None]:
    """The Auto class that loads a network, and its task on the Hub, if it has one.

    Networks of this library, and configurations that name no class, are image classifiers.
    """
    architecture = config.architectures[0] if config.architectures else None
    if architecture is None or isinstance(config, ZooConfig):
        return TASKS[0][:2]
    for name, task, mapping in TASKS:
        if architecture in getattr(modeling_auto, mapping).values():
            return name, task
    return "AutoModel", None


def model_code(config: PreTrainedConfig | None, source: str, *, base: str | None = None) -> str:
    """Code that loads a network that is no image classifier; with `base`, `source` is an adapter of it."""
    name = "AutoModel" if config is None else auto_class(config)[0]
    imports = ["from peft import PeftModel"] * (base is not None) + [f"from transformers import {name}"]
    adapter = "" if base is None else "\n" + WITH_ADAPTER.format(name="model", source=source).rstrip()
    return "\n".join(imports) + f'\n\nmodel = {name}.from_pretrained("{base or source}"){adapter}'


def describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that define a network, and its number of classes: equal for networks of one architecture."""
    inherited = PreTrainedConfig().to_dict().keys()
    own = {key: value for key, value in config.to_dict().items() if key not in inherited and key not in BOOKKEEPING}
    return {**{key: tuple(v) if isinstance(v, list) else v for key, v in own.items()}, "num_labels": config.num_labels}
