"""Ids that sort by the time they were made."""

import uuid


def uuid7(unix_ms: int, random_bits: int) -> uuid.UUID:
    """A version 7 UUID (RFC 9562) of a time in milliseconds since 1970 and 74 random bits; Python 3.11 has none.

    Raises `ValueError` when either does not fit.
    """
    if not 0 <= unix_ms < 2**48:
        raise ValueError(f"{unix_ms} ms does not fit into 48 bits")
    if not 0 <= random_bits < 2**74:
        raise ValueError("random_bits does not fit into 74 bits")
    high, low = divmod(random_bits, 2**62)
    return uuid.UUID(int=unix_ms << 80 | 7 << 76 | high << 64 | 0b10 << 62 | low)
