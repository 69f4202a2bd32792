"""`./dev bench` as a person runs it, with few samples: that it prints what it says, not how fast it is."""

import asyncio
import json
import os
import sys

import pytest

from hub.dev.settings import ROOT

pytestmark = pytest.mark.slow


async def bench(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "hub.dev", "bench", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


async def test_each_figure_is_one_json_line_with_its_limit():
    status, out, err = await bench("--json-only", "-n", "20")
    assert status == 0, err
    figures = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert [figure["name"] for figure in figures] == [
        "spawn_latency_p50",
        "spawn_latency_p99",
        "spawn_accept_rate",
        "spawn_accept_p99",
        "agents_complete_rate",
        "log_latency_p99",
        "idle_rss_hub",
        "idle_rss_spoke",
    ]
    for figure in figures:
        assert set(figure) == {"name", "value", "unit", "limit", "ratio", "n"}
        assert figure["value"] > 0
        assert figure["limit"] > 0


async def test_a_figure_that_does_not_exist_is_named():
    status, _out, err = await bench("speed")
    assert status == 125
    assert "spawn_latency" in err
