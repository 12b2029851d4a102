"""Public names exist, are documented and have one home; Auto classes know them with and without us."""

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import griffe
import pytest
import torch
from test_architecture import public_names
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification

import hf_sane
from hf_sane.architectures.presets import MODEL_CLASSES, build_model, cifar_resnet, cnn_digits, mlp
from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling import Provenance
from hf_sane.workflows.embed import EmbedSettings
from hf_sane.workflows.results import Result
from hf_sane.workflows.sample import SampleResult

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^::: ([\w.]+)$", PAGE, flags=re.MULTILINE)
WITHOUT_CALL = {"demo", "doctor"}  # they check an installation
NETWORKS = {"cnn": cnn_digits(), "mlp": mlp(image_size=8, hidden_sizes=(4,)), "resnet": cifar_resnet(20, width=2)}
STRANGER = """
import sys
sys.modules["hf_sane"] = None  # any import of the library now fails
import torch
from transformers import AutoModelForImageClassification

images = torch.load(sys.argv[1] + "/images.pt", weights_only=True)
for name in sys.argv[2:]:
    model = AutoModelForImageClassification.from_pretrained(f"{sys.argv[1]}/{name}", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    expected = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=True)
    torch.testing.assert_close(model(images[:, : model.config.num_channels]).logits, expected)
print("no library needed")
"""


def test_names_are_sorted_and_have_one_home():
    assert sorted(hf_sane.__all__) == sorted(hf_sane._HOMES)
    assert hf_sane._HOMES.keys() | hf_sane._ALSO.keys() <= set(dir(hf_sane))
    assert not hf_sane._HOMES.keys() & hf_sane._ALSO.keys()


