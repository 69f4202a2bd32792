"""Everything that Felloe raises on purpose.

    FelloeError
    ├── BadInputError        the caller's fault: says which field, and what it takes
    ├── NotAuthenticatedError
    ├── NotAllowedError
    ├── NotFoundError
    ├── ConflictError        the caller's wish and the present state exclude each other
    ├── OverloadedError      come back after `retry_after_s`
    ├── UnavailableError     something we stand on is away; nothing was lost
    ├── ConfigError          settings that cannot work: says which setting, and where it came from
    ├── FencedError          a newer daemon owns this queue: stop, touch nothing
    └── RefusalError         trust or policy said no, by name (`shared.envelope`)

The stable `code` is what clients may depend on; the HTTP status is in `hub.api.problems`, once.
"""


class FelloeError(Exception):
    """Base of all errors that Felloe raises on purpose; `str()` says what to do."""

    code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class BadInputError(FelloeError):
    """The request is wrong, and will be wrong again."""

    code = "bad_input"


class NotAuthenticatedError(FelloeError):
    """No token, or one that we do not know."""

    code = "not_authenticated"


class NotAllowedError(FelloeError):
    """A known caller without the right for this."""

    code = "not_allowed"


class NotFoundError(FelloeError):
    """No such thing, or not the caller's."""

    code = "not_found"


class ConflictError(FelloeError):
    """The present state excludes what was asked."""

    code = "conflict"


class OverloadedError(FelloeError):
    """Refused now to protect what was accepted before; try again after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class UnavailableError(FelloeError):
    """Something that we stand on is away."""

    code = "unavailable"


class ConfigError(FelloeError):
    """Settings that cannot work."""

    code = "config"


class FencedError(FelloeError):
    """A newer daemon has taken this queue over."""

    code = "fenced"
