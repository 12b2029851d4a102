"""Options from a settings dataclass: every kind of field, only what was given, old spellings, errors."""

import json
import keyword
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer

from hf_sane.cli.verbs import VERBS, ZOO_VERBS, Verb
from hf_sane.records._run_files import read_run_file
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import FORMER_NAMES_END, option_name, setting
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.command_line import _former_spellings, modern_arguments, own_options, run_workflow
from hf_sane.workflows.probe import ProbeSettings
from hf_sane.workflows.results import Result, Table
from hf_sane.workflows.soup import SoupSettings

USAGE_ERROR: Any = typer.BadParameter.__base__
LORA_SCRIPT = Verb(
    "finetune_lora.py", "finetune_lora", "FinetuneLoraSettings", "run_finetune_lora", "Fine-tune with a LoRA adapter."
)
PROGRAM = (*VERBS, *ZOO_VERBS, LORA_SCRIPT)
ENTRIES = [(verb.name, entry) for verb in PROGRAM for entry in own_options(verb.load()[0])]


@dataclass(kw_only=True)
class Inherited:
    """Base."""

    halo_size: int = setting("Context.", default=0)


@dataclass(kw_only=True)
class Settings(Inherited):
    """Settings of a test."""

    needed: str = setting("Needed.", formerly="--required")
    output: Path | None = setting("A place.", default=None, short="-o", formerly="--output_dir")
    num_models: int = setting("How many.", default=3)
    rate: float = setting("How fast.", default=0.5)
    choice: Literal["a", "b"] = setting("One of two.", default="a")
    switch: bool = setting("On or off.", default=True)
    maybe: bool | None = setting("On, off or chosen.", default=None, formerly="--perhaps")
    numbers: list[int] = setting("Several.", factory=lambda: [1, 2])
    paths: list[str] = setting("Places.", factory=list, split=False)
    model: dict[str, Any] | str | None = setting("As JSON.", default=None)
    callback: Any = setting("Not on the command line.", default=None, only_python=True)


@dataclass(kw_only=True)
class FilesSettings:
    """Settings with an argument that has no name."""

    files: list[str] = setting("Files.", positional=True)
    which: str | None = setting("Which.", default=None)


@dataclass(kw_only=True)
class Told(Result):
    """What a test workflow found."""

    settings: Any

    def tables(self):
        return [Table(("name", "value"), [["rate", 0.5], ["[bold]", None]], title="Found")]


def run(*argv, settings=Settings):
    """Settings that a command line gives."""

    def workflow(given):
        """Do it.

        Args:
            given: Settings.
        """
        return Told(record=RunRecord(command="x", results={"rate": 1.5}), notes=["left out: 1"], settings=given)

    return run_workflow(settings, workflow, [str(word) for word in argv], name="hf-sane verb").settings


