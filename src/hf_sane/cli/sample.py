"""`hf-sane sample`: new networks from the latent space of a zoo, beside what needs no autoencoder."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hf_sane.cli.output import RECORD, hide_loading_bars, new_output, print_table
from hf_sane.hub.publish import loaded_commit

Method = Literal["subsample", "bootstrap", "kde"]


def sample(
    sane: Annotated[str, typer.Option(help="SANE folder or Hub repo id.")],
    zoo: Annotated[str, typer.Option(help="Zoo folder or Hub dataset id, of one architecture: gives the anchors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder: one folder per network.")],
    images: Annotated[
        str | None, typer.Option(help="'digits' or an .npz file to choose and judge by; the zoo's own if left out.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="Keep the best of many; re-anchor on the best and repeat; or keep every one.")
    ] = "subsample",
    num_samples: Annotated[int, typer.Option(help="Networks to keep.")] = 10,
    num_candidates: Annotated[int, typer.Option(help="Networks to draw and judge (per round).")] = 200,
    num_rounds: Annotated[int, typer.Option(help="Rounds of bootstrapping.")] = 3,
    bandwidth: Annotated[
        str, typer.Option(help="Kernel width: a number, several to choose from on validation images, or a rule.")
    ] = "0.1,0.2,0.3,0.4,0.5,0.6",
    unit: Annotated[
        Literal["anchor_std", "latent_std", "latent"],
        typer.Option(help="Unit of the bandwidth: the anchors' spread, that of all their tokens, or latents."),
    ] = "anchor_std",
    mode: Annotated[
        Literal["joint", "token", "scalar"], typer.Option(help="What shares an anchor: a model, a token, a scalar.")
    ] = "joint",
    num_anchors: Annotated[int | None, typer.Option(help="Anchors; the whole top fraction if left out.")] = None,
    top_fraction: Annotated[float, typer.Option(help="Best share of the training runs to take anchors from.")] = 0.3,
    epoch: Annotated[int | None, typer.Option(help="Epoch of the anchors; the last of each run if left out.")] = None,
    halo_size: Annotated[int, typer.Option(help="Context tokens on each side of a window.")] = 0,
    condition: Annotated[bool, typer.Option(help="Re-estimate BatchNorm statistics from training images.")] = True,
    prompt_statistics: Annotated[
        bool,
        typer.Option(
            help="Layers that the SANE was not trained on: take their scale from the zoo's training networks."
        ),
    ] = False,
    config: Annotated[str | None, typer.Option(help="Which zoo, if there are several.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    include_code: Annotated[bool, typer.Option(help="Save networks with their code (trust_remote_code).")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the SANE repo.")] = None,
) -> None:
    """Sample networks, compare them with anchors and baselines on test images, and save them."""
    import torch

    from hf_sane.cli import sampling
    from hf_sane.hub.publish import load_sane
    from hf_sane.networks.images import load_images, load_zoo_images
    from hf_sane.records.run_record import RunRecord
    from hf_sane.sampling.generation import Density, NetworkCodec
    from hf_sane.sampling.selection import Judge, sample_selected
    from hf_sane.zoo.dataset import Zoo

    hide_loading_bars()
    settings: dict[str, Any] = {
        "sane": sane,
        "zoo": zoo,
        "config": config,
        "method": method,
        "mode": mode,
        "unit": unit,
    }
    settings |= {"num_candidates": num_candidates, "top_fraction": top_fraction, "halo_size": halo_size}
    settings |= {"prompt_statistics": prompt_statistics}
    record = RunRecord.start(seed=seed, arguments=settings)
    bandwidths = sampling.parse_bandwidths(bandwidth)
    for width in bandwidths:
        Density(width, unit, mode)  # refuses what does not go together before anything is loaded
    with new_output(output, "sample") as partial:
        population = Zoo.load(zoo, config)
        record.arguments["zoo_revision"] = population.revision
        data = load_images(images) if images is not None else load_zoo_images(population.facts)
        record.data |= {"zoo": population.facts.name, "images": data.describe()}
        model, extractor = load_sane(sane, revision=revision)
        train = population.splits["train"]
        layout, network_config = train.layout_and_config()
        if prompt_statistics:
            extractor = extractor.extended([(layout, train.stacked_tokens())])
        job = sampling.SamplingJob(
            codec=NetworkCodec(model, extractor, layout, network_config, halo_size=halo_size),
            train=train,
            anchors=sampling.anchor_networks(
                population, num_anchors=num_anchors, top_fraction=top_fraction, epoch=epoch
            ),
            data=data,
            judge=Judge(*data.split("validation"), conditioning_images=data.train_images if condition else None),
            generator=torch.Generator().manual_seed(seed),
        )
        record.arguments["sane_revision"] = loaded_commit(sane, revision)
        selected, bandwidth_used = sample_selected(
            job.codec,
            job.codec.encode(job.anchor_tokens),
            job.judge,
            method=method,
            density=Density(0.0, unit, mode),
            bandwidths=bandwidths,
            num_candidates=num_candidates,
            num_kept=num_samples,
            num_rounds=num_rounds,
            generator=job.generator,
        )
        rows = job.compare(f"sane_{method}", selected)
        header = ("networks", "mean test accuracy", "best test accuracy", "nearest training network")
        print_table(header, [[name, *row.values()] for name, row in rows.items()])
        record.arguments |= {"bandwidth": bandwidth_used, "num_anchors": len(job.anchors)}
        job.save(partial, selected, record.finish({"networks": rows}), include_code=include_code)
        record.save(partial / RECORD)
