"""The dataset card of a zoo: facts from the build, and the YAML that lets `load_dataset` find the files."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import DatasetCardData

from hf_sane.core.files import write_atomically
from hf_sane.zoo.facts import DEFAULT_CONFIG, ZooFacts, data_folder
from hf_sane.zoo.records import SPLITS

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
PLACEHOLDER = "PATH_OR_REPO"  # in the code of the card, until the zoo is pushed somewhere
COLUMNS = """\
| column | meaning |
|---|---|
| `run_id`, `epoch` | training run, and epochs trained (0: initialisation); no run is in two splits |
| `tokens` | all weights as a flat list of float32: `N` tokens of `token_dim`, padded with zeros |
| `layout` | key into `zoo.json`: which scalar of `tokens` belongs to which tensor |
| `template` | tensors the tokens do not hold (integer buffers), safetensors format; often empty |
| `train_loss`, `train_accuracy` | over the training images the network could see |
| `validation_*`, `test_*` | over images no network was trained on |
| `generalization_gap` | `train_accuracy - test_accuracy` |
| `learning_rate`, `weight_decay`, `dropout`, `data_fraction`, `optimizer`, `initialization`, `activation`, `seed` | how the run was trained |
| `architecture` | key into `zoo.json`: configuration of the network |
"""


def write_card(folder: Path, zoos: Mapping[str, ZooFacts]) -> Path:
    """Write `README.md` for all zoos of a folder.

    Args:
        folder: Of the zoos.
        zoos: Facts by configuration name.

    Returns:
        Path of the card.
    """
    path = folder / "README.md"
    with write_atomically(path) as partial:
        partial.write_text(render_card(zoos), encoding="utf-8")
    return path


def render_card(zoos: Mapping[str, ZooFacts]) -> str:
    """The card's text; what is not known does not appear."""
    first = next(iter(zoos.values()))
    names = sorted({facts.name for facts in zoos.values()})
    rows = sum(int(split["networks"]) for facts in zoos.values() for split in facts.splits.values())
    size = next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>1M")
    data = DatasetCardData(
        pretty_name=f"Model zoo: {', '.join(names)}",
        license=first.arguments.get("license"),
        tags=["model-zoo", "weight-space-learning", "hf_sane"],
        size_categories=[size],
        configs=[
            {
                "config_name": config,
                "data_files": [
                    {"split": split, "path": f"{data_folder(Path(), config)}/{split}-*.parquet"} for split in SPLITS
                ],
                **({"default": True} if config == DEFAULT_CONFIG and len(zoos) > 1 else {}),
            }
            for config in zoos
        ],
    )
    sections = "\n".join(_section(config, facts) for config, facts in zoos.items())
    example = f'Zoo.load("{PLACEHOLDER}"{"" if len(zoos) == 1 else f", {next(iter(zoos))!r}"})'.replace("'", '"')
    return f"""---
{data.to_yaml()}
---

# Model zoo: {", ".join(names)}

Trained neural networks as data: each row is one network at one epoch, with its weights, its accuracy and how it was trained.
{sections}
## Use

```python
from hf_sane.zoo.dataset import Zoo

zoo = {example}
network = zoo.splits["test"].model(0)  # a torch module, ready to classify images
tokens = zoo.splits["test"].tokens(0)  # its weights as tokens [N, token_dim]
```

`datasets.load_dataset` reads the same rows, streaming too. Splits are by training run: epochs of one run stay together.

{COLUMNS}"""


def _section(config: str, facts: ZooFacts) -> str:
    arguments, data = facts.arguments, facts.data
    lines = [f"\n## {facts.name}" + ("" if config == DEFAULT_CONFIG else f" (`{config}`)"), ""]
    if data:
        counts = ", ".join(f"{data[split]:,} {split}" for split in SPLITS if split in data)
        lines.append(f"- images: {data['name']} ({counts}; {data['num_classes']} classes)")
    lines += [f"- architecture: {_describe(settings)}" for settings in facts.architectures.values()]
    lines += [
        f"- tokens: {layout['token_layout']}, token_dim {layout['token_dim']}" for layout in facts.layouts.values()
    ]
    if "keep_epochs" in arguments:
        lines.append(f"- epochs kept: {', '.join(map(str, arguments['keep_epochs']))}; seed {arguments['seed']}")
    if facts.excluded:
        marked = "kept and listed" if arguments.get("include_excluded") else "left out"
        lines.append(f"- {len(facts.excluded)} runs {marked}: not finite or exploded (`zoo.json` names them)")
    lines += ["", "| split | runs | networks | mean final test accuracy |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {split['runs']} | {split['networks']} | {split['test_accuracy']:.3f} |"
        for name, split in facts.splits.items()
    ]
    return "\n".join([*lines, ""])


def _describe(settings: Mapping[str, object]) -> str:
    rest = {name: value for name, value in settings.items() if name not in ("model_type", "id2label")}
    return f"`{settings['model_type']}` with " + ", ".join(f"{name} {value}" for name, value in rest.items())
