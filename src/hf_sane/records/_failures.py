"""Errors that users can fix, reported in one line without a traceback, by the command line and by scripts."""

import atexit
import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import NoReturn

from hf_sane.records._command import running
from hf_sane.records._disks import describe_os_error
from hf_sane.records._errors import describe_cause, did_you_mean, shorten
from hf_sane.records._extras import describe_missing
from hf_sane.records._interruptions import (
    describe_interruption,
    ignoring_interruptions,
    noting_outputs,
    repeating_lost_interruptions,
)

EXIT_CODE = 2
MAX_MESSAGE = 4000  # characters
# Message of strict dataclasses of huggingface_hub about a value of a `Literal`.
CHOICE = re.compile(r"Field '(?P<name>\w+)' expected one of \((?P<choices>.*?),?\), got (?P<got>.*)", re.DOTALL)
REMEDIES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "log in (hf auth login) with an account that has access",
    HTTPStatus.FORBIDDEN: "log in (hf auth login) with an account that has access, or ask the owner for it",
    HTTPStatus.NOT_FOUND: "check the name and the revision; if they are right, the file was removed, or is private",
}
INTERRUPTED = 130  # exit code of a program that SIGINT ended, by convention of shells
UNREAD = 141  # of one whose output nobody reads any more (SIGPIPE), by the same convention


def expected_errors() -> tuple[type[Exception], ...]:
    """Exceptions about input, files and the network; imported only after an exception."""
    from huggingface_hub.errors import HTTPError, StrictDataclassError

    return (ValueError, TypeError, LookupError, ArithmeticError, OSError, HTTPError, StrictDataclassError)


def describe_error(error: Exception) -> str:
    """Message of an error in one line, without the quotes of a `KeyError` and the names of validators.

    A `KeyError` that is no sentence, as of code that looks up a missing key, is shown with its kind and its place in
    the user's code.
    """
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

    while isinstance(error, StrictDataclassError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the message of the settings object itself
    message = _key_error(error) if isinstance(error, KeyError) else str(error)
    if isinstance(error, OSError):
        message = describe_os_error(error)
    # The client explains missing repositories, revisions and files itself.
    if type(error) is HfHubHTTPError and error.response.status_code in REMEDIES:
        status, asked = HTTPStatus(error.response.status_code), error.response.request
        message = f"the Hub answered {status} {status.phrase} to {asked.method} {asked.url}; {REMEDIES[status]}"
    if found := CHOICE.match(message):
        message = f"expected {found['name']} to be one of {found['choices']}, got {found['got']!r}"
        message += did_you_mean(found["got"], re.findall(r"'([^']*)'", found["choices"]))
    return shorten(message, MAX_MESSAGE) or type(error).__name__


def _key_error(error: KeyError) -> str:
    if error.args and len(str(error.args[0]).split()) > 1:
        return str(error.args[0])
    return f"{describe_cause(error)}; --debug shows where it comes from"


def print_error(message: str, exit_code: int, *, name: str, as_json: bool = False) -> None:
    """Print the error message of a program on standard error, in red on a terminal, or as a JSON object.

    NO_COLOR (https://no-color.org) is honoured.
    """
    line = f"{name}: {message}"
    if as_json:
        line = json.dumps({"error": message, "exit_code": exit_code})
    elif sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        line = f"\33[31m{line}\33[0m"
    # After an interruption, start a new line, since a progress bar may have been drawn.
    sys.stderr.write("\n" * (exit_code == INTERRUPTED) + line + "\n")


@contextmanager
def reporting(name: str, *, as_json: bool = False, debug: bool = False) -> Iterator[None]:
    """End the program with a message in one line and an exit code for errors that its user can fix.

    Args:
        name: Name of the program, for the message.
        as_json: See [`print_error`].
        debug: Do not catch these errors, so that their traceback is shown.

    Raises:
        SystemExit: With exit code 2 for an expected error, 130 for an interruption (Ctrl-C, SIGINT), and 141 without a
            message if the reader of standard output is gone (`| head`).
    """
    with noting_outputs() as outputs, repeating_lost_interruptions():
        try:
            yield
        except expected_errors() as error:
            if isinstance(error, BrokenPipeError) and _is_unread():
                raise SystemExit(UNREAD) from error
            if debug:
                raise
            print_error(describe_error(error), EXIT_CODE, name=name, as_json=as_json)
            raise SystemExit(EXIT_CODE) from error
        except ImportError as error:
            message = describe_missing(error)
            if debug or message is None:
                raise
            print_error(message, EXIT_CODE, name=name, as_json=as_json)
            raise SystemExit(EXIT_CODE) from error
        except KeyboardInterrupt as interruption:
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C adds no traceback
            exec(
                ""
            )  # after one within code from a string, as of a dataclass, Python would end by SIGINT: this resets it
            with ignoring_interruptions():
                print_error(describe_interruption(interruption, outputs), INTERRUPTED, name=name, as_json=as_json)
            raise SystemExit(INTERRUPTED) from interruption


def _is_unread() -> bool:
    """Whether the reader of standard output is gone; if so, what is left of the output is dropped."""
    if not hasattr(select, "poll"):  # Windows
        return False
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file
        return False
    pipe = select.poll()
    pipe.register(descriptor, 0)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # Python flushes it at the end
    return True


def run_script(main: Callable[[], object], *, name: str) -> NoReturn:
    """Run a script like a verb of the command line: expected errors end it with a message and exit code 2.

    Args:
        main: Function that parses the command line and does the work; a number it returns is the exit code.
        name: Name of the script, for the message. With `--debug` anywhere on the command line, the traceback is shown
            instead.
    """
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    with running(["python", *sys.argv]), reporting(name, debug=debug):
        result = main()
    raise SystemExit(result if isinstance(result, int) else 0)
