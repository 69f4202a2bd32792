"""A real hub for the tests of its API: real NATS beside it, in the test's own loop, with a scripted spoke if wanted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from hub.app import serve
from hub.client import Client
from hub.config import (
    DatabaseGroup,
    HttpGroup,
    HubGroup,
    HubSettings,
    KeysGroup,
    NatsGroup,
    TimingGroup,
)
from shared.bus import Bus
from shared.keys import new_key_pair, read_public_key
from shared.signers import KeySigner
from tests.helpers.spoke_peer import SpokePeer
from tests.helpers.spoke_site import NatsServer, free_port

TOKEN: Final = "a-token-for-tests-only"
SPOKE: Final = "zurich"


class HubSite:
    """The folder, the NATS server and the hub of one test."""

    def __init__(self, folder: Path, *, suspect_s: float = 30.0, **http: Any) -> None:
        self.folder = folder
        self.nats = NatsServer(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.stop = asyncio.Event()
        new_key_pair(folder / "hub.key", "hub")
        new_key_pair(folder / SPOKE, "spoke")
        pins = folder / "pins"
        pins.mkdir()
        (folder / f"{SPOKE}.pub").rename(pins / f"{SPOKE}.pub")
        self.settings = HubSettings(
            hub=HubGroup(),
            http=HttpGroup(port=self.port, token=TOKEN, **http),
            database=DatabaseGroup(file=folder / "hub.db"),
            keys=KeysGroup(hub=folder / "hub.key", spokes=pins),
            nats=NatsGroup(url=self.nats.url),
            timing=TimingGroup(status_s=0.3, stop_s=2, suspect_s=suspect_s),
        )

    def http(self, **headers: str) -> httpx.AsyncClient:
        """Return a plain HTTP client with the token, for what the typed one would not send."""
        lines = {"Authorization": f"Bearer {TOKEN}", **headers}
        return httpx.AsyncClient(base_url=self.url, headers=lines, trust_env=False, timeout=10)

    def client(self) -> Client:
        return Client(self.url, TOKEN)

    async def until_up(self) -> None:
        async with self.client() as hub, asyncio.timeout(10):
            while True:
                with contextlib.suppress(Exception):
                    if (await hub.ready()).ok:
                        return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def hub_site(folder: Path, **changes: Any) -> AsyncIterator[HubSite]:
    """Run NATS and a hub until the block ends."""
    site = HubSite(folder, **changes)
    site.nats.start()
    running = asyncio.create_task(serve(site.settings, site.stop))
    try:
        ready = asyncio.create_task(site.until_up())
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        assert ready.done(), running.result() if running.done() else "the hub does not come up"
        await ready
        yield site
    finally:
        site.stop.set()
        try:
            async with asyncio.timeout(10):
                await running
        finally:
            site.nats.kill()


@asynccontextmanager
async def spoke_peer(site: HubSite) -> AsyncIterator[SpokePeer]:
    """Connect a scripted spoke and let it say hello."""
    bus = await Bus.connect(site.nats.url, name=SPOKE, user="", password="")
    try:
        signer = KeySigner.from_file(site.folder / SPOKE, "spoke")
        hub_key = read_public_key(site.folder / "hub.key.pub", "hub")
        peer = SpokePeer(bus, SPOKE, signer, hub_key)
        await peer.listen()
        await peer.hello()
        await peer.heartbeat()
        yield peer
    finally:
        await bus.close()
