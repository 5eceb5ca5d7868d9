"""Ed25519 signatures of a ledger's lines (RFC 8032): whose line it is.

A line vouches for every file of its package and, by its chain, for every line before it.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import Field

from garda.core import files
from garda.core.config import Config
from garda.core.errors import ConfigError, GardaError, PackageError
from garda.handover import ledger
from garda.handover.format import SIGNATURES
from garda.handover.ledger import AGAIN, Hex64

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
    key: Hex64
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def make_keys(private: Path) -> tuple[Path, str]:
    """Write a new private key that its owner alone can read, and its public key beside it, with ``.pub`` appended.

    Both are PEM files: PKCS #8 without a password (RFC 5958), and a public key of RFC 8410.

    Returns:
        the public key's file, and the key itself as 64 hex digits.

    Raises:
        GardaError: one of the files exists, or cannot be written.
    """
    public = private.with_name(private.name + ".pub")
    for file in (private, public):
        if file.exists():
            raise GardaError(file, "exists already", "give another name; a lost key cannot be made again")
    key = Ed25519PrivateKey.generate()
    with files.writing(private):
        private.parent.mkdir(parents=True, exist_ok=True)
        private.touch(0o600, exist_ok=False)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public, public_digits(key)


def read_private(path: Path) -> Ed25519PrivateKey:
    """A private key.

    Raises:
        ConfigError: no such key, or other users can read it.
    """
    load = partial(serialization.load_pem_private_key, password=None)
    remedy = "make one with `garda keygen`"
    key: Ed25519PrivateKey = _read(path, load, Ed25519PrivateKey, "is no private key without a password", remedy)
    if path.stat().st_mode & 0o077:
        raise ConfigError(path, "other users have access to the key", f"run: chmod 600 {path}")
    return key


def read_public(path: Path) -> str:
    """A public key as 64 hex digits.

    Raises:
        ConfigError: no such key.
    """
    remedy = "give a .pub file of `garda keygen`"
    key: Ed25519PublicKey = _read(path, serialization.load_pem_public_key, Ed25519PublicKey, "is no public key", remedy)
    return key.public_bytes_raw().hex()


def _read(path: Path, load: Callable[[bytes], object], kind: type, misfit: str, remedy: str) -> Any:
    try:
        key = load(files.read_bytes(path))
    except OSError as error:
        raise ConfigError(path, f"the key cannot be read ({files.reason(error)})", remedy) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(path, misfit, remedy) from None
    if not isinstance(key, kind):
        raise ConfigError(path, "is no Ed25519 key", remedy)
    return key


def public_digits(key: Ed25519PrivateKey) -> str:
    """The public key of a private one, as 64 hex digits.

    >>> len(public_digits(Ed25519PrivateKey.generate()))
    64
    """
    return key.public_key().public_bytes_raw().hex()


def read_trusted(text: str) -> Trusted:
    """``PUBKEY``, or ``SITE=PUBKEY`` for a key that may sign that site's lines alone.

    Raises:
        ConfigError: there is no such key.
    """
    *site, file = text.split("=", 1)
    return Trusted(read_public(Path(file)), *site)


def sign_line(line: bytes, number: int, key: Ed25519PrivateKey) -> Signature:
    """The signature of a ledger's line, which has this number, from 1.

    >>> key = Ed25519PrivateKey.generate()
    >>> signature = sign_line(b"what was learnt", 1, key)
    >>> signature.key == public_digits(key), fits(signature, b"what was learnt"), fits(signature, b"something else")
    (True, True, False)
    """
    return Signature(line=number, key=public_digits(key), signature=key.sign(PURPOSE + line).hex())


def fits(signature: Signature, line: bytes) -> bool:
    """Whether a signature is that of a ledger's line; whose key it is, is another question."""
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
    try:
        key.verify(bytes.fromhex(signature.signature), PURPOSE + line)
    except InvalidSignature:
        return False
    return True


def write_signatures(folder: Path, signatures: Sequence[Signature]) -> None:
    """Write all of them, a line each.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    ledger.write_lines(folder, map(ledger.encode, signatures), SIGNATURES)


def read_signatures(folder: Path) -> list[Signature]:
    """A package's signatures, unexamined; none where nobody signed.

    Raises:
        PackageError: a line is damaged.
    """
    file = folder / SIGNATURES
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [ledger.decode(Signature, line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]


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
        if signature.line > len(lines) or not fits(signature, lines[signature.line - 1]):
            raise PackageError(where, "the signature does not fit the line", AGAIN)
        site = domains[signature.line - 1]
        sites = [own.site for own in trusted if own.key == signature.key]
        if sites and None not in sites and site not in sites:
            what = f"is a line of {site}, and its key is trusted for {', '.join(map(str, sites))} alone"
            raise PackageError(where, what, f"trust it as {site}=PUBKEY, if it is that site's")
        if trusted and not sites:
            raise PackageError(where, f"signed by a stranger, {signature.key}", "trust the key, or ask whose it is")
    missing = {*range(1, len(lines) + 1)} - {signature.line for signature in signatures}
    if trusted and missing:
        raise PackageError(f"{folder}, ledger line {min(missing)}", "nobody has signed it", "ask its site to sign")
    return signatures


def check_remembered(
    folder: Path, domains: Sequence[str], signatures: Sequence[Signature], remembered: Collection[Trusted]
) -> None:
    """Every line of a site whose key is remembered bears a signature by that key.

    Args:
        folder: the package, for messages.
        domains: of each line.
        signatures: the package's, found valid.
        remembered: a key for each site that has one, see :mod:`garda.handover.trust`.

    Raises:
        PackageError: names the first line that does not.
    """
    keys = {own.site: own.key for own in remembered}
    signed = {(signature.line, signature.key) for signature in signatures}
    for number, site in enumerate(domains, 1):
        if site in keys and (number, keys[site]) not in signed:
            what = f"is a line of {site} without a signature by the key that is trusted for it"
            remedy = "ask the site to sign it; if its key has changed, `garda trust add`"
            raise PackageError(f"{folder}, ledger line {number}", what, remedy)
