"""`hf-sane soup`: one network from several, uniform or greedy, of checkpoints or of LoRA adapters."""

import json
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_sane.cli.output import hide_loading_bars, new_output, print_table

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_sane.merging.ingredients import Ingredient
    from hf_sane.merging.scoring import ImageScore
    from hf_sane.merging.soups import Mixer, Soup
    from hf_sane.networks.images import ImageData
    from hf_sane.records.run_record import RunRecord


def soup(
    ingredients: Annotated[
        list[str],
        typer.Argument(help="Model folders, a folder of them, or Hub repo ids (repo@revision), or LoRA adapters."),
    ],
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="New folder: a model repo with its card.")],
    greedy: Annotated[
        bool, typer.Option("--greedy/--uniform", help="Keep what helps on held-out data, or average everything.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="'digits' or an .npz file: validation images select, test images report.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(help="'accuracy', 'cross_entropy', a metric of evaluate by name, or a script's path (./...)."),
    ] = "accuracy",
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="Of a metric of evaluate.")] = False,
    metric_options: Annotated[
        str, typer.Option(help='Further arguments of the metric, as JSON: {"average": "macro"}.')
    ] = "{}",
    align: Annotated[
        bool | None,
        typer.Option("--align/--no-align", help="Permute channels first; by default where it is known how."),
    ] = None,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate/--no-recalibrate", help="Re-estimate BatchNorm statistics of averages.")
    ] = False,
    recalibration_batches: Annotated[int, typer.Option(help="Of 32 training images each, for that.")] = 200,
    rank: Annotated[
        int | None, typer.Option(help="Of a soup of adapters; exact (the sum of ranks) if left out.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model of adapters, in place of the one they name.")] = None,
    seed: Annotated[int, typer.Option(help="Of the images that BatchNorm statistics are re-estimated from.")] = 0,
    include_code: Annotated[bool, typer.Option(help="Save the network with its code (trust_remote_code).")] = False,
) -> None:
    """Average the weights of networks of one architecture; write a model repo whose card tells the ingredients."""
    from hf_sane.networks.images import load_images
    from hf_sane.records.run_record import RunRecord

    hide_loading_bars()
    settings = {"recipe": "greedy" if greedy else "uniform", "metric": Path(metric).stem, "seed": seed}
    record = RunRecord.start(seed=seed, arguments={**settings, "ingredients": ingredients})
    if greedy and data is None:
        raise ValueError("a greedy soup is selected on held-out data, got none; name it (--data) or use --uniform")
    if recalibrate and data is None:
        raise ValueError("BatchNorm statistics are re-estimated from training images, got none; name them (--data)")
    with new_output(output, "soup") as partial:
        images = None if data is None else load_images(data)
        scores = {} if images is None else make_scores(images, metric, metric_options, lower_is_better=lower_is_better)
        if images is not None:
            record.data["images"] = {"name": images.name, "image_size": images.image_size}
            record.data["images"] |= {"mean": list(images.mean), "std": list(images.std)}
            record.data["held_out_split"] = f"validation, {len(images.validation_labels)} images"
            record.data["test_split"] = f"{len(images.test_labels)} images"
        sources = expand(ingredients)
        if are_adapters(sources):
            if align or recalibrate:
                raise ValueError(
                    "adapters share their base model: nothing to align or recalibrate; leave both options out"
                )
            soup_of_adapters(sources, partial, record, scores, greedy=greedy, rank=rank, base=base)
            return
        if rank is not None or base is not None:
            raise ValueError("--rank and --base are for LoRA adapters, these are checkpoints; leave them out")
        calibration = (images.train_images, recalibration_batches) if images is not None and recalibrate else None
        soup_of_checkpoints(
            sources,
            partial,
            record,
            scores,
            greedy=greedy,
            align=align,
            calibration=calibration,
            include_code=include_code,
        )


def make_scores(images: "ImageData", metric: str, options: str, *, lower_is_better: bool) -> "dict[str, ImageScore]":
    """The metric on held-out and on test images."""
    from hf_sane.merging.scoring import load_score

    try:
        parsed = json.loads(options)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'--metric-options takes a JSON object such as {{"average": "macro"}}, got {options!r}'
        ) from error
    return {
        split: load_score(metric, *images.split(split), options=parsed, lower_is_better=lower_is_better)
        for split in ("validation", "test")
    }


def expand(sources: list[str]) -> list[str]:
    """Replace folders that hold networks by the networks.

    Raises:
        FileNotFoundError: For what neither exists nor is a repository on the Hub.
    """
    from hf_sane.records.sources import HubRepo, find_source

    found = []
    for source in sources:
        place = find_source(source)
        if isinstance(place, HubRepo):
            found.append(source)
            continue
        files = ("config.json", "adapter_config.json")
        inside = sorted(path.parent for name in files for path in place.glob(f"[!.]*/{name}"))
        is_one = any((place / name).exists() for name in files)
        found += [str(path) for path in inside] if inside and not is_one else [str(place)]
    return found


def are_adapters(sources: list[str]) -> bool:
    """Whether the ingredients are LoRA adapters.

    Raises:
        ValueError: If some are and some are not.
    """
    from huggingface_hub import HfApi

    from hf_sane.records.sources import parse_source

    def is_adapter(source: str) -> bool:
        place = parse_source(source)
        if isinstance(place, Path):
            return (place / "adapter_config.json").exists()
        return HfApi().file_exists(place.repo_id, "adapter_config.json", revision=place.revision)

    kinds = {source: is_adapter(source) for source in sources}
    if len(set(kinds.values())) > 1:
        adapters = [source for source, kind in kinds.items() if kind]
        raise ValueError(f"expected checkpoints or LoRA adapters, not both; adapters are {', '.join(adapters)}")
    return all(kinds.values())


