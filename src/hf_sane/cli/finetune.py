"""`hf-sane finetune`: train sampled networks a little, beside networks trained from scratch."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_sane.cli.output import RECORD, hide_loading_bars, new_output, print_table

if TYPE_CHECKING:
    from hf_sane.networks.images import ImageData
    from hf_sane.networks.stacked import StackedNetworks
    from hf_sane.networks.training import HyperParameters
    from hf_sane.records.run_record import RunRecord


def finetune(
    networks: Annotated[
        list[Path], typer.Argument(help="Folders of networks of one architecture, or a folder that holds them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder: one folder per network.")],
    images: Annotated[str, typer.Option(help="'digits' or the path of an .npz file.")] = "digits",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 5,
    learning_rate: Annotated[float, typer.Option(help="Of every network.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of every network.")] = 0.0,
    optimizer: Annotated[Literal["adam", "sgd"], typer.Option(help="Of every network.")] = "adam",
    schedule: Annotated[Literal["constant", "one_cycle"], typer.Option(help="Of the learning rate.")] = "constant",
    batch_size: Annotated[int, typer.Option(help="Images per network and update.")] = 32,
    train_limit: Annotated[int | None, typer.Option(help="Training images used at most.")] = None,
    scratch: Annotated[bool, typer.Option(help="Also train as many networks from scratch.")] = True,
    seed: Annotated[int, typer.Option(help="Of the order of images, and of networks from scratch.")] = 0,
    include_code: Annotated[bool, typer.Option(help="Save networks with their code (trust_remote_code).")] = False,
) -> None:
    """Fine-tune networks on images; report test accuracy epoch by epoch."""
    from hf_sane.architectures.configuration_zoo import ZooConfig
    from hf_sane.networks.images import load_images
    from hf_sane.networks.stacked import StackedNetworks
    from hf_sane.networks.training import HyperParameters
    from hf_sane.records.run_record import RunRecord
    from hf_sane.sampling.baselines import SCRATCH_SEED

    hide_loading_bars()
    settings: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
    }
    settings |= {"schedule": schedule, "batch_size": batch_size, "networks": [str(folder) for folder in networks]}
    record = RunRecord.start(seed=seed, arguments=settings)
    with new_output(output, "fine-tuning") as partial:
        folders = network_folders(networks)
        stack = load_stack(folders)
        data = load_images(images, train_limit=train_limit)
        record.data |= {"images": {"name": data.name, "mean": list(data.mean), "std": list(data.std)}}
        hyper_parameters = HyperParameters.repeat(
            range(seed, seed + stack.num_models),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
        )
        options = {"epochs": epochs, "batch_size": batch_size, "schedule": schedule}
        curves: dict[str, list[list[float]]] = {}
        trained, curves["networks"] = train_stack(stack, data, hyper_parameters, options)
        if scratch:
            assert isinstance(stack.config, ZooConfig)
            fresh = StackedNetworks.initialize(
                stack.config, range(SCRATCH_SEED + seed, SCRATCH_SEED + seed + len(folders))
            )
            _, curves["scratch"] = train_stack(fresh, data, hyper_parameters, options)
        rows = [
            [epoch, *(sum(curve[epoch]) / len(curve[epoch]) for curve in curves.values())]
            for epoch in range(epochs + 1)
        ]
        print_table(("epoch", *(f"{name}: mean test accuracy" for name in curves)), rows)
        record.finish({"test_accuracy": curves}).save(partial / RECORD)
        save_trained(trained, folders, partial, record, include_code=include_code)


def network_folders(paths: "list[Path]") -> "list[Path]":
    """Folders of networks: those given, or those inside a given folder.

    Raises:
        FileNotFoundError: If a folder neither is a network nor holds any.
    """
    from hf_sane.records.sources import check_path

    found = []
    for path in paths:
        check_path(path)
        inside = [path] if (path / "config.json").is_file() else [p.parent for p in path.glob("[!.]*/config.json")]
        inside.sort(key=lambda folder: (len(folder.name), folder.name))  # network_2 before network_10
        if not inside:
            raise FileNotFoundError(f"no network in {path}; expected config.json there, or in folders inside it")
        found += inside
    return found


def load_stack(folders: "list[Path]") -> "StackedNetworks":
    """Load networks of one architecture.

    Raises:
        ValueError: If they differ in their configuration.
    """
    from transformers import AutoModelForImageClassification

    from hf_sane.hub.cards import describe_config
    from hf_sane.networks.stacked import StackedNetworks
    from hf_sane.tokenization.loading import load_model

    models = [load_model(AutoModelForImageClassification, folder) for folder in folders]
    first = models[0].config
    for folder, model in zip(folders, models, strict=True):
        if type(model) is not type(models[0]) or describe_config(model.config) != describe_config(first):
            raise ValueError(
                f"{folder} is of another architecture than {folders[0]}; fine-tune them one after the other"
            )
    return StackedNetworks.from_state_dicts(first, [model.state_dict() for model in models])


def train_stack(
    stack: "StackedNetworks", data: "ImageData", hyper_parameters: "HyperParameters", options: dict[str, Any]
) -> "tuple[StackedNetworks, list[list[float]]]":
    """Train networks together; also returns test accuracies `[epochs + 1][networks]`, first those before training."""
    from hf_sane.networks.stacked import StackedNetworks
    from hf_sane.networks.training import train_stacked

    curve, tensors = [], stack.tensors
    epochs = options["epochs"]
    for snapshot in train_stacked(
        stack.config, stack.tensors, data, hyper_parameters, keep_epochs=range(epochs + 1), **options
    ):
        curve.append(snapshot.test_accuracy.tolist())
        tensors = snapshot.tensors
    return StackedNetworks(stack.config, tensors), curve


def save_trained(
    trained: "StackedNetworks", folders: "list[Path]", partial: Path, record: "RunRecord", *, include_code: bool
) -> None:
    """Save fine-tuned networks under the names of the folders they came from, each with its card."""
    from hf_sane.hub.publish import save_network

    last = record.results["test_accuracy"]["networks"][-1]
    for index, folder in enumerate(folders):
        own = replace(record, results={"test_accuracy": last[index], "fine_tuning_epochs": record.arguments["epochs"]})
        target = (
            partial / f"{index}_{folder.name}"
            if len({f.name for f in folders}) < len(folders)
            else partial / folder.name
        )
        save_network(
            target, trained.model(index), own, title=f"Sampled network {index}, fine-tuned", include_code=include_code
        )
