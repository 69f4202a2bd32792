"""The demo's attacker: it can hear everything on NATS and put anything on a spoke's command subject, but has no key.

What it tries, each time with bytes taken from the wire:

    forged      the hub's own header, a Spawn of an agent of its own, signed with a key of its own
    disguised   the same, under the hub's key id
    altered     a real command, one letter of its payload changed
    replayed    a real command, byte for byte once more
"""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hub.dev import nats
from hub.dev.plan import Plan
from shared import subjects
from shared.bus import Bus
from shared.clock import now_ms
from shared.envelope import pack, pae
from shared.ids import KeyId, uuid7
from shared.signers import KeySigner

# What the forged agent would be, so that its absence can be seen.
FORGED_COMMAND: Final = ("/bin/sleep", f"9{os.getpid()}")


class Attacker:
    """Hears the commands of one spoke. Built by `listen`, ended by `close`."""

    def __init__(self, bus: Bus, spoke: str) -> None:
        self._bus = bus
        self._subject = subjects.commands(spoke)
        self._heard: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1_000)

    @classmethod
    async def listen(cls, plan: Plan, spoke: str) -> Self:
        password = plan.facts.passwords[nats.TAP]
        bus = await Bus.connect(plan.nats_url, name="attacker", user=nats.TAP, password=password)
        attacker = cls(bus, spoke)
        await bus.listen(attacker._subject, attacker._hear)
        await bus.flush()
        return attacker

    async def close(self) -> None:
        await self._bus.close()

    async def captured(self, agent: str) -> bytes:
        """Return the envelope that spawned this agent, as it went over the wire."""
        while True:
            data = await self._heard.get()
            payload = _payload(json.loads(data))
            if any(item["op"] == "spawn" and item["agent"] == agent for item in payload["items"]):
                return data

    async def put(self, data: bytes) -> None:
        """Put these bytes on the spoke's command subject."""
        await self._bus.publish(self._subject, data)
        await self._bus.flush()

    async def _hear(self, _subject: str, data: bytes) -> None:
        if not self._heard.full():
            self._heard.put_nowait(data)


def forged(captured: bytes, *, disguised: bool) -> bytes:
    """Return a Spawn of another agent under the captured header, signed with a key that nobody admitted."""
    envelope = json.loads(captured)
    payload = _payload(envelope)
    item = payload["items"][0]
    item |= {"id": uuid7(now_ms()), "agent": uuid7(now_ms())}
    item["spec"] |= {"command": list(FORGED_COMMAND)}
    body = json.dumps(
        {**payload, "items": [item]}, separators=(",", ":"), ensure_ascii=False
    ).encode()
    signer = KeySigner(Ed25519PrivateKey.generate())
    name = KeyId(envelope["signatures"][0]["keyid"]) if disguised else signer.key_id
    kind = envelope["payloadType"]
    return pack(kind, body, [(name, signer.sign(pae(kind, body)))])


def altered(captured: bytes) -> bytes:
    """Return the captured command with one letter of its payload changed, its shape still right."""
    envelope = json.loads(captured)
    payload = base64.b64decode(envelope["payload"])
    changed = payload.replace(b'"priority":5', b'"priority":9', 1)
    if changed == payload:
        raise ValueError("nothing to change in this command")
    envelope["payload"] = base64.b64encode(changed).decode()
    return json.dumps(envelope, separators=(",", ":")).encode()


def forged_runs() -> bool:
    """Tell whether a process of the forged agent is alive anywhere on this machine."""
    wanted = " ".join(FORGED_COMMAND)
    if Path("/proc/self/cmdline").exists():
        return any(wanted in line for line in _command_lines())
    listed = subprocess.run(
        ["/bin/ps", "-axo", "args="], capture_output=True, text=True, check=True
    )
    return wanted in listed.stdout


def _command_lines() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _payload(envelope: dict[str, str]) -> dict[str, Any]:
    return json.loads(base64.b64decode(envelope["payload"]))
