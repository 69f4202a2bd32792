"""What really goes over NATS, judged by an implementation of DSSE that is not ours."""

import asyncio
import json

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from hub.dev import nats
from shared import subjects
from shared.bus import Bus
from shared.ids import KeyId
from shared.keys import key_id, read_public_key
from shared.messages import Purpose
from tests.helpers.stack import output, spawn, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_securesystemslib_verifies_every_envelope_of_an_agents_life(stack, api):
    heard: list[tuple[str, bytes]] = []

    async def hear(subject: str, data: bytes) -> None:
        heard.append((subject, data))

    password = stack.plan.facts.passwords[nats.TAP]
    tap = await Bus.connect(stack.plan.nats_url, name="oracle", user=nats.TAP, password=password)
    try:
        for subject in (
            subjects.commands("zurich"),
            subjects.reports("zurich"),
            "felloe.v1.zurich.log.*",
        ):
            await tap.listen(subject, hear)
        await tap.flush()
        agent = await spawn(api, command=["sh", "-c", "echo hello; sleep 0.5"], spoke="zurich")
        await until(api, agent, "running", "succeeded")
        assert (await api.get(f"/v1/agents/{agent}/status")).status_code == 200
        await until(api, agent, "succeeded")
        assert await output(api, agent) == ["hello"]
        await asyncio.sleep(1)  # a heartbeat comes every half second
    finally:
        await tap.close()

    keys = {name: _key(stack, name) for name in ("hub", "zurich")}
    seen = set()
    for subject, data in heard:
        signer = keys["hub" if subject.endswith(".cmd") else "zurich"]
        envelope = Envelope.from_dict(json.loads(data))
        assert envelope.verify([signer], 1)
        seen.add(Purpose(envelope.payload_type))
    assert seen >= {Purpose.COMMAND, Purpose.EVENT, Purpose.HEARTBEAT, Purpose.REPLY, Purpose.LOG}


def _key(stack, name: str) -> SSlibKey:
    public = read_public_key(
        stack.plan.folder / name / "key.pub", "hub" if name == "hub" else "spoke"
    )
    return SSlibKey.from_crypto(public, keyid=KeyId(key_id(public)))
