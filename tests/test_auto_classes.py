"""`import hf_sane` is cheap, and Auto classes know its classes in any order, thread and process."""

import os
import pickle
import subprocess
import sys

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING

import hf_sane
from hf_sane import _auto_classes as auto_classes
from hf_sane.architectures.presets import MODEL_CLASSES, build_model, cnn_digits
from hf_sane.hub._pipeline import WeightFeatureExtractionPipeline
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._loading import OWN_MODULE

NOT_LOADED = {"accelerate", "datasets", "evaluate", "matplotlib", "numpy", "peft", "scipy", "sklearn", "typer"}
CHECK = """
config = AutoConfig.from_pretrained(SANE)
assert type(config).__module__ == "hf_sane.models.configuration_sane", type(config)
assert type(AutoModel.from_pretrained(SANE)).__module__ == "hf_sane.models.modeling_sane"
assert type(AutoModel.from_config(config)).__name__ == "SANEModel"
assert type(AutoFeatureExtractor.from_pretrained(SANE)).__module__ == "hf_sane.tokenization._feature_extraction_sane"
network = AutoModelForImageClassification.from_pretrained(NETWORK)
assert type(network).__module__ == "hf_sane.architectures.modeling_zoo", type(network)
"""
NAMES = "AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification"
ORDERS = {
    "hf_sane_first": f"import hf_sane.records._files\nfrom transformers import {NAMES}\n{CHECK}",
    "auto_classes_first": f"from transformers import {NAMES}\nimport hf_sane\n{CHECK}",
    "pipelines_first": (
        "from transformers import pipeline\nimport hf_sane\n"
        "embed = pipeline('weight-feature-extraction', model=SANE)\nassert embed(NETWORK).ndim == 1\n"
    ),
    "threads": f"""
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
import transformers
barrier = Barrier(6)
def first():
    barrier.wait()
    import hf_sane
    from transformers import {NAMES}
    {"    ".join(CHECK.strip().splitlines(keepends=True))}
def second():
    barrier.wait()
    from transformers.models.auto import modeling_auto
    import hf_sane
    from transformers import {NAMES}
    {"    ".join(CHECK.strip().splitlines(keepends=True))}
def third():
    barrier.wait()
    import hf_sane.hub._pipeline
    from transformers import pipeline
    pipeline('weight-feature-extraction', model=SANE)
with ThreadPoolExecutor(6) as pool:
    for future in [pool.submit(work) for work in (first, second, third) * 2]:
        future.result()
""",
}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """A folder `sane` and a folder `network`."""
    root = tmp_path_factory.mktemp("artefacts")
    network = build_model(cnn_digits())
    config = hf_sane.SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    extractor = hf_sane.SANEFeatureExtractor(token_dim=20).fit([network])
    save_sane(root / "sane", hf_sane.SANEModel(config), extractor, RunRecord(command="x"))
    save_network(root / "network", network, RunRecord(command="x"))
    return root


@pytest.fixture
def run_python(fresh_python, artefacts):
    """Run code that knows the two folders, in a Python that has not loaded Transformers."""

    def run(code, **settings):
        paths = f"SANE, NETWORK = {str(artefacts / 'sane')!r}, {str(artefacts / 'network')!r}\n"
        return fresh_python(paths + code, env=os.environ | {"HF_HUB_OFFLINE": "1"}, **settings)

    return run


def loaded_modules(code):
    """What is loaded after some code, in a Python that has loaded nothing."""
    code = f"{code}\nimport sys\nprint(*sys.modules)\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


