"""Command line of the experiments on families: ancestors and their children, one data set after the other."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from paper_zoos import GREY
from script_options import ScriptParser

from hf_sane.records._allocator import tune_allocator


def families_parser(description: str | None, former: Mapping[str, str] | None = None) -> ScriptParser:
    """Options of all experiments on families, and former spellings of those of one."""
    parser = ScriptParser(description, former)
    parser.add_argument("--images", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--work", type=Path, required=True, help="folder of zoos and autoencoders")
    parser.add_argument("--records", type=Path, required=True, help="folder of the run records")
    parser.add_argument("--families", nargs="*", default=list(GREY), choices=list(GREY), metavar="DATA")
    parser.add_argument("--children", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=30, help="passes of each SANE over the training children")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def run_families(
    run: Callable[[str, argparse.Namespace], object], parser: ScriptParser, argv: Sequence[str] | None
) -> None:
    """Parse, and run one data set after the other."""
    options = parser.parse_args(argv)
    tune_allocator()
    for name in options.families:
        run(name, options)
