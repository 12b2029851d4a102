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
        *("demo", "demo.run", "DemoSettings", "run_demo", "Run the full pipeline on a small example, offline."),
        *(START, "--output demo_output"),
    ),
    Verb(
        *("start", "start", "StartSettings", "run_start", "Make a network for a few labelled images of your own."),
        *(START, "--images my_images --output my_network"),
    ),
    Verb(
        *("pretrain", "pretrain", "PretrainSettings", "run_pretrain", "Pre-train a SANE autoencoder on zoos."),
        *(LEARN, "--zoo my_zoo --output my_run"),
    ),
    Verb(
        *("linear", "linear_code", "LinearCodeSettings", "run_fit_linear"),
        *(
            "Fit a linear code, a baseline for SANE.",
            LEARN,
            "--zoo my_zoo --output my_code",
        ),
    ),
    Verb(
        *("embed", "embed", "EmbedSettings", "run_embed", "Embed a zoo or checkpoints, as one vector per network."),
        *(LEARN, "--zoo my_zoo --sane my_run/model --output my_embeddings"),
    ),
    Verb(
        *("probe", "probe", "ProbeSettings", "run_probe", "Predict properties of networks from their embeddings."),
        *(LEARN, "--zoo my_zoo --sane my_run/model --output my_probe"),
    ),
    Verb(
        *(
            "reconstruct",
            "reconstruct",
            "ReconstructSettings",
            "run_reconstruct",
            "Measure how well a SANE reconstructs networks.",
        ),
        *(LEARN, "--zoo my_zoo --sane my_run/model --images digits"),
    ),
    Verb(
        *(
            "sample",
            "sample",
            "SampleSettings",
            "run_sample",
            "Sample networks around trained ones.",
        ),
        *(GENERATE, "--zoo my_zoo --sane my_run/model --output my_networks"),
    ),
    Verb(
        *("compare", "compare", "CompareSettings", "run_compare", "Compare methods of generating networks."),
        *(GENERATE, "--zoo my_zoo --sane my_run/model --output my_comparison"),
    ),
    Verb(
        *("finetune", "finetune", "FinetuneSettings", "run_finetune", "Fine-tune networks on images."),
        *(GENERATE, "my_networks --images digits --epochs 5 --output my_tuned_networks"),
    ),
    Verb(
        *("soup", "soup", "SoupSettings", "run_soup", "Average networks of one architecture, or LoRA adapters."),
        *(GENERATE, "run_a run_b run_c --method greedy --images digits --output my_soup"),
    ),
    Verb(
        *("info", "info", "InfoSettings", "run_info", "Inspect a checkpoint's layers and tokens from its header."),
        *(INSPECT, "org/some-network --token-dim 289"),
    ),
    Verb(
        *("scan", "scan", "ScanSettings", "run_scan", "Scan checkpoints for faults in a sample of their weights."),
        *(INSPECT, "downloads --fail-on error,warning --output my_scan"),
    ),
    Verb(
        *("diff", "diff", "DiffSettings", "run_diff", "Compare two checkpoints, up to the order of their channels."),
        *(INSPECT, "my_model org/their-model"),
    ),
    Verb(
        *("lineage", "lineage", "LineageSettings", "run_lineage", "Find out which networks were derived from which."),
        *(INSPECT, "org/base my_model their_model --claims"),
    ),
    Verb(
        *("index", "search", "IndexSettings", "run_index", "Index networks by fingerprints of their weights."),
        *(INSPECT, "my_zoo org/some-network --output known"),
    ),
    Verb(
        *("search", "search", "SearchSettings", "run_search", "Find copies and relatives of a network in an index."),
        *(INSPECT, "model.safetensors --index known"),
    ),
    Verb(
        *("analyze", "analyze", "AnalyzeSettings", "run_analyze", "Analyse the spectra of a checkpoint's weights."),
        *(INSPECT, "model.safetensors --output my_spectra"),
    ),
    Verb(
        *("regions", "regions", "RegionsSettings", "run_regions", "Map networks by what they were trained for."),
        *(INSPECT, "--zoo zoo_a --zoo zoo_b --label data_set --output my_map"),
    ),
    Verb(
        *("explore", "explore", "ExploreSettings", "run_explore", "Explore a zoo on a local page in the browser."),
        *(INSPECT, "my_zoo --sane my_run/model"),
    ),
    Verb(
        *("push", "transfer", "PushSettings", "run_push", "Publish a zoo, model, samples or adapter on the Hub."),
        *(SHARE, "zoo my_zoo org/my-zoo --dry-run"),
    ),
    Verb(
        *("pull", "transfer", "PullSettings", "run_pull", "Fetch a repository from the Hub."),
        *(SHARE, "org/their-zoo --output their_zoo"),
    ),
    Verb(
        *("doctor", "doctor", "DoctorSettings", "run_doctor", "Check this machine, with a self-test."),
        *(MACHINE, "--no-self-test"),
    ),
)

ZOO_VERBS = (
    Verb(
        *("build", "build_zoo", "BuildZooSettings", "run_build_zoo", "Train many networks and save them as a zoo."),
        *(ZOOS, "--images digits --num-models 128 --output my_zoo"),
    ),
    Verb(
        *("fit", "fit_zoo", "FitZooSettings", "run_fit_zoo", "Fit an implicit network to each image of a dataset."),
        *(ZOOS, "--images digits --output my_fields"),
    ),
    Verb(
        *("import", "import_zoo", "ImportZooSettings", "run_import_zoo", "Import existing networks into a zoo."),
        *(ZOOS, "checkpoints --properties runs.csv --output my_zoo"),
    ),
    Verb(
        *("mix", "mix_zoos", "MixZoosSettings", "run_mix_zoos", "Join several zoos into one."),
        *(ZOOS, "digits=zoo_a mnist=zoo_b --output my_zoo"),
    ),
    Verb(
        *("align", "align_zoo", "AlignZooSettings", "run_align_zoo"),
        *("Align all networks of a zoo to a reference.", ZOOS, "my_zoo"),
    ),
    Verb("show", "show_zoo", "ShowZooSettings", "run_show_zoo", "Show the contents of a zoo.", ZOOS, "my_zoo"),
    Verb(
        *("structure", "zoo_structure", "ZooStructureSettings", "run_zoo_structure"),
        *("Measure the linear structure that the runs of a zoo share.", ZOOS, "my_zoo"),
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
        """The verb, whose options are known when it runs, or when a shell asks how its command line goes on."""

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
