"""What a benchmark's figures were measured with: the last line that each prints."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version

_PACKAGES = {
    "kdlite": "kdlite",
    "keras": "Keras",
    "tensorflow": "TensorFlow",
    "ai-edge-litert": "LiteRT",
}


def versions(*more: str) -> str:
    """Says it of what all measure with, and of more packages."""
    packages = {**_PACKAGES, **{name: name for name in more}}
    said = [f"{title} {version(name)}" for name, title in packages.items()]
    return (
        f"{', '.join(said)}, Python {platform.python_version()}; "
        f"{platform.machine()}, {os.cpu_count()} cores, {date.today():%B %Y}"
    )
