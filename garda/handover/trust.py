"""Which keys a user trusts for which sites, from one command to the next: ``trust.json`` of the user's own folder."""

from pathlib import Path

from pydantic import Field, ValidationError

from garda.core import files
from garda.core.config import Config
from garda.core.errors import ConfigError, RunFolderError
from garda.core.pseudonyms import own_folder
from garda.data.sequence import DomainName
from garda.handover import ledger, signing
from garda.handover.ledger import Hex64
from garda.handover.signing import Trusted

FILE = "trust.json"


class Remembered(Config):
    """The file's contents.

    Attributes:
        keys: public key by site.
        sha256: of the keys, so that a damaged file is no empty one.
    """

    keys: dict[DomainName, Hex64] = Field(default_factory=dict)
    sha256: Hex64


def read() -> list[Trusted]:
    """Every site's key; none where nobody has added one.

    Raises:
        ConfigError: the file is damaged, or has been edited.
    """
    file = own_folder() / FILE
    if not file.exists():
        return []
    try:
        known = Remembered.model_validate(files.read_json(file))
    except (ValidationError, RunFolderError):
        known = None
    if known is None or known.sha256 != ledger.digest_of(known.keys):
        raise ConfigError(file, "is damaged, or was edited by hand", "restore it, or remove it and add every key again")
    return [Trusted(key, site) for site, key in known.keys.items()]


def add(site: str, key: Path) -> str:
    """Trust a public key for a site's lines, in place of the one before; gives the key as 64 hex digits.

    Raises:
        ConfigError: no such key, or no name of a site.
    """
    digits = signing.read_public(key)
    try:
        _write({**{own.site or "": own.key for own in read()}, site: digits})
    except ValidationError:
        raise ConfigError("trust", f"{site!r} is no site's name", "give it as `garda verify` prints it") from None
    return digits


def remove(site: str) -> None:
    """Trust a site's key no longer.

    Raises:
        ConfigError: there is none.
    """
    keys = {own.site or "": own.key for own in read()}
    if keys.pop(site, None) is None:
        raise ConfigError("trust", f"no key of {site!r} is trusted", "see `garda trust list`")
    _write(keys)


def _write(keys: dict[str, str]) -> None:
    known = Remembered(keys=keys, sha256=ledger.digest_of(keys))
    files.write_json(own_folder() / FILE, known.model_dump(mode="json"))
