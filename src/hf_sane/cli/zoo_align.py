"""`hf-sane zoo align`: bring the networks of a zoo close to one reference, whatever their architecture."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_sane.cli.output import hide_loading_bars, print_table

if TYPE_CHECKING:
    from hf_sane.symmetry.permutation import PermutationSpec

SHOWN_PLACES = 3  # of each reason why something stays


def align(
    zoo: Annotated[Path, typer.Argument(help="Folder of the zoo, built or imported.")],
    config: Annotated[str | None, typer.Option(help="Which zoo, if there are several.")] = None,
) -> None:
    """Permute the channels, neurons and heads of all networks onto a reference, which changes no function.

    Only the permutations are written, beside the zoo; the views 'aligned' and 'permuted' of `hf-sane pretrain` need them.
    What can be reordered is traced from the configuration of imported networks (Transformers) and proven by running them;
    what cannot be proven stays, and is listed with the reason.
    """
    from hf_sane.records.sources import check_path
    from hf_sane.symmetry.networks import permutation_spec
    from hf_sane.zoo.alignment import align_folder
    from hf_sane.zoo.dataset import choose_config
    from hf_sane.zoo.facts import read_facts

    hide_loading_bars()
    check_path(zoo)
    config = choose_config(config, list(read_facts(zoo)), str(zoo))
    aligned = align_folder(zoo, config)
    alignment = aligned.alignment
    assert alignment is not None
    rows, reasons = [], []
    for key, run_ids in alignment.run_ids.items():
        config_of_key = aligned.facts.parsed_architectures[key.partition(":")[0]]
        spec = alignment.specs[key] if config_of_key is None else permutation_spec(config_of_key)
        free = sum(generator.size > 1 for generator in spec.generators.values())
        rows.append([key, len(run_ids), free, alignment.references[key]])
        reasons.append(_what_stays(spec))
    print_table(("architecture", "runs", "free permutations", "reference"), rows)
    for row, lines in zip(rows, reasons, strict=True):
        if lines:
            typer.echo(f"\nwhat stays in {row[0]}")
            typer.echo("\n".join(lines))
    typer.echo(f"wrote the alignment of {zoo}")


def _what_stays(spec: "PermutationSpec") -> list[str]:
    """One line per reason why dimensions are not permuted."""
    return [
        f"  {reason}: {', '.join(places[:SHOWN_PLACES])}"
        f"{f' and {len(places) - SHOWN_PLACES} more' if len(places) > SHOWN_PLACES else ''}"
        for reason, places in spec.reasons.items()
    ]
