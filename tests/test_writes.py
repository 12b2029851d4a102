"""One writer: whatever touches the disk goes through `records/_outputs.py` or `records/_files.py`.

A call that writes is fine if its target comes from one of them: a name bound by `with output_folder(...) as partial`,
`write_atomically`, and so on, or a parameter called `partial`, which only such a name may be passed for.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("src", "scripts", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
WRITERS = {
    *("output_folder", "resumable_folder", "output_file", "add_file", "write_atomically"),
    *("new_output", "optional_output"),  # around output_folder
    "TemporaryDirectory",
}
# Attributes and functions that write, move or delete.
WRITES = {
    *("mkdir", "makedirs", "rmdir", "rmtree", "unlink", "remove", "removedirs", "touch", "symlink_to", "hardlink_to"),
    *("write_text", "write_bytes", "writelines", "truncate", "chmod", "rename", "renames", "move"),
    *("copy2", "copyfile", "copytree", "copyfileobj", "copymode"),
    *("save_file", "save_pretrained", "save_model", "savefig", "save_to_disk", "to_parquet", "to_csv", "write_table"),
    *("savez", "savez_compressed", "NamedTemporaryFile", "mkdtemp", "mkstemp", "ParquetWriter"),
}
# Names that also mean something else: only as a function of that module.
OF_MODULES = {
    ("torch", "save"),
    ("np", "save"),
    ("np", "savetxt"),
    ("json", "dump"),
    ("shutil", "copy"),
    ("os", "replace"),
}
MODES = set("wax+")
# What else may write, by the start of `file:function`, and why.
ALLOWED = {
    "src/hf_sane/records/": "the one writer itself",
    "src/hf_sane/zoo/_writing.py:": "the writer of zoos, several in one folder, made of the parts in records/",
    "src/hf_sane/zoo/_records.py:write_parquet": "fills the stage of a zoo, from the writer of zoos",
    "src/hf_sane/zoo/importing/_importing.py:import_zoo": "its stage is from the writer of zoos",
    "src/hf_sane/zoo/importing/_trees.py:": "members of an archive, in a temporary folder that goes with it",
    "src/hf_sane/zoo/importing/_sources.py:fetch": "one network of an array at a time, in a temporary folder",
    "src/hf_sane/zoo/_dataset.py:push_to_hub": "a temporary folder",
    "src/hf_sane/hub/_pull.py:": (
        "removes damaged files, and those of an older commit, inside a folder from resumable_folder"
    ),
    "src/hf_sane/analysis/_pictures.py:_inline_svg": "a text in memory",
    "src/hf_sane/workflows/doctor.py:_run_through": "a temporary folder",
    "src/hf_sane/screening/_other_formats.py:_fetch_gguf": "a temporary folder",
    "benchmarks/lazy_embedding.py:": "checkpoints in a temporary folder, deleted one after the other",
    "src/hf_sane/tokenization/_kept_ranges.py:": "parts of files on the Hub, in the folder of the client's assets",
    "benchmarks/scan_large.py:": "a checkpoint in a temporary folder",
    "benchmarks/scan_budgets.py:": "checkpoints in a temporary folder",
    "benchmarks/cost_curves.py:works": "networks in a temporary folder",
    "benchmarks/untrained.py:": "networks in a temporary folder",
    "benchmarks/tutorials.py:": "a temporary folder",
    "benchmarks/released_wheel.py:main": "a temporary folder",
    "benchmarks/collection_costs.py:": "networks in a temporary folder",
    "src/hf_sane/networks/_own_models.py:save_pretrained": "the method of Transformers, called with a folder",
    "src/hf_sane/workflows/linear_code.py:save": "SANE.save_pretrained, which uses the one writer",
    "src/hf_sane/workflows/pretrain.py:save": "SANE.save_pretrained, which uses the one writer",
    "benchmarks/zoo_columns.py:measure_column": "a temporary folder",
    "benchmarks/zoo_import.py:save_": "a temporary folder",
    "src/hf_sane/training/_checkpoints.py:": "checkpoints come and go inside the folder of an unfinished run",
    "src/hf_sane/training/_run_folder.py:": "logs, checkpoints and the note of an unfinished run, inside its folder",
}


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def writes(call: ast.Call) -> bool:
    name, owner = called(call), getattr(getattr(call.func, "value", None), "id", None)
    if name in ("open", "fdopen"):
        modes = [*call.args[:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
        return any(set(text) & MODES and set(text) <= MODES | set("rbt") for text in texts)
    if name == "replace":  # of a path: one argument; of a string two, of dataclasses keywords
        return owner == "os" or (len(call.args) == 1 and not call.keywords and owner not in ("dataclasses", None))
    return name in WRITES or (owner, name) in OF_MODULES


def names_in(node: ast.AST) -> set[str]:
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def handed_over(function: ast.AST) -> set[str]:
    """Names of a function that stand for a place of the writer."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.With):
            for item in node.items:
                expression = item.context_expr
                if (
                    isinstance(expression, ast.Call)
                    and called(expression) in WRITERS
                    and item.optional_vars is not None
                ):
                    found |= names_in(item.optional_vars)
        elif isinstance(node, ast.arg) and node.arg == "partial":
            found.add("partial")
    return found


