"""What an agent finds in its environment: what its spec gives, its own identity, and nothing of the daemon's."""

from typing import Final

from spoke.spawners.base import Sandbox, SetupError

_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


def environment(sandbox: Sandbox, *, home: str, input_path: str) -> dict[str, str]:
    """Return the agent's variables; the spec may replace PATH, HOME and LANG, but not who the agent is.

    Raises SetupError for what no environment and no argument can hold. The check is also a guard: options reach
    bubblewrap separated by NUL, so a value with a NUL in it would be an option.
    """
    spec = sandbox.spec
    texts = (*spec.command, *spec.env, *spec.env.values())
    if any("\0" in text for text in texts) or any("=" in name or not name for name in spec.env):
        raise SetupError(
            "a command or an environment with a NUL, or a variable without a proper name"
        )
    return {
        "PATH": _PATH,
        "HOME": home,
        "LANG": "C.UTF-8",
        **spec.env,
        "FELLOE_AGENT": sandbox.agent,
        "FELLOE_GENERATION": str(sandbox.gen),
        "FELLOE_ATTEMPT": str(sandbox.attempt),
        # The same for every attempt: what the agent does outside may be done again.
        "FELLOE_IDEMPOTENCY_KEY": f"{sandbox.agent}-{sandbox.gen}",
        "FELLOE_INPUT": input_path,
    }