def changed(*argv):
    """Fields that differ from the defaults."""
    found, default = run("--needed", "x", *argv), Settings(needed="x")
    return {name: value for name, value in vars(found).items() if value != getattr(default, name)}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), {}),
        (("-o", "here"), {"output": Path("here")}),
        (("--num-models", 5, "--rate", "1e-3", "--halo-size", 2), {"num_models": 5, "rate": 1e-3, "halo_size": 2}),
        (("--no-switch", "--maybe"), {"switch": False, "maybe": True}),
        (("--no-maybe",), {"maybe": False}),
        (("--numbers", "3,4"), {"numbers": [3, 4]}),
        (("--numbers", 3, "--numbers", "4,5"), {"numbers": [3, 4, 5]}),
        (("--paths", "a,b", "--paths", "c"), {"paths": ["a,b", "c"]}),
        (("--model", '{"a": 1}', "--choice", "b"), {"model": '{"a": 1}', "choice": "b"}),
    ],
)
def test_options_become_fields(argv, expected, capsys):
    assert changed(*argv) == expected
    assert "old spelling" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected", "note"),
    [
        (("--num_models", 5), {"num_models": 5}, "--num_models is now --num-models"),
        (("--num_models=5",), {"num_models": 5}, "--num_models is now --num-models"),
        (("--output_dir", "x"), {"output": Path("x")}, "--output_dir is now --output"),
        (("--output-dir", "x"), {"output": Path("x")}, "--output-dir is now --output"),
        (("--switch", "False"), {"switch": False}, "--switch False is now --no-switch"),
        (("--no_maybe",), {"maybe": False}, "--no_maybe is now --no-maybe"),
        (("--perhaps",), {"maybe": True}, "--perhaps is now --maybe"),
        (("--no-perhaps",), {"maybe": False}, "--no-perhaps is now --no-maybe"),
        (("--numbers", 3, 4, "--rate", 1), {"numbers": [3, 4], "rate": 1.0}, "--numbers 3 4 is now --numbers 3,4"),
        (("--paths", "a", "b,c"), {"paths": ["a", "b,c"]}, "repeat --paths"),
    ],
)
def test_old_spellings_work_and_say_what_to_use(argv, expected, note, capsys):
    assert changed(*argv) == expected
    assert f"hf-sane verb: {note}; the old spelling works until version {FORMER_NAMES_END}" in capsys.readouterr().err


def test_arguments_without_a_name_keep_their_commas():
    assert run("a,b", "c", "--which", "d", settings=FilesSettings) == FilesSettings(files=["a,b", "c"], which="d")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--needed", "x", "--choice", "c"), "'c' is not one of 'a', 'b'"),
        (("--needed", "x", "--numbers", "1,b"), "expected integers separated by commas, got 'b'"),
        (("--needed", "x", "--callback", "y"), "No such option: --callback"),
        ((), "Missing option '--needed'"),
    ],
)
def test_wrong_use_is_refused(argv, message):
    with pytest.raises(USAGE_ERROR) as refused:
        run(*argv)
    assert message in refused.value.format_message()


def test_the_result_is_printed_or_told_as_json(capsys):
    run("--needed", "x")
    told = capsys.readouterr()
    assert told.out.splitlines() == ["Found", "name    value", "rate      0.5", "[bold]      -"]
    assert told.err == "left out: 1\n"
    run("--needed", "x", "--json")
    assert capsys.readouterr().out == '{\n  "rate": 1.5,\n  "notes": [\n    "left out: 1"\n  ]\n}\n'


def test_help_shows_own_options_first_with_defaults(capsys):
    with pytest.raises((SystemExit, typer.Exit)):
        run("--help")
    shown = capsys.readouterr().out
    assert "Do it." in shown
    assert "Args:" not in shown
    assert shown.index("--needed") < shown.index("--halo-size")
    assert "How many.  [default: 3]" in " ".join(shown.split()).replace("How many. [", "How many.  [")


def test_former_spellings_are_no_current_ones():
    names = {option_name(entry) for _, entry in ENTRIES if not entry.metadata["positional"]}
    former = {old for _, entry in ENTRIES for old in entry.metadata["formerly"]}
    assert {
        "--bandwidths",
        "--num-kept",
        "--anchor-epoch",
        "--num-epochs",
        "--data",
        "--config",
        "--aligned",
    } <= former
    # Positional in the verbs of `hf-sane zoo`; of a SANE to train on; of checkpoints; of soups of adapters.
    assert names & former == {"--zoo", "--from", "--revision", "--rank"}
    for verb in PROGRAM:
        options = own_options(verb.load()[0])
        assert (
            not {option_name(entry) for entry in options if not entry.metadata["positional"]}
            & dict(_former_spellings(options)).keys()
        ), verb.name


SUBJECTS = {"SANE": "sane_revision", "zoo": "zoo_revision", "checkpoint": "revision"}


