"""The dataset card of a zoo: facts from the build, and the YAML that lets `load_dataset` find the files."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from hf_sane.records._errors import shorten
from hf_sane.records._escaping import markdown_code, markdown_text
from hf_sane.zoo._facts import DEFAULT_CONFIG, IMPORT_KEY, IMPORTED, MIX_KEY, ZooFacts, data_folder
from hf_sane.zoo._records import SPLITS

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
MAX_LICENSE, MAX_ARCHITECTURE, MAX_LISTED = 80, 200, 20  # characters of each, licences listed
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
# Hyper-parameters of a build: its arguments, and what cards call them.
RECIPE = {
    "optimizers": "optimiser",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "dropout": "dropout",
    "data_fraction": "share of the images",
    "initializations": "initialisation",
    "activations": "activation",
}
OWN_NETWORKS = (
    "Trained neural networks as data: each row is one network at one epoch, with its weights, its accuracy and how "
    "it was trained."
)
IMPORTED_NETWORKS = (
    "Neural networks that others have trained, as data: each row is one network, with its weights and what its "
    "repository says about it."
)
IMPORT_COLUMNS = """\
| `repo_id`, `file`, `revision` | where an imported network comes from |
| `author`, `base_model`, `license`, `library_name`, `pipeline_tag`, `downloads`, `likes` | what the Hub says about it |
| `num_weights`, `file_bytes` | its size |
| `metric_*` | what its card claims; not measured again |

Columns that nothing is known about are null, among them accuracies and hyper-parameters of imported networks.
"""


def render_card(zoos: Mapping[str, ZooFacts]) -> str:
    """The card's text; what is not known does not appear."""
    licenses = {
        data.get("license") or arguments.get("license") for f in zoos.values() for _, arguments, data in _parts(f)
    }
    names = sorted({shorten(facts.name) for facts in zoos.values()})
    rows = sum(int(split["networks"]) for facts in zoos.values() for split in facts.splits.values())
    size = next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>1M")
    data = DatasetCardData(
        pretty_name=f"Model zoo: {', '.join(names)}",
        license=_license_id(licenses),
        tags=["model-zoo", "weight-space-learning", "hf_sane"],
        size_categories=[size],
        configs=[
            {
                "config_name": config,
                # Datasets finds what it decoded before by folder name and this YAML: without the digest, another zoo
                # in a folder of that name would come back.
                "description": f"{shorten(facts.name)} {facts.digest}",
                "data_files": [
                    {"split": split, "path": f"{data_folder(Path(), config)}/{split}-*.parquet"}
                    for split in SPLITS
                    if facts.count(split) != 0
                ],
                **({"default": True} if config == DEFAULT_CONFIG and len(zoos) > 1 else {}),
            }
            for config, facts in zoos.items()
        ],
    )
    are_imported = any(IMPORT_KEY in data for facts in zoos.values() for _, _, data in _parts(facts))
    sections = "\n".join(_section(config, facts) for config, facts in zoos.items())
    split, network = "test", 'network = zoo.splits["test"].model(0)  # a torch module, ready to classify images'
    if are_imported:
        split, network = (
            "train",
            'weights = zoo.splits["train"].state_dict(0)  # tensors by name, as in its repository',
        )
    what, splits = OWN_NETWORKS, "training run: epochs of one run stay together"
    if are_imported:
        what, splits = IMPORTED_NETWORKS, "group, as said above"
    example = f'Zoo.load("{PLACEHOLDER}"{"" if len(zoos) == 1 else f", {next(iter(zoos))!r}"})'.replace("'", '"')
    return f"""---
{data.to_yaml()}
---

# Model zoo: {markdown_text(", ".join(names))}

{what}
{sections}
## Use

```python
from hf_sane import Zoo

zoo = {example}
{network}
tokens = zoo.splits["{split}"].tokens(0)  # its weights as tokens [N, token_dim]
```

`datasets.load_dataset` reads the same rows, streaming too. Splits are by {splits}.

{COLUMNS}{IMPORT_COLUMNS if are_imported else ""}"""


