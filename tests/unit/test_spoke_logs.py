"""Output is cut where a person would cut it, and nothing of it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoke.work.logs import cut


@given(st.text(), st.integers(4, 20))
def test_pieces_are_small_enough_and_give_the_whole_again(text: str, most: int) -> None:
    data = text.encode()
    pieces = cut(data, final=True, most=most)
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= most for piece in pieces)
    for piece in pieces:
        piece.decode()


@given(st.binary(), st.integers(4, 20), st.booleans())
def test_what_is_no_text_is_cut_too_and_at_most_three_bytes_are_held_back(
    data: bytes, most: int, final: bool
) -> None:
    joined = b"".join(cut(data, final=final, most=most))
    assert data.startswith(joined)
    assert len(data) - len(joined) <= (0 if final else 3)


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"ab\ncd\nefgh", [b"ab\ncd\n", b"efgh"]),
        (b"abcdefghij", [b"abcdefgh", b"ij"]),
        ("aaaaaaaé".encode(), [b"aaaaaaa", "é".encode()]),
        (b"no newline", [b"no newli", b"ne"]),
    ],
)
def test_a_cut_is_after_a_line_or_between_characters(data: bytes, pieces: list[bytes]) -> None:
    assert cut(data, final=True, most=8) == pieces


def test_half_a_character_waits_for_its_rest_until_the_end() -> None:
    half = "é".encode()[:1]
    assert cut(b"a" + half, final=False) == [b"a"]
    assert cut(b"a" + half, final=True) == [b"a" + half]
