"""The commands of `hf-sane`: each runs a workflow, which is imported when the command is used."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import typer

# A verb's options are made from its settings when it runs: loading them loads PyTorch and Transformers.
PASS_THROUGH: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}
VERBS_OF_OTHERS = "hf_sane.verbs"  # the group of entry points


class Verb(NamedTuple):
    """A verb and its workflow.

    Attributes:
        name: On the command line.
        workflow: Module of the workflow.
        settings: Its settings dataclass.
        run: Its function.
        help: One sentence for the list of verbs.
        package: What the module is in, with a dot; nothing for a module of its own.
    """

    name: str
    workflow: str
    settings: str
    run: str
    help: str
    package: str = "hf_sane.workflows."

    def load(self) -> tuple[type, Callable[[Any], Any]]:
        """The settings dataclass and the function of the workflow."""
        workflow = import_module(f"{self.package}{self.workflow}")
        return getattr(workflow, self.settings), getattr(workflow, self.run)


VERBS = (
    Verb("start", "start", "StartSettings", "run_start", "Make a network for a few labelled images of your own."),
    Verb("pretrain", "pretrain", "PretrainSettings", "run_pretrain", "Pre-train a SANE autoencoder on zoos."),
    Verb(
        "embed", "embed", "EmbedSettings", "run_embed", "Embed networks: one vector each, of a zoo or of checkpoints."
    ),
    Verb("probe", "probe", "ProbeSettings", "run_probe", "Predict properties of networks from their embeddings."),
    Verb(
        "sample", "sample", "SampleSettings", "run_sample", "Sample networks around those of a zoo, and compare them."
    ),
    Verb("compare", "compare", "CompareSettings", "run_compare", "Compare methods to generate networks."),
    Verb("reconstruct", "reconstruct", "ReconstructSettings", "run_reconstruct", "Measure what a SANE preserves."),
    Verb("finetune", "finetune", "FinetuneSettings", "run_finetune", "Fine-tune networks on images."),
    Verb("soup", "soup", "SoupSettings", "run_soup", "Average networks of one architecture, or LoRA adapters."),
    Verb("regions", "regions", "RegionsSettings", "run_regions", "Map networks by what they were trained for."),
    Verb("info", "info", "InfoSettings", "run_info", "Inspect a checkpoint's layers and tokens from its header."),
    Verb("analyze", "analyze", "AnalyzeSettings", "run_analyze", "Analyse the spectra of a checkpoint's weights."),
    Verb("scan", "scan", "ScanSettings", "run_scan", "Scan checkpoints for faults, by a sample of their weights."),
    Verb("diff", "diff", "DiffSettings", "run_diff", "Compare two checkpoints, up to the order of their channels."),
    Verb("demo", "demo.run", "DemoSettings", "run_demo", "Run the full pipeline on a small example, offline."),
    Verb("push", "transfer", "PushSettings", "run_push", "Publish a zoo, model, samples or adapter on the Hub."),
    Verb("pull", "transfer", "PullSettings", "run_pull", "Fetch a repository from the Hub."),
)

ZOO_VERBS = (
    Verb("build", "build_zoo", "BuildZooSettings", "run_build_zoo", "Train many networks and save them as a zoo."),
    Verb("import", "import_zoo", "ImportZooSettings", "run_import_zoo", "Import existing networks into a zoo."),
    Verb("mix", "mix_zoos", "MixZoosSettings", "run_mix_zoos", "Join several zoos into one."),
    Verb("align", "align_zoo", "AlignZooSettings", "run_align_zoo", "Permute all networks of a zoo onto a reference."),
    Verb("show", "show_zoo", "ShowZooSettings", "run_show_zoo", "Show what a zoo holds."),
    Verb(
        "structure",
        "zoo_structure",
        "ZooStructureSettings",
        "run_zoo_structure",
        "Measure the linear structure that the runs of a zoo share.",
    ),
)


def plugin_verbs() -> list[Verb]:
    """Verbs of other packages: entry points that name a module with a dataclass `Settings` and a function `run`."""
    points = entry_points(group=VERBS_OF_OTHERS)
    return [Verb(point.name, point.value, "Settings", "run", f"From {point.value}.", package="") for point in points]


def add_verb(app: typer.Typer, verb: Verb) -> None:
    """Add a verb to the program or one of its groups."""
    app.command(verb.name, help=verb.help, **PASS_THROUGH)(_door(verb))


def _door(verb: Verb) -> Callable[[typer.Context], None]:
    def run(ctx: typer.Context) -> None:
        from hf_sane.workflows.command_line import run_workflow

        run_workflow(*verb.load(), list(ctx.args), name=ctx.command_path)

    return run


__all__ = ["VERBS", "ZOO_VERBS"]
