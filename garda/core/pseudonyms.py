"""Keyed names in place of patients' and scans' own, so that tables and logs can be shown.

The key never lies in a run folder: who has the tables alone can neither read a name nor test a guess (HMAC, RFC 2104).
"""

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from garda.core import files
from garda.core.errors import GardaError

KEY_BYTES = 32
DIGITS = 12  # 48 bits: among 10,000 names, two fall together with a probability of 2e-7


class Pseudonyms:
    """Names under one key; equal names give equal pseudonyms, another key gives others."""

    def __init__(self, key: bytes) -> None:
        """Use ``key``, see :func:`load_key`."""
        self._key = key

    def pseudonym(self, kind: str, identifier: str) -> str:
        """The initial of the kind and 12 hex digits.

        >>> Pseudonyms(bytes(32)).pseudonym("patient", "sub-01")
        'P-a2ce27248bfb'

        Args:
            kind: what is named, not empty; a patient and a case of one name get unrelated pseudonyms.
            identifier: the name that is to stay secret.
        """
        return f"{kind[0].upper()}-{self.digest(kind, identifier)[:DIGITS]}"

    def digest(self, kind: str, contents: str) -> str:
        """64 hex digits under the key, by which its holder alone can show what the contents were."""
        return hmac.digest(self._key, f"{kind}\0{contents}".encode(), "sha256").hex()


def own_folder() -> Path:
    """The user's own folder: the one that the environment variable ``GARDA_HOME`` names, or ``~/.config/garda``."""
    return Path(os.environ.get("GARDA_HOME") or "~/.config/garda").expanduser()


def load_key(folder: Path | None = None) -> bytes:
    """The user's key, 32 bytes; a random one is made, readable by the user alone, where there is none yet.

    Args:
        folder: where ``pseudonyms.key`` lies; by default :func:`own_folder`.

    Raises:
        GardaError: the key is damaged, other users can read it, or it can be neither read nor made.
    """
    path = (folder or own_folder()) / "pseudonyms.key"
    try:
        if not path.exists():
            _make(path)
        key, mode = files.read_bytes(path), path.stat().st_mode & 0o777
    except OSError as error:
        what = f"the pseudonym key cannot be read or made ({files.reason(error)})"
        raise GardaError(path, what, "set GARDA_HOME to a folder of your own") from None
    if len(key) != KEY_BYTES:
        remedy = "restore it from a backup; a new key would give new pseudonyms"
        raise GardaError(path, f"a key has {KEY_BYTES} bytes, the file has {len(key)}", remedy)
    if mode & 0o077:
        raise GardaError(path, f"other users have access to the key (mode {mode:04o})", f"run: chmod 600 {path}")
    return key


def _make(path: Path) -> None:
    """Write a new key under a name that is still free: of two processes at once, one wins and both read its key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