def test_a_revision_says_of_what():
    """The prefixes are those of `--sane-subfolder` and `--zoo-config`; every verb that takes a SANE or zoo has it."""
    for verb in PROGRAM:
        entries = {entry.name: entry for entry in own_options(verb.load()[0])}
        for subject, name in SUBJECTS.items():
            if name in entries and verb.name not in ("push", "pull"):
                assert entries[name].metadata["help"] == f"Branch, tag or commit of the {subject} on the Hub."
        assert ("sane" in entries) == ("sane_revision" in entries) == ("sane_subfolder" in entries), verb.name
        takes_zoo = "zoo" in str(entries.get("zoo", entries.get("source"))).lower()
        assert ("zoo_revision" in entries) == (takes_zoo and verb.name not in ("align", "index")), verb.name


def test_a_setting_is_declared_once_or_twice_word_for_word():
    """A third declaration belongs into a class of settings that others share."""
    homes = defaultdict(set)
    for verb in PROGRAM:
        for kind in verb.load()[0].__mro__:
            for name in vars(kind).get("__annotations__", {}):
                entry = getattr(kind, "__dataclass_fields__", {}).get(name)
                if entry is not None and entry.metadata:
                    homes[name, entry.metadata["help"]].add(kind)
    assert len(homes) > 200
    assert {key: kinds for key, kinds in homes.items() if len(kinds) > 2} == {}
    subjects = ("zoo_config", "sane_revision", "progress_bar", "token_layout", "batch_norm")
    assert [name for (name, _), kinds in homes.items() if name in subjects and len(kinds) > 1] == []


@dataclass(kw_only=True)
class LoadsSettings:
    """Settings with the former name of one field as the name of another."""

    revision: str | None = setting("Of the checkpoint.", default=None)
    sane_revision: str | None = setting("Of the SANE.", default=None, formerly="--revision")


def test_the_name_of_an_option_is_no_former_name_of_another(capsys):
    given = run("--revision", "v1", settings=LoadsSettings)
    assert given == LoadsSettings(revision="v1")
    assert capsys.readouterr().err.count("old spelling") == 0


# Options whose names are alike and whose meanings differ; all others whose names are alike have one meaning.
DIFFERENT = [
    {"--epoch", "--epochs"},  # one of a run; their number
    {"--groups", "--grouping"},  # coarser levels of a label; tokens that share components
    {"--hidden-size", "--hidden-sizes"},  # of a SANE; of the layers of an implicit network
    {"--method", "--methods"},  # one; those to compare
    {"--optimizer", "--optimizers"},  # one; those to draw from
    {"--rank", "--ranks"},  # of an adapter; of networks
]


def stem(word):
    """A word without endings: `align` for `aligned`, `spectra` for `spectral`."""
    return re.sub(r"(ed|ing|ion|es|s|e|l)$", "", word)


def test_one_meaning_has_one_spelling():
    alike, meant = defaultdict(set), defaultdict(set)
    for _, entry in ENTRIES:
        if not entry.metadata["positional"]:
            alike["-".join(map(stem, option_name(entry)[2:].split("-")))].add(option_name(entry))
        meant[entry.metadata["help"]].add(option_name(entry))
    assert sorted(map(sorted, (names for names in alike.values() if len(names) > 1))) == list(map(sorted, DIFFERENT))
    assert [names for names in meant.values() if len(names) > 1] == []


def test_fields_and_options_are_one_word():
    for verb, entry in ENTRIES:
        assert entry.name == option_name(entry)[2:].replace("-", "_") + "_" * entry.name.endswith("_"), verb
        assert entry.name.endswith("_") == keyword.iskeyword(entry.name.rstrip("_")), verb


