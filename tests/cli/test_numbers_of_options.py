"""No verb takes a number that cannot be meant: NaN, infinity, fewer than none."""

from dataclasses import fields
from math import inf, nan
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.records._settings import CheckedSettings
from hf_sane.workflows.build_zoo import BuildZooSettings
from hf_sane.workflows.command_line import _kind
from hf_sane.workflows.probe import ProbeSettings
from hf_sane.workflows.regions import RegionsSettings
from hf_sane.workflows.soup import SoupSettings

# What each verb cannot do without.
NEEDED = {
    "align": {"zoo": "zoo"},
    "analyze": {"checkpoint": "a"},
    "build": {"output": "out"},
    "compare": {"sane": "sane", "zoo": "zoo"},
    "demo": {"output": Path("out")},
    "doctor": {},
    "diff": {"checkpoint": "a", "other": "b"},
    "embed": {"sane": "sane", "checkpoints": ["a"], "output": "out"},
    "explore": {"source": "a"},
    "finetune": {"networks": ["a"], "output": "out"},
    "fit": {"output": "out"},
    "import": {"repos": ["a/b"], "output": "out"},
    "index": {"sources": ["a"], "output": "out"},
    "info": {"checkpoint": "a"},
    "lineage": {"checkpoints": ["a", "b"]},
    "linear": {"zoo": ["zoo"], "output": "out"},
    "mix": {"zoos": ["a=b"], "output": "out"},
    "pretrain": {"zoo": ["zoo"], "output": "out"},
    "probe": {"sane": "sane", "zoo": "zoo"},
    "pull": {"repo_id": "a/b", "output": "out"},
    "push": {"kind": "model", "folder": "a", "repo_id": "a/b"},
    "reconstruct": {"sane": "sane", "zoo": ["zoo"], "images": "digits"},
    "regions": {"zoo": ["zoo"], "output": "out", "plots": False},
    "sample": {"sane": "sane", "zoo": "zoo", "output": "out"},
    "scan": {"checkpoints": ["a"]},
    "search": {"checkpoint": "a", "index": "b"},
    "show": {"zoo": "zoo"},
    "start": {"images": "digits", "output": "out"},
    "structure": {"zoo": "zoo", "plots": False},
    "soup": {"networks": ["a", "b"], "output": "out"},
}
MAY_BE = [("build", "max_abs_weight", inf)]  # all finite networks are kept


def numbers(entry):
    """Values of a field that are no good."""
    kind = _kind(entry)
    item = get_args(kind)[0] if get_origin(kind) is list else kind
    parts = {item, *get_args(item)}
    wrong = [nan, inf, -1.0] if float in parts else [-1] if int in parts else []
    return [[number] for number in wrong] if get_origin(kind) is list else wrong


@pytest.mark.parametrize("verb", [*VERBS, *ZOO_VERBS], ids=lambda verb: verb.name)
def test_numbers_that_cannot_be_meant_are_refused_before_anything_is_read(verb):
    settings, _ = verb.load()
    make = getattr(settings, "from_options", settings)
    make(**NEEDED[verb.name])
    for entry in fields(settings):
        for number in [] if entry.metadata.get("only_python") else numbers(entry):
            if (verb.name, entry.name, number) in MAY_BE:
                make(**NEEDED[verb.name], **{entry.name: number})
                continue
            with pytest.raises((ValueError, StrictDataclassError)) as refused:
                make(**NEEDED[verb.name], **{entry.name: number})
            assert entry.name in str(refused.value)


def wrong_kinds(entry):
    """Values of a field that are of another type, or not among its choices."""
    parts = {part for part in (get_args(entry.type) or (entry.type,)) if part is not NoneType}
    item = next((get_args(part)[0] for part in parts if get_origin(part) is list), None)
    parts = parts if item is None or len(parts) > 1 else {item}
    is_checked = all(part in (bool, int, float) or get_origin(part) is Literal for part in parts)
    return ["many"] if is_checked else []


@pytest.mark.parametrize("verb", [*VERBS, *ZOO_VERBS], ids=lambda verb: verb.name)
def test_python_refuses_what_the_command_line_refuses(verb):
    """A wrong choice, or a text in place of a number, used to be found after the work, or never."""
    settings, _ = verb.load()
    assert issubclass(settings, CheckedSettings)
    make = getattr(settings, "from_options", settings)
    for entry in fields(settings):
        for wrong in wrong_kinds(entry):
            with pytest.raises((TypeError, ValueError), match=rf"expected {entry.name} to be .*, got 'many'"):
                make(**NEEDED[verb.name] | {entry.name: wrong})
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'sed'"):
        make(**NEEDED[verb.name], sed=1)


def test_values_take_the_form_that_fields_expect():
    with pytest.raises(ValueError, match="'best', got 'rigde'; did you mean 'ridge'"):
        ProbeSettings(sane="sane", zoo="a", regressor="rigde")
    with pytest.raises(TypeError, match="unexpected keyword argument 'pooling'; did you mean 'poolings'"):
        ProbeSettings(sane="sane", zoo="a", pooling="mean")
    with pytest.raises(TypeError, match="expected batch_size to be a whole number, got True"):
        ProbeSettings(sane="sane", zoo="a", batch_size=True)
    with pytest.raises(TypeError, match="expected seed to be a whole number, got None"):
        SoupSettings(networks="a", output=None, seed=None)
    probed = ProbeSettings(sane="sane", zoo="a", output="out", align=None, halo_size=np.int64(2))
    assert (probed.output, probed.align, probed.halo_size) == (Path("out"), None, 2)
    assert SoupSettings(networks="a", output=None, images=Path("images")).images == "images"


def test_one_value_is_a_list_of_one():
    """A text where a list is expected was read letter by letter, or refused."""
    with_lists = [verb.load()[0] for verb in (*VERBS, *ZOO_VERBS)]
    with_lists = [s for s in with_lists if any(get_origin(_kind(entry)) is list for entry in fields(s))]
    assert len(with_lists) > 10
    assert all(issubclass(settings, CheckedSettings) for settings in with_lists)
    probed = ProbeSettings(sane="sane", zoo="a", transfer="zoo", properties=("epoch",))
    assert (probed.transfer, probed.properties, probed.poolings) == (["zoo"], ["epoch"], ["all"])
    assert SoupSettings(networks=Path("a"), output=None).networks == [Path("a")]
    built = BuildZooSettings(output="out", keep_epochs=range(3), learning_rate=0.1)
    assert (built.keep_epochs, built.learning_rate) == ([0, 1, 2], [0.1])
    mapped = RegionsSettings(zoo=Path("zoo"), output=None, plots=False, splits={"train"})
    assert (mapped.zoo, mapped.splits) == ([Path("zoo")], ["train"])


def test_the_search_finds_numbers():
    assert sum(len(numbers(entry)) for verb in VERBS for entry in fields(verb.load()[0])) > 60
