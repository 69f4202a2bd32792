"""The version of this distribution, the same for hub and spoke; a test holds it to `pyproject.toml`.

Not from the metadata, so that a checkout runs as it is."""

from typing import Final

VERSION: Final = "0.1.0"
