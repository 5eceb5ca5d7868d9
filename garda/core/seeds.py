"""Seeds for single purposes, all derived from one."""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose, such as (seed, "build") or (seed, step).

    >>> derive_seed(0, "build") == derive_seed(0, "build") != derive_seed(1, "build")
    True

    Args:
        seed: that everything random of a run comes from.
        names: the purpose; another one, another seed.

    Returns:
        0 to 2**63 - 1: the first 63 bits of the SHA-256 of seed and names, joined by colons.
    """
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
