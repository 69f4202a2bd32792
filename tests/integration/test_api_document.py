"""The OpenAPI document: complete in itself, and kept by the hub when schemathesis tries to prove otherwise."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.schemas import SpawnRequest
from shared.version import VERSION
from tests.helpers.hub_site import SPOKE, TOKEN, hub_site

ROOT = Path(__file__).parents[2]

SETTINGS = """
# 422 is ours for what has the right shape and cannot be; 429 and 503 may always come.
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "422", "429", "503"]

# Along links a wrong id is replaced by a right one and then expected to be refused.
[phases.stateful.generation]
mode = "positive"

# An agent that was removed is still shown, as `killed`: what happened is not forgotten.
[[operations]]
include-path-regex = "^/v1/agents"
checks.use_after_free.enabled = false

# Its body may be left out, which is counted as a wrong body.
[[operations]]
include-operation-id = "kill_agent"
checks.use_after_free.enabled = false
checks.negative_data_rejection.enabled = false
"""


def references(node: Any) -> Iterator[str]:
    match node:
        case dict():
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        case list():
            for value in node:
                yield from references(value)
        case _:
            return


async def test_the_document_is_complete_in_itself(tmp_path: Path) -> None:
    async with hub_site(tmp_path) as site, site.http() as http:
        document = (await http.get("/v1/openapi.json")).json()

    schemas = document["components"]["schemas"]
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == VERSION
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert schemas["SpawnRequest"]["additionalProperties"] is False
    assert schemas["SpawnRequest"]["properties"]["labels"]["maxProperties"] == 32

    names: list[str] = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            assert operation["summary"], (method, path)
            for status, answer in operation["responses"].items():
                kinds = set(answer.get("content", {}))
                is_problem = status >= "400" and path != "/readyz"
                assert not is_problem or kinds == {"application/problem+json"}, (method, path)
    assert len(names) == len(set(names))


@pytest.mark.slow
async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "schemathesis"
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    async with hub_site(tmp_path) as site, site.client() as hub:
        await hub.spawn(SpawnRequest(command=["a"]))
        command = (
            program, "--config-file", settings, "run", f"{site.url}/v1/openapi.json", "--header",
            f"Authorization: Bearer {TOKEN}", "--phases", "coverage,fuzzing,stateful", "--max-examples", "8", "--seed",
            "1", "--request-timeout", "10", "--no-color",
        )  # fmt: skip
        environment = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.helpers.openapi_hooks",
            "PYTHONPATH": str(ROOT),
        }
        process = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )  # fmt: skip
        try:
            async with asyncio.timeout(100):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, output.decode()[-9_000:]
        assert (await hub.spoke(SPOKE)).id == SPOKE
