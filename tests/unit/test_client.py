"""The client without a hub: the SSE reader, and what refusals become."""

import itertools

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.api.stream import event
from hub.client import SseReader, error_of
from hub.schemas import Problem
from shared.errors import (
    BadInputError,
    ConflictError,
    FelloeError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)


def answer(status: int, content: bytes, **headers: str) -> httpx.Response:
    request = httpx.Request("GET", "http://hub/v1/agents")
    return httpx.Response(status, content=content, headers=headers, request=request)


def problem(status: int, code: str) -> bytes:
    return msgspec.json.encode(
        Problem(
            type=f"urn:felloe:problem:{code}", title="", status=status, detail="why", code=code
        )
    )


@given(
    texts=st.lists(st.text(), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_events_survive_any_cut_of_the_stream(texts: list[str], cuts: list[int]) -> None:
    wire = b": \n\n".join(event("log", {"text": text}, f"1.1.{n}") for n, text in enumerate(texts))
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    reader = SseReader()

    found = [e for a, b in itertools.pairwise(edges) for e in reader.feed(wire[a:b])]

    assert [msgspec.json.decode(e.data)["text"] for e in found] == texts
    assert [e.id for e in found] == [f"1.1.{n}" for n in range(len(texts))]


def test_an_event_without_an_id_has_none() -> None:
    (found,) = SseReader().feed(event("absent", {}))

    assert (found.id, found.kind) == (None, "absent")


def test_a_comment_is_no_event() -> None:
    assert SseReader().feed(b": \n\n: \n\n") == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadInputError),
        (401, NotAuthenticatedError),
        (403, NotAllowedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, BadInputError),
        (422, BadInputError),
        (429, OverloadedError),
        (503, UnavailableError),
    ],
)
def test_a_problem_becomes_the_error_that_it_was_at_the_hub(
    status: int, kind: type[FelloeError]
) -> None:
    error = error_of(answer(status, problem(status, "some_code")))

    assert type(error) is kind
    assert (str(error), error.code) == ("why", "some_code")


def test_an_overloaded_hub_says_when_to_come_back() -> None:
    error = error_of(answer(429, problem(429, "overloaded"), **{"retry-after": "7"}))

    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 7


def test_an_answer_that_is_no_problem_still_becomes_an_error() -> None:
    error = error_of(answer(502, b"<html>proxy</html>"))

    assert isinstance(error, UnavailableError)
    assert "502" in str(error)
