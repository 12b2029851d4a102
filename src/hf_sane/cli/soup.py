"""`hf-sane soup`: one network from several, uniform or greedy, of checkpoints or of LoRA adapters."""

from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_sane.cli.output import hide_loading_bars, new_output, print_table
from hf_sane.cli.weights import Key, Subfolder, Variant
from hf_sane.records.documents import parse_document

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_sane.merging.ingredients import Ingredient
    from hf_sane.merging.scoring import ImageScore
    from hf_sane.merging.soups import Mixer, Soup
    from hf_sane.networks.images import ImageData
    from hf_sane.records.run_record import RunRecord
    from hf_sane.tokenization.checkpoints import Checkpoint


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
    subfolder: Subfolder = None,
    variant: Variant = None,
    key: Key = None,
    seed: Annotated[int, typer.Option(help="Of the images that BatchNorm statistics are re-estimated from.")] = 0,
    include_code: Annotated[bool, typer.Option(help="Save the network with its code (trust_remote_code).")] = False,
) -> None:
    """Average the weights of networks of one architecture; write a model repo whose card tells the ingredients."""
    from hf_sane.networks.images import load_images
    from hf_sane.records.run_record import RunRecord
    from hf_sane.tokenization.checkpoints import Checkpoint

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
        chosen = {"subfolder": subfolder, "variant": variant, "key": key}
        record.arguments |= {name: value for name, value in chosen.items() if value is not None}
        sources = ingredients if any(chosen.values()) else expand(ingredients)
        if not any(chosen.values()) and are_adapters(sources):
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
            [Checkpoint(source, **chosen) for source in sources],
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

    remedy = 'pass a JSON object such as {"average": "macro"}'
    parsed = parse_document(options, "--metric-options", remedy=remedy).mapping()
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

    from hf_sane.records.patience import patiently
    from hf_sane.records.sources import parse_source

    def is_adapter(source: str) -> bool:
        place = parse_source(source)
        if isinstance(place, Path):
            return (place / "adapter_config.json").exists()
        return patiently(HfApi().file_exists, place.repo_id, "adapter_config.json", revision=place.revision)

    kinds = {source: is_adapter(source) for source in sources}
    if len(set(kinds.values())) > 1:
        adapters = [source for source, kind in kinds.items() if kind]
        raise ValueError(f"expected checkpoints or LoRA adapters, not both; adapters are {', '.join(adapters)}")
    return all(kinds.values())


def soup_of_checkpoints(
    sources: "list[Checkpoint]",
    partial: Path,
    record: "RunRecord",
    scores: "dict[str, ImageScore]",
    *,
    greedy: bool,
    align: bool | None,
    calibration: "tuple[Tensor, int] | None",
    include_code: bool,
) -> None:
    """Mix checkpoints and save the result.

    A uniform soup that nothing is measured of needs no model: files are averaged, of any architecture.
    """
    from hf_sane.architectures.configuration_zoo import ZooConfig
    from hf_sane.hub.soups import save_soup, save_soup_of_files
    from hf_sane.merging.averaging import uniform_weights
    from hf_sane.merging.ingredients import open_ingredients
    from hf_sane.merging.reconciliation import complete_config
    from hf_sane.merging.soups import CheckpointMixer, Soup

    opened = open_ingredients(sources)
    record.arguments |= dtypes_of(opened)
    uses = {"--data": scores, "--align": align, "--include-code": include_code}
    needs = [option for option, value in uses.items() if value]
    if not needs and not isinstance(complete_config(opened[0].config), ZooConfig):
        weights = uniform_weights(opened)
        made = Soup(dict(zip([ingredient.name for ingredient in opened], weights, strict=True)))
        record.arguments |= {"aligned": False, "recalibrated": False}
        note(record, {"ingredients": made.to_dict()["ingredients"]}, scores)
        save_soup_of_files(partial, opened, weights, record)
        return
    model = empty_classifier(opened, needs)
    mixed = aligned(opened, model, align)
    record.arguments |= {"aligned": any(ingredient.permutation is not None for ingredient in mixed)}
    record.arguments |= {"recalibrated": calibration is not None}
    images, num_batches = calibration or (None, 1)
    mixer = CheckpointMixer(model, mixed, images, num_batches, seed=record.seed or 0)
    cook(mixer, record, scores, greedy=greedy)
    save_soup(partial, model, record, include_code=include_code, files_from=opened[0].folder)


