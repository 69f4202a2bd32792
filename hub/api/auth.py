"""Who is calling: until the issue on trust there is one bootstrap token, and who has it may do everything.

The guard stands on every route but `/healthz` and `/readyz`. Tokens are compared in constant time.
"""

import hmac
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from shared.errors import NotAuthenticatedError

Connection = ASGIConnection[Any, Any, Any, Any]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """For whom, and in whose name it stands in the audit."""

    tenant: str
    actor: str


BOOTSTRAP = Caller(tenant="default", actor="bootstrap")


class Bearer:
    """Knows the one token."""

    def __init__(self, token: str) -> None:
        self._expected = token.encode()

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return who is calling; raises NotAuthenticatedError."""
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        # Latin-1 is what headers are decoded with, so this gives the bytes that came.
        known = hmac.compare_digest(
            credentials.strip().encode("latin-1", "replace"), self._expected
        )
        if scheme.lower() != "bearer" or not known:
            raise NotAuthenticatedError(
                "send `Authorization: Bearer <token>` with the hub's token"
            )
        return BOOTSTRAP

    def guard(self, connection: Connection, _handler: BaseRouteHandler) -> None:
        """Admit who is known, and say who that is in `request.auth`: for litestar."""
        connection.scope["auth"] = self.caller(connection.headers)
