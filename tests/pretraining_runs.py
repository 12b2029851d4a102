"""Runs of pre-training that stop on the way, as if the machine had."""

from hf_sane.training._pretraining import PretrainResult, pretrain
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._dataset import Zoo


class Interruption(Exception):
    """What stops a run."""


def train(
    arguments: PretrainSettings, zoo: Zoo, stop_after: int | None = None
) -> tuple[list[float], PretrainResult | None]:
    """Losses of all steps, and the result (`None` when interrupted, after step `stop_after`)."""
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        losses.append(loss)
        if step == stop_after:
            raise Interruption

    try:
        return losses, pretrain(arguments, zoos=[zoo], on_step=note)
    except Interruption:
        return losses, None
