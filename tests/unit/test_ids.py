"""Names of things: what passes as one, and how new ones are made."""

import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import Name, Sha256, Uuid7, sha256, uuid7, uuid7s
from tests.helpers.builders import NOW

RIGHT = "01a1ee56-5e00-7000-8037-990581d17436"


def test_a_new_id_is_a_uuid_of_version_7_with_its_time_in_front():
    made = uuid.UUID(uuid7(NOW))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == NOW


def test_the_ids_of_one_batch_sort_in_its_order_and_are_all_different():
    made = uuid7s(NOW, 10_000)
    assert made == sorted(made)
    assert len(set(made)) == 10_000


def test_ids_of_a_later_millisecond_sort_later():
    assert uuid7(NOW) < uuid7(NOW + 1)


@given(st.integers(min_value=0, max_value=2**48 - 1))
def test_every_id_that_we_make_is_one_that_we_accept(ms: int):
    assert msgspec.convert(uuid7(ms), Uuid7)


@pytest.mark.parametrize("name", ["a", "zurich", "gpu-7", "0", "a" * 63, "a--b", "a-"])
def test_a_name_is_lower_case_letters_digits_and_dashes(name: str):
    assert msgspec.convert(name, Name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "A",
        "a" * 64,
        "a.b",
        "a b",
        "a\n",
        "\na",
        "a*",
        ">",
        "a>",
        "zürich",
        "a\x00",
        "a/b",
        "..",
        "\u0661",
    ],
)
def test_what_could_be_a_subject_a_path_or_a_wildcard_is_no_name(name: str):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, Name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        str(uuid.UUID(int=0)),
        str(uuid.UUID(int=0, version=4)),
        RIGHT.upper(),
        RIGHT + "\n",
        RIGHT.replace("-", ""),
        "{" + RIGHT + "}",
        " " + RIGHT,
    ],
)
def test_only_one_spelling_of_a_uuid_and_only_version_7_passes(text: str):
    assert msgspec.convert(RIGHT, Uuid7)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, Uuid7)


def test_a_hash_is_64_lower_case_hex_digits():
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert msgspec.convert(sha256(b""), Sha256)
    for wrong in (sha256(b"").upper(), sha256(b"")[1:], sha256(b"") + "\n", "g" * 64):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Sha256)
