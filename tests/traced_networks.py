"""Small networks of many architectures for the tests of tracing, each built once and traced once."""

import functools
import logging

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_l, cnn_s, mlp, resnet
from hf_sane.symmetry.tracing._trace import trace_permutations

ZOO = {
    "mlp": mlp(image_size=6, hidden_sizes=(12, 9, 5)),
    "cnn_s": cnn_s(),
    "cnn_l": cnn_l(),
    "resnet_20": cifar_resnet(20, width=4),
    "resnet_20_projection": cifar_resnet(20, width=4, shortcut="projection"),
    "resnet_32": cifar_resnet(32, width=4),
    "resnet_44": cifar_resnet(44, width=4),
    "resnet_56": cifar_resnet(56, width=4),
    "resnet_18": resnet(18, width=4),
    "resnet_50": resnet(50, width=4),
    "resnet_50_identity": resnet(50, width=4, shortcut="identity"),
}


class VGGLike(nn.Module):
    """Convolutions with BatchNorm, pooling, and two fully connected layers on the flattened maps."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (6, 8):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(32, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4))

    def forward(self, images):
        return self.classifier(torch.flatten(self.features(images), 1))


class DenseLike(nn.Module):
    """Every layer sees all maps before it: concatenation, then a transition, twice; flattened at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms, self.convolutions = nn.ModuleList(), nn.ModuleList()
        self.transitions, channels = nn.ModuleList(), 4
        for _ in range(2):
            for _ in range(2):
                self.norms.append(nn.BatchNorm2d(channels))
                self.convolutions.append(nn.Conv2d(channels, 3, 3, padding=1))
                channels += 3
            self.transitions.append(nn.Conv2d(channels, 5, 1))
            channels = 5
        self.classifier = nn.Linear((5 + 3) * 4, 4)

    def forward(self, images):
        features = self.stem(images)
        for block, transition in enumerate(self.transitions):
            for layer in (2 * block, 2 * block + 1):
                new = self.convolutions[layer](self.norms[layer](features).relu())
                features = torch.cat([features, new], dim=1)
            new, features = features[:, -3:], F.avg_pool2d(transition(features), 2)
        joined = torch.cat([F.adaptive_avg_pool2d(features, 2), F.adaptive_avg_pool2d(new, 2)], dim=1)
        return self.classifier(joined.flatten(1))


class MobileLike(nn.Module):
    """Inverted residuals with depthwise convolutions, ReLU6, squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.expand, self.expand_norm = nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.depthwise_norm = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 5, 1), nn.Conv2d(5, 12, 1)
        self.project, self.project_norm = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.multiplied = nn.Conv2d(6, 12, 3, groups=6)  # two maps from each channel
        self.classifier = nn.Linear(12, 4)

    def forward(self, images):
        stem = F.relu6(self.stem_norm(self.stem(images)))
        values = F.relu6(self.expand_norm(self.expand(stem)))
        values = F.relu6(self.depthwise_norm(self.depthwise(values)))
        gate = F.hardsigmoid(self.excite(self.squeeze(values.mean((2, 3), keepdim=True)).relu()))
        values = stem + self.project_norm(self.project(values * gate))
        return self.classifier(F.gelu(self.multiplied(values)).mean((2, 3)))


class GroupedLike(nn.Module):
    """Grouped convolutions with GroupNorm, as in ResNeXt."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12)
        self.grouped, self.second_norm = nn.Conv2d(12, 6, 3, groups=3), nn.GroupNorm(3, 6)
        self.free, self.free_norm = nn.Conv2d(6, 8, 1), nn.GroupNorm(2, 8)
        self.classifier = nn.Linear(8, 4)

    def forward(self, images):
        values = self.norm(self.stem(images)).relu()
        values = self.second_norm(self.grouped(values)).relu()
        return self.classifier(self.free_norm(self.free(values)).relu().mean((2, 3)))


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TOKENS = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PLAIN = {"vgg": VGGLike, "dense": DenseLike, "mobile": MobileLike, "grouped": GroupedLike}


def _convnext():
    config = transformers.ConvNextConfig(hidden_sizes=[6, 8], depths=[2, 1], num_stages=2, num_labels=5)
    return transformers.ConvNextForImageClassification(config)


def _vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**TINY, image_size=16, patch_size=8, num_labels=5)
    )


def _bert():
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**TINY, vocab_size=50, max_position_embeddings=16)
    )


def _gpt2():
    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=50, n_positions=16, **special)
    return transformers.GPT2LMHeadModel(config)


def _llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, vocab_size=50, num_key_value_heads=2))


def _t5():
    config = transformers.T5Config(
        d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, vocab_size=50, feed_forward_proj="gated-gelu"
    )
    return transformers.T5ForConditionalGeneration(config)


def _mixtral():
    config = transformers.MixtralConfig(**TINY, vocab_size=50, num_key_value_heads=2, num_local_experts=3)
    return transformers.MixtralForCausalLM(config)


PRETRAINED = {
    "convnext": (_convnext, {"pixel_values": IMAGES}),
    "vit": (_vit, {"pixel_values": IMAGES}),
    "bert": (_bert, {"input_ids": TOKENS}),
    "gpt2": (_gpt2, {"input_ids": TOKENS}),
    "llama": (_llama, {"input_ids": TOKENS}),
    "mixtral": (_mixtral, {"input_ids": TOKENS}),
    "t5": (_t5, {"input_ids": TOKENS, "decoder_input_ids": TOKENS.flip(1)}),
}
NAMES = [*ZOO, *PLAIN, *PRETRAINED]


@functools.cache
def network(name):
    """The network in evaluation mode, with weights in which no two channels are alike, and what it is called with."""
    torch.manual_seed(0)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if name in ZOO:
        config = ZOO[name]
        size = getattr(config, "image_size", 12)
        model, inputs = build_model(config), {"pixel_values": torch.randn(3, config.num_channels, size, size)}
    elif name in PLAIN:
        model, inputs = PLAIN[name](), {"images": IMAGES}
    else:
        build, inputs = PRETRAINED[name]
        model = build()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 + 0.3 * torch.rand_like(tensor) if tensor.ndim < 2 else 0.1 * torch.randn_like(tensor))
    return model.eval(), inputs


@functools.cache
def traced(name):
    """Spec of the network."""
    model, inputs = network(name)
    return trace_permutations(model, inputs)
