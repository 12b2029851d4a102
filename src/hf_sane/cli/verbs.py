"""The commands of `hf-sane`: each runs a workflow, which is imported when the command is used."""

import gc
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand

# A verb's options are created when it runs, since loading its settings loads PyTorch and Transformers.
PASS_THROUGH: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}
VERBS_OF_OTHERS = "hf_sane.verbs"  # group of entry points


class Verb(NamedTuple):
    """A verb and its workflow.

    Attributes:
        name: Name on the command line.
        workflow: Module of the workflow.
        settings: Name of its settings dataclass.
        run: Name of its function.
        help: One sentence for the list of verbs.
        group: Heading in the list of verbs.
        example: Arguments of an example command.
        package: Package of the module, with a dot at the end; empty for a top-level module.
    """

    name: str
    workflow: str
    settings: str
    run: str
    help: str
    group: str = "Verbs of other packages"
    example: str = ""
    package: str = "hf_sane.workflows."

    def load(self) -> tuple[type, Callable[[Any], Any]]:
        """Settings dataclass and function of the workflow."""
        workflow = import_module(f"{self.package}{self.workflow}")
        return getattr(workflow, self.settings), getattr(workflow, self.run)


START, ZOOS, LEARN, GENERATE = "Start here", "Collect networks", "Learn from weights", "Make new networks"
INSPECT, SHARE, MACHINE = "Inspect and compare checkpoints", "Share on the Hub", "This machine"

VERBS = (
    Verb(
        name="demo",
        workflow="demo.run",
        settings="DemoSettings",
        run="run_demo",
        help="Run the full pipeline on a small example, offline.",
        group=START,
        example="--output demo_output",
    ),
    Verb(
        name="start",
        workflow="start",
        settings="StartSettings",
        run="run_start",
        help="Make a network for a few labelled images of your own.",
        group=START,
        example="--images my_images --output my_network",
    ),
    Verb(
        name="pretrain",
        workflow="pretrain",
        settings="PretrainSettings",
        run="run_pretrain",
        help="Pre-train a SANE autoencoder on zoos.",
        group=LEARN,
        example="--zoo my_zoo --output my_run",
    ),
    Verb(
        name="linear",
        workflow="linear_code",
        settings="LinearCodeSettings",
        run="run_fit_linear",
        help="Fit a linear code, a baseline for SANE.",
        group=LEARN,
        example="--zoo my_zoo --output my_code",
    ),
    Verb(
        name="embed",
        workflow="embed",
        settings="EmbedSettings",
        run="run_embed",
        help="Embed a zoo or checkpoints, as one vector per network.",
        group=LEARN,
        example="--zoo my_zoo --sane my_run/model --output my_embeddings",
    ),
    Verb(
        name="probe",
        workflow="probe",
        settings="ProbeSettings",
        run="run_probe",
        help="Predict properties of networks from their embeddings.",
        group=LEARN,
        example="--zoo my_zoo --sane my_run/model --output my_probe",
    ),
    Verb(
        name="reconstruct",
        workflow="reconstruct",
        settings="ReconstructSettings",
        run="run_reconstruct",
        help="Measure how well a SANE reconstructs networks.",
        group=LEARN,
        example="--zoo my_zoo --sane my_run/model --images digits",
    ),
    Verb(
        name="sample",
        workflow="sample",
        settings="SampleSettings",
        run="run_sample",
        help="Sample networks around trained ones.",
        group=GENERATE,
        example="--zoo my_zoo --sane my_run/model --output my_networks",
    ),
    Verb(
        name="compare",
        workflow="compare",
        settings="CompareSettings",
        run="run_compare",
        help="Compare methods of generating networks.",
        group=GENERATE,
        example="--zoo my_zoo --sane my_run/model --output my_comparison",
    ),
    Verb(
        name="finetune",
        workflow="finetune",
        settings="FinetuneSettings",
        run="run_finetune",
        help="Fine-tune networks on images.",
        group=GENERATE,
        example="my_networks --images digits --epochs 5 --output my_tuned_networks",
    ),
    Verb(
        name="soup",
        workflow="soup",
        settings="SoupSettings",
        run="run_soup",
        help="Average networks of one architecture, or LoRA adapters.",
        group=GENERATE,
        example="run_a run_b run_c --method greedy --images digits --output my_soup",
    ),
    Verb(
        name="info",
        workflow="info",
        settings="InfoSettings",
        run="run_info",
        help="Inspect a checkpoint's layers and tokens from its header.",
        group=INSPECT,
        example="org/some-network --token-dim 289",
    ),
    Verb(
        name="scan",
        workflow="scan",
        settings="ScanSettings",
        run="run_scan",
        help="Scan checkpoints for faults in a sample of their weights.",
        group=INSPECT,
        example="downloads --fail-on error,warning --output my_scan",
    ),
    Verb(
        name="diff",
        workflow="diff",
        settings="DiffSettings",
        run="run_diff",
        help="Compare two checkpoints, up to the order of their channels.",
        group=INSPECT,
        example="my_model org/their-model",
    ),
    Verb(
        name="lineage",
        workflow="lineage",
        settings="LineageSettings",
        run="run_lineage",
        help="Find out which networks were derived from which.",
        group=INSPECT,
        example="org/base my_model their_model --claims",
    ),
    Verb(
        name="index",
        workflow="search",
        settings="IndexSettings",
        run="run_index",
        help="Index networks by fingerprints of their weights.",
        group=INSPECT,
        example="my_zoo org/some-network --output known",
    ),
    Verb(
        name="search",
        workflow="search",
        settings="SearchSettings",
        run="run_search",
        help="Find copies and relatives of a network in an index.",
        group=INSPECT,
        example="model.safetensors --index known",
    ),
    Verb(
        name="analyze",
        workflow="analyze",
        settings="AnalyzeSettings",
        run="run_analyze",
        help="Analyse the spectra of a checkpoint's weights.",
        group=INSPECT,
        example="model.safetensors --output my_spectra",
    ),
    Verb(
        name="regions",
        workflow="regions",
        settings="RegionsSettings",
        run="run_regions",
        help="Map networks by what they were trained for.",
        group=INSPECT,
        example="--zoo zoo_a --zoo zoo_b --label data_set --output my_map",
    ),
    Verb(
        name="explore",
        workflow="explore",
        settings="ExploreSettings",
        run="run_explore",
        help="Explore a zoo on a local page in the browser.",
        group=INSPECT,
        example="my_zoo --sane my_run/model",
    ),
    Verb(
        name="push",
        workflow="transfer",
        settings="PushSettings",
        run="run_push",
        help="Publish a zoo, model, samples or adapter on the Hub.",
        group=SHARE,
        example="zoo my_zoo org/my-zoo --dry-run",
    ),
    Verb(
        name="pull",
        workflow="transfer",
        settings="PullSettings",
        run="run_pull",
        help="Fetch a repository from the Hub.",
        group=SHARE,
        example="org/their-zoo --output their_zoo",
    ),
    Verb(
        name="doctor",
        workflow="doctor",
        settings="DoctorSettings",
        run="run_doctor",
        help="Check this machine, with a self-test.",
        group=MACHINE,
        example="--no-self-test",
    ),
)

