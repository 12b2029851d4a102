"""Plug-ins change what the library knows: each test gets the library as it was, in a process of its own."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import run_in_fork

HERE = Path(__file__).parent


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[[str], str]:
    """Run a script beside the plug-ins, in an empty folder; gives what it printed."""

    def run(script: str) -> str:
        def work() -> None:
            os.chdir(tmp_path)
            sys.path.insert(0, str(HERE))
            sys.argv = ["-c"]
            exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})

        return run_in_fork(work)

    return run
