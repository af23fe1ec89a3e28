"""Files that look like pictures to the gateway, which never decodes one."""

JPEG_MAGIC = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"


def picture(seed: int, size: int = 5000) -> bytes:
    """`size` bytes of their own for each seed."""
    pattern = f"{seed:08d}".encode()
    return (JPEG_MAGIC + pattern * (size // len(pattern) + 1))[:size]


MODEL_ID = "stand-in@0123456789ab"
DIM = 3
