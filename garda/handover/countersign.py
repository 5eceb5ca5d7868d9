"""Signatures of a package that is finished: garda's own, and one that standard tools verify."""

import base64
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garda.core import files
from garda.core.errors import PackageError, RunFolderError
from garda.handover import format, ledger, signing, verify
from garda.handover.verify import Verified

STATEMENT, PAYLOAD = "https://in-toto.io/Statement/v1", "application/vnd.in-toto+json"
PREDICATE = "urn:garda:package:v1"


def sign_package(path: Path, key: Ed25519PrivateKey, statement: Path | None = None) -> str:
    """Add a signature of the last line of a package's ledger, in place; weights, texts and digest stay as they are.

    Args:
        path: a package as a folder or a zip file, or a run for its last stage.
        key: signs.
        statement: a JSON file for :func:`make_envelope` too; None for none.

    Returns:
        the package's digest.

    Raises:
        PackageError: it is not whole, or has this signature already.
        RunFolderError: ``statement`` exists, or something cannot be written.
    """
    if statement is not None and statement.exists():
        raise RunFolderError(statement, "exists already", "give another name, or remove it")
    with verify.open_package(path) as found:
        lines, signatures = ledger.read_lines(found.folder), [*found.signatures]
        added = signing.sign_line(lines[-1], len(lines), key)
        if added in signatures:
            raise PackageError(path, "has this key's signature already", "nothing is left to do")
        signing.write_signatures(found.folder, [*signatures, added])
        verify.verify(found.folder)
        if path.is_dir():
            place = format.find_stage(path) if (path / "plan.json").exists() else path
            signing.write_signatures(place, [*signatures, added])
        else:
            with files.replacing(path) as temporary:
                format.pack(found.folder, temporary)
        if statement is not None:
            files.write_json(statement, make_envelope(found, key))
        return found.digest


def make_envelope(found: Verified, key: Ed25519PrivateKey) -> dict[str, object]:
    """An in-toto statement (v1) about a package's digest in a DSSE envelope (v1), signed with Ed25519.

    The subject's SHA-256 is :func:`garda.handover.format.package_digest`, which ``garda verify`` prints.
    """
    last = found.entries[-1]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": found.setup.name, "digest": {"sha256": found.digest}}],
        "predicateType": PREDICATE,
        "predicate": {"stage": last.stage, "domain": last.domain, "decision": last.decision, "garda": last.garda},
    }
    payload = json.dumps(statement, sort_keys=True).encode()
    return {
        "payloadType": PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {"keyid": signing.public_digits(key), "sig": base64.b64encode(key.sign(encode_before(payload))).decode()}
        ],
    }


def encode_before(payload: bytes) -> bytes:
    """What DSSE signs: its pre-authentication encoding of type and payload.

    >>> encode_before(b"hello")
    b'DSSEv1 28 application/vnd.in-toto+json 5 hello'
    """
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
