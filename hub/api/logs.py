"""Logs: an agent's output, from where it lies at its site; as SSE or as plain text.

A position is generation.attempt.offset, the offset counting bytes. It is the `id` of each SSE event, so a broken stream
goes on where it ended. Text is cut at whole characters: bytes of a character that is not complete yet are kept back,
and the position stands before them. What cannot be had is said: `gap` for bytes that are gone, `absent` for a site
that is away.
"""

import codecs
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec
from litestar.types import ASGIApp
from msgspec import UNSET

from hub.api.operation import (
    SSE,
    TEXT,
    ApiRequest,
    Segment,
    TheHub,
    operation,
    read_query,
    wants_events,
)
from hub.api.stream import Stream, event
from hub.control.hub import Hub
from hub.control.watch import LogPiece
from hub.schemas import LogPosition, LogsQuery, LogView
from hub.store import agents
from hub.store.agents import Agent
from shared.errors import BadInputError, UnavailableError
from shared.messages import LogStream

Pieces = AsyncGenerator[LogPiece, None]


@operation(
    "GET",
    "/v1/agents/{agent_id:str}/logs",
    query=LogsQuery,
    headers=("Last-Event-ID",),
    gives={200: (TEXT, SSE)},
    problems=(404, 422, 503),
)
async def read_logs(request: ApiRequest, hub: TheHub, agent_id: Segment) -> ASGIApp:
    """Read an agent's output.

    As plain text all there is so far, with `follow` until it ends. As `text/event-stream` events of the kinds log, gap,
    absent, attempt_end and end, following unless `follow=false`.
    """
    query = read_query(request, LogsQuery)
    agent = hub.reader.run(
        lambda connection: agents.find(connection, request.auth.tenant, agent_id)
    )
    start = _last_event_id(request) or query.start
    if wants_events(request):
        pieces = _tail(hub, agent, start, follow=query.follow is UNSET or query.follow)
        return Stream(_as_events(pieces), media_type=SSE, stopping=hub.stopping, heartbeat=True)
    pieces = _tail(hub, agent, start, follow=bool(query.follow))
    first = None if query.follow else await _first(pieces)
    return Stream(_as_text(first, pieces), media_type=TEXT, stopping=hub.stopping, heartbeat=False)


class Texts:
    """Cuts the bytes of streams into whole characters. One decoder for each (generation, attempt, stream)."""

    def __init__(self) -> None:
        self._decoders: dict[tuple[int, int, LogStream], codecs.IncrementalDecoder] = {}

    def take(self, piece: LogPiece) -> tuple[int, str, int]:
        """Return (offset of the text, the text, offset behind it) for a piece of data."""
        key = (piece.gen, piece.attempt, piece.stream)
        decoder = self._decoders.get(key)
        if decoder is None:
            decoder = self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
        start = piece.offset - len(decoder.getstate()[0])
        text = decoder.decode(piece.data)
        return start, text, piece.offset + len(piece.data) - len(decoder.getstate()[0])

    def rest(self) -> list[tuple[int, int, LogStream, str]]:
        """Return what was kept back, once nothing can follow it."""
        found = [
            (*key, decoder.decode(b"", final=True)) for key, decoder in self._decoders.items()
        ]
        self._decoders.clear()
        return [each for each in found if each[-1]]


def _tail(hub: Hub, agent: Agent, start: str, *, follow: bool) -> Pieces:
    gen, attempt, offset = (int(number) for number in start.split("."))
    return hub.tail(agent, gen=gen, attempt=attempt, offset=offset, follow=follow)


async def _as_events(pieces: Pieces) -> AsyncGenerator[bytes, None]:
    texts = Texts()
    async with aclosing(pieces):
        async for piece in pieces:
            if piece.kind == "data":
                offset, text, behind = texts.take(piece)
                if text:
                    yield _event(piece, "log", offset, text, behind)
                continue
            for gen, attempt, stream, text in texts.rest():
                kept = LogPiece(
                    gen=gen, attempt=attempt, offset=piece.offset, kind="data", stream=stream
                )
                yield _event(kept, "log", piece.offset, text, None)
            has_place = piece.kind in ("gap", "attempt_end")
            yield _event(piece, piece.kind, piece.offset, "", piece.offset if has_place else None)


def _event(piece: LogPiece, kind: str, offset: int, text: str, behind: int | None) -> bytes:
    """Only the merged or standard output has a position: stderr on its own comes again from its start."""
    view = LogView(
        generation=piece.gen,
        attempt=piece.attempt,
        stream=piece.stream,
        offset=offset,
        text=text,
        reason=piece.reason,
    )
    has_id = behind is not None and piece.stream is LogStream.OUT
    return event(kind, view, f"{piece.gen}.{piece.attempt}.{behind}" if has_id else None)


async def _first(pieces: Pieces) -> LogPiece | None:
    """Wait for the first piece: while nothing was sent, an absent site can still be a proper problem."""
    first = await anext(pieces, None)
    if first is not None and first.kind == "absent":
        await pieces.aclose()
        raise UnavailableError(first.reason, code="spoke_away")
    return first


async def _as_text(first: LogPiece | None, pieces: Pieces) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        if first is not None:
            yield _text_of(first)
        async for piece in pieces:
            yield _text_of(piece)


def _text_of(piece: LogPiece) -> bytes:
    match piece.kind:
        case "data":
            return piece.data
        case "gap" | "absent":
            return f"\n[felloe: {piece.kind}: {piece.reason}]\n".encode()
        case _:
            return b""


def _last_event_id(request: ApiRequest) -> str | None:
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    try:
        return msgspec.convert(given, LogPosition)
    except msgspec.ValidationError:
        raise BadInputError(
            f"Last-Event-ID is generation.attempt.offset, not {given[:40]!r}"
        ) from None


HANDLERS: Final = (read_logs,)
