"""Where a reader of an agent's output stands, and what a chunk that arrives means there. No I/O.

A place is a generation, an attempt, and the next byte of each stream. Chunks come in order, but any of them may be lost
on the way, come twice, or come again from further back after a tail was renewed. So each one is judged by its position:
one behind a hole is not taken (ask again from here), bytes that are known are left out, and what a spoke says of bytes
that are gone is passed on.
"""

from typing import Final, Literal

import msgspec

from shared.messages import LogChunk, LogKind, LogStream

PieceKind = Literal["data", "gap", "attempt_end", "absent", "end"]


class LogPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an agent's output, or a word about it; `next_offset` is where the attempt goes on."""

    gen: int
    attempt: int
    offset: int
    kind: PieceKind
    stream: LogStream = LogStream.OUT
    data: bytes = b""
    reason: str = ""

    @property
    def next_offset(self) -> int:
        return self.offset + len(self.data)


class Place:
    """Where a reader stands: the generation, the attempt, and the next byte of each stream."""

    def __init__(self, gen: int, attempt: int, offset: int) -> None:
        self.gen = gen
        self.attempt = attempt
        self._next = {LogStream.OUT: offset, LogStream.ERR: 0}

    @property
    def offset(self) -> int:
        return self._next[LogStream.OUT]

    def start(self, gen: int) -> None:
        """Go to a generation, at its beginning if it is a later one."""
        if gen > self.gen:
            self.gen = gen
            self._begin(1)

    def follows(self, chunk: LogChunk) -> bool:
        """Tell whether nothing is missing before this chunk: every attempt ends with a word that says where."""
        if chunk.attempt != self.attempt:
            return chunk.attempt < self.attempt
        return chunk.offset <= self._next[chunk.stream]

    def take(self, chunk: LogChunk) -> LogPiece | None:
        """Move past a chunk that follows; returns what of it is new, or None."""
        if chunk.attempt < self.attempt:
            return None
        if chunk.kind is LogKind.END:
            self.start(self.gen + 1)
            return None
        if _is_truncation(chunk):
            self._next[chunk.stream] = chunk.offset  # what is written from now on stands there
            return _piece(chunk, 0)
        length = chunk.length if chunk.kind is LogKind.GAP else len(chunk.data)
        known = self._next[chunk.stream] - chunk.offset if length else 0
        if length and known >= length:
            return None
        if length:
            self._next[chunk.stream] = chunk.offset + length
        if chunk.kind is LogKind.ATTEMPT_END:
            self._begin(chunk.attempt + 1)
        return _piece(chunk, known)

    def piece(self, kind: PieceKind, reason: str) -> LogPiece:
        """Return a word about the stream at this place."""
        return LogPiece(
            gen=self.gen, attempt=self.attempt, offset=self.offset, kind=kind, reason=reason
        )

    def _begin(self, attempt: int) -> None:
        self.attempt = attempt
        self._next = {LogStream.OUT: 0, LogStream.ERR: 0}


def _piece(chunk: LogChunk, known: int) -> LogPiece:
    """Return a chunk as its reader sees it, without the bytes at its beginning that are known."""
    return LogPiece(
        gen=chunk.gen, attempt=chunk.attempt, offset=chunk.offset + known, kind=_KINDS[chunk.kind],
        stream=chunk.stream, data=chunk.data[known:], reason=chunk.reason or _gap_text(chunk),
    )  # fmt: skip


def _is_truncation(chunk: LogChunk) -> bool:
    """Tell whether the spool was found shorter than what had been read of it."""
    return chunk.kind is LogKind.GAP and chunk.reason == "truncated"


def is_unknown(chunk: LogChunk) -> bool:
    """Tell whether the spoke ends a generation because it knows nothing of it."""
    return chunk.kind is LogKind.END and chunk.reason == "unknown"


def _gap_text(chunk: LogChunk) -> str:
    return f"{chunk.length} bytes are gone" if chunk.kind is LogKind.GAP else ""


_KINDS: Final[dict[LogKind, PieceKind]] = {
    LogKind.DATA: "data",
    LogKind.GAP: "gap",
    LogKind.ATTEMPT_END: "attempt_end",
}
