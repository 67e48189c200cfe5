"""Seeds that follow from other seeds, so that every random choice has one and no two choices share one."""

import hashlib


def derive_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for the choice named by ``parts``; the same arguments give the same seed on every machine."""
    text = "\0".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