def dtypes_of(ingredients: "list[Ingredient]") -> dict[str, str]:
    """Say which dtypes meet, where these differ; for the record, that of the soup."""
    from hf_sane.merging.averaging import soup_dtype

    found = {ingredient.name: str(soup_dtype([ingredient])).removeprefix("torch.") for ingredient in ingredients}
    dtype = str(soup_dtype(ingredients)).removeprefix("torch.")
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in found.items())
        typer.echo(f"dtypes differ ({listed}): the soup is in {dtype}, which holds the values of all")
    return {"dtype": dtype}


def empty_classifier(ingredients: "list[Ingredient]", needs: list[str]) -> "PreTrainedModel":
    """A model of the architecture of the ingredients, to mix in.

    Raises:
        ValueError: If they do not say what they are, or are no image classifiers.
    """
    from transformers import AutoModelForImageClassification

    from hf_sane.merging.averaging import soup_dtype
    from hf_sane.tokenization.loading import initial_model, load_config

    first = ingredients[0]
    if not first.config or first.folder is None:
        raise ValueError(f"{first.name} has no config.json, so its architecture is unknown; give the whole folder")
    config = load_config(first.folder)
    if type(config) not in AutoModelForImageClassification._model_mapping:
        raise ValueError(
            f"{' and '.join(needs)} take image classifiers, {first.name} is a {(config.architectures or [config.model_type])[0]}; "
            "leave them out for a uniform soup, or select in Python by a score of your own (hf_sane.merging.soups.greedy_soup)"
        )
    return initial_model(AutoModelForImageClassification, config, dtype=soup_dtype(ingredients)).eval()


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
    note(record, results, scores)
    return made


def note(record: "RunRecord", results: dict[str, Any], scores: "dict[str, ImageScore]") -> None:
    """Complete the record and print the results."""
    record.finish(results)
    rows = [[name, *row.values()] for name, row in results["ingredients"].items()]
    print_table(("ingredient", "weight", *(["held-out score"] if scores else [])), rows)
    for name, value in results.items():
        if name not in ("ingredients", "steps"):
            typer.echo(f"{name.replace('_', ' ')}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


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
    """Average adapters and save the result as one; mix them in their base model, if anything is measured."""
    from transformers import AutoModelForImageClassification

    from hf_sane.hub.soups import save_adapter_soup
    from hf_sane.merging.adapters import AdapterMixer, average_adapters, open_adapters
    from hf_sane.merging.averaging import uniform_weights
    from hf_sane.merging.soups import Soup
    from hf_sane.tokenization.loading import load_model

    adapters = open_adapters(sources, base_model=base)
    named = adapters[0].config.get("base_model_name_or_path")
    if named is None:
        raise ValueError(f"{adapters[0].name} does not name its base model; name it (--base)")
    if (revision := adapters[0].config.get("revision")) is not None and Path(named).exists() is False:
        named = f"{named}@{revision}"
    config = base_config(named)
    weights = uniform_weights(adapters)
    averaged = average_adapters(adapters, weights, rank=rank)  # says at once if these cannot be averaged
    mixer = None
    if scores:
        if config is None or type(config) not in AutoModelForImageClassification._model_mapping:
            kind = "not found" if config is None else f"a {config.model_type}"
            raise ValueError(
                f"--data takes adapters of image classifiers, their base {named} is {kind}; leave it out for a uniform soup, or "
                "select in Python by a score of your own (hf_sane.merging.soups.greedy_soup)"
            )
        mixer = AdapterMixer(load_model(AutoModelForImageClassification, named).eval(), adapters)
        made = cook(mixer, record, scores, greedy=greedy)
        averaged = average_adapters(adapters, list(made.weights.values()), rank=rank)
    else:
        made = Soup(dict(zip([adapter.name for adapter in adapters], weights, strict=True)))
        note(record, {"ingredients": made.to_dict()["ingredients"]}, scores)
    error = max(averaged.errors.values(), default=0.0)
    record.results |= {"rank": averaged.config["r"], "largest_relative_error_of_a_layer": error}
    if rank is not None and mixer is not None:  # what is written is not quite what was selected
        mixer.load(averaged)
        record.results |= {
            f"{split}_{record.arguments['metric']}": score(mixer.model) for split, score in scores.items()
        }
    save_adapter_soup(partial, averaged, config, record)


def base_config(name: str) -> "PreTrainedConfig | None":
    """The configuration of the base of adapters, which only cards and scores need; `None` if it cannot be had."""
    from transformers import PreTrainedConfig

    from hf_sane.merging.reconciliation import complete_config
    from hf_sane.records.patience import patiently
    from hf_sane.records.sources import pretrained_arguments

    try:
        place, where = pretrained_arguments(name)
        found, _ = patiently(PreTrainedConfig.get_config_dict, place, **where)
    except OSError:
        return None
    return complete_config(found)
