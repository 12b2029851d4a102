"""The house rules: floors, doors without logic, a small face."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import hf_sane
from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.records._settings import option_name
from hf_sane.workflows.command_line import own_options

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_sane"
FLOORS = {
    "records": 0,
    "cards": 1,
    "core": 1,
    "models": 2,
    "tokenization": 3,
    "architectures": 3,
    "symmetry": 4,
    "networks": 5,
    "zoo": 6,
    "training": 7,
    "sampling": 7,
    "probing": 7,
    "analysis": 7,
    "merging": 7,
    "explorer": 8,
    "hub": 8,
    "screening": 8,
    "workflows": 9,
    "cli": 10,
}
REMOTE_CODE = {"models", "architectures"}  # these files travel to the Hub: siblings only, relatively
FILES = sorted(PACKAGE.rglob("*.py"))


def internal_imports(path: Path) -> set[str]:
    """Sub-packages of `hf_sane` that `path` imports anywhere, function bodies and type-checking blocks included."""
    found = set()
    room = path.relative_to(PACKAGE).parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert room in REMOTE_CODE, f"{path}:{node.lineno}: relative import outside the remote-code folders"
            assert node.level == 1, f"{path}:{node.lineno}: remote code imports siblings only"
            continue
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module != "hf_sane" else [f"hf_sane.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name and name.startswith("hf_sane.")}
    return found


def test_every_floor_is_on_the_plan():
    assert {p.relative_to(PACKAGE).parts[0] for p in FILES if p.parent != PACKAGE} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = path.relative_to(PACKAGE).parts[0]
    if here in FLOORS:  # hf_sane/__init__.py sits on the roof and may import every floor
        for there in internal_imports(path) - {here, "_lazy"}:
            assert FLOORS[there] < FLOORS[here], f"{here} (floor {FLOORS[here]}) must not import {there}"
            assert here not in REMOTE_CODE, f"{path}: remote code must be self-contained, imports hf_sane.{there}"


def test_no_module_disables_strict_validation():
    """`from __future__ import annotations` silently switches `@strict` configuration checks off."""
    assert FILES
    for path in FILES:
        assert "from __future__ import annotations" not in path.read_text(), path


FOLDERS = ("src", "scripts", "experiments", "benchmarks")
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
MAX_EXPORTS = 17
MAX_PUBLIC = 200
OPTIONAL = {"hf_sane.analysis._plots", "hf_sane.explorer._page"}  # need what need not be installed
MAX_DOOR_LINES = 20  # of a function of the command line
MAX_SCRIPT_LINES = 15  # after its text
LOGIC = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.Try, ast.With, ast.comprehension)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that code imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # which may be modules
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_imports_the_command_line_or_the_demo(path):
    """Only the doors do: the program imports both, and a script may import the demo."""
    demo = PACKAGE / "workflows" / "demo"
    doors = {"hf_sane.cli": [PACKAGE / "cli", PACKAGE / "__main__.py"]}
    doors["hf_sane.workflows.demo"] = [PACKAGE / "cli", ROOT / "scripts", demo]
    for module, allowed in doors.items():
        if not any(path.is_relative_to(place) for place in allowed):
            assert not [name for name in imported_modules(ast.parse(path.read_text())) if name.startswith(module)]


def test_code_outside_the_package_imports_no_name_with_an_underscore():
    """Experiments may use private modules of the version that they are stored with, but public names of these."""
    for path in PYTHON:
        if path.is_relative_to(PACKAGE):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_sane"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path


def private_attributes() -> set[str]:
    """Attributes, properties and methods with an underscore that classes of the package define."""
    nodes = [node for path in FILES for node in ast.walk(ast.parse(path.read_text()))]
    found = {x.name for node in nodes if isinstance(node, ast.ClassDef) for x in node.body if hasattr(x, "name")}
    found |= {x.attr for x in nodes if isinstance(x, ast.Attribute) and ast.unparse(x.value) == "self"}
    return {name for name in found if re.match(r"_[a-z]", name)}


def test_code_outside_the_package_uses_no_private_attributes_of_its_objects():
    private = private_attributes()
    assert "_groups" in private
    for path in PYTHON:
        if not path.is_relative_to(PACKAGE):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
            used = {x.attr for x in nodes if x.attr in private and ast.unparse(x.value) not in ("self", "cls")}
            assert not used, path


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_import_public_modules(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines() if line[:1] not in "!%"]
    modules = list(imported_modules(ast.parse("\n".join(lines))))
    assert any(name.split(".")[0] == "hf_sane" for name in modules)
    assert not [name for name in modules if name.startswith("hf_sane.") and is_private(name)]


# Dotted names (`hf_sane.core._layout`), and paths with or without a suffix (`core/_layout.py`, `core/_layout.Layout`).
PRIVATE_MODULE = re.compile(r"hf_sane(?:\.\w+)*\._[a-z]\w*|\b\w+/_[a-z]\w*|\b_[a-z]\w*\.py\b")


@pytest.mark.parametrize(
    "text", ["hf_sane.core._layout", "`core/_layout.Layout`", "(`symmetry/tracing/_axes.py`)", "`_axes.py: unify`"]
)
def test_a_planted_private_module_is_found(text):
    assert PRIVATE_MODULE.search(text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_name_no_private_module(path):
    assert PRIVATE_MODULE.findall(path.read_text(encoding="utf-8")) == []


# Columns, poolings, features and metrics that have the name of the function that computes them.
DATA_NAMES = {"cross_entropy", "layer_spectrum", "layer_statistics", "peak_rss_bytes", "spectral_features"}
DATA_NAMES |= {"spike_threshold", "weight_correlation", "weight_profile"}


def test_pages_name_no_private_function_or_class():
    """Code in a sentence that is a name of the package is in the reference of the API."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: [\w.]*?(\w+)$", page, flags=re.MULTILINE))
    trees = [ast.parse(path.read_text()) for path in FILES]
    defined = {x.name for tree in trees for x in tree.body if isinstance(x, ast.FunctionDef | ast.ClassDef)}
    private = defined - listed - DATA_NAMES
    found = []
    for path in PAGES:
        if path.name == "json.md":  # names of fields
            continue
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            named = re.findall(r"(?<![\w.])[a-z_]\w+(?=\()|^[a-z]+_\w+$|\b[A-Z]\w*[a-z]\w*\b", code)
            found += [f"{path.relative_to(ROOT)}: {name}" for name in named if name in private]
    assert defined >= DATA_NAMES
    assert found == []