def soup_of_checkpoints(
    sources: list[str],
    partial: Path,
    record: "RunRecord",
    scores: "dict[str, ImageScore]",
    *,
    greedy: bool,
    align: bool | None,
    calibration: "tuple[Tensor, int] | None",
    include_code: bool,
) -> None:
    """Mix checkpoints and save the result."""
    from hf_sane.hub.soups import save_soup
    from hf_sane.merging.ingredients import open_ingredients
    from hf_sane.merging.soups import CheckpointMixer

    opened = open_ingredients(sources)
    model = empty_classifier(opened[0])
    mixed = aligned(opened, model, align)
    record.arguments |= {"aligned": any(ingredient.permutation is not None for ingredient in mixed)}
    record.arguments |= {"recalibrated": calibration is not None}
    images, num_batches = calibration or (None, 1)
    mixer = CheckpointMixer(model, mixed, images, num_batches, seed=record.seed or 0)
    cook(mixer, record, scores, greedy=greedy)
    save_soup(partial, model, record, include_code=include_code, files_from=opened[0].folder)


def empty_classifier(ingredient: "Ingredient") -> "PreTrainedModel":
    """A model of the architecture of an ingredient, to mix in.

    Raises:
        ValueError: If the ingredient does not say what it is.
    """
    from transformers import AutoModelForImageClassification

    from hf_sane.tokenization.loading import initial_model, load_config

    if not ingredient.config or ingredient.folder is None:
        raise ValueError(
            f"{ingredient.name} has no config.json, so its architecture is unknown; give the whole folder"
        )
    config = load_config(ingredient.folder)
    dtypes = [outline.dtype for outline in ingredient.outlines.values() if outline.is_floating_point()]
    return initial_model(AutoModelForImageClassification, config, dtype=dtypes[0] if dtypes else None).eval()


def aligned(ingredients: "list[Ingredient]", model: "PreTrainedModel", align: bool | None) -> "list[Ingredient]":
    """Align ingredients if it was asked for (their symmetries are then traced), or if nothing was said of own networks.

    Raises:
        TypeError: If it was asked for and the symmetries cannot be traced.
    """
    from hf_sane.architectures.configuration_zoo import ZooConfig
    from hf_sane.merging.ingredients import align_ingredients
    from hf_sane.symmetry.networks import permutation_spec
    from hf_sane.symmetry.transformers_models import transformers_spec

    config: Any = model.config
    is_own = isinstance(config, ZooConfig)
    if align is False or (align is None and not is_own):
        return ingredients
    # Files of Transformers keep the tensor names of older versions.
    return align_ingredients(
        ingredients, permutation_spec(config) if is_own else transformers_spec(config, as_saved=True)
    )


def cook(mixer: "Mixer", record: "RunRecord", scores: "dict[str, ImageScore]", *, greedy: bool) -> "Soup":
    """Make the soup in the mixer's model, measure it beside its ingredients, print and note both."""
    from hf_sane.merging.soups import greedy_soup, uniform_soup

    held_out = scores.get("validation")
    if greedy:
        assert held_out is not None
        made = greedy_soup(mixer, held_out, higher_is_better=held_out.higher_is_better)
    else:
        made = uniform_soup(mixer, held_out)
    results: dict[str, Any] = {"ingredients": made.to_dict()["ingredients"]}
    if held_out is not None and made.ingredient_scores is not None:
        metric = record.arguments["metric"]
        test = scores["test"]
        results |= {f"validation_{metric}": made.score, f"test_{metric}": test(mixer.model)}
        best = (max if held_out.higher_is_better else min)(made.ingredient_scores.items(), key=itemgetter(1))[0]
        mixer.mix([float(name == best) for name in mixer.names])
        results |= {"best_ingredient": best, f"best_ingredient_test_{metric}": test(mixer.model)}
        mixer.mix(list(made.weights.values()))
        results["steps"] = [asdict(step) for step in made.steps]
    record.finish(results)
    rows = [[name, *row.values()] for name, row in results["ingredients"].items()]
    print_table(("ingredient", "weight", *(["held-out score"] if scores else [])), rows)
    for name, value in results.items():
        if name not in ("ingredients", "steps"):
            typer.echo(f"{name.replace('_', ' ')}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    return made


def soup_of_adapters(
    sources: list[str],
    partial: Path,
    record: "RunRecord",
    scores: "dict[str, ImageScore]",
    *,
    greedy: bool,
    rank: int | None,
    base: str | None,
) -> None:
    """Mix adapters in their base model and save the result as one adapter."""
    from transformers import AutoModelForImageClassification

    from hf_sane.hub.soups import save_adapter_soup
    from hf_sane.merging.adapters import AdapterMixer, average_adapters, open_adapters
    from hf_sane.tokenization.loading import load_model

    adapters = open_adapters(sources, base_model=base)
    named = adapters[0].config.get("base_model_name_or_path")
    if named is None:
        raise ValueError(f"{adapters[0].name} does not name its base model; name it (--base)")
    model = load_model(AutoModelForImageClassification, named).eval()
    mixer = AdapterMixer(model, adapters)
    made = cook(mixer, record, scores, greedy=greedy)
    averaged = average_adapters(adapters, list(made.weights.values()), rank=rank)
    error = max(averaged.errors.values(), default=0.0)
    record.results |= {"rank": averaged.config["r"], "largest_relative_error_of_a_layer": error}
    if rank is not None:  # what is written is not quite what was selected
        mixer.load(averaged)
        record.results |= {f"{split}_{record.arguments['metric']}": score(model) for split, score in scores.items()}
    save_adapter_soup(partial, averaged, model.config, record)
