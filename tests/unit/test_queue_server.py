"""Which servers a spoke trusts with its queue, and what every script begins with."""

import pytest

from shared.errors import ConfigError
from spoke.queue import names, scripts
from spoke.queue.server import check_settings, check_version

GOOD = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"}


@pytest.mark.parametrize(
    "info",
    [
        {"redis_version": "7.0.0"},
        {"redis_version": "8.2.1"},
        {"redis_version": "7.2.4", "valkey_version": "7.2.5"},
        {"redis_version": "7.2.4", "valkey_version": "9.1.2"},
    ],
)
def test_a_server_with_what_the_scripts_need_is_taken(info: dict[str, str]) -> None:
    check_version(info)


@pytest.mark.parametrize(
    "info",
    [
        {"redis_version": "6.2.14"},
        {"redis_version": "7.2.4", "valkey_version": "7.1.0"},
    ],
)
def test_an_older_server_is_refused(info: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="too old"):
        check_version(info)


def test_durable_settings_leave_no_risk() -> None:
    assert check_settings(GOOD, allow_volatile=False) == []


@pytest.mark.parametrize(
    "change", [{"appendonly": "no"}, {"appendfsync": "everysec"}, {"appendfsync": "no"}]
)
def test_volatile_settings_are_a_choice_that_is_said_aloud(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="allow_volatile"):
        check_settings(GOOD | change, allow_volatile=False)
    assert len(check_settings(GOOD | change, allow_volatile=True)) == 1


def test_eviction_is_never_a_choice() -> None:
    with pytest.raises(ConfigError, match="noeviction"):
        check_settings(GOOD | {"maxmemory-policy": "volatile-lru"}, allow_volatile=True)


def test_every_key_of_a_spoke_has_its_hash_tag() -> None:
    assert {names.key("zurich", name) for name in names.KEYS} == {
        f"felloe:{{zurich}}:{last}" for last in names.KEYS.values()
    }


@pytest.mark.parametrize("spoke", ["", "Zurich", "a'b", "zu rich", "zurich\n", "a}b"])
def test_what_is_no_spoke_id_reaches_no_script(spoke: str) -> None:
    with pytest.raises(ValueError, match="spoke id"):
        names.as_lua(spoke)


def test_only_what_begins_something_new_has_to_wait_for_memory() -> None:
    waiting = {
        name
        for name, script in scripts.load("zurich").items()
        if script.source.startswith("#!lua\n")
    }
    assert waiting == {"intake", "lease"}


def test_every_script_but_the_take_over_refuses_a_stranger_first() -> None:
    loaded = scripts.load("zurich")
    assert {name for name, script in loaded.items() if "'FENCED epoch " not in script.source} == {
        "take_over"
    }
    assert len({script.sha1 for script in loaded.values()}) == len(loaded)
