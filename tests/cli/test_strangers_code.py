"""Repositories with Python files, pickles and settings that name them, with "y" answered to every question."""

import ast
import io
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    pipeline,
)
from typer.testing import CliRunner

import hf_sane
from hf_sane.analysis._spectral import analyze_spectrum
from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cli.app import app
from hf_sane.core._adapters import load_adapter
from hf_sane.hub._push import plan_push
from hf_sane.merging._ingredients import open_ingredients
from hf_sane.networks._metrics import load_metric
from hf_sane.records._errors import MALFORMED
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._loading import initial_model, load_config, load_model

YES = "y\n" * 20
CODE = """
from pathlib import Path
Path({marker!r}).write_text(__name__)
class Anything:
    def __getattr__(self, name): return self
"""
NAMES = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoFeatureExtractor", "AutoImageProcessor")
AUTO_MAP = dict.fromkeys((*NAMES, "AutoTokenizer", "AutoProcessor"), "stranger.Anything")
KINDS = ("known", "own", "unknown", "sane", "adapter", "pickled")


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


def plant(folder, kind, marker, base="org/own"):
    """A folder of one kind that names `stranger.py` wherever a setting can."""
    folder.mkdir(parents=True)
    network = build_model(cnn_digits())
    if kind == "sane":
        config = hf_sane.SANEConfig(
            token_dim=73, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2, window_size=52
        )
        hf_sane.SANEModel(config).save_pretrained(folder)
        hf_sane.SANEFeatureExtractor(token_dim=73).fit([network]).save_pretrained(folder)
    elif kind == "known":
        config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=10, num_channels=1)
        ResNetForImageClassification(config).save_pretrained(folder)
    elif kind == "adapter":
        names = ("hidden.0", "classifier")
        factors = {f"base_model.model.{n}.lora_{s}.weight": torch.zeros(2, 2) for n in names for s in "AB"}
        save_file(factors, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": list(names), "auto_map": AUTO_MAP}
        settings |= {"auto_mapping": {"base_model_class": "Anything", "parent_library": "stranger"}}
        settings |= {"megatron_config": {"a": 1}, "megatron_core": "stranger", "base_model_name_or_path": base}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    elif kind == "pickled":
        torch.save({"state_dict": {"w": torch.zeros(2, 2)}, "extra": Evil(marker)}, folder / "pytorch_model.bin")
        (folder / "model.pt").write_bytes(pickle.dumps(Evil(marker), protocol=2))
        (folder / "config.json").write_text("{}")
    else:
        network.save_pretrained(folder)
    if kind != "adapter":
        settings = json.loads((folder / "config.json").read_text()) | {"auto_map": AUTO_MAP}
        settings |= {"model_type": "stranger"} if kind == "unknown" else {}
        task = {"impl": "stranger.Anything", "pt": ["AutoModel"], "type": "multimodal"}
        if kind in ("known", "unknown"):  # our own configurations refuse fields that they do not have
            settings["custom_pipelines"] = {"weight-feature-extraction": task}
        (folder / "config.json").write_text(json.dumps(settings))
    for name in ("preprocessor_config.json", "tokenizer_config.json", "processor_config.json"):
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, "auto_map": AUTO_MAP}))
    for name in ("stranger.py", "hubconf.py", "conftest.py", "__init__.py", f"{folder.name}.py"):
        (folder / name).write_text(CODE.format(marker=str(marker)))


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    return tmp_path_factory.mktemp("marks") / "the stranger's code ran"


@pytest.fixture(scope="module")
def planted(tmp_path_factory, marker):
    """Folder with one folder per kind."""
    root = tmp_path_factory.mktemp("planted")
    for kind in KINDS:
        plant(root / kind, kind, marker, base=str(root / "unknown"))
    return root


