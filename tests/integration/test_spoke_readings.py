"""A reader's way through real spools: attempt after attempt, with every gap declared."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.messages import LogChunk, LogKind, LogStream
from spoke.state.spools import Spools
from spoke.work.logs import PIECE_BYTES, Reading, Where
from tests.helpers.hub_peer import tail

AGENT = "0190aaaa-0000-7000-8000-000000000001"


class Spoke:
    """Spools of one generation, and what is known of its attempts."""

    def __init__(self, folder: Path) -> None:
        self.spools = Spools(folder)
        self.known: dict[int, Where] = {}
        self.cap: int | None = None

    def write(self, attempt: int, data: bytes, stream: LogStream = LogStream.OUT) -> None:
        folder = self.spools.folder(AGENT, 1, attempt)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / stream.value).open("ab") as spool:
            spool.write(data)

    async def look(self, attempt: int) -> tuple[Where, int | None]:
        return self.known.get(attempt, Where.CLOSED), self.cap

    def reading(self, **changes: object) -> Reading:
        return Reading(tail(AGENT, **changes), self.spools, self.look)


async def all_of(reading: Reading) -> list[LogChunk]:
    chunks: list[LogChunk] = []
    while not reading.is_done:
        found = await reading.step()
        assert found, "nothing came, and it was not over"
        chunks.extend(found)
    return chunks


def brief(chunks: list[LogChunk]) -> list[tuple[str, int, bytes | str]]:
    return [
        (c.kind.value, c.attempt, c.data if c.kind is LogKind.DATA else c.reason) for c in chunks
    ]


@pytest.fixture
def spoke(tmp_path: Path) -> Spoke:
    return Spoke(tmp_path)


async def test_a_finished_generation_is_read_attempt_by_attempt(spoke: Spoke) -> None:
    spoke.write(1, b"one\n")
    spoke.write(2, b"two\n")
    spoke.known = {1: Where.GONE, 2: Where.GONE}
    assert brief(await all_of(spoke.reading())) == [
        ("data", 1, b"one\n"),
        ("attempt_end", 1, ""),
        ("data", 2, b"two\n"),
        ("attempt_end", 2, ""),
        ("end", 3, ""),
    ]


async def test_a_dropped_spool_between_others_is_a_gap(spoke: Spoke) -> None:
    spoke.write(2, b"two\n")
    spoke.known = {1: Where.MISSING, 2: Where.GONE}
    chunks = brief(await all_of(spoke.reading()))
    assert chunks[:3] == [("gap", 1, "missing"), ("attempt_end", 1, ""), ("data", 2, b"two\n")]


async def test_what_is_written_last_comes_before_the_end_of_its_attempt(spoke: Spoke) -> None:
    spoke.write(1, b"first\n")
    spoke.known = {1: Where.LIVE}
    reading = spoke.reading()
    assert brief(await reading.step()) == [("data", 1, b"first\n")]
    assert await reading.step() == []
    spoke.write(1, b"last\n")
    spoke.known = {1: Where.GONE}
    assert brief(await reading.step()) == [("data", 1, b"last\n")]
    assert brief(await reading.step()) == [("attempt_end", 1, "")]


async def test_a_live_attempt_that_never_wrote_ends_without_a_gap(spoke: Spoke) -> None:
    spoke.known = {1: Where.LIVE}
    reading = spoke.reading()
    assert await reading.step() == []
    spoke.known = {1: Where.UNKNOWN, 2: Where.UNKNOWN}
    assert brief(await all_of(reading)) == [("attempt_end", 1, ""), ("end", 2, "")]


async def test_who_does_not_follow_gets_what_is_there(spoke: Spoke) -> None:
    spoke.write(1, b"so far")
    spoke.known = {1: Where.LIVE}
    chunks = brief(await all_of(spoke.reading(follow=False)))
    assert chunks == [("data", 1, b"so far"), ("end", 1, "so_far")]


async def test_stderr_apart_comes_as_its_own_stream(spoke: Spoke) -> None:
    spoke.write(1, b"out\n")
    spoke.write(1, b"err\n", LogStream.ERR)
    spoke.known = {1: Where.GONE}
    chunks = [c for c in await all_of(spoke.reading()) if c.kind is LogKind.DATA]
    assert [(c.stream, c.data) for c in chunks] == [
        (LogStream.OUT, b"out\n"),
        (LogStream.ERR, b"err\n"),
    ]


async def test_much_output_comes_in_pieces_with_offsets_that_join(spoke: Spoke) -> None:
    data = bytes(range(256)) * 1024
    spoke.write(1, data)
    spoke.known = {1: Where.GONE}
    at = 0
    for chunk in await all_of(spoke.reading()):
        if chunk.kind is LogKind.DATA:
            assert chunk.offset == at
            assert len(chunk.data) <= PIECE_BYTES
            assert chunk.data == data[at : at + len(chunk.data)]
            at += len(chunk.data)
    assert at == len(data)


async def test_over_the_cap_a_live_reader_hears_of_the_gap_once(spoke: Spoke) -> None:
    spoke.write(1, b"x" * 12)
    spoke.known, spoke.cap = {1: Where.LIVE}, 10
    reading = spoke.reading()
    assert brief(await reading.step()) == [("data", 1, b"x" * 10)]
    (gap,) = await reading.step()
    assert (gap.kind, gap.offset, gap.length) == (LogKind.GAP, 10, 2)
    spoke.write(1, b"more")
    assert await reading.step() == []


async def test_exactly_at_the_cap_nothing_is_missing(spoke: Spoke) -> None:
    spoke.write(1, b"x" * 10)
    spoke.known, spoke.cap = {1: Where.GONE}, 10
    kinds = [c.kind for c in await all_of(spoke.reading())]
    assert kinds == [LogKind.DATA, LogKind.ATTEMPT_END, LogKind.END]


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(b"01"), lambda p: p.unlink()], ids=["truncated", "removed"]
)
async def test_a_reader_beyond_a_damaged_spool_is_not_left_without_a_word(
    spoke: Spoke, damage: Callable[[Path], object]
) -> None:
    spoke.write(1, b"0123456789")
    damage(spoke.spools.folder(AGENT, 1, 1) / "out")
    spoke.known = {1: Where.GONE}
    chunks = await all_of(spoke.reading(offset=5))
    assert chunks[0].kind is LogKind.GAP
