"""Fine-tune one network on images with a LoRA adapter, and publish the adapter."""

from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

from transformers import AutoModelForImageClassification

from hf_sane.architectures.modeling_zoo import ZooPreTrainedModel
from hf_sane.core._adapters import ADAPTER, adapter_size, require_hub_id
from hf_sane.hub._adapters import save_network_adapter
from hf_sane.hub._push import plan_push
from hf_sane.networks._image_settings import ImageSettings, TrainLimitSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import setting
from hf_sane.records._sources import hub_id
from hf_sane.sampling._finetuning import StepSettings, add_network_lora, finetune_network
from hf_sane.tokenization._loading import load_model
from hf_sane.workflows.networks import Network, open_images
from hf_sane.workflows.results import Result, optional_output
from hf_sane.workflows.schemas import Fields

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(kw_only=True)
class FinetuneLoraSettings(ImageSettings, TrainLimitSettings, StepSettings):
    """Settings of [`finetune_lora`]."""

    network: Network = setting("Network (folder or Hub repo id).", positional=True)
    output: Path | None = setting("New folder for the adapter.", short="-o")
    images: str | ImageData = setting(
        f"Images to train on: {IMAGE_KINDS}.",
        default="digits",
    )
    lora_rank: int = setting("Rank of the adapter.", default=4, formerly="--rank")
    lora_alpha: float = setting(
        "Scale of the adapter, which is multiplied by alpha / rank.", default=8.0, formerly="--alpha"
    )
    lora_targets: list[str] = setting(
        "Layers to adapt, by name; by default all linear and convolutional layers.", factory=list, formerly="--targets"
    )
    learning_rate: float = setting("Learning rate of Adam.", default=3e-3)
    base: str | None = setting(
        "Hub repo id of the network, if the network is a local folder.", default=None, formerly="--base-model"
    )
    push_to: str | None = setting("Hub repo id under which to publish the adapter.", default=None)
    private: bool | None = setting(
        "Whether a new repository is private; by default as set in the account.", default=None, opposite="--public"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.network if isinstance(self.network, str | Path) else None
        self.base = hub_id(named) if self.base is None else require_hub_id(self.base)
        if self.push_to is not None:  # raised before the work, not after it
            require_hub_id(self.base)
            if self.output is None:
                raise ValueError(
                    "expected an output folder, from which to publish the adapter, got none; name it (--output)"
                )


class FinetuneLoraJson(TypedDict):
    """The JSON object that `--json` prints; further fields are measurements before and after.

    Attributes:
        adapter: Size of the adapter.
    """

    adapter: dict[str, float]


@dataclass(kw_only=True)
class FinetuneLoraResult(Result):
    """A trained adapter and its base model.

    Attributes:
        model: The network with its adapter, in evaluation mode.
        base: The network without the adapter.
        base_model: Hub repo id of the network.
        repo_id: Hub repo id under which the adapter will be published.
        published: URL of the commit, if the adapter was published.
    """

    JSON: ClassVar[Any] = Annotated[FinetuneLoraJson, Fields(float)]
    JOB: ClassVar[str] = ADAPTER

    model: "PeftModel"
    base: ZooPreTrainedModel
    base_model: str | None = None
    repo_id: str | None = None
    published: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Accuracy before and after training."""
        found = self.record.results
        return [
            f"test accuracy {found['test_accuracy_before']:.3f} -> {found['test_accuracy']:.3f} in "
            f"{self.record.arguments['steps']} steps, {found['adapter']['share']:.1%} of the network's parameters",
            *self.published,
        ]

    def write(self, partial: Path) -> None:
        """Write the adapter with its card and run record."""
        save_network_adapter(
            partial, self.model, self.base, self.record, base_model=self.base_model, repo_id=self.repo_id
        )


def finetune_lora(network: Network, images: str | ImageData = "digits", **options: Any) -> FinetuneLoraResult:
    """Fine-tune a network on images with a LoRA adapter.

    Args:
        network: A module, folder or Hub repo id.
        images: Images, or a source for `load_images`.
        **options: Other fields of [`FinetuneLoraSettings`].

    Raises:
        ValueError: If the network does not fit the images, or a layer cannot be adapted.
    """
    return run_finetune_lora(FinetuneLoraSettings(network=network, images=images, **{"output": None, **options}))


def run_finetune_lora(settings: FinetuneLoraSettings) -> FinetuneLoraResult:
    """Fine-tune a network on images with a LoRA adapter, and optionally publish the adapter.

    All linear and convolutional layers get low-rank updates, unless `--lora-targets` names other layers. BatchNorm
    layers are trained and saved in full, with their statistics; grouped convolutions are not supported. The adapter
    refers to its base model by Hub repo id. If the network is a folder, name its repo id with `--base`, without which
    the adapter cannot be published.
    """
    steps = {entry.name: getattr(settings, entry.name) for entry in fields(StepSettings)}
    lora: dict[str, Any] = {"rank": settings.lora_rank, "alpha": settings.lora_alpha}
    with optional_output(settings.output, FinetuneLoraResult.JOB) as output:
        data = open_images(settings.images, train_limit=settings.train_limit, **settings.image_shape)
        record = RunRecord.start(
            seed=settings.seed,
            arguments=asdict(StepSettings(**steps)) | lora,
            data={"images": data.describe(), "base": settings.base},
        )
        base = settings.network
        if isinstance(base, str | Path):
            base = load_model(AutoModelForImageClassification, base)
        if not isinstance(base, ZooPreTrainedModel):
            kind = type(base).__name__
            raise ValueError(f"expected a network of this library's architectures, got a {kind}; use PEFT directly")
        _check_fit(base, data)
        model = add_network_lora(deepcopy(base), **lora, targets=settings.lora_targets or None)
        measured = finetune_network(model, data, settings, report_at=[0])
        changes = {f"{name}_before": value for name, value in measured[0].items()}
        record.finish({**measured[settings.steps], **changes, "adapter": adapter_size(model)})
        result = FinetuneLoraResult(
            record=record, model=model, base=base, base_model=settings.base, repo_id=settings.push_to
        )
        output.write(result)
    if settings.push_to is not None and settings.output is not None:
        upload = plan_push("adapter", settings.output, settings.push_to)
        result.published = [upload.push(private=settings.private)]
    return result


def _check_fit(base: ZooPreTrainedModel, data: ImageData) -> None:
    """Raise an error if the network does not fit the images."""
    base.check_images(data.train_images[:1])
    if data.num_classes > base.config.num_classes:
        raise ValueError(
            f"the network distinguishes {base.config.num_classes} classes, {data.name} has {data.num_classes}; use "
            "other images or a network with a larger classifier"
        )


__all__ = ["FinetuneLoraResult", "finetune_lora"]
