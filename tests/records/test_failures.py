"""Scripts fail as the command line does: one line for what the user can mend, a traceback for everything else."""

import sys

import pytest

from hf_sane.records._failures import run_script


@pytest.mark.parametrize("error", [OSError("disk\nfull"), KeyError("disk full"), ValueError("disk full")])
def test_expected_errors_are_one_line_and_exit_code_two(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main, name="build_zoo.py")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "build_zoo.py: disk full\n"


def test_debug_shows_the_traceback_and_is_no_option_of_the_script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build_zoo.py", "--debug", "--zoo"])

    def main():
        raise ValueError(*sys.argv)

    with pytest.raises(ValueError, match="--zoo") as raised:
        run_script(main, name="build_zoo.py")
    assert raised.value.args == ("build_zoo.py", "--zoo")


def test_other_errors_are_not_hidden_and_exit_codes_pass():
    def main():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_script(main, name="x.py")
    for result, code in ((1, 1), ("text", 0), (None, 0)):
        with pytest.raises(SystemExit) as ended:
            run_script(lambda result=result: result, name="x.py")
        assert ended.value.code == code
