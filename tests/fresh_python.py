"""Pythons without this library, Transformers and the clients of the Hub in them, for programs of strangers.

Each is a fork of one that is started once and has imported only what those import and what knows nothing of them:
without it, every program would wait for PyTorch.
"""

import importlib
import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PRELOADED = (
    *("torch", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.export"),
    *("scipy.optimize", "scipy.spatial", "scipy.stats", "pandas", "pyarrow.dataset", "pyarrow.parquet"),
)
NOT_LOADED = ("hf_sane", "transformers", "huggingface_hub", "datasets", "accelerate", "peft", "safetensors", "httpx")


class FreshPython:
    """Runs programs, one after the other, each in a process of its own.

    Args:
        folder: Where input and output of programs lie.
        server: The process that is forked.
    """

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self._folder, self._server = folder, server

    def __call__(
        self,
        code: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
    ) -> str:
        """Run a program, which has to succeed; gives what it printed.

        Args:
            code: The program, as for `python -c`; unclosed files are errors.
            arguments: Its arguments.
            env: Its environment; that of the tests if left out.
            cwd: The folder that it runs in; one of its own if left out.
            stdin: What it can read.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        streams = {name: self._folder / name for name in ("stdin", "stdout", "stderr")}
        streams["stdin"].write_bytes(stdin)
        request = {
            "code": code,
            "arguments": list(map(str, arguments)),
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd or self._folder),
            "streams": list(map(str, streams.values())),
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        exit_code = self._server.stdout.readline()
        assert exit_code == "0\n", f"exit code {exit_code}: {streams['stderr'].read_text()}"
        return streams["stdout"].read_text()


@contextmanager
def run_fresh_python(folder: Path) -> Iterator[FreshPython]:
    """Start what is forked."""
    command, pipe = [sys.executable, __file__], subprocess.PIPE
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # what has no threads can be forked
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as server:
        yield FreshPython(folder, server)


def serve() -> dict[str, Any]:
    """Answer requests with exit codes; comes back in every fork, with its request."""
    for name in PRELOADED:
        importlib.import_module(name)
    assert sys.modules.keys().isdisjoint(NOT_LOADED)
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            return json.loads(line)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    raise SystemExit


def become(request: dict[str, Any]) -> types.CodeType:
    """Turn this process into the one that was asked for; gives its program."""
    for descriptor, path in enumerate(request["streams"]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if descriptor else 0), 0o600), descriptor)
    sys.stdin = os.fdopen(0, closefd=False)  # not what the other one has read ahead
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv, sys.path[0] = ["-c", *request["arguments"]], ""
    warnings.simplefilter("error", ResourceWarning)
    sys.modules["__main__"] = types.ModuleType("__main__")
    return compile(request["code"], "<string>", "exec")


if __name__ == "__main__":
    program = become(serve())
    exec(program, vars(sys.modules["__main__"]))
