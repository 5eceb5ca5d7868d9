"""What kept knowledge says of itself, read without opening a network."""

from pathlib import Path

from garda.core import files
from garda.core.config import Config
from garda.core.errors import CheckpointError, RunFolderError
from garda.data.sequence import DomainName
from garda.data.task import Groups

EXPERTS = ("plain", "curves")  # networks that have learnt the source otherwise than the segmenter has


class Metadata(Config):
    """The contents of ``knowledge.json``.

    Attributes:
        domains: the domains met.
        draws: those that the generator draws; None without one.
        largest: of which classes the largest piece alone is kept, see :mod:`garda.data.components`.
    """

    domains: tuple[DomainName, ...]
    draws: tuple[DomainName, ...] | None
    largest: Groups = ()


def read_metadata(folder: Path) -> Metadata:
    """What ``knowledge.json`` says.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    file = folder / "knowledge.json"
    if not file.is_file():
        raise CheckpointError(folder, "holds no knowledge of a finished stage", "give the folder of a finished run")
    try:
        return Metadata.model_validate(files.read_json(file))
    except (ValueError, RunFolderError):
        raise CheckpointError(file, "is damaged", "copy the whole folder again") from None