def test_type_checkers_see_every_name_where_it_is_loaded_from():
    tree = ast.parse(Path(hf_sane.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module.removeprefix("hf_sane.") for node in imports for alias in node.names}
    assert seen == hf_sane._HOMES | hf_sane._ALSO


def value_of(name: str):
    """What a full name stands for."""
    module, _, last = name.rpartition(".")
    return getattr(import_module(module), last)


def test_the_reference_lists_every_public_name_once():
    """Under `hf_sane`, or else under the room or module that exports it; and no others but type aliases."""
    exported = {f"hf_sane.{name}" for name in hf_sane._HOMES | hf_sane._ALSO}
    others = {f"{home}.{name}" for name, home in public_names()}
    exported |= {name for name in others if getattr(hf_sane, name.rpartition(".")[2], None) is not value_of(name)}
    assert len(exported) > 150
    assert exported - set(LISTED) == set()
    assert set(LISTED) - exported == {"hf_sane.architectures.configuration_zoo.Initialization"}
    assert len(LISTED) == len(set(LISTED))


def classes_of(kind: object) -> list[type]:
    """Classes of this library in a type, such as `dict[str, Zoo] | None`."""
    found = [kind] if inspect.isclass(kind) and kind.__module__.startswith("hf_sane.") else []
    return [*found, *(one for part in get_args(kind) for one in classes_of(part))]


def test_the_reference_lists_what_its_functions_return_and_results_hold():
    known = [value_of(name) for name in LISTED]
    types = {"PeftModel": object}  # of a library that need not be installed
    met = set()
    for value in known:
        if inspect.isfunction(value):
            met |= set(classes_of(get_type_hints(value, localns=types).get("return")))
        elif inspect.isclass(value) and issubclass(value, Result):
            met |= {one for entry in fields(value) for one in classes_of(entry.type)}
    assert {SampleResult, Provenance, hf_sane.Zoo} < met
    assert {one.__name__ for one in met - set(known)} == {"CompareSettings"}  # documented with `compare_samplers`


@pytest.mark.parametrize("verb", [*VERBS, *ZOO_VERBS], ids=lambda verb: verb.name)
def test_workflows_export_their_functions_and_results_alike(verb):
    """Not the settings, whose fields are arguments of the functions, nor `run_NAME`, which the program calls."""
    settings, run = verb.load()
    module = import_module(run.__module__)
    assert not {run.__name__, settings.__name__} & set(module.__all__)
    public = {name for name, home in (hf_sane._HOMES | hf_sane._ALSO).items() if f"hf_sane.{home}" == module.__name__}
    assert bool(public) == (verb.name not in WITHOUT_CALL)
    returned = {one for name in public for one in classes_of(get_type_hints(getattr(hf_sane, name))["return"])}
    results = {one.__name__ for one in returned if issubclass(one, Result) and one.__module__ == module.__name__}
    assert public | results <= set(module.__all__)
    held = (
        {one.__name__ for one in returned for entry in fields(one) for one in classes_of(entry.type)}
        if results
        else set()
    )
    assert set(module.__all__) <= public | results | held


@pytest.mark.parametrize("name", LISTED)
def test_names_of_the_reference_are_public_and_documented(name):
    module, _, last = name.rpartition(".")
    assert not re.search(r"\._", name)
    value = getattr(import_module(module), last)
    if inspect.isclass(value) or inspect.isfunction(value):  # constants have a comment of their own
        methods = [m for key, m in vars(value).items() if not key.startswith("_") and inspect.isfunction(m)]
        texts = [inspect.getdoc(value), *(inspect.getdoc(method) or "" for method in methods)]
        assert len(texts[0]) > 20
        assert not re.findall(r"`[\w.]*\b[a-z]\w*[./]_[a-z]\w*", "\n".join(texts)), "names a private module"


def test_the_reference_lists_the_settings_of_a_function():
    """All but those that the function sets itself."""
    extensions = griffe.load_extensions(str(DOCS / "settings.py"))
    path = Path(hf_sane.__file__).parent / "workflows" / "embed.py"
    module = griffe.visit("hf_sane.workflows.embed", path, path.read_text(encoding="utf-8"), extensions=extensions)
    (section,) = (part for part in module["embed"].docstring.parse("google") if part.kind.value == "parameters")
    names = [parameter.name for parameter in section.value]
    settings = {field.name for field in fields(EmbedSettings)} - {"checkpoints", "zoo"}
    assert sorted(names) == sorted({*settings, "networks", "sane"})
    assert (
        "Poolings of the latents, or 'all'. By default mean and layer_mean_std"
        in section.value[names.index("poolings")].description
    )


@pytest.mark.parametrize("name", [name for name in LISTED if name.count(".") == 1])
def test_options_of_functions_are_listed_in_the_reference(name):
    value = getattr(hf_sane, name.rpartition(".")[2])
    if inspect.isfunction(value) and "options" in inspect.signature(value).parameters:
        assert re.search(r"\*\*options: Other fields of \[`\w+Settings`\]\.\n", inspect.getdoc(value) + "\n")


def test_references_in_docstrings_become_links_to_the_nearest_name():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    html = """<h3 id="hf_sane.A.fit"></h3><h2 id="hf_sane.B"></h2>See [<code>fit</code>] and [<code>Other</code>].
        <h3 id="hf_sane.B.fit"></h3>"""
    made = hooks.on_page_content(html, None, None)
    assert 'See <a href="#hf_sane.B.fit"><code>fit</code></a> and <code>Other</code>.' in made


def test_code_of_pages_imports_names_of_the_reference():
    found = set()
    for page in sorted(DOCS.rglob("*.md")):
        for line in re.findall(r"^from hf_sane[\w.]* import \w.*$", page.read_text("utf-8"), flags=re.MULTILINE):
            (node,) = ast.parse(line).body
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert len(found) > 30
    assert found - set(LISTED) == set()


@pytest.mark.parametrize("name", sorted(hf_sane._HOMES | hf_sane._ALSO))
def test_every_name_is_there_and_documented(name):
    value = getattr(hf_sane, name)
    assert value.__module__ == f"hf_sane.{(hf_sane._HOMES | hf_sane._ALSO)[name]}"
    assert value.__name__ == name
    assert len(inspect.getdoc(value)) > 20
    assert getattr(hf_sane, name) is value


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'hf_sane' has no attribute 'SaneModel'; its names are SANE"):
        hf_sane.SaneModel  # noqa: B018


def test_auto_classes_read_a_sane_folder(tmp_path):
    config = hf_sane.SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    model = hf_sane.SANEModel(config)
    extractor = hf_sane.SANEFeatureExtractor(token_dim=20).fit([build_model(cnn_digits())])
    save_sane(tmp_path, model, extractor, RunRecord(command="x"))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), hf_sane.SANEConfig)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, hf_sane.SANEModel)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), hf_sane.SANEFeatureExtractor)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_auto_classes_read_every_network(name, tmp_path):
    network = build_model(NETWORKS[name]).eval()
    save_network(tmp_path, network, RunRecord(command="x"))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is MODEL_CLASSES[type(NETWORKS[name])]
    images = torch.randn(2, NETWORKS[name].num_channels, 8, 8)
    torch.testing.assert_close(loaded(images).logits, network(images).logits)


def test_networks_with_code_need_no_library(tmp_path, fresh_python):
    images = torch.randn(2, 3, 8, 8)
    torch.save(images, tmp_path / "images.pt")
    for name, config in NETWORKS.items():
        network = build_model(config).eval()
        save_network(tmp_path / name, network, RunRecord(command="x"), include_code=True)
        torch.save(network(images[:, : config.num_channels]).logits.detach(), tmp_path / f"{name}.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    assert "no library needed" in fresh_python(STRANGER, tmp_path, *NETWORKS, env=environment, cwd=tmp_path)


def test_the_command_line_imports_without_torch():
    """`hf-sane --help` answers before PyTorch and Transformers would have loaded."""
    code = "import sys\nimport hf_sane.cli.app\nprint(*sys.modules)\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(ran.stdout.split())
    assert "hf_sane.cli.app" in modules
    assert not {"torch", "transformers", "datasets", "numpy"} & modules
