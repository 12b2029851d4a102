"""A tiny network of every model type that Transformers' `AutoModel` knows, made from its default configuration.

Nothing is downloaded: each default configuration is shrunk field by field (and those inside it), and the network is
made on the meta device, without allocating or initialising anything. Who needs values fills them in.
"""

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES

MODEL_TYPES = tuple(MODEL_MAPPING_NAMES)

# Types that cannot be made here, and what the attempt says.
_TIMM = "requires the timm library"
LEFT_OUT = {
    "dinat": "requires the natten library",
    "edgetam": _TIMM,
    "edgetam_vision_model": _TIMM,
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "gemma3n_vision": _TIMM,
    "higgs_audio_v2_tokenizer": "requires the torchaudio library",
    "layoutlmv2": "requires the detectron2 library",
    "musicgen": "'MusicgenConfig' object has no attribute 'dropout'",  # AutoModel passes it to the decoder's class
    "musicgen_melody": "'MusicgenMelodyConfig' object has no attribute 'dropout'",
    "pe_audio_video": _TIMM,
    "pe_audio_video_encoder": _TIMM,
    "pe_video": _TIMM,
    "pe_video_encoder": _TIMM,
    "perception_lm": _TIMM,
    "t5gemma2_encoder": "'T5Gemma2TextConfig' object has no attribute 'dropout_rate'",
    "timm_backbone": _TIMM,
    "timm_wrapper": _TIMM,
    "voxtral_realtime_text": "Could not find VoxtralRealtimeTextModel",
}

_RESNET = {"backbone_config": {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}}
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_ROPES = {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}
_INTRACLASS = (
    "reduce_channel",
    "return_channel",
    *(
        f"{way}_{ratio}ratio"
        for way in ("vertical_long_to_small_conv", "horizontal_small_to_long_conv", "symmetric_conv_long")
        for ratio in ("long", "mid", "short")
    ),
)
# Neither of the two layers takes over the keys and values of a layer that is left out.
_UNSHARED = {
    "layer_types": ["sliding_attention", "full_attention"],
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
}
_SHORT = {"depth_coefficient": 0.1, "width_coefficient": 0.25}
# Arguments without which a configuration makes no network, or none that is tiny.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "align": {"vision_config": _SHORT},
    "autoformer": {"prediction_length": 4},
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 2}},
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "cohere_compass": {"text_config": _ROPES},
    "cohere_compass_text": _ROPES,
    "conditional_detr": _RESNET,
    "dab-detr": _RESNET,
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"] * 6}},
    "deformable_detr": _RESNET,
    "detr": _RESNET,
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "efficientnet": _SHORT,
    "emu3": {"vocabulary_map": {"<|extra_200|>": 1, "<image>": 2}},
    "ernie4_5_vl_moe": {
        "text_config": {
            "hidden_size": 256,  # heads of 128, as the sections of its rotary embedding want
            "intermediate_size": 64,
            "moe_intermediate_size": [64, 32],
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "vision_config": {"hidden_size": 64, "intermediate_size": 64, "num_heads": 4},
    },
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4": {"text_config": _UNSHARED},
    "gemma4_text": _UNSHARED,
    "gemma4_unified": {"text_config": _UNSHARED},
    "gemma4_unified_text": _UNSHARED,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "hunyuan_vl_text": {"head_dim": 8},
    "informer": {"prediction_length": 4},
    "granite4_vision": {"deepstack_layer_map": [(0, 0)], "downsample_rate": "1/2"},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 8},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "omdet-turbo": _RESNET,
    "pp_ocrv6_medium_det": {
        "intraclass_block_config": {name: [1, 1, 0] for name in _INTRACLASS},
        "scale_factor_list": [1] * 4,
    },
    "table-transformer": _RESNET,
    "time_series_transformer": {"prediction_length": 4},
    "wavtokenizer": {"decoder_attention_num_groups": 16},  # divides the smaller width
    "zamba": {"num_hidden_layers": 10},
}
# Fields of what default configurations leave out, set on the shrunk configuration.
FIELDS: dict[str, dict[str, Any]] = {"cvt": {"depth": [1, 2, 3]}}

WIDTH_DIVISORS = (16, 8, 4, 2, 1)  # tried in turn: some widths must stay multiples of others
MOST_TOKENS = 64
_COUNTS = re.compile(r"(?:^|_)n?(?:layers?|depths?|blocks?|stages?_repeats|repeats)$|^(?:n|num)_(?:layers?|blocks?)")
_TOKENS = re.compile(
    r"vocab|num_embeddings$|codebook_size|num_buckets|max_.*(?:position|length)|_positions$|position_embeddings$"
)
_FIXED = re.compile(r"head|image|patch|group|kernel|stride|sampl|rate|top_?k|window")


def shrink(config: PreTrainedConfig, divisor: int) -> None:
    """Give a configuration, and those in it, few layers and tokens, and divide its widths."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            shrink(value, divisor)
        elif not name.startswith("_") and not isinstance(value, bool):
            smaller = _shrunk(name, value, divisor)
            if smaller != value:
                setattr(config, name, smaller)


def _shrunk(name: str, value: Any, divisor: int) -> Any:
    if isinstance(value, list | tuple) and value and all(type(entry) is int for entry in value):
        if _COUNTS.search(name):
            return type(value)(1 for _ in value)
        if "experts" in name:
            return type(value)(min(entry, 8) for entry in value)
        wide = min(value) >= 32 and not _FIXED.search(name)
        return type(value)(entry // divisor for entry in value) if wide else value
    if type(value) is not int:
        return value
    if "token_id" in name or "token_index" in name:
        return min(value, MOST_TOKENS - 1)
    if _COUNTS.search(name):
        return min(value, 2)
    if _TOKENS.search(name):
        return min(value, MOST_TOKENS)
    if name.endswith("head_dim") and value >= 64:
        return value // 8
    if "experts" in name:
        return min(value, 2 if "_per_" in name else 8)
    if name == "upsample_groups":
        return value // divisor
    return value // divisor if value >= 32 and not _FIXED.search(name) else value


def tiny_model(model_type: str) -> nn.Module:
    """A network of `model_type` on the meta device; raises what the last attempt raises."""
    failure: Exception | None = None
    for divisor in WIDTH_DIVISORS:
        config = CONFIG_MAPPING[model_type](**ARGUMENTS.get(model_type, {}))
        shrink(config, divisor)
        for name, value in FIELDS.get(model_type, {}).items():
            setattr(config, name, value)
        model_class = MODEL_MAPPING[type(config)]
        if isinstance(model_class, list | tuple):
            model_class = model_class[0]
        try:
            with torch.device("meta"), no_init_weights():
                return model_class._from_config(config)
        except (
            ValueError,
            TypeError,
            RuntimeError,
            AssertionError,
            IndexError,
            KeyError,
            AttributeError,
            ZeroDivisionError,
        ) as error:
            failure = error
    assert failure is not None
    raise failure
