"""Tests with the lowest and newest versions of the dependencies, and other versions of Python.

`nox --session lowest`, `newest`, `python-3.12` or `python-3.13`; each writes its entry of runs/matrix/record.json.
`make test` uses the versions in constraints.txt.
"""

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lowest", "newest"]


@nox.session
def lowest(session: nox.Session) -> None:
    """Test with the lowest versions that pyproject.toml permits."""
    _test(session, "lowest-direct", "lowest")


@nox.session
def newest(session: nox.Session) -> None:
    """Test with the newest versions that pyproject.toml permits."""
    _test(session, "highest", "newest")


@nox.session(name="python", python=["3.12", "3.13"])
def other_python(session: nox.Session) -> None:
    """Test with another version of Python."""
    _test(session, "highest", str(session.python))


def _test(session: nox.Session, resolution: str, environment: str) -> None:
    session.install("--resolution", resolution, "--editable", ".[dev]")
    session.run("uv", "pip", "freeze", external=True)
    arguments = ["--environment", environment, "--output", "runs/matrix/record.json"]
    script = "benchmarks/dependency_matrix.py"
    session.run("python", script, *arguments, *session.posargs, env={"HF_HUB_DISABLE_TELEMETRY": "1"})
