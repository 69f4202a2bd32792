"""Where is the hub, and what is its token: said on the command line, in the environment, or written down by `felloe up`.

    --hub URL or FELLOE_URL               with FELLOE_TOKEN or FELLOE_TOKEN_FILE
    .felloe/client.json                   here or in a folder above: what `felloe up` and `./dev up` wrote
    ~/.config/felloe/client.json          one's own hub

`client.json` is {"url": …, "token_file": …}, the file's path counting from its folder. A token from the environment is
never sent to an address that was found in a folder: whoever wrote that file would get it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from shared.errors import ConfigError

WHAT_TO_DO: Final = "start one with `felloe up` and call this below the folder where it runs, or set FELLOE_URL and FELLOE_TOKEN_FILE"


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """An address and the token for it."""

    url: str
    token: str


class ClientFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in a `client.json`."""

    url: str
    token_file: str


def find_hub(url: str | None, environ: Mapping[str, str], folder: Path, home: Path) -> Where:
    """Return which hub is meant; raises ConfigError that says what to do."""
    said = url or environ.get("FELLOE_URL")
    token = _token_from_environment(environ)
    if said is not None and token is not None:
        return Where(url=_checked(said), token=token)
    for file in _files(folder, home):
        found = _read(file)
        if said is None or said.rstrip("/") == found.url.rstrip("/"):
            return Where(
                url=_checked(found.url), token=_read_token(file.parent / found.token_file)
            )
    if said is not None:
        raise ConfigError(f"no token for {said}: set FELLOE_TOKEN_FILE (or FELLOE_TOKEN)")
    raise ConfigError(f"no hub is known here: {WHAT_TO_DO}")


def _token_from_environment(environ: Mapping[str, str]) -> str | None:
    file = environ.get("FELLOE_TOKEN_FILE")
    return _read_token(Path(file)) if file else environ.get("FELLOE_TOKEN")


def _files(folder: Path, home: Path) -> Iterator[Path]:
    candidates = [each / ".felloe" / "client.json" for each in (folder, *folder.parents)]
    candidates.append(home / ".config" / "felloe" / "client.json")
    return (file for file in candidates if file.is_file())


def _read(file: Path) -> ClientFile:
    try:
        return msgspec.json.decode(file.read_bytes(), type=ClientFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _read_token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {file}: {error}") from None


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the hub's address is a URL like http://127.0.0.1:8080, not {url}")
    return url
