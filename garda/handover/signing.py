"""Ed25519 signatures of a ledger's lines (RFC 8032): whose line it is.

A line vouches for every file of its package and, by its chain, for every line before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import Field, ValidationError

from garda.core import files
from garda.core.config import Config
from garda.core.errors import ConfigError, GardaError, PackageError
from garda.handover.format import SIGNATURES

PURPOSE = b"garda ledger line\0"  # so that no signature made for something else fits


class Trusted(NamedTuple):
    """A public key as hex digits, and the one site whose lines it may sign; None for any."""

    key: str
    site: str | None = None


class Signature(Config):
    """One signature.

    Attributes:
        line: number of the ledger's line, from 1.
        key: the public key, 64 hex digits.
        signature: 128 hex digits.
    """

    line: int = Field(ge=1)
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def make_keys(private: Path) -> tuple[Path, str]:
    """Write a new private key that its owner alone can read, and its public key beside it, with ``.pub`` appended.

    Returns:
        the public key's file, and the key itself as hex digits.

    Raises:
        GardaError: one of the files exists, or cannot be written.
    """
    public = private.with_name(private.name + ".pub")
    for file in (private, public):
        if file.exists():
            raise GardaError(file, "exists already", "give another name; a lost key cannot be made again")
    key = Ed25519PrivateKey.generate()
    try:
        private.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise files.describe(error, private) from error
    return public, _hex(key.public_key())


def read_private(path: Path) -> Ed25519PrivateKey:
    """A private key.

    Raises:
        ConfigError: no such key, or other users can read it.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        if path.stat().st_mode & 0o077:
            raise ConfigError(path, "other users have access to the key", f"run: chmod 600 {path}")
    except OSError as error:
        raise ConfigError(
            path, f"the key cannot be read ({files.reason(error)})", "make one with `garda keygen`"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(path, "is no private key without a password", "make one with `garda keygen`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(path, "is no Ed25519 key", "make one with `garda keygen`")
    return key


def read_public(path: Path) -> str:
    """A public key as hex digits.

    Raises:
        ConfigError: no such key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(path, f"the key cannot be read ({files.reason(error)})", "give a .pub file") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(path, "is no public key", "give a .pub file of `garda keygen`") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(path, "is no Ed25519 key", "give a .pub file of `garda keygen`")
    return _hex(key)


def read_trusted(text: str) -> Trusted:
    """``PUBKEY``, or ``SITE=PUBKEY`` for a key that may sign that site's lines alone; errors as :func:`read_public`."""
    site, equals, file = text.partition("=")
    return Trusted(read_public(Path(file)), site) if equals else Trusted(read_public(Path(text)))


def sign_line(line: bytes, number: int, key: Ed25519PrivateKey) -> Signature:
    """The signature of a ledger's line."""
    return Signature(line=number, key=_hex(key.public_key()), signature=key.sign(PURPOSE + line).hex())


def write_signatures(folder: Path, signatures: Sequence[Signature]) -> None:
    """Write all of them; errors as in :func:`garda.core.files.replacing`."""
    with files.replacing(folder / SIGNATURES) as temporary:
        text = "".join(json.dumps(signature.model_dump(), sort_keys=True) + "\n" for signature in signatures)
        temporary.write_text(text, encoding="utf-8")


def read_signatures(folder: Path) -> list[Signature]:
    """A package's signatures, unexamined.

    Raises:
        PackageError: a line is damaged.
    """
    file = folder / SIGNATURES
    signatures = []
    for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else [], 1):
        try:
            signatures.append(Signature.model_validate(json.loads(line)))
        except (ValueError, ValidationError, RecursionError):
            raise PackageError(f"{file}, line {number}", "is damaged", "ask for the package again") from None
    return signatures


def check_signatures(
    folder: Path, lines: Sequence[bytes], domains: Sequence[str], trusted: Collection[Trusted]
) -> list[Signature]:
    """Every signature, found valid; where keys are trusted, every line must bear one of theirs and no other.

    Args:
        folder: the package.
        lines: its ledger's.
        domains: of each line.
        trusted: whose signatures count; none compares the signatures with no one.

    Raises:
        PackageError: a signature does not fit its line, is a stranger's, or is missing.
    """
    signatures = read_signatures(folder)
    for signature in signatures:
        where = f"{folder / SIGNATURES}, ledger line {signature.line}"
        if signature.line > len(lines) or not _fits(signature, lines[signature.line - 1]):
            raise PackageError(where, "the signature does not fit the line", "ask for the package again")
        site = domains[signature.line - 1]
        sites = [own.site for own in trusted if own.key == signature.key]
        if sites and None not in sites and site not in sites:
            what = f"is a line of {site}, and its key is trusted for {', '.join(map(str, sites))} alone"
            raise PackageError(where, what, f"trust it as {site}=PUBKEY, if it is that site's")
        if trusted and not sites:
            raise PackageError(where, f"signed by a stranger, {signature.key}", "trust the key, or ask whose it is")
    signed = {signature.line for signature in signatures}
    missing = next((number for number in range(1, len(lines) + 1) if number not in signed), None)
    if trusted and missing is not None:
        raise PackageError(f"{folder}, ledger line {missing}", "nobody has signed it", "ask its site to sign")
    return signatures


def _fits(signature: Signature, line: bytes) -> bool:
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
    try:
        key.verify(bytes.fromhex(signature.signature), PURPOSE + line)
    except InvalidSignature:
        return False
    return True


def public_digits(key: Ed25519PrivateKey) -> str:
    """The public key of a private one, as hex digits."""
    return _hex(key.public_key())


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
