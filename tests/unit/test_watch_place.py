"""A reader's place in an agent's output: holes are noticed, what came twice is left out, gaps are said."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.control.watch_place import LogPiece, Place
from shared.messages import LogChunk, LogKind, LogStream
from tests.helpers.builders import log_chunk


def data(offset: int, text: bytes, **changes: Any) -> LogChunk:
    return log_chunk(offset=offset, data=text, **changes)


def word(kind: LogKind, **changes: Any) -> LogChunk:
    return log_chunk(kind=kind, **{"data": b"", "offset": 0} | changes)


def take(place: Place, chunk: LogChunk) -> LogPiece | None:
    assert place.follows(chunk)
    return place.take(chunk)


def test_output_in_order_passes_and_moves_the_place():
    place = Place(1, 1, 0)
    assert take(place, data(0, b"ab")).data == b"ab"
    assert take(place, data(2, b"cd")).data == b"cd"
    assert place.offset == 4


def test_what_came_twice_is_left_out():
    place = Place(1, 1, 0)
    take(place, data(0, b"abcd"))
    assert take(place, data(0, b"abcd")) is None
    assert take(place, data(1, b"bc")) is None
    assert place.offset == 4


def test_of_an_overlap_only_the_new_bytes_pass():
    place = Place(1, 1, 3)
    piece = take(place, data(0, b"abcdef"))
    assert (piece.offset, piece.data, piece.next_offset) == (3, b"def", 6)


@pytest.mark.parametrize(
    "chunk",
    [
        data(5, b"later"),
        word(LogKind.ATTEMPT_END, offset=5),
        word(LogKind.GAP, offset=5, length=3),
        word(LogKind.END, offset=5, reason="so_far"),
        word(LogKind.END, attempt=2),
        data(0, b"of the next attempt", attempt=2),
        data(1, b"stderr", stream=LogStream.ERR),
    ],
    ids=["data", "attempt_end", "gap", "end so far", "end", "next attempt", "stderr"],
)
def test_whatever_comes_behind_a_hole_shows_that_something_was_lost(chunk: LogChunk):
    place = Place(1, 1, 0)
    take(place, data(0, b"abc"))
    assert not place.follows(chunk)


def test_an_attempt_end_leads_to_the_beginning_of_the_next_attempt():
    place = Place(1, 1, 0)
    take(place, data(0, b"abc"))
    piece = take(place, word(LogKind.ATTEMPT_END, offset=3))
    assert (piece.kind, piece.attempt) == ("attempt_end", 1)
    assert (place.attempt, place.offset) == (2, 0)
    assert take(place, data(0, b"again", attempt=2)).data == b"again"


def test_what_comes_again_of_an_earlier_attempt_is_left_out():
    place = Place(1, 2, 7)
    assert take(place, data(100, b"old", attempt=1)) is None
    assert take(place, word(LogKind.ATTEMPT_END, attempt=1, offset=3)) is None
    assert (place.attempt, place.offset) == (2, 7)


def test_an_end_leads_to_the_next_generation():
    place = Place(1, 1, 0)
    take(place, word(LogKind.ATTEMPT_END))
    assert take(place, word(LogKind.END, attempt=2)) is None
    assert (place.gen, place.attempt, place.offset) == (2, 1, 0)


def test_bytes_beyond_the_cap_are_a_gap_that_the_place_moves_over():
    place = Place(1, 1, 10)
    piece = take(place, word(LogKind.GAP, offset=10, length=90, reason="output_cap"))
    assert (piece.kind, piece.offset, piece.reason) == ("gap", 10, "output_cap")
    assert place.offset == 100
    assert take(place, word(LogKind.GAP, offset=10, length=90, reason="output_cap")) is None
    # The spoke stands before what it did not ship.
    assert take(place, word(LogKind.ATTEMPT_END, offset=10)).kind == "attempt_end"


def test_a_spool_that_lost_its_end_is_said_and_what_is_written_there_now_is_new():
    place = Place(1, 1, 1_000)
    piece = take(place, word(LogKind.GAP, offset=600, length=400, reason="truncated"))
    assert (piece.kind, piece.offset) == ("gap", 600)
    assert take(place, data(600, b"new")).data == b"new"
    assert place.offset == 603


def test_a_spool_that_is_missing_is_said():
    place = Place(1, 1, 50)
    assert take(place, word(LogKind.GAP, reason="missing")).reason == "missing"
    assert take(place, word(LogKind.ATTEMPT_END, offset=50)).kind == "attempt_end"


def test_a_gap_without_a_reason_says_how_much_is_gone():
    assert take(Place(1, 1, 0), word(LogKind.GAP, length=7)).reason == "7 bytes are gone"


def test_streams_are_followed_apart():
    place = Place(1, 1, 0)
    take(place, data(0, b"out"))
    assert take(place, data(0, b"err!", stream=LogStream.ERR)).data == b"err!"
    assert take(place, data(0, b"err!", stream=LogStream.ERR)) is None
    assert place.offset == 3


def test_a_later_generation_begins_at_its_beginning_and_the_same_one_goes_on():
    place = Place(1, 3, 9)
    place.start(1)
    assert (place.attempt, place.offset) == (3, 9)
    place.start(2)
    assert (place.gen, place.attempt, place.offset) == (2, 1, 0)


@given(st.data())
def test_however_a_stream_is_cut_lost_repeated_and_asked_again_the_reader_gets_it_whole_and_once(
    source: Any,
):
    texts = source.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=3))
    place, got = Place(1, 1, 0), dict.fromkeys(range(1, len(texts) + 1), b"")
    for _ in range(60):
        if place.gen == 2:
            break
        for chunk in tail_from(place, texts, source):
            if source.draw(st.integers(0, 9)) == 0:
                continue  # lost on the way
            if not place.follows(chunk):
                break  # asked again
            piece = place.take(chunk)
            if piece is not None and piece.kind == "data":
                got[piece.attempt] += piece.data
    assert place.gen < 2 or list(got.values()) == texts


def tail_from(place: Place, texts: list[bytes], source: Any) -> list[LogChunk]:
    """What a spoke sends for a Tail from a place, cut anyhow, with some of it twice."""
    chunks: list[LogChunk] = []
    for attempt in range(place.attempt, len(texts) + 1):
        text, offset = texts[attempt - 1], place.offset if attempt == place.attempt else 0
        while offset < len(text):
            size = source.draw(st.integers(1, 20))
            chunks.append(data(offset, text[offset : offset + size], attempt=attempt))
            offset = min(len(text), offset + size)
            if source.draw(st.booleans()):
                chunks.append(chunks[-1])
        chunks.append(word(LogKind.ATTEMPT_END, attempt=attempt, offset=offset))
    return [*chunks, word(LogKind.END, attempt=len(texts) + 1)]
