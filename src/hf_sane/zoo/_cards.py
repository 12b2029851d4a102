"""The dataset card of a zoo: facts about the zoo, and the YAML with which `load_dataset` finds its files.

The text and code of the card are in the template `zoo.md` in `hf_sane/cards/templates`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from hf_sane.cards._rendering import render
from hf_sane.cards._tables import markdown_table
from hf_sane.networks._fields import SIREN
from hf_sane.records._errors import shorten
from hf_sane.records._escaping import Markup, markdown_code, markdown_text
from hf_sane.zoo._facts import DEFAULT_CONFIG, IMPORT_KEY, IMPORTED, MIX_KEY, MODULE_ARGUMENTS, ZooFacts, data_folder
from hf_sane.zoo._records import SPLITS

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
MAX_LICENSE, MAX_ARCHITECTURE, MAX_LISTED = 80, 200, 20  # characters of each licence, and licences to list
FIELD_KEY = "batch_pixels"  # in the arguments of zoos of implicit networks
PLACEHOLDER = "PATH_OR_REPO"  # in the card's code, until the zoo is published
# Hyper-parameters of a build, with their names on cards.
RECIPE = {
    "optimizers": "optimiser",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "dropout": "dropout",
    "data_fraction": "share of the images",
    "initializations": "initialisation",
    "activations": "activation",
}


def zoo_card(zoos: Mapping[str, ZooFacts], *, source: str = PLACEHOLDER) -> str:
    """The text of the card, without facts that are unknown.

    Args:
        zoos: Facts of every configuration in the folder.
        source: Repo id or path from which the card's code loads the zoo.
    """
    names = sorted({shorten(facts.name) for facts in zoos.values()})
    return render(
        "zoo.md",
        _metadata(zoos, names),
        names=", ".join(names),
        zoos=[_section(config, facts) for config, facts in zoos.items()],
        are_imported=any(IMPORT_KEY in data for _, _, data in _all_parts(zoos)),
        own_modules=sorted({name for facts in zoos.values() for name in _own_modules(facts)} - {SIREN.__name__}),
        are_fields=any(FIELD_KEY in arguments for _, arguments, _ in _all_parts(zoos)),
        source=source,
        first_config=next(iter(zoos)),
    )


def _metadata(zoos: Mapping[str, ZooFacts], names: Sequence[str]) -> DatasetCardData:
    rows = sum(int(split["networks"]) for facts in zoos.values() for split in facts.splits.values())
    licenses = {data.get("license") or arguments.get("license") for _, arguments, data in _all_parts(zoos)}
    return DatasetCardData(
        pretty_name=f"Model zoo: {', '.join(names)}",
        license=_license_id(licenses),
        tags=["model-zoo", "weight-space-learning", "hf_sane"],
        size_categories=[next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>1M")],
        configs=[
            {
                "config_name": config,
                # Datasets identifies decoded data by folder name and this YAML. Without the digest, it would return
                # the data of an earlier zoo in a folder of the same name.
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


def _own_modules(facts: ZooFacts) -> list[str]:
    """Names of the users' own modules in the zoos."""
    known = (settings.get("config", {}) for settings in facts.architectures.values())
    return [str(config["architectures"][0]) for config in known if MODULE_ARGUMENTS in config]


def _license_id(licenses: set[str | None]) -> str | None:
    """The licence of all networks for the Hub's metadata: an identifier, or `other`."""
    only = next(iter(licenses)) if len(licenses) == 1 else "other"
    return only if only is None or LICENSE_ID.fullmatch(only) else "other"


