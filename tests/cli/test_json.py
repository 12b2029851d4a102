"""`--json` of every verb: what is printed fits the schema of the verb, and the page about it is what the schemas say.

`run_command` checks every output that any test makes; here are the verbs that no other test calls with `--json`.
`python tests/cli/test_json.py` writes the page.
"""

import json
import textwrap
from pathlib import Path

import pytest
from json_schemas import COMMANDS, schema_of, validate
from program import run_command

from hf_sane.workflows.schemas import SHARED, result_schema

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
START = "## Verbs\n"
MAX_LINE = 119
WITHOUT_FIELDS = {"demo", "zoo align", "zoo structure", "finetune"}  # whose names depend on the data


@pytest.fixture(scope="module")
def networks(tiny_zoo, tmp_path_factory):
    """Two folders with a network each."""
    folder = tmp_path_factory.mktemp("networks")
    finals = tiny_zoo.splits["train"].final_epochs().networks()
    for index in range(2):
        finals.model(index).save_pretrained(folder / f"network_{index}")
    return folder


def test_inspection(networks, tmp_path, hf_sane_command):
    pair = [networks / "network_0", networks / "network_1"]
    found = json.loads(hf_sane_command("diff", *pair, "--json").stdout)
    assert found["relation"] == "unrelated"
    assert json.loads(hf_sane_command("lineage", *pair, "--claims", "--json").stdout)["descents"] == []
    assert len(json.loads(hf_sane_command("scan", networks, "--json").stdout)["scans"]) == 2
    assert len(json.loads(hf_sane_command("info", networks, "--json").stdout)["checkpoints"]) == 2
    written = hf_sane_command("index", networks, "--output", tmp_path / "known", "--json").stdout
    assert json.loads(written) == {"networks": 2, "skipped": {}, "output": str(tmp_path / "known")}
    nearest = json.loads(hf_sane_command("search", pair[1], "--index", tmp_path / "known", "--json").stdout)
    assert nearest["neighbours"][0] == {"source": str(pair[1]), "likeness": "equal", "distance": 0.0, "shared": 1.0}


def test_zoos(tiny_zoo_folder, networks, tmp_path, hf_sane_command):
    mixed = ("zoo", "mix", f"a={tiny_zoo_folder}", "--output", tmp_path / "mix", "--json")
    assert json.loads(hf_sane_command(*mixed).stdout)["splits"]["train"]["runs"] == 8
    (row,) = [
        part
        for part in json.loads(hf_sane_command("zoo", "align", tmp_path / "mix", "--json").stdout).values()
        if isinstance(part, dict)
    ]
    assert row["runs"] == 12
    imported = ("zoo", "import", networks, "--split-shares", "1,0,0", "--output", tmp_path / "zoo", "--json")
    assert json.loads(hf_sane_command(*imported).stdout)["splits"] == {"train": 2, "validation": 0, "test": 0}


# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_the_hub(tiny_zoo_folder, tmp_path, local_hub, hf_sane_command):
    pushed = ("push", "zoo", tiny_zoo_folder, "org/zoo")
    assert json.loads(hf_sane_command(*pushed, "--dry-run", "--json").stdout)["commit"] is None
    assert "/org/zoo/commit/" in json.loads(hf_sane_command(*pushed, "--json").stdout)["commit"]
    pulled = json.loads(hf_sane_command("pull", "org/zoo", "--output", tmp_path / "out", "--json").stdout)
    assert (pulled["repo_type"], "README.md" in pulled["files"]) == ("dataset", True)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_schema_of_a_verb_is_printed(command):
    printed = json.loads(run_command(*command.split(), "--json-schema").stdout)
    assert printed == schema_of(command)
    assert printed["title"] == f"hf-sane {command} --json"
    for kind in printed.get("anyOf", [printed]):
        own = {name: part for name, part in kind["properties"].items() if name not in SHARED}
        assert bool(own) == (command not in WITHOUT_FIELDS)
        assert not [name for name, part in kind["properties"].items() if "description" not in part]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"networks": 1}, "skipped"),
        ({"networks": 1.0, "skipped": {}}, "not of type"),
        ({"networks": 1, "skipped": {"a": 1}}, "not of type"),
        ({"networks": 1, "skipped": {}, "more": 1}, "not in the schema"),
    ],
)
def test_what_does_not_fit_is_refused(value, reason):
    with pytest.raises(AssertionError, match=reason):
        validate(value, schema_of("index"), "index")


def test_a_verb_of_another_package_need_not_declare_fields():
    validate({"anything": 1, "output": "x"}, result_schema(None, "theirs"), "theirs")


def words(schema):
    """A type, for readers; that numbers may be null is said once."""
    if "anyOf" in schema:
        return " or ".join(words(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "items" in schema:
        return f"[{words(schema['items'])}]"
    others = schema.get("additionalProperties")
    if others and not schema.get("properties"):
        return f"{{name: {words(others)}}}"
    names = schema.get("type", "anything")
    return names if isinstance(names, str) else " or ".join(names).replace("number or null", "number")


def fields_of(schema, depth=0):
    """Lines on the fields of an object, those of inner objects below."""
    while "properties" not in schema and isinstance(
        inner := schema.get("items", schema.get("additionalProperties")), dict
    ):
        schema = inner
    lines = []
    for kind in schema.get("anyOf", []):
        lines += fields_of(kind, depth)
    for name, part in schema.get("properties", {}).items():
        if depth or name not in SHARED:
            optional = "" if name in schema["required"] else ", optional"
            text = part.get("description", "").replace("<", "&lt;").replace("|", "\\|")
            line = f"{'    ' * depth}- `{name}` ({words(part)}{optional}){f': {text}' if text else ''}"
            lines += textwrap.wrap(line, MAX_LINE, subsequent_indent="    " * depth + "  ", break_on_hyphens=False)
            lines += fields_of(part, depth + 1)
    return lines


def verbs():
    """Fields of all verbs."""
    lines = []
    for command in COMMANDS:
        schema = schema_of(command)
        lines += ["", f"### hf-sane {command}"]
        for kind in schema.get("anyOf", [schema]):
            found = fields_of(kind)
            about = [] if kind.get("properties", {}).keys() - SHARED else ["The fields depend on the data.", ""]
            lines += ["", *about, *found]
    return "\n".join([*lines, ""]).replace("\n\n\n", "\n\n")


def by_hand():
    """What comes before the list."""
    return PAGE.read_text(encoding="utf-8").partition(START)[0]


def test_the_page_lists_all_fields():
    assert PAGE.read_text(encoding="utf-8") == by_hand() + START + verbs(), f"run: python {Path(__file__).name}"


if __name__ == "__main__":
    PAGE.write_text(by_hand() + START + verbs(), encoding="utf-8")
