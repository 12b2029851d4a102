"""Command lines of experiments and benchmarks."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from hf_sane.records._settings import FORMER_NAMES_END

FORMER_OPTIONS = {
    "--config": "--zoo-config",
    "--num-kept": "--num-samples",
    "--zoos": "--zoo",
    "--networks": "--num-models",
}


class ScriptParser(argparse.ArgumentParser):
    """Options of an experiment or a benchmark, spelt like those of `hf-sane`; former spellings still work.

    Args:
        description: Docstring of the script.
        former: Former spellings of this script's options, with the current ones, in addition to those of all scripts.
    """

    def __init__(self, description: str | None, former: Mapping[str, str] | None = None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.former = {**FORMER_OPTIONS, **(former or {})}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Translate `--num_kept` to `--num-samples`, with a note, and parse."""
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            current = name.replace("_", "-") if name.startswith("--") else name
            if current not in self._option_string_actions:
                current = self.former.get(current, current)
            if name != current:
                until = f"the old spelling works until version {FORMER_NAMES_END}"
                sys.stderr.write(f"{self.prog}: {name} is now {current}; {until}\n")
            words.append(f"{current}{equals}{value}")
        return super().parse_known_args(words, namespace)
