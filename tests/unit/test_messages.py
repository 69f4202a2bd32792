"""Every message there and back, byte for byte, and what none of them lets in."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import messages
from shared.messages import AgentSpec, Command, Exit, ExitKind, Kill, Message, Priority, Spawn
from tests.helpers import builders as a

EXAMPLES: list[Message] = [
    a.command_header(),
    a.answer_header(),
    a.spoke_header(),
    a.spawn(),
    a.kill(),
    a.pause(),
    a.status(),
    a.tail(),
    a.event(exit=Exit(kind=ExitKind.EXITED, code=0)),
    a.offer(),
    a.hello(),
    a.heartbeat(),
    a.reply(),
    a.log_chunk(),
    a.ack(),
    a.welcome(),
]


def every_message() -> list[type[Message]]:
    return [
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    ]


@pytest.mark.parametrize("kind", every_message(), ids=lambda kind: kind.__name__)
def test_every_message_is_frozen_and_refuses_unknown_fields(kind: type[Message]):
    config = kind.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields
    assert not config.omit_defaults


@pytest.mark.parametrize("kind", every_message(), ids=lambda kind: kind.__name__)
def test_no_field_of_the_wire_is_a_float(kind: type[Message]):
    assert "float" not in str(msgspec.json.schema(kind)).lower()
    assert "'number'" not in str(msgspec.json.schema(kind))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_what_was_decoded_encodes_to_the_same_bytes(message: Message):
    raw = msgspec.json.encode(message)
    again = msgspec.json.decode(raw, type=type(message))
    assert again == message
    assert msgspec.json.encode(again) == raw


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_field_is_written_even_at_its_default(message: Message):
    written = msgspec.json.decode(msgspec.json.encode(message))
    assert set(type(message).__struct_fields__) <= set(written)


def test_the_operation_names_the_command():
    tags = {kind.__struct_config__.tag for kind in Command.__args__}
    assert tags == {
        "spawn", "kill", "remove", "status", "tail", "pause", "resume", "cordon", "drain", "refreshtrust",
    }  # fmt: skip
    for command in (a.spawn(), a.kill(), a.pause()):
        assert msgspec.json.decode(msgspec.json.encode(command), type=Command) == command


WRONG_SPECS: list[dict[str, Any]] = [
    {"priority": 0},
    {"priority": 11},
    {"priority": 5.0},
    {"priority": "5"},
    {"priority": True},
    {"max_retries": -1},
    {"max_retries": 101},
    {"command": "true"},
    {"command": ["a\u0000b"]},
    {"command": ["x"] * 257},
    {"command": ["x" * 16_385]},
    {"env": {"A": 1}},
    {"env": {"": "x"}},
    {"env": {"A=B": "x"}},
    {"env": {"A\u0000": "x"}},
    {"env": {"A": "x\u0000"}},
    {"env": {str(n): "" for n in range(129)}},
    {"input": "x" * 32_769},
    {"mounts": ["../etc"]},
    {"mounts": ["a"] * 17},
    {"sandbox": "docker"},
    {"network": "internet"},
    {"timeout_ms": 0},
    {"timeout_ms": -1},
    {"deadline_ms": 2**53},
    {"grace_ms": -1},
    {"weight": 0},
    {"limits": {"memory_bytes": 0}},
    {"limits": {"memroy_bytes": 1}},
    {"limits": None},
    {"on_lost": "forget"},
    {"handles_sigterm": 1},
    {"simulation": {"exit_code": 256}},
    {"surprise": 1},
]


@pytest.mark.parametrize("change", WRONG_SPECS, ids=lambda change: str(change)[:40])
def test_a_wrong_value_in_a_spec_is_refused(change: dict[str, Any]):
    right = msgspec.to_builtins(a.spec())
    assert msgspec.convert(right, AgentSpec)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(right | change, AgentSpec)


@pytest.mark.parametrize("name", AgentSpec.__struct_fields__)
def test_no_field_of_a_spec_may_be_left_out(name: str):
    right = msgspec.to_builtins(a.spec())
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({key: right[key] for key in right if key != name}, AgentSpec)


def test_arguments_may_hold_newlines_and_any_letter():
    command = ("sh", "-c", "echo 'Zürich'\necho 🚲\n", "")
    assert a.spec(command=command) == msgspec.json.decode(
        msgspec.json.encode(a.spec(command=command)), type=AgentSpec
    )


def test_the_only_way_to_a_message_is_by_field_names():
    with pytest.raises(TypeError):
        messages.Limits(1)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        a.kill().gen = 2  # type: ignore[misc]


@given(st.integers())
def test_a_priority_is_1_to_10(number: int):
    try:
        msgspec.convert(number, Priority)
    except msgspec.ValidationError:
        assert not 1 <= number <= 10
    else:
        assert 1 <= number <= 10


def test_a_kill_is_no_spawn_under_another_tag():
    raw = msgspec.json.encode(a.kill()).replace(b'"op":"kill"', b'"op":"spawn"')
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=Spawn | Kill)