def test_positional_arguments_are_named_by_what_they_take():
    """One in the singular, several in the plural; `other` is what the first is compared with."""
    taken = {}
    for verb, entry in ENTRIES:
        if entry.metadata["positional"]:
            noun = {"other": "checkpoint", "repo_id": "on the hub", "repos": "repositor", "source": "zoo"}
            named = noun.get(entry.name, entry.name.removesuffix("s"))
            assert named in entry.metadata["help"].lower(), (verb, entry.name)
            assert entry.name.endswith("s") == ("list[" in str(entry.type)), (verb, entry.name)
            taken.setdefault(entry.name, set()).add(verb)
    assert taken["checkpoint"] == {"info", "diff", "search", "analyze"}
    assert taken["checkpoints"] == {"embed", "scan", "lineage"}
    assert taken.pop("networks") == {"finetune", "soup"}
    assert taken.pop("network") == {"finetune_lora.py"}
    assert taken.keys() - {"checkpoint", "checkpoints"} == {
        *("other", "source", "sources", "kind", "folder", "repo_id", "repos", "zoo", "zoos")
    }


def test_former_names_of_fields_work_in_python_and_in_run_files(tmp_path):
    trained = PretrainSettings(zoo="zoo", output="run", epochs=2, from_="org/sane")
    until = f"works until version {FORMER_NAMES_END}"
    with pytest.warns(FutureWarning, match=f"num_epochs is now epochs; the former name {until}"):
        assert PretrainSettings(zoo="zoo", output="run", num_epochs=2, from_="org/sane") == trained
    with pytest.warns(FutureWarning, match="pretrained is now from_"):
        assert PretrainSettings(zoo="zoo", output="run", epochs=2, pretrained="org/sane") == trained
    with pytest.warns(FutureWarning, match="data is now images"):
        assert SoupSettings(networks="a", output=None, data="digits").images == "digits"
    with pytest.raises(TypeError, match="unexpected keyword argument 'config'"):
        ProbeSettings(sane="sane", zoo="zoo", zoo_config="mnist", config="mnist")
    earlier = {**trained.to_dict(), "num_epochs": 2, "pretrained": "org/sane"}
    trained.check_continues({name: value for name, value in earlier.items() if name not in ("epochs", "from_")})
    with pytest.raises(ValueError, match=r"other settings of epochs: expected \[3\], got \[2\]"):
        trained.check_continues({**trained.to_dict(), "num_epochs": 3})
    path = tmp_path / "run.yaml"
    path.write_text("verb: hf-sane probe\nsettings:\n  sane: sane\n  zoo: zoo\n  config: mnist\n  aligned: true\n")
    assert read_run_file(path, "hf-sane probe", ProbeSettings) == {
        **{"sane": "sane", "zoo": "zoo", "zoo_config": "mnist", "align": True}
    }


@pytest.mark.parametrize(
    ("verb", "old", "now"),
    [
        ("diff", {"first": "a", "other": "b"}, {"checkpoint": "a", "other": "b"}),
        ("lineage", {"sources": ["a", "b"]}, {"checkpoints": ["a", "b"]}),
        ("pretrain", {"pretrained": "a", "pretrained_subfolder": "b"}, {"from_": "a", "from_subfolder": "b"}),
        ("scan", {"sources": ["a"]}, {"checkpoints": ["a"]}),
        ("search", {"query": "a", "index": "b"}, {"checkpoint": "a", "index": "b"}),
        ("soup", {"ingredients": ["a", "b"]}, {"networks": ["a", "b"]}),
        ("start", {"source": "a"}, {"sane": "a"}),
        ("start", {"from_": "a"}, {"sane": "a"}),
        ("probe", {"revision": "v1"}, {"sane_revision": "v1"}),
        ("analyze", {"revision": "v1"}, {"revision": "v1"}),
    ],
)
def test_run_files_from_before_arguments_were_renamed_repeat_their_runs(verb, old, now, tmp_path):
    (settings,) = (known.load()[0] for known in VERBS if known.name == verb)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"verb": f"hf-sane {verb}", "settings": old}))
    assert read_run_file(path, f"hf-sane {verb}", settings) == now
    # These were no options, so that nothing else is taken for one.
    assert modern_arguments(own_options(settings), list(old), program=verb) == list(old)
