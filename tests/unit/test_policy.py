"""The digest says when an agent that was refused is worth offering again."""

from shared.messages import SandboxKind
from spoke.config import Mount, SandboxGroup
from spoke.core.policy import digest, policy_of

BWRAP, SIMULATED = SandboxKind.BUBBLEWRAP, SandboxKind.SIMULATED


def test_the_digest_does_not_depend_on_the_order_of_the_settings() -> None:
    a = SandboxGroup(mounts={"a": Mount(source="/a"), "b": Mount(source="/b")})
    b = SandboxGroup(mounts={"b": Mount(source="/b"), "a": Mount(source="/a")})
    assert digest(policy_of(a, (BWRAP, SIMULATED))) == digest(policy_of(b, (SIMULATED, BWRAP)))


def test_the_digest_changes_with_what_is_allowed_and_with_what_works_here() -> None:
    plain = SandboxGroup()
    digests = {
        digest(policy_of(plain, (BWRAP,))),
        digest(policy_of(plain, (SIMULATED,))),
        digest(policy_of(SandboxGroup(allow_host_network=True), (BWRAP,))),
        digest(policy_of(SandboxGroup(mounts={"a": Mount(source="/a")}), (BWRAP,))),
    }
    assert len(digests) == 4
