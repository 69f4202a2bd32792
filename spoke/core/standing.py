"""How this spoke stands with its hub: who it is, which incarnation it lives in, what it refused.

One value object for those who sign and those who judge: intake opens commands with `trust`, the report seals what it
says under `header`, both count what they refuse. A new incarnation replaces `trust` whole, so no message is judged
half by the old one. In memory only; what must survive is written to the journal by those who change it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import assert_never

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.envelope import Refusal
from shared.ids import KeyId
from shared.keys import key_id
from shared.messages import Cordon, Drain, Pause, Resume, SpokeHeader, WantedState
from shared.signers import Signer
from shared.trust import HubTrust, Report, federation_of, seal_report


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What never changes while the daemon lives."""

    spoke: str
    hub: str
    signer: Signer
    hub_key: Ed25519PublicKey


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the operators want of this spoke, as of the revision `rev`."""

    rev: int
    paused: bool
    cordoned: bool

    def after(self, command: WantedState) -> "Wanted":
        """Return what is wanted after a command that the queue has accepted as newer."""
        match command:
            case Pause() | Resume():
                return msgspec.structs.replace(
                    self, rev=command.rev, paused=isinstance(command, Pause)
                )
            case Cordon():
                return msgspec.structs.replace(self, rev=command.rev, cordoned=command.on)
            case Drain():
                return msgspec.structs.replace(self, rev=command.rev, cordoned=True)
            case _:
                assert_never(command)


class Standing:
    """Mutable on purpose, and small: the few facts that more than one part of the daemon needs fresh."""

    def __init__(
        self, identity: Identity, *, incarnation: int, newest_ms: int, wanted: Wanted
    ) -> None:
        self._signer = identity.signer
        self._keys: Mapping[KeyId, Ed25519PublicKey] = {key_id(identity.hub_key): identity.hub_key}
        federation = federation_of(identity.hub_key)
        self.trust = HubTrust(federation, identity.hub, identity.spoke, incarnation, self._keys)
        self.newest_ms = newest_ms  # the newest signed time that was accepted
        self.wanted = wanted
        self.refusals: Counter[str] = Counter()

    @property
    def spoke(self) -> str:
        return self.trust.spoke

    @property
    def incarnation(self) -> int:
        return self.trust.incarnation

    def renew(self, incarnation: int) -> None:
        """Begin a new life: every envelope of an older one is dead from here on."""
        old = self.trust
        self.trust = HubTrust(old.federation, old.hub, old.spoke, incarnation, self._keys)

    def raise_newest(self, signed_ms: int) -> None:
        self.newest_ms = max(self.newest_ms, signed_ms)

    def refuse(self, refusal: Refusal) -> None:
        self.refusals[refusal] += 1

    def seal(self, items: list[Report], now_ms: int) -> bytes:
        """Return the signed envelope of items of one kind."""
        trust = self.trust
        header = SpokeHeader(
            federation=trust.federation, iss=trust.spoke, inc=trust.incarnation, iat=now_ms
        )
        return seal_report(header, items, self._signer)