def raw_writes(source: str, file: str) -> Iterator[str]:
    """Calls that write past the one writer, as `file:function: code`."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and writes(call):
            around = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
            places: set[str] = set().union(*(handed_over(function) for function in around))
            place = f"{file}:{around[-1].name if around else '<module>'}"
            if not names_in(call) & places and not any(place.startswith(start) for start in ALLOWED):
                yield f"{place}: {ast.unparse(call)[:80]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_written_past_the_one_writer(path):
    assert list(raw_writes(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())) == []


@pytest.mark.parametrize(
    "call",
    [
        "Path('x').mkdir()",
        "(folder / 'x').write_text('')",
        "model.save_pretrained(folder)",
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='r+')",
        "os.replace(a, b)",
        "path.replace(other)",
        "shutil.rmtree(folder)",
        "torch.save(state, path)",
        "figure.savefig(path)",
        "np.savez(path, a=1)",
    ],
)
def test_raw_writes_are_found_and_those_of_the_writer_are_not(call):
    assert list(raw_writes(f"def f(folder):\n    {call}", "a.py")) == [f"a.py:f: {call}"]


@pytest.mark.parametrize(
    "code",
    [
        "def f(folder):\n    with output_folder(folder, 'x') as place:\n        (place / 'x').write_text('')",
        "def f(folder):\n"
        "    with write_atomically(folder) as a, output_file(b) as c:\n"
        "        model.save_pretrained(c)",
        "def f(partial):\n    save_file({}, partial / 'x')",
    ],
)
def test_places_of_the_writer_pass(code):
    assert list(raw_writes(code, "a.py")) == []


@pytest.mark.parametrize("call", ["open(path)", "path.open('rb')", "text.replace('a', 'b')", "replace(record, a=1)"])
def test_what_reads_is_no_write(call):
    assert list(raw_writes(f"def f(path):\n    {call}", "a.py")) == []


IMPORTED = (  # by other scripts
    "ablation_variants.py",
    "autoencoders.py",
    "children_prompts.py",
    "families.py",
    "field_probes.py",
    "field_symmetries.py",
    "forests.py",
    "rates.py",
    "released_cifar.py",
    "running.py",
    "sabotage.py",
    "script_options.py",
    "zoo_populations.py",
)
RUN = sorted(
    path
    for folder in ("scripts", "benchmarks", "experiments")
    for path in (ROOT / folder).glob("*.py")
    if path.name not in IMPORTED
)


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_script_ends_as_the_verbs_do(path):
    """One line for what the user can mend, 130 after an interruption: through `run_script`, under its own name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mains = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in names_in(node.test)]
    ends = [ast.unparse(line) for main in mains for line in main.body]
    assert [bool(re.fullmatch(rf"run_script\(.*, name='{path.name}'\)", end)) for end in ends[-1:]] == [True], ends
