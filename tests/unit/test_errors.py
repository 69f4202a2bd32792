"""The error tree: whose fault it is stands in the type, and the code is what clients may depend on."""

import pytest

from shared import errors
from shared.envelope import Refusal, RefusalError
from shared.errors import FelloeError, OverloadedError


def every_error() -> list[type[FelloeError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [k for k in found if issubclass(k, FelloeError) and k is not FelloeError]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_of_its_own_and_says_what_it_was_given(kind: type[FelloeError]):
    codes = [other.code for other in every_error()]
    assert codes.count(kind.code) == 1
    more = {"retry_after_s": 1.0} if kind is OverloadedError else {}
    assert str(kind("move it away first", **more)) == "move it away first"
    assert kind("x", code="narrower", **more).code == "narrower"
    assert kind.code != "narrower"


def test_an_overload_says_when_to_come_back():
    assert OverloadedError("full", retry_after_s=2.5).retry_after_s == 2.5


def test_a_refusal_carries_its_name_and_its_detail():
    error = RefusalError(Refusal.EXPIRED, "7 ms ago")
    assert (error.refusal, str(error), error.code) == (
        Refusal.EXPIRED,
        "expired: 7 ms ago",
        "refused",
    )
    assert str(RefusalError(Refusal.UNKNOWN_KEY)) == "unknown_key"