def _parts(facts: ZooFacts) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Name, arguments and data of the zoos that a zoo is a mixture of; else of itself, without a name."""
    if MIX_KEY not in facts.data:
        return [("", facts.arguments, facts.data)]
    return [(name, part["arguments"], part["data"]) for name, part in facts.data[MIX_KEY].items()]


def _section(config: str, facts: ZooFacts) -> str:
    lines = [
        f"\n## {markdown_text(facts.name)}" + ("" if config == DEFAULT_CONFIG else f" ({markdown_code(config)})"),
        "",
    ]
    for name, arguments, data in _parts(facts):
        lines += [f"- {f'{markdown_code(name)}, ' if name else ''}{line}" for line in _origin_lines(arguments, data)]
    lines += _counted(f"- architecture: {_describe(settings)}" for settings in facts.architectures.values())
    lines += _counted(
        f"- tokens: {layout['token_layout']}, token_dim {layout['token_dim']}" for layout in facts.layouts.values()
    )
    if facts.excluded:
        marked = "kept and listed" if facts.arguments.get("include_excluded") else "left out"
        what = "networks left out (`zoo.json` says why)"
        own = f"runs {marked}: not finite or exploded (`zoo.json` names them)"
        lines.append(f"- {len(facts.excluded)} {what if IMPORT_KEY in facts.data else own}")
    if MIX_KEY in facts.data:
        lines.append("- a mixture: the column `zoo` names the zoo of each network, which keeps its split")
    lines += ["", *_split_table(facts)]
    return "\n".join([*lines, ""])


def _origin_lines(arguments: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """What networks were trained on and how long, or where they were imported from."""
    if IMPORT_KEY in data:
        return _imported_lines(arguments, data)
    lines = []
    if data:
        counts = ", ".join(f"{data[split]:,} {split}" for split in SPLITS if split in data)
        lines.append(f"images: {markdown_text(data['name'])} ({counts}; {data['num_classes']} classes)")
    if "keep_epochs" in arguments:
        lines.append(f"epochs kept: {', '.join(map(str, arguments['keep_epochs']))}; seed {arguments['seed']}")
    drawn = {title: arguments[name] for name, title in RECIPE.items() if arguments.get(name)}
    if drawn:
        values = (f"{title} {_drawn(choices)}" for title, choices in drawn.items())
        lines.append(f"trained with: {'; '.join(values)}; batches of {arguments['batch_size']}")
    return lines


def _drawn(choices: Sequence[str] | Sequence[float]) -> str:
    """Names that were drawn evenly, or the bounds of a number."""
    shown = [markdown_text(choice) if isinstance(choice, str) else f"{choice:g}" for choice in choices]
    return (", " if isinstance(choices[0], str) else " to ").join(shown)


def _counted(lines: Iterable[str]) -> list[str]:
    """Each line once, with how often it came."""
    return [f"{line} ({count} structures)" if count > 1 else line for line, count in Counter(lines).items()]


def _split_table(facts: ZooFacts) -> list[str]:
    """Splits and their sizes; accuracy where it was measured."""
    measured = any("test_accuracy" in split for split in facts.splits.values())
    title, bars = (" mean final test accuracy |", "---|") if measured else ("", "")
    lines = [f"| split | runs | networks |{title}", f"|---|---|---|{bars}"]
    for name, split in facts.splits.items():
        known = split.get("test_accuracy") is not None and split["runs"]  # older zoos say 0.0 of no runs
        accuracy = (f" {split['test_accuracy']:.3f} |" if known else " - |") if measured else ""
        lines.append(f"| {name} | {split['runs']} | {split['networks']} |{accuracy}")
    return lines


def _imported_lines(arguments: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """What readers of imported networks must know: whose they are, under which licences, and how they were split."""
    grouping = arguments["group_by"]
    counts = list(data["licenses"].items())
    licenses = ", ".join(f"{markdown_text(name, MAX_LICENSE)} ({count})" for name, count in counts[:MAX_LISTED])
    if len(counts) > MAX_LISTED:
        licenses += f" and {len(counts) - MAX_LISTED} more (`zoo.json` has them)"
    lines = [
        f"imported: {data['networks']} networks of {data['repositories']} repositories; each row names its "
        "repository, revision and file",
        f"licences: {licenses}; **each network keeps the licence of its repository**",
        f"splits by {grouping}: networks that share their {grouping} are in one split",
    ]
    if parted := data.get("parted"):
        lines.append(f"**this split parts networks of {parted} folders or repositories**, which may be of one run")
    if metrics := data["metrics"]:
        lines.append(f"columns of what the cards of the networks claim: {', '.join(map(markdown_code, metrics))}")
    return lines


def _describe(settings: Mapping[str, object]) -> str:
    if settings["model_type"] == IMPORTED:
        config = settings["config"]
        assert isinstance(config, Mapping)
        found = config.get("architectures") or config.get("model_type") or "no configuration"
        names = found if isinstance(found, list) else [found]
        return f"imported: {markdown_text(', '.join(map(str, names)), MAX_ARCHITECTURE)}"
    rest = {name: value for name, value in settings.items() if name not in ("model_type", "id2label")}
    described = ", ".join(f"{markdown_text(name)} {_value(value)}" for name, value in rest.items())
    return f"{markdown_code(settings['model_type'])} with {described}"


def _value(value: object) -> str:
    """A setting as Python has it; lists of numbers need no escapes."""
    are_numbers = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    return str(value) if are_numbers else markdown_text(value)


def _license_id(licenses: set[str | None]) -> str | None:
    """The licence of all networks as the Hub's metadata take it: an identifier, or `other`."""
    only = next(iter(licenses)) if len(licenses) == 1 else "other"
    return only if only is None or LICENSE_ID.fullmatch(only) else "other"
