"""Tests with the lowest and the newest versions of the dependencies: `nox --session lowest`, `nox --session newest`.

`make test` uses the versions in constraints.txt.
"""

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lowest", "newest"]


@nox.session
def lowest(session: nox.Session) -> None:
    """Test with the lowest versions that pyproject.toml permits."""
    _test(session, "lowest-direct")


@nox.session
def newest(session: nox.Session) -> None:
    """Test with the newest versions that pyproject.toml permits."""
    _test(session, "highest")


def _test(session: nox.Session, resolution: str) -> None:
    session.install("--resolution", resolution, "--editable", ".[dev]")
    session.run("uv", "pip", "freeze", external=True)
    session.run("python", "-m", "pytest", "-q", "-n", "2", *session.posargs, env={"HF_HUB_DISABLE_TELEMETRY": "1"})
