"""A new verb: `hf-sane count CHECKPOINT` counts weights.

The package that brings it names the module in its pyproject.toml:

    [project.entry-points."hf_sane.verbs"]
    count = "verb_plugin"
"""

from dataclasses import dataclass

from hf_sane.records import RunRecord, as_arguments, setting
from hf_sane.tokenization import read_meta_state_dict
from hf_sane.workflows.results import Result, Table


@dataclass(kw_only=True)
class Settings:
    """Settings of the verb: each becomes an option."""

    checkpoint: str = setting("Checkpoint whose weights are counted.", positional=True)


@dataclass(kw_only=True)
class CountResult(Result):
    """Number of weights."""

    def tables(self) -> list[Table]:
        """One row."""
        return [Table(("", "weights"), [["total", self.record.results["weights"]]])]


def run(settings: Settings) -> CountResult:
    """Count the weights of a checkpoint from its header."""
    record = RunRecord.start(arguments=as_arguments(settings))
    tensors = read_meta_state_dict(settings.checkpoint)
    return CountResult(record=record.finish({"weights": sum(tensor.numel() for tensor in tensors.values())}))