def test_the_list_of_pages_has_every_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert pages - {"index.md"} - set(re.findall(r"\]\(([\w/-]+\.md)", text)) == set()


def test_the_table_of_floors_is_the_plan():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)/` \|", text, flags=re.MULTILINE)
    assert {room: int(floor) for floor, room in rows} == FLOORS
    assert [int(floor) for floor, _ in rows] == sorted(FLOORS.values(), reverse=True)


def test_the_tree_of_the_readme_has_every_room():
    assert set(re.findall(r"^  (\w+)/ +\w", PAGES[0].read_text(encoding="utf-8"), flags=re.MULTILINE)) == set(FLOORS)


def test_the_changelog_has_every_entry_once():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    starts = Counter(" ".join(entry.split()[:6]) for entry in re.split(r"^- ", text, flags=re.MULTILINE)[1:])
    assert [start for start, count in starts.items() if count > 1] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.name)
def test_doors_hold_no_logic(path):
    """The command line is a table of verbs: it knows workflows and how errors are told; its functions are short."""
    tree = ast.parse(path.read_text())
    rooms = {name.split(".")[1] for name in imported_modules(tree) if name.startswith("hf_sane.")}
    assert rooms <= {"cli", "workflows", "records"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            assert (node.end_lineno or 0) - (start or 0) <= MAX_DOOR_LINES, node.name


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_doors(path):
    """A script names the settings and the function of a workflow, and its text says what it is for."""
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) - (tree.body[0].end_lineno or 0) <= MAX_SCRIPT_LINES
    rooms = {name.split(".")[1] for name in imported_modules(tree) if name.startswith("hf_sane.")}
    assert rooms <= {"workflows", "records"}
    assert not [node for node in ast.walk(tree) if isinstance(node, LOGIC)]


OTHER_MEANINGS = {"rounds", "tokens"}  # timed repetitions, not rounds of sampling; their number, not their size


def is_option(node: ast.Call) -> bool:
    """Whether a call declares an option of a script."""
    is_named = bool(node.args) and isinstance(node.args[0], ast.Constant)
    return isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument" and is_named


def test_options_of_experiments_and_benchmarks_are_spelt_like_those_of_the_program():
    """Former spellings work as well (`ScriptParser`)."""
    paths = [path for folder in ("experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    code = {path: path.read_text() for path in paths if path.name != "script_options.py"}
    assert sum(text.count('add_argument("--') for text in code.values()) > 100
    found = {path.name: re.findall(r'"(--config|--num-kept|--zoos|--\w+_\w+)"', text) for path, text in code.items()}
    assert not {name: options for name, options in found.items() if options}
    known = {option_name(entry) for verb in (*VERBS, *ZOO_VERBS) for entry in own_options(verb.load()[0])}
    known |= {f"--num-{word}" for word in ("networks", "seeds")}
    for path, text in code.items():
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and is_option(node)]
        for call in calls:
            word, given = call.args[0].value[2:], {word.arg: ast.unparse(word.value) for word in call.keywords}
            if given.get("type") in ("int", "float") and "nargs" not in given and word not in OTHER_MEANINGS:
                alike = {f"--num-{word}", f"--{word}-size", f"--{word}-limit", f"--{word.removesuffix('s')}-dim"}
                assert not alike & known, f"{path.name}: --{word}"
    assert [path.name for path, text in code.items() if "argparse.ArgumentParser(" in text] == []


def test_the_face_is_small():
    assert len(hf_sane.__all__) <= MAX_EXPORTS


def test_the_readme_needs_the_face_alone():
    """A newcomer who has read the README has imported `hf_sane`, and nothing inside it."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    modules = {name for node in nodes for name in imported_modules(node)}
    assert not {name for name in modules if name.startswith("hf_sane.")}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "hf_sane"}
    assert used
    assert used <= set(hf_sane.__all__)


def test_numbers_of_networks_to_keep_have_one_name():
    """`num_samples`; records of comparisons keep the key `num_kept`."""
    uses = {path.name for path in FILES if re.search(r"\bnum_kept\b", path.read_text())}
    assert uses == {"compare.py", "_comparison.py"}
    assert not [path for path in FILES if re.search(r"num_kept\w* ?=", path.read_text())]


# What several modules once did each in their own way: a name that gives it away, and the only modules that may use it.
OWNERS = {
    r"\b(tokens_from_tensors|tensors_from_tokens)\b": {"core/_chunking.py", "core/_layout.py"},
    r"\b(kendalltau|SS_res|r2_score\(.*\) ->)": {"core/_metrics.py"},
    r"\brich\.(table|console|panel)\b": {"workflows/results.py"},
    r"\btyper\.Argument\(": {"workflows/command_line.py"},
    r"\b(views|second_network|num_permutations|erase): .* = setting\(": {"zoo/windows/_windows.py"},
    r"\bjinja2\b": {"cards/_rendering.py"},
    r"\bpartial\.(replace|rename)\(": {"records/_files.py"},
}


@pytest.mark.parametrize("pattern", OWNERS)
def test_one_module_owns_what_several_used_to_copy(pattern):
    found = {p.relative_to(PACKAGE).as_posix() for p in FILES if re.search(pattern, p.read_text())}
    assert found == OWNERS[pattern]


def is_private(module: str) -> bool:
    """Whether a module, or a package that it is in, is private."""
    return any(part.startswith("_") and part != "__init__" for part in module.split("."))


def exports() -> dict[str, set[str]]:
    """Names that packages export, by package."""
    found = {}
    for path in FILES:
        if path.name == "__init__.py":
            package = ".".join(path.relative_to(PACKAGE.parent).parts[:-1])
            found[package] = set(getattr(import_module(package), "__all__", ()))
    return found


def public_names() -> set[tuple[str, str]]:
    """What a package exports, and what a public module defines (or, of that, lists in `__all__`), with its home."""
    public = {(name, package) for package, names in exports().items() if package != "hf_sane" for name in names}
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if path.name.startswith("__") or is_private(".".join(parts)):
            continue
        body = ast.parse(path.read_text()).body
        defined = {
            x.name for x in body if isinstance(x, ast.ClassDef | ast.FunctionDef) and not x.name.startswith("_")
        }
        listed = getattr(import_module(".".join(parts)), "__all__", defined)
        public |= {(name, ".".join(parts)) for name in defined & set(listed)}
    return public


def test_few_names_are_public():
    assert len(public_names()) < MAX_PUBLIC


def defined_names(tree: ast.Module) -> set[str]:
    """Names that a module defines itself, at its top."""
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    places = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    return found | {x.id for place in places for x in ast.walk(place) if isinstance(x, ast.Name)}


def test_private_names_are_imported_from_where_they_are_defined():
    trees = {path: ast.parse(path.read_text()) for path in PYTHON}
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    private = {name: defined_names(trees[path]) for name, path in paths.items() if path.name.startswith("_")}
    private = {name: names for name, names in private.items() if not name.endswith("__init__")}
    assert not [name for name, names in private.items() if "__all__" in names]  # what is exported, the room says
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in private:
                names = {alias.name for alias in node.names}
                assert names <= private[node.module], f"{path}:{node.lineno}: {node.module} does not define them all"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_documentation_uses_public_names(path):
    exported = exports()
    for block in re.findall(
        r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        for node in ast.walk(ast.parse(block)):
            private = [name for name in imported_modules(node) if name.startswith("hf_sane.") and is_private(name)]
            assert private == []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_sane":
                assert node.module is not None
                if exported.get(node.module):
                    names = {alias.name for alias in node.names}
                    assert names <= exported[node.module] | set(hf_sane._ALSO), (node.module, names)


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(PACKAGE).parts[0] not in ("cli", "__init__.py")])
def test_no_import_is_deferred(path):
    """An import inside a function would hide a circle between modules."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    deferred = {name for node in functions for name in imported_modules(node) if name.startswith("hf_sane")}
    assert {name for name in deferred if not any(name.startswith(f"{module}.") for module in OPTIONAL)} <= OPTIONAL


def test_no_modules_import_each_other():
    """`TopologicalSorter` names the circle."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items() if path.parent != PACKAGE}
    graph = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text())
        siblings = [x.module for x in ast.walk(tree) if isinstance(x, ast.ImportFrom) and x.level and x.module]
        siblings = [f"{module.rpartition('.')[0]}.{name}" for name in siblings]
        graph[module] = {name for name in (*imported_modules(tree), *siblings) if name in modules} - {module}
    TopologicalSorter(graph).prepare()


REGISTERED = re.compile(r"register_|\.register")  # in a decorator
NAMED_BY_LIBRARIES = re.compile(r"__|validate_")  # methods


def test_the_package_holds_no_code_for_experiments_or_tests_alone():
    """The package or a script uses what a module defines, or else it is public, and a page of the docs names it."""
    trees = {path: ast.parse(path.read_text()) for path in (*FILES, *(ROOT / "scripts").glob("*.py"))}
    used = Counter(name for tree in trees.values() for name in mentioned(tree))
    exported = set().union(*exports().values(), hf_sane._ALSO)
    code = re.compile(r"^```.*?^```|`[^`\n]+`|^:::.*?$", flags=re.MULTILINE | re.DOTALL)
    pages = (path.read_text(encoding="utf-8") for path in PAGES if path.name != "paper_index.md")
    named = {word for page in pages for part in code.findall(page) for word in re.findall(r"\w+", part)}
    idle = []
    for path in FILES:
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        listed = getattr(import_module(module), "__all__", None) if not is_private(module) else []
        for node, name in definitions(trees[path]):
            if Counter(mentioned(node))[name] != used[name]:
                continue
            is_listed = listed is None or name in listed or node not in trees[path].body
            is_public = name in exported or (is_listed and not name.startswith("_"))
            is_registered = any(REGISTERED.search(ast.unparse(x)) for x in getattr(node, "decorator_list", ()))
            if not is_registered and not (is_public and name in named):
                idle.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {name}")
    assert idle == []


def definitions(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """What a module defines at its top, and methods of classes of which no other library knows."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((node, x.id) for x in targets if isinstance(x, ast.Name) and not x.id.startswith("__"))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("__"):
            yield node, node.name
            if isinstance(node, ast.ClassDef) and not node.bases:
                methods = (x for x in node.body if isinstance(x, ast.FunctionDef))
                yield from ((x, x.name) for x in methods if not NAMED_BY_LIBRARIES.match(x.name))


def mentioned(tree: ast.AST) -> Iterator[str]:
    """Names that code uses other than to import or define them, also as a text or the end of a dotted path in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.asname)  # which is then used
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and re.match(r"hf_sane\.|run_|[A-Z]+$", str(node.value)):  # in tables
            yield node.value.rpartition(".")[2]
