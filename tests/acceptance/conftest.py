"""One stack for all tests of a worker; each test makes its own agents on it."""

import pytest
import pytest_asyncio

from tests.helpers.stack import http, new_stack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory):
    async with new_stack(tmp_path_factory.mktemp("stack") / "stack") as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def api(stack):
    async with http(stack) as client:
        yield client


@pytest.fixture
def tmp_stack_folder(tmp_path):
    return tmp_path / "stack"
