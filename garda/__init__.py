"""garda: continual unsupervised domain adaptation for medical segmentation, without keeping an image."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from garda.core import pseudonyms

# MONAI imports MLflow and Matplotlib: they would send usage, and write an id and a list of fonts into folders of theirs
NO_USAGE = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
for _name, _value in {**NO_USAGE, "MPLCONFIGDIR": str(pseudonyms.own_folder() / "matplotlib")}.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from garda.api import Package

__all__ = ["Package", "__version__", "load"]
__version__ = "0.2.0"


def load(path: str | Path, trust: Collection[str] = (), expect: str = "") -> Package:
    """A package, once it has been found whole; torch and MONAI are imported now, not with garda.

    >>> package = load("package.zip")
    >>> print(package.card.splitlines()[0])
    # tiny: heart_phantom

    Args:
        path: a folder, a zip file, or a run folder for its last stage.
        trust: public key files whose signatures count, ``SITE=FILE`` for a site's own; none for not asking.
        expect: the package's digest, as another channel has told it; empty for not asking.

    Raises:
        GardaError: there is no package, it is not whole, or not signed as asked.
    """
    from garda import api

    return api.load_package(path, trust, expect)


def __getattr__(name: str) -> Any:
    """``garda.Package``, imported when it is asked for."""
    if name != "Package":
        raise AttributeError(f"module 'garda' has no attribute {name!r}")
    from garda.api import Package

    return Package
