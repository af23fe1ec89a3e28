"""What a process has in its memory, seen from outside. Linux; for processes that we started, or as root."""

import re
from pathlib import Path

CHUNK_BYTES = 2**24


def holds(pid: int, secret: str) -> bool:
    """Whether the text is anywhere in what the process could write to: its heap, its stacks, its environment."""
    needle = secret.encode()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            region = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if region is None:
                continue
            position, end = (int(bound, 16) for bound in region.groups())
            before = b""
            while position < end:
                memory.seek(position)
                try:
                    read = memory.read(min(CHUNK_BYTES, end - position))
                except OSError:  # given back meanwhile
                    break
                if not read:
                    break
                if needle in before + read:
                    return True
                before, position = read[-len(needle) :], position + len(read)
    return False
