"""Entry point of the console script, which is prepared for Ctrl-C before the program is imported."""

from hf_sane.cli._interruptions import quit_when_interrupted


def main() -> None:
    """Run the program."""
    quit_when_interrupted()
    from hf_sane.cli.app import main as run

    run()


__all__: list[str] = []  # the program
