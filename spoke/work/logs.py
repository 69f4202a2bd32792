"""Output as a reader sees it: attempt after attempt, from a position on, with every gap declared.

A position is (attempt, byte offset); it survives every restart, because the sandbox itself writes the spool and nobody
rewrites it. A `Reading` is one reader's position. Each `step` gives the chunks that can be sent now; nothing means:
look again in a moment. What is read is cut where a person would cut it, after a line, or at least between characters,
but a prompt without a newline is not held back.

    data … data, attempt_end, data … attempt_end, end

`gap` stands for bytes that are gone or are not shipped: a spool that was dropped or truncated, and everything beyond
the output cap. `end` comes once the generation is closed here; with reason `unknown` where nothing is known of it, and
`so_far` where the reader did not want to follow. With stderr apart, the offset that a reader gives is stdout's;
stderr of that attempt comes from its beginning.
"""

from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Final

from shared.messages import LogChunk, LogKind, LogStream, Tail
from spoke.spawners.base import Sandbox
from spoke.state.spools import SpoolMissingError, Spools, SpoolTruncatedError

PIECE_BYTES: Final = 32 * 1024
# Three pieces: with base64 inside the payload they fit one envelope.
_READ_BYTES: Final = 3 * PIECE_BYTES
_CAP_FILE: Final = "capped"
# The longest UTF-8 sequence has four bytes.
_PARTIAL: Final = 3


class Where(Enum):
    """How it stands with one attempt of one generation, as far as its output goes."""

    LIVE = "live"  # it writes, or may begin to at any moment
    AWAITED = "awaited"  # it does not exist yet, but may come
    GONE = "gone"  # it will write no more, its spool is there
    MISSING = "missing"  # there are later ones, its spool is not there
    CLOSED = "closed"  # it will never come: the generation is closed
    UNKNOWN = "unknown"  # nothing is known of this generation


# (attempt) → how it stands, and its output cap in bytes if that is known.
Look = Callable[[int], Awaitable[tuple[Where, int | None]]]