def _parts(facts: ZooFacts) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Name, arguments and data of each zoo in a mixture; for other zoos, those of the zoo itself, without a name."""
    if MIX_KEY not in facts.data:
        return [("", facts.arguments, facts.data)]
    return [(name, part["arguments"], part["data"]) for name, part in facts.data[MIX_KEY].items()]


def _all_parts(zoos: Mapping[str, ZooFacts]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    return (part for facts in zoos.values() for part in _parts(facts))


def _section(config: str, facts: ZooFacts) -> dict[str, Any]:
    """The card's section about one zoo; layouts with the same description are counted."""
    return {
        "name": facts.name,
        "config": "" if config == DEFAULT_CONFIG else config,
        "parts": [_origin(name, arguments, data) for name, arguments, data in _parts(facts)],
        "architectures": Counter(_describe(settings) for settings in facts.architectures.values()),
        "layouts": Counter((layout["token_layout"], layout["token_dim"]) for layout in facts.layouts.values()),
        "num_excluded": len(facts.excluded),
        "keeps_excluded": facts.arguments.get("include_excluded"),
        "is_imported": IMPORT_KEY in facts.data,
        "is_mixture": MIX_KEY in facts.data,
        "splits": _split_table(facts),
    }


def _origin(name: str, arguments: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Training data and duration of the networks, or the source that they were imported from."""
    licenses = [Markup(f"{markdown_text(name, MAX_LICENSE)} ({n})") for name, n in data.get("licenses", {}).items()]
    return {
        "prefix": Markup(f"{markdown_code(name)}, ") if name else Markup(),
        "arguments": arguments,
        "data": data,
        "is_imported": IMPORT_KEY in data,
        "licenses": licenses[:MAX_LISTED],
        "num_more_licenses": len(licenses[MAX_LISTED:]),
        "counts": [f"{data[split]:,} {split}" for split in SPLITS if split in data],
        "is_of_fields": FIELD_KEY in arguments,
        "recipe": {
            title: _drawn(arguments[key])
            for key, title in RECIPE.items()
            if arguments.get(key) and FIELD_KEY not in arguments
        },
    }


def _drawn(choices: Sequence[str] | Sequence[float]) -> str:
    """Choices that were drawn uniformly, or the bounds of a number."""
    shown = (choice if isinstance(choice, str) else f"{choice:g}" for choice in choices)
    return (", " if isinstance(choices[0], str) else " to ").join(shown)


def _split_table(facts: ZooFacts) -> Markup:
    """Splits with their sizes and, if measured, accuracies."""
    measured = any("test_accuracy" in split for split in facts.splits.values())
    rows = []
    for name, split in facts.splits.items():
        known = split.get("test_accuracy") is not None and split["runs"]  # older zoos store 0.0 if there are no runs
        accuracy = f"{split['test_accuracy']:.3f}" if known else "-"
        counted = (markdown_text(split[count]) for count in ("runs", "networks"))
        rows.append([markdown_text(name), *counted, *([accuracy] if measured else [])])
    header = ["split", "runs", "networks", *(["mean final test accuracy"] if measured else [])]
    return markdown_table(header, rows, numbers=True)


def _describe(settings: Mapping[str, object]) -> Markup:
    if settings["model_type"] == IMPORTED:
        config = settings["config"]
        assert isinstance(config, Mapping)
        found = config.get("architectures") or config.get("model_type") or "no configuration"
        names = found if isinstance(found, list) else [found]
        origin = "module of its authors" if MODULE_ARGUMENTS in config else "imported"
        origin = "implicit network" if names == [SIREN.__name__] else origin
        given = "".join(f", {name} {value!r}" for name, value in (config.get(MODULE_ARGUMENTS) or {}).items())
        return Markup(f"{origin}: {markdown_text(', '.join(map(str, names)) + given, MAX_ARCHITECTURE)}")
    rest = {name: value for name, value in settings.items() if name not in ("model_type", "id2label")}
    described = ", ".join(f"{markdown_text(name)} {_value(value)}" for name, value in rest.items())
    return Markup(f"{markdown_code(settings['model_type'])} with {described}")


def _value(value: object) -> str:
    """A setting in Python notation; lists of numbers need no escaping."""
    are_numbers = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    return str(value) if are_numbers else markdown_text(value)