PROGRAMS = ["python", "/usr/bin/hf-sane"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_importing_loads_two_modules_only(program):
    """Measured in seconds by benchmarks/import_time.py; here by what is loaded, whatever the program is called."""
    alone = loaded_modules(f"import sys\nsys.argv[0] = {program!r}\nimport hf_sane\n")
    assert {name for name in alone if name.startswith("hf_sane")} == {"hf_sane", "hf_sane._auto_classes"}
    assert not {"torch", "transformers", *NOT_LOADED} & alone


def test_importing_adds_nothing_to_transformers():
    code = f"""
import sys, torch, transformers
before = set(sys.modules)
for sys.argv[0] in {PROGRAMS}:
    import hf_sane
    added = set(sys.modules) - before
    assert added == {{"hf_sane", "hf_sane._auto_classes"}}, added
    for name in added:
        del sys.modules[name]
"""
    loaded_modules(code)


def test_transformers_alone_loads_what_it_did_before():
    plain, ours = (loaded_modules(f"{first}from transformers import AutoModel") for first in ("", "import hf_sane\n"))
    extra = {name for name in ours - plain if not name.startswith("hf_sane")}
    assert not {name.partition(".")[0] for name in extra} & {"torch", *NOT_LOADED}
    assert {name for name in ours if name.startswith("hf_sane.")} == {
        "hf_sane._auto_classes",
        *("hf_sane.architectures", "hf_sane.architectures.configuration_zoo"),
        *("hf_sane.models", "hf_sane.models.configuration_linear", "hf_sane.models.configuration_sane"),
        *("hf_sane._lazy", "hf_sane.networks", "hf_sane.networks._own_configuration"),
    }


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_us_in_every_order(order, run_python):
    run_python(ORDERS[order])


def test_pickled_configurations_and_registers_arrive_in_another_process(run_python):
    config = hf_sane.SANEConfig(token_dim=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    code = (
        "import pickle, sys\nconfig, register = pickle.load(sys.stdin.buffer)\nfrom transformers import AutoModel\n"
        "assert type(AutoModel.from_config(config)).__name__ == 'SANEModel'\n"
        "assert register[type(config)].__module__ == 'hf_sane.models.modeling_sane'\n"
    )
    run_python(code, stdin=pickle.dumps((config, MODEL_MAPPING)))


def test_a_register_gives_classes_and_takes_new_ones():
    for mapping, expected in (
        (MODEL_MAPPING, {hf_sane.SANEConfig: hf_sane.SANEModel}),
        (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_CLASSES),
    ):
        assert {key: mapping[key] for key in expected} == expected
        assert expected.items() <= dict(mapping._extra_content).items()
        assert expected.items() <= dict(mapping._extra_content.items()).items()
        assert set(expected.values()) <= set(mapping._extra_content.values())
        assert mapping.get(str, None) is None


def test_names_and_model_types_are_those_of_the_classes():
    for model_type, place in auto_classes.CONFIGS.items():
        assert place.load().model_type == model_type
    for entries in (auto_classes.MODELS, auto_classes.CLASSIFIERS, auto_classes.OWN):
        for model_type, place in entries.items():
            assert place.load().config_class.model_type == model_type
    assert list(auto_classes.OWN) == [OWN_MODULE]
    assert {place.load() for place in auto_classes.CLASSIFIERS.values()} == set(MODEL_CLASSES.values())
    assert (
        f"{WeightFeatureExtractionPipeline.__module__}.{WeightFeatureExtractionPipeline.__qualname__}"
    ) == auto_classes.PIPELINE


def test_what_users_register_themselves_stays(run_python):
    code = (
        "from transformers import AutoModel, BertConfig, BertModel\n"
        "class Config(BertConfig): model_type = 'mine'\n"
        "class Model(BertModel): config_class = Config\n"
        "AutoModel.register(Config, Model)\n"
        "import hf_sane\n"
        "config = Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, "
        "vocab_size=9)\n"
        "assert type(AutoModel.from_config(config)) is Model\n"
    )
    run_python(code)


def test_introspection_sees_the_module_of_transformers(run_python):
    code = (
        "import hf_sane, inspect\nfrom transformers.models.auto import modeling_auto as module\n"
        "assert type(module.__loader__).__name__ == type(module.__spec__.loader).__name__ == 'SourceFileLoader'\n"
        "assert 'class AutoModel' in inspect.getsource(module)\n"
    )
    run_python(code)