class Reading:
    """One reader's way through the output of one generation. One caller at a time; no task of its own."""

    def __init__(self, tail: Tail, spools: Spools, look: Look) -> None:
        self._tail = tail
        self._spools = spools
        self._look = look
        self._attempt = tail.attempt
        self._offsets = {LogStream.OUT: tail.offset, LogStream.ERR: 0}
        self._was_live = False
        self._capped: set[LogStream] = set()
        self.where = Where.AWAITED
        self.is_done = False

    async def step(self) -> list[LogChunk]:
        """Return what can be sent now, in order; after `is_done` there is nothing more."""
        where, cap = await self._look(self._attempt)
        # Looked at first, read afterwards: what an attempt wrote before it was gone is then all there.
        self.where = where
        chunks = self._read(cap, final=where not in (Where.LIVE, Where.AWAITED))
        if chunks:
            return chunks
        match where:
            case Where.LIVE:
                self._was_live = True
                return self._stay()
            case Where.AWAITED:
                return self._stay()
            case Where.GONE | Where.MISSING:
                return [*self._missing(), *self._next_attempt()]
            case Where.CLOSED | Where.UNKNOWN:
                return self._without_spool(where)

    def _stay(self) -> list[LogChunk]:
        return [] if self._tail.follow else self._end("so_far")

    def _missing(self) -> list[LogChunk]:
        """Declare a spool that is not there, unless its attempt was seen alive and had written nothing yet."""
        offset = self._offsets[LogStream.OUT]
        is_there = self._spools.size(self._tail.agent, self._tail.gen, self._attempt) is not None
        if is_there or (self._was_live and offset == 0):
            return []
        return [self._chunk(LogKind.GAP, offset=offset, reason="missing")]

    def _without_spool(self, where: Where) -> list[LogChunk]:
        """A live attempt that never wrote has no spool, and ends like any other."""
        if self._was_live:
            return self._next_attempt()
        began = self._attempt > self._tail.attempt or where is Where.CLOSED
        return self._end("" if began else "unknown")

    def _next_attempt(self) -> list[LogChunk]:
        end = self._chunk(LogKind.ATTEMPT_END, offset=self._offsets[LogStream.OUT])
        self._attempt += 1
        self._offsets = dict.fromkeys(LogStream, 0)
        self._was_live = False
        self._capped.clear()
        return [end]

    def _end(self, reason: str) -> list[LogChunk]:
        self.is_done = True
        return [self._chunk(LogKind.END, reason=reason)]

    # --- reading --------------------------------------------------------------------------------------

    def _read(self, cap: int | None, *, final: bool) -> list[LogChunk]:
        """One stream at a time, so that what is read always fits one envelope."""
        for stream in LogStream:
            chunks = self._read_stream(stream, cap, final=final)
            if chunks:
                return chunks
        return []

    def _read_stream(self, stream: LogStream, cap: int | None, *, final: bool) -> list[LogChunk]:
        if stream in self._capped:
            return []
        offset = self._offsets[stream]
        room = _READ_BYTES if cap is None else min(_READ_BYTES, max(0, cap - offset))
        place = (self._tail.agent, self._tail.gen, self._attempt, stream)
        try:
            data = self._spools.read(*place, offset, max(room, 1))
        except SpoolMissingError:
            return []
        except SpoolTruncatedError as error:
            self._offsets[stream] = error.size
            return [self._gap(stream, error.size, offset - error.size, "truncated")]
        if room == 0:
            return self._over_the_cap(stream, offset, has_more=bool(data))
        return self._cut(stream, offset, data, final=final)

    def _over_the_cap(self, stream: LogStream, offset: int, *, has_more: bool) -> list[LogChunk]:
        if not has_more:
            return []
        self._capped.add(stream)
        size = self._spools.size(self._tail.agent, self._tail.gen, self._attempt, stream) or 0
        return [self._gap(stream, offset, max(0, size - offset), "output_cap")]

    def _cut(self, stream: LogStream, offset: int, data: bytes, *, final: bool) -> list[LogChunk]:
        chunks: list[LogChunk] = []
        for piece in cut(data, final=final):
            chunk = self._chunk(LogKind.DATA, stream=stream, offset=offset, data=piece)
            chunks.append(chunk)
            offset += len(piece)
        self._offsets[stream] = offset
        return chunks

    def _gap(self, stream: LogStream, offset: int, length: int, reason: str) -> LogChunk:
        return self._chunk(LogKind.GAP, stream=stream, offset=offset, length=length, reason=reason)

    def _chunk(
        self,
        kind: LogKind,
        *,
        stream: LogStream = LogStream.OUT,
        offset: int = 0,
        data: bytes = b"",
        length: int = 0,
        reason: str = "",
    ) -> LogChunk:
        return LogChunk(
            cmd=self._tail.id,
            agent=self._tail.agent,
            gen=self._tail.gen,
            attempt=self._attempt,
            kind=kind,
            stream=stream,
            offset=offset,
            data=data,
            length=length,
            reason=reason,
        )


def cut(data: bytes, *, final: bool, most: int = PIECE_BYTES) -> list[bytes]:
    """Cut output into pieces of at most `most` bytes, after a newline if there is one, else between characters.

    Unless `final`, an incomplete character at the very end is left for the next time.
    """
    pieces: list[bytes] = []
    start = 0
    while len(data) - start > most:
        end = data.rfind(b"\n", start, start + most) + 1
        if end <= start:
            end = start + most - _incomplete(data[start : start + most])
        pieces.append(data[start:end])
        start = end
    rest = data[start:]
    if not final:
        rest = rest[: len(rest) - _incomplete(rest)]
    return [*pieces, rest] if rest else pieces


def _incomplete(data: bytes) -> int:
    """Return how many bytes at the end begin a UTF-8 character that is not complete (RFC 3629, section 3)."""
    for back in range(1, min(_PARTIAL, len(data)) + 1):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue  # a following byte: its first one is further back
        needs = (
            2
            if byte >> 5 == 0b110
            else 3
            if byte >> 4 == 0b1110
            else 4
            if byte >> 3 == 0b11110
            else 1
        )
        return back if needs > back else 0
    return 0


def note_cap(sandbox: Sandbox) -> None:
    """Leave beside the spools how much of them may be shipped, for readers who come when the attempt is over."""
    sandbox.folder.mkdir(parents=True, exist_ok=True)
    (sandbox.folder / _CAP_FILE).write_text(str(sandbox.spec.limits.output_bytes))


def noted_cap(folder: Path) -> int | None:
    """Return what `note_cap` left, None where the output stayed under its cap."""
    try:
        return int((folder / _CAP_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
