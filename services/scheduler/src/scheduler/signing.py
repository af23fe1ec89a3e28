"""Signatures of callbacks: symmetric ones of Standard Webhooks 1.0."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from uuid import UUID

from darkroom.errors import ConfigurationError

PREFIX = "whsec_"
KEY_BYTES = range(24, 65)
"""What the specification asks for."""


def read_keys(secrets: str) -> tuple[bytes, ...]:
    """The keys in a list of secrets separated by spaces; raises `ConfigurationError`, which shows none of them."""
    keys = tuple(_read_key(secret, number) for number, secret in enumerate(secrets.split(), 1))
    if not keys:
        raise ConfigurationError("DARKROOM_WEBHOOK_SECRET is empty")
    return keys


def _read_key(secret: str, number: int) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or len(key) not in KEY_BYTES:
        raise ConfigurationError(
            f"secret {number} of DARKROOM_WEBHOOK_SECRET is not {PREFIX!r} and base64 of {KEY_BYTES[0]} to "
            f"{KEY_BYTES[-1]} bytes; make one with: echo {PREFIX}$(openssl rand -base64 32)"
        )
    return key


def signed_headers(keys: Sequence[bytes], message_id: UUID, sent_at_s: int, body: bytes) -> dict[str, str]:
    """The three headers of a callback, with a signature for each key; `sent_at_s`: seconds since 1970."""
    signed = f"{message_id}.{sent_at_s}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": str(message_id),
        "webhook-timestamp": str(sent_at_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
