"""Command lines of experiments and benchmarks."""

import argparse
import sys
from typing import Any

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
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Translate `--num_kept` to `--num-samples`, with a note, and parse."""
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            current = name.replace("_", "-") if name.startswith("--") else name
            if current not in self._option_string_actions:
                current = FORMER_OPTIONS.get(current, current)
            if name != current:
                sys.stderr.write(f"{self.prog}: {name} is now {current}; the former spelling works, too\n")
            words.append(f"{current}{equals}{value}")
        return super().parse_known_args(words, namespace)
