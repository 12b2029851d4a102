"""Settings of all tests: one thread (see `--threads`). Fixtures are in shared_fixtures.py."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Settings of the arithmetic; `make test-machines` runs the tests that feel them in each."""
    group = parser.getgroup("arithmetic")
    group.addoption("--threads", type=int, default=1, help="threads of each torch operation (default: 1)")
    group.addoption("--no-onednn", action="store_true", help="run without oneDNN, as on processors it has no code for")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no":
        return  # others run the tests, and start once this process is ready: it need not wait for PyTorch
    import torch

    torch.set_num_threads(config.getoption("threads"))
    if config.getoption("no_onednn"):
        torch.backends.mkldnn.enabled = False
    config.pluginmanager.import_plugin("shared_fixtures")