ZOO_VERBS = (
    Verb(
        name="build",
        workflow="build_zoo",
        settings="BuildZooSettings",
        run="run_build_zoo",
        help="Train many networks and save them as a zoo.",
        group=ZOOS,
        example="--images digits --num-models 128 --output my_zoo",
    ),
    Verb(
        name="fit",
        workflow="fit_zoo",
        settings="FitZooSettings",
        run="run_fit_zoo",
        help="Fit an implicit network to each image of a dataset.",
        group=ZOOS,
        example="--images digits --output my_fields",
    ),
    Verb(
        name="import",
        workflow="import_zoo",
        settings="ImportZooSettings",
        run="run_import_zoo",
        help="Import existing networks into a zoo.",
        group=ZOOS,
        example="checkpoints --properties runs.csv --output my_zoo",
    ),
    Verb(
        name="mix",
        workflow="mix_zoos",
        settings="MixZoosSettings",
        run="run_mix_zoos",
        help="Join several zoos into one.",
        group=ZOOS,
        example="digits=zoo_a mnist=zoo_b --output my_zoo",
    ),
    Verb(
        name="align",
        workflow="align_zoo",
        settings="AlignZooSettings",
        run="run_align_zoo",
        help="Align all networks of a zoo to a reference.",
        group=ZOOS,
        example="my_zoo",
    ),
    Verb(
        name="show",
        workflow="show_zoo",
        settings="ShowZooSettings",
        run="run_show_zoo",
        help="Show the contents of a zoo.",
        group=ZOOS,
        example="my_zoo",
    ),
    Verb(
        name="structure",
        workflow="zoo_structure",
        settings="ZooStructureSettings",
        run="run_zoo_structure",
        help="Measure the linear structure that the runs of a zoo share.",
        group=ZOOS,
        example="my_zoo",
    ),
)
GROUPS = (START, ZOOS, LEARN, GENERATE, INSPECT, SHARE, MACHINE)


def plugin_verbs() -> list[Verb]:
    """Verbs of other packages, from entry points to modules with a dataclass `Settings` and a function `run`."""
    points = entry_points(group=VERBS_OF_OTHERS)
    return [Verb(point.name, point.value, "Settings", "run", f"From {point.value}.", package="") for point in points]


def add_verb(app: typer.Typer, verb: Verb) -> None:
    """Add a verb to the program or one of its groups."""

    class Door(TyperCommand):
        """A verb that loads its options only when it runs, or when a shell completes its command line."""

        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
            if not extra.get("resilient_parsing"):
                return super().make_context(info_name, args, parent, **extra)
            from hf_sane.workflows.command_line import completed_command

            return completed_command(verb.load()[0]).make_context(info_name, args, parent, **extra)

    app.command(verb.name, cls=Door, help=verb.help, rich_help_panel=verb.group, **PASS_THROUGH)(_door(verb))


def _door(verb: Verb) -> Callable[[typer.Context], None]:
    def run(ctx: typer.Context) -> None:
        from hf_sane.workflows.command_line import run_workflow

        workflow = verb.load()
        if not gc.isenabled():  # see `main`
            gc.freeze()
            gc.enable()
        run_workflow(*workflow, list(ctx.args), name=ctx.command_path, example=verb.example)

    return run


__all__: list[str] = []  # the program
