"""What is sealed on one side opens on the other; what must not be sealed is not. Attacks: tests/security."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import trust
from shared.messages import (
    MAX_ENVELOPE_BYTES,
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    Purpose,
)
from tests.helpers import builders as a


def test_commands_arrive_as_they_were_given_with_their_exact_bytes():
    given_items = [a.spawn(), a.pause(), a.status()]
    opened = trust.open_command(a.commands(*given_items), a.hub_trust(), a.NOW, 0)
    assert opened.header == a.command_header()
    assert [trusted.item for trusted in opened.items] == given_items
    for item, trusted in zip(given_items, opened.items, strict=True):
        assert trusted.raw == trust.encode_item(item)
        assert trusted.sha256 == hashlib.sha256(trusted.raw).hexdigest()


@pytest.mark.parametrize(
    ("item", "purpose"),
    [
        (a.event(), Purpose.EVENT),
        (a.heartbeat(), Purpose.HEARTBEAT),
        (a.hello(), Purpose.HELLO),
        (a.reply(), Purpose.REPLY),
        (a.log_chunk(), Purpose.LOG),
    ],
    ids=lambda part: part.name if isinstance(part, Purpose) else "",
)
def test_reports_arrive_under_their_purpose(item: trust.Report, purpose: Purpose):
    data = trust.seal_report(a.spoke_header(), [item], a.ZURICH)
    opened = trust.open_report(data, frozenset({purpose}), a.spoke_trust())
    assert (opened.purpose, opened.header, opened.items) == (purpose, a.spoke_header(), (item,))
    assert opened.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("item", [a.ack(), a.welcome()], ids=["ack", "welcome"])
def test_an_answer_is_bound_to_its_request(item: trust.Answer):
    request = trust.seal_report(a.spoke_header(), [a.event()], a.ZURICH)
    header = a.answer_header(re=hashlib.sha256(request).hexdigest())
    opened = trust.open_answer(trust.seal_answer(header, item, a.HUB), request, a.hub_trust())
    assert (opened.header, opened.item) == (header, item)


def test_the_federation_is_the_pinned_hub_key():
    assert trust.federation_of(a.HUB.public) == a.HUB.key_id


# --- the window, at its edges ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "now", [a.NOW - trust.SKEW_MS, a.NOW, a.NOW + 5 * a.MINUTE], ids=["earliest", "now", "latest"]
)
def test_the_window_includes_its_edges(now: int):
    assert trust.open_command(a.commands(a.spawn()), a.hub_trust(), now, 0)


def test_the_longest_window_is_ten_minutes():
    assert trust.open_command(
        a.commands(a.spawn(), exp=a.NOW + 10 * a.MINUTE), a.hub_trust(), a.NOW, 0
    )


def test_a_clock_just_thirty_seconds_behind_the_newest_signed_time_still_judges():
    assert trust.open_command(a.commands(a.spawn()), a.hub_trust(), a.NOW, a.NOW + trust.SKEW_MS)


@pytest.mark.parametrize("now", [0, a.NOW, a.NOW + 365 * 86_400_000], ids=["1970", "now", "later"])
@pytest.mark.parametrize("incarnation", [1, 2])
def test_a_kill_is_valid_at_any_time_and_in_any_incarnation(now: int, incarnation: int):
    data = a.commands(a.kill(), a.kill())
    opened = trust.open_command(data, a.hub_trust(incarnation=incarnation), now, a.NOW)
    assert len(opened.items) == 2


# --- batches -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, MAX_ITEM_BYTES), max_size=40))
def test_a_batch_keeps_the_order_and_leaves_nothing_out(sizes: list[int]):
    items = [b"%d" % n + b"x" * (size - 1) for n, size in enumerate(sizes)]
    groups = trust.batches(items)
    assert [item for group in groups for item in group] == items
    assert all(groups)


@given(st.lists(st.sampled_from([1, 600, 9_000, MAX_ITEM_BYTES]), min_size=1, max_size=600))
def test_every_batch_fits_one_envelope(sizes: list[int]):
    for group in trust.batches([b"x" * size for size in sizes]):
        assert len(group) <= MAX_ITEMS
        assert len(trust.seal_commands(a.command_header(), group, a.HUB)) <= MAX_ENVELOPE_BYTES


def test_batches_are_as_few_as_the_limits_allow():
    assert [len(group) for group in trust.batches([b"x"] * 600)] == [256, 256, 88]
    assert [len(group) for group in trust.batches([b"x" * MAX_ITEM_BYTES] * 5)] == [2, 2, 1]
    assert trust.batches([]) == []


def test_the_largest_item_is_opened_again():
    room = MAX_ITEM_BYTES - len(trust.encode_item(a.spawn(spec=a.spec(command=("",) * 4))))
    parts = tuple("x" * min(16_384, room - n * 16_384) for n in range(4) if room > n * 16_384)
    item = a.spawn(spec=a.spec(command=parts + ("",) * (4 - len(parts))))
    assert len(trust.encode_item(item)) == MAX_ITEM_BYTES
    assert (
        trust.open_command(a.commands(item, item), a.hub_trust(), a.NOW, 0).items[1].item == item
    )


# --- what is not sealed ------------------------------------------------------------------------------


def test_an_item_that_no_envelope_takes_is_refused_where_it_is_made():
    too_large = a.spawn(spec=a.spec(command=("x" * 16_384,) * 4))
    with pytest.raises(ValueError, match="an item of"):
        trust.encode_item(too_large)
    with pytest.raises(ValueError, match="an item of"):
        trust.seal_report(a.spoke_header(), [a.log_chunk(data=bytes(50_000))], a.ZURICH)


@pytest.mark.parametrize("count", [0, MAX_ITEMS + 1])
def test_an_envelope_holds_1_to_256_items(count: int):
    with pytest.raises(ValueError, match="1 to 256"):
        trust.seal_commands(a.command_header(), [b"{}"] * count, a.HUB)


def test_the_names_of_purposes_are_those_of_the_protocol():
    for purpose in Purpose:
        kind = purpose.name.lower()
        assert purpose.value == f"application/vnd.felloe.{kind}.v1+json"
    assert set(trust.PURPOSE_OF.values()) == set(Purpose) - {Purpose.COMMAND}


def test_a_trusted_thing_cannot_be_changed():
    opened = trust.open_command(a.commands(a.kill()), a.hub_trust(), a.NOW, 0)
    with pytest.raises(AttributeError):
        opened.items = ()  # type: ignore[misc]
    assert isinstance(opened.items[0].item, msgspec.Struct)