@pytest.fixture(autouse=True)
def in_a_strangers_folder(planted, marker, monkeypatch, tmp_path):
    """Work where the files are, with "y" on standard input; whatever happens, no file of the stranger runs."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(YES))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(planted)
    yield
    assert not marker.exists()


def attempt(work):
    """What it says when it is refused; what else it does does not matter here."""
    try:
        work()
    except (*MALFORMED, OSError, RuntimeError, StrictDataclassError, pickle.UnpicklingError) as error:
        return str(error)
    return ""


def test_the_trap_works(planted, marker, monkeypatch):
    """Transformers itself asks, and runs the code after "y": otherwise the tests below would show nothing."""
    assert not marker.exists()
    attempt(lambda: AutoConfig.from_pretrained(planted / "unknown"))
    assert marker.exists()
    marker.unlink()
    attempt(lambda: torch.load(planted / "pickled" / "model.pt", weights_only=False))
    assert marker.exists()
    marker.unlink()


def verbs(own, out, zoo, sane, kind):
    """Command lines that read `own`: a folder or repository of that kind."""
    read = [
        ("info", own),
        ("info", own, "--json"),
        ("info", sane, "--extractor", own),
        ("analyze", own, "--min-values", 3, "--num-bootstrap", 0, "--no-plots"),
        ("scan", own, "--no-spectra", "--fail-on", "never"),
        ("diff", own, own),
        ("embed", own, "--sane", sane, "-o", out / "a"),
        ("soup", own, own, "-o", out / "b"),
        ("regions", "--adapter", f"a={own}", "--adapter", f"b={own}", "-o", out / "c", "--no-plots"),
        ("push", "model", own, "org/target", "--dry-run"),
        ("push", "adapter", own, "org/target", "--dry-run"),
        ("push", "samples", own, "org/target", "--dry-run"),
        ("finetune", own, "-o", out / "d", "--epochs", 1, "--train-limit", 32),
    ]
    if kind not in ("adapter", "pickled"):
        read += [
            ("sample", "--sane", own, "--zoo", zoo, "-o", out / "e", "--num-samples", 1, "--num-candidates", 1),
            ("probe", "--sane", own, "--zoo", zoo, "--poolings", "mean", "--properties", "test_accuracy"),
            ("analyze", sane, "--sane", own, "--min-values", 3, "--num-bootstrap", 0, "--no-plots"),
            (
                *("pretrain", "--zoo", zoo, "--output", out / "f", "--pretrained", own, "--max-steps", 1),
                *("--eval-every-epochs", 0, "--log-with", "none", "--no-progress-bar"),
            ),
        ]
    return read


NO_SANE = "expected a SANE autoencoder, got an error: expected model_type 'sane', got "
NO_EXTRACTOR = "expected a weight tokenizer, got an error: expected settings such as token_dim"
OTHER_LAYOUT = "the extractor was fitted on another layout"
NO_PYTHON = "has an architecture that requires Python code from its repository, which is never run here"
PICKLES = "holds no safetensors; it holds model.pt, pytorch_model.bin, in PyTorch's format"
NO_ADAPTER = ("expected a LoRA adapter, got no factors", "holds no adapter_config.json; expected an adapter")
UNREADY = ("is not a complete", "no such file or folder")
OF_SANE = {"known": NO_SANE + "'resnet'", "own": NO_SANE + "'sane_cnn'", "unknown": NO_SANE + "'stranger'"}
# How verbs end that read each kind: what they say where they refuse it, of a folder and of a repository if that is not
# the same. Of a kind that is not named they take it.
ENDS = {
    "info": {"pickled": (None, PICKLES)},  # a folder has a line for each file
    "analyze": {"adapter": "all weights are zero", "pickled": PICKLES},
    "diff": {"adapter": "'megatron_config': {'a': 1}", "pickled": PICKLES},
    "embed": {
        **dict.fromkeys(("known", "sane", "adapter"), OTHER_LAYOUT),
        "pickled": ("expected nothing but tensors", PICKLES),
    },
    "soup": {"adapter": "merge it into its base", "pickled": ("expected safetensors, a shard index", PICKLES)},
    "regions": {
        **dict.fromkeys(("known", "own", "unknown", "sane"), NO_ADAPTER),
        "adapter": "'megatron_config': {'a': 1}",
        "pickled": (PICKLES, NO_ADAPTER[1]),
    },
    "push": dict.fromkeys(KINDS, UNREADY),
    "push samples": {**dict.fromkeys(KINDS, UNREADY), "adapter": ("no network in", UNREADY[1])},
    "finetune": {
        **dict.fromkeys(("unknown", "pickled"), NO_PYTHON),
        "sane": "expected a network, got the SANE autoencoder",
        "adapter": "expected a network, got the adapter",
    },
    "sample": OF_SANE,
    "probe": OF_SANE,
    "pretrain": dict.fromkeys(OF_SANE, NO_EXTRACTOR),
    "analyze --sane": {**OF_SANE, "sane": OTHER_LAYOUT},
    "info --extractor": {kind: NO_EXTRACTOR for kind in KINDS if kind != "sane"},
}


def check_end(arguments, kind, result, *, is_remote):
    """A verb took what it can use, or said in one line why not."""
    verb = arguments[0]
    for detail in ("samples", "--extractor", "--sane"):
        verb = f"{verb} {detail}" if f"{verb} {detail}" in ENDS and detail in arguments else verb
    said = ENDS.get(verb, {}).get(kind)
    said = said[is_remote] if isinstance(said, tuple) else said
    assert result.exit_code == (0 if said is None else 2), (arguments, result.output, result.exception)
    assert said is None or said in result.output, (arguments, result.output)


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=YES)
    assert "Do you wish to run the custom code" not in result.output
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_no_verb_runs_files_of_a_folder(kind, planted, marker, tmp_path, tiny_zoo_folder):
    for arguments in verbs(planted / kind, tmp_path, tiny_zoo_folder, planted / "sane", kind):
        result = run(*arguments)
        assert not marker.exists(), arguments
        check_end(arguments, kind, result, is_remote=False)


@pytest.mark.parametrize("kind", KINDS)
def test_no_verb_runs_files_of_a_repository(kind, planted, marker, tmp_path, tiny_zoo_folder, local_hub):
    files = {path.name: path.read_bytes() for path in (planted / kind).iterdir()}
    local_hub.storage.add_files("models", "org/stranger", files)
    own = "org/stranger"
    read = verbs(own, tmp_path, tiny_zoo_folder, planted / "sane", kind)
    for arguments in [*read, ("pull", own, "-o", tmp_path / "pulled", "--allow-pickle")]:
        result = run(*arguments)
        assert not marker.exists(), arguments
        check_end(arguments, kind, result, is_remote=True)
    run("zoo", "import", "--repos", own, "-o", tmp_path / "zoo", "--allow-pickle", "--split-shares", "1,0,0")


def test_zoo_import_runs_nothing_of_a_folder(planted, tmp_path):
    result = run(
        *("zoo", "import", "--folder", planted, "-o", tmp_path / "zoo", "--allow-pickle", "--token-dim", 73),
        *("--split-shares", "1,0,0"),
    )
    assert result.exit_code == 0, result.output
    assert "pickled" in result.output
    assert len(hf_sane.Zoo.load(tmp_path / "zoo")) >= 3


PYTHON = {
    "load_state_dict": load_state_dict,
    "read_meta_state_dict": read_meta_state_dict,
    "load_config": load_config,
    "load_model": lambda folder: load_model(AutoModelForImageClassification, folder),
    "initial_model": lambda folder: initial_model(AutoModelForImageClassification, load_config(folder)),
    "SANEModel": hf_sane.SANEModel.from_pretrained,
    "SANEConfig": hf_sane.SANEConfig.from_pretrained,
    "SANEFeatureExtractor": hf_sane.SANEFeatureExtractor.from_pretrained,
    "encode": lambda folder: hf_sane.SANEFeatureExtractor(token_dim=73, normalization="none").encode(folder),
    "open_factors": open_factors,
    "open_ingredients": lambda folder: open_ingredients([folder, folder]),
    "load_adapter": lambda folder: load_adapter(build_model(cnn_digits()), folder),
    "analyze_spectrum": analyze_spectrum,
    "plan_push": lambda folder: plan_push("model", folder, "org/target"),
    "Zoo": hf_sane.Zoo.load,
    "probe": hf_sane.RidgeProbe.from_pretrained,
    "load_images": hf_sane.load_images,
}


@pytest.mark.parametrize("name", PYTHON)
def test_no_python_entry_runs_files_of_a_folder(name, planted, marker):
    for kind in KINDS:
        attempt(lambda kind=kind: PYTHON[name](planted / kind))
        assert not marker.exists(), kind


def test_the_pipeline_runs_nothing_of_the_networks_that_it_embeds(planted, marker, tmp_path):
    clean = tmp_path / "clean"
    hf_sane.SANEModel.from_pretrained(planted / "sane").save_pretrained(clean)
    hf_sane.SANEFeatureExtractor.from_pretrained(planted / "sane").save_pretrained(clean)
    embed = pipeline("weight-feature-extraction", model=str(clean))
    for kind in KINDS:
        attempt(lambda kind=kind: embed(str(planted / kind)))
        assert not marker.exists(), kind
    assert embed(str(planted / "own")).ndim == 1


def test_an_architecture_that_needs_its_code_is_refused_with_what_to_do(planted):
    for work in (load_config, lambda folder: load_model(AutoModelForImageClassification, folder)):
        said = attempt(lambda work=work: work(planted / "unknown"))
        assert said.startswith(
            f"{planted / 'unknown'} has an architecture that requires Python code from its repository"
        )
        assert "pass it as a module" in said
        assert "trust_remote_code" not in said
    assert load_config(planted / "own").model_type == "sane_cnn"
    assert type(load_model(AutoModelForImageClassification, planted / "known")) is ResNetForImageClassification


def test_a_configuration_that_names_code_builds_only_what_is_known(planted):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])
    config.auto_map = {"AutoModelForImageClassification": f"{planted / 'unknown'}--stranger.Anything"}
    assert type(initial_model(AutoModelForImageClassification, config)) is ResNetForImageClassification


def test_a_metric_is_never_a_folder_that_happens_to_lie_here(planted, marker):
    """`evaluate` would run `known/known.py` for the metric "known"."""
    for name in ("known", "somebody/metric"):
        assert attempt(lambda name=name: load_metric(name))
        assert not marker.exists()
    said = attempt(lambda: load_metric("somebody/metric"))
    assert "metrics are scripts that are run" in said


# Files that make calls which could run code, and how many.
WRAPPERS = {"tokenization/_loading.py": 1, "tokenization/_pretrained.py": 1}
FROM_OWN_WORKERS = ": pickle.loads(row)"  # what forks of this process computed, in memory only
ROOTS = ("src", "scripts", "benchmarks", "experiments")


def loads_by_name(called):
    """Whether what is called, or passed on to be called, may be told by a configuration which class to load."""
    owner, _, method = called.rpartition(".")
    is_open = "auto" in owner.lower() or owner.endswith("_class") or owner == "cls"
    return method in ("from_pretrained", "from_config") and is_open


def risky_calls(tree):
    """`AutoX.from_pretrained` and the like without `trust_remote_code=False`: `(line, source)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        passed_on = [ast.unparse(argument) for argument in node.args if isinstance(argument, ast.Attribute)]
        is_auto = any(loads_by_name(name) for name in (called, *passed_on))
        is_other = called.split(".")[-1] in ("pipeline", "get_class_from_dynamic_module") or called == "torch.hub.load"
        if is_auto or is_other:
            answers = [ast.unparse(word.value) for word in node.keywords if word.arg == "trust_remote_code"]
            if answers != ["False"]:
                yield node.lineno, ast.unparse(node)
        if called in ("torch.load", "pickle.load", "pickle.loads", "joblib.load"):
            safe = [ast.unparse(word.value) for word in node.keywords if word.arg == "weights_only"]
            if safe != ["True"]:
                yield node.lineno, ast.unparse(node)
        if called in ("np.load", "numpy.load") and any(
            word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords
        ):
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(x)",
        "transformers.AutoConfig.from_pretrained(x, trust_remote_code=None)",
        "auto_class.from_config(x)",
        "patiently(cls.from_pretrained, x)",
        "AutoPeftModel.from_pretrained(x, trust_remote_code=flag)",
        "pipeline('a', model=x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_the_search_finds(source):
    assert list(risky_calls(ast.parse(source)))


def test_every_call_that_could_run_code_says_no():
    root = Path(hf_sane.__file__).parents[2]
    paths = [path for name in ROOTS for path in (root / name).rglob("*.py")]
    assert len(paths) > 200
    found = [f"{path.relative_to(root)}:{line}: {text}" for path in paths for line, text in risky_calls_of(path)]
    own = [call for call in found if call.endswith(FROM_OWN_WORKERS)]
    assert len(own) == 1
    assert found == own
    for name, count in WRAPPERS.items():
        assert (Path(hf_sane.__file__).parent / name).read_text().count("trust_remote_code=False") == count


def risky_calls_of(path):
    return risky_calls(ast.parse(path.read_text(encoding="utf-8")))
