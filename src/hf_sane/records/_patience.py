"""Retries of requests to a Hub that is busy or unavailable, and the error if they fail."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import ParamSpec, TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from hf_sane.records._errors import shorten

TRIES = 4
FIRST_WAIT = 1.0  # seconds, doubled with each attempt if the Hub does not specify a time
LONGEST_WAIT = 60.0
PASSING = (408, 429, 500, 502, 503, 504)  # statuses of errors that may be temporary

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class HubBusyError(ConnectionError):
    """The Hub repeatedly returned a temporary error: too many requests, or a fault of the server."""


def patiently(call: Callable[Arguments, Result], *arguments: Arguments.args, **settings: Arguments.kwargs) -> Result:
    """Call a function that sends requests to the Hub, and repeat the call after temporary errors.

    `huggingface_hub` repeats listings and downloads, but not single requests (`model_info`), and its errors advise
    users to check their connection. Here, waiting times follow the Hub's `Retry-After` header.

    Args:
        call: Function that sends requests to the Hub.
        arguments: Positional arguments of `call`.
        settings: Keyword arguments of `call`.

    Raises:
        HubBusyError: If the Hub returns temporary errors too often.
        ConnectionError: If the Hub cannot be reached.
    """
    wait = FIRST_WAIT
    for attempt in range(1, TRIES + 1):
        try:
            return call(*arguments, **settings)
        except HfHubHTTPError as error:
            answer, was_tried = error, False
        except HTTPError as error:  # no response; the message is that of the socket
            raise ConnectionError(
                f"the Hub cannot be reached ({shorten(error)}); check the connection, then try again"
            ) from error
        except OSError as error:  # raised by downloads, Transformers and Datasets, which wrap the original error
            found = _hub_answer(error)
            if found is None or isinstance(error, HubBusyError):
                raise
            # The client repeats the download of a file, but not the request for its commit.
            answer, was_tried = found, found.response.request.method == "HEAD"
            if answer.response.status_code not in PASSING and not isinstance(error, LocalEntryNotFoundError):
                raise  # Transformers' message contains a remedy
        status = answer.response.status_code
        if status not in PASSING:
            raise answer
        asked = _retry_after(answer)
        if was_tried or attempt == TRIES or (asked or 0) > LONGEST_WAIT:
            raise HubBusyError(_describe(answer, status, asked)) from answer
        time.sleep(wait if asked is None else asked)
        wait *= 2
    raise AssertionError("every try returns or raises")


def _hub_answer(error: BaseException) -> HfHubHTTPError | None:
    """Response of the Hub that caused an error, if any."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _retry_after(error: HfHubHTTPError) -> float | None:
    text = error.response.headers.get("Retry-After", "").strip()
    return float(text) if text.isdigit() else None


def _describe(error: HfHubHTTPError, status: int, asked: float | None) -> str:
    name = f"{status} {HTTPStatus(status).phrase}"
    when = "later" if asked is None else f"in {asked:.0f} s"
    remedy = f"try again {when}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        remedy = f"it is limiting requests from here: {remedy}, or log in (hf auth login), which allows more"
    return f"the Hub answered {name} to {error.response.request.method} {error.response.url}, repeatedly; {remedy}"
