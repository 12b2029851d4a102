"""The page on the command line lists what the program has; `python tests/cli/test_command_line_page.py` writes it."""

import re
from dataclasses import MISSING
from pathlib import Path

from hf_sane.cli.verbs import GROUPS, VERBS, ZOO_VERBS
from hf_sane.records._settings import FORMER_NAMES_END, default_of, option_name
from hf_sane.workflows.command_line import _former_spellings, _shown, own_options

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command_line.md"
START = "## Verbs\n"


def row(entry):
    """An option of a verb, what it means, and its default."""
    name = option_name(entry) if not entry.metadata["positional"] else entry.name.upper()
    names = ", ".join(f"`{one}`" for one in (name, entry.metadata["short"]) if one)
    default = default_of(entry)
    text = entry.metadata["help"].replace("|", "\\|").replace("<", "&lt;")
    shown = "required" if default is MISSING else _shown(default).strip().removeprefix("[default: ").removesuffix("]")
    return f"| {names} | {text} | {shown if shown in ('', 'required') else f'`{shown}`'} |"


def verbs():
    """All verbs of the program by what they are for."""
    lines = []
    named = [(f"hf-sane {verb.name}", verb) for verb in VERBS]
    named += [(f"hf-sane zoo {verb.name}", verb) for verb in ZOO_VERBS]
    for group in GROUPS:
        lines += ["", f"### {group}"]
        for name, verb in named:
            if verb.group == group:
                lines += ["", f"#### {name}", "", verb.help, "", "```bash", f"{name} {verb.example}", "```", ""]
                options = own_options(verb.load()[0])
                lines += ["| option | meaning | default |", "| --- | --- | --- |", *map(row, options)]
    return "\n".join([*lines, "", *former_spellings(named), ""])


def former_spellings(named):
    """Options that were renamed, with the verbs that still accept their old names."""
    found = {}
    for name, verb in named:
        options = own_options(verb.load()[0])
        positional = {option_name(entry): entry.name.upper() for entry in options if entry.metadata["positional"]}
        for old, new in _former_spellings(options):
            found.setdefault((old, positional.get(new, new)), []).append(name.removeprefix("hf-sane "))
    rows = [
        f"| `{old.replace('=', ' ')}` | `{new.replace('=', ' ')}` | {', '.join(sorted(names))} |"
        for (old, new), names in sorted(found.items())
    ]
    intro = [
        f"These work until version {FORMER_NAMES_END}, with a message that names the new spelling, also as names of",
        "arguments in Python and of settings in `run.yaml`.",
    ]
    header = ("| former | now | verbs |", "| --- | --- | --- |")
    return ["### Former spellings", "", *intro, "", *header, *rows]


def by_hand():
    """What comes before the list."""
    return PAGE.read_text(encoding="utf-8").partition(START)[0]


def test_the_page_lists_all_verbs_and_options():
    text = PAGE.read_text(encoding="utf-8")
    assert text == by_hand() + START + verbs(), f"run: python {Path(__file__).name}"
    assert text.count("\n#### hf-sane ") == len(VERBS) + len(ZOO_VERBS)


def test_the_page_says_which_verbs_take_zoos_as_arguments():
    (sentence,) = re.findall(r"Zoos are arguments of (.*?\.)", " ".join(by_hand().split()))
    arguments, _, options = sentence.partition(", and all other verbs take them as `--zoo`; ")
    found, with_option = set(), set()
    for name, verb in [*((verb.name, verb) for verb in VERBS), *((f"zoo {verb.name}", verb) for verb in ZOO_VERBS)]:
        for entry in own_options(verb.load()[0]):
            if entry.metadata["positional"] and (entry.name == "zoo" or re.search(r"\bZoo\b", str(entry.type))):
                found.add(name)
            elif entry.name == "zoo":
                with_option.add(name)
    assert set(re.findall("`(.*?)`", arguments)) == found
    assert options == "`index` has `--zoo` as well, for zoos on the Hub."
    assert found & with_option == {"index"}
    assert {"embed", "probe", "sample"} <= with_option


def test_the_page_names_every_exit_code():
    for code in ("| 0 | done |", "| 1 | done, and", "| 2 | invalid usage", "| 130 | interrupted"):
        assert code in by_hand()


if __name__ == "__main__":
    PAGE.write_text(by_hand() + START + verbs(), encoding="utf-8")
