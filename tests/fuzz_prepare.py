"""Mutations of whole files, on which `prepare` must neither hang, die nor meet an error that nobody foresaw.

The suite draws a few hundred of them. For longer: `make fuzz ARGS="--minutes 10"`. What that finds is written to a
folder; mend it, and keep it in `hostile_corpus.py`.
"""

import argparse
import hashlib
import struct
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hostile_child import Ended, in_child
from hostile_corpus import READY, SEEDS, boundaries
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from thumbnailer.decoding import Limits

LIMITS = Limits(pixels=4_000_000, frames=100, memory_bytes=128 * 2**20, cpu_s=30)
HANGS_S = 120.0
"""After which a child is taken to hang, on a machine with other work."""
CHILD_BYTES = LIMITS.memory_bytes + 64 * 2**20
"""A child's peak: the ceiling, and what it had before."""

FORESEEN = {
    READY,
    "unsupported-format",
    "image-truncated",
    "image-corrupt",
    "too-many-pixels",
    "image-side-too-long",
    "too-many-frames",
    "too-many-scans",
    "image-needs-too-much-memory",
}

MARK_BYTES = {"JPEG": 3, "TIFF": 4, "BigTIFF": 4, "GIF": 6, "BMP": 2}
"""By the last word of a seed's name; 12 of all others."""

_NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32_767, 65_535, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One of the seeds with one to five of its places changed, half of them at the boundaries of its structure."""
    name = draw(st.sampled_from(sorted(SEEDS)))
    data = bytearray(SEEDS[name]())
    edges = boundaries(name, bytes(data))
    for _ in range(draw(st.integers(1, 5))):
        anywhere = st.integers(0, max(0, len(data) - 1))
        near = st.builds(lambda edge, off: max(0, min(edge + off, len(data) - 1)), st.sampled_from(edges), _OFFSETS)
        at = draw(st.one_of(near, anywhere))
        if draw(st.integers(0, 9)):  # else the mark of its format, without which nothing else is looked at
            at = max(at, min(MARK_BYTES.get(name.rpartition(" ")[2], 12), len(data) - 1))
        match draw(st.sampled_from(("bytes", "number", "cut out", "repeat", "put in", "splice", "end"))):
            case "bytes":
                change = draw(st.binary(min_size=1, max_size=4))
                data[at : at + len(change)] = change
            case "number":
                form = draw(st.sampled_from(("B", "<H", ">H", "<I", ">I")))
                value = draw(st.sampled_from(_NUMBERS)) & (256 ** struct.calcsize(form) - 1)
                data[at : at + struct.calcsize(form)] = struct.pack(form, value)
            case "cut out":
                del data[at : at + draw(st.integers(1, 64))]
            case "repeat":
                piece = data[at : at + draw(st.integers(1, 256))]
                data[at:at] = piece * draw(st.sampled_from((1, 2, 50)))
            case "put in":
                data[at:at] = draw(st.binary(min_size=1, max_size=64))
            case "splice":
                other = SEEDS[draw(st.sampled_from(sorted(SEEDS)))]()
                start = draw(st.integers(0, len(other) - 1))
                data[at:at] = other[start : start + draw(st.integers(1, 512))]
            case "end":
                del data[at:]
        if not data:
            return b""
    return with_right_checksums(bytes(data)) if "PNG" in name and draw(st.booleans()) else bytes(data)


_OFFSETS = st.integers(-4, 12)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have: otherwise nothing behind a change would be looked at."""
    fixed, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + length]
        if at + 12 + length > len(data):
            break
        fixed += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return bytes(fixed + data[at:])


def fault_of(ended: Ended) -> str | None:
    """What was wrong with an end; None where it was one of those that are foreseen."""
    if ended.end not in FORESEEN:
        return f"{ended.end}: {ended.said}"
    if ended.peak_bytes > CHILD_BYTES:
        return f"{ended.end} after taking {ended.peak_bytes} bytes"
    return None


@dataclass
class Findings:
    """What a run met."""

    ends: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0, "")
    hungriest: tuple[int, str] = (0, "")
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, data: bytes, ended: Ended, folder: Path) -> None:
        """Counts one file; keeps its bytes where it was the worst so far, or met a fault."""
        name = hashlib.sha256(data).hexdigest()[:12]
        self.ends[ended.end] += 1
        fault = fault_of(ended)
        is_worst = ended.cpu_s > self.slowest[0] or ended.peak_bytes > self.hungriest[0]
        self.slowest = max(self.slowest, (ended.cpu_s, name))
        self.hungriest = max(self.hungriest, (ended.peak_bytes, name))
        if fault:
            self.faults[name] = fault
        if fault or is_worst:
            (folder / name).write_bytes(data)

    def report(self) -> str:
        """The findings as text."""
        lines = [f"{sum(self.ends.values())} files: " + ", ".join(f"{end} {n}" for end, n in self.ends.most_common())]
        lines.append(f"slowest: {self.slowest[0]:.2f} s of one core, {self.slowest[1]}")
        lines.append(f"most memory: {self.hungriest[0] / 2**20:.0f} MiB, {self.hungriest[1]}")
        lines += [f"FAULT {name}: {fault}" for name, fault in self.faults.items()] or ["no fault"]
        return "\n".join(lines)


def run(minutes: float, first_seed: int, folder: Path) -> Findings:
    """Prepares mutated files in children until the time is over, 500 for each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    findings, deadline, number = Findings(), time.monotonic() + 60 * minutes, first_seed

    @settings(
        max_examples=500,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated())
    def prepare_one(data: bytes) -> None:
        if time.monotonic() < deadline:
            findings.add(data, in_child([data], LIMITS, LIMITS.cpu_s)[0], folder)

    while time.monotonic() < deadline:
        seed(number)(prepare_one)()
        number += 1
    return findings


def run_some(files: int, folder: Path) -> Findings:
    """Prepares so many mutated files in children, the same ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    findings = Findings()

    @settings(
        max_examples=files,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated())
    def prepare_one(data: bytes) -> None:
        findings.add(data, in_child([data], LIMITS, HANGS_S)[0], folder)

    prepare_one()
    return findings


def main() -> None:
    """Runs, reports, and ends with 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--files", type=int, help="instead: so many files, the same ones each time")
    parser.add_argument("--seed", type=int, default=1, help="of the first 500 files; the next 500 have the next one")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="where the worst files are kept")
    arguments = parser.parse_args()
    if arguments.files is not None:
        findings = run_some(arguments.files, arguments.folder)
    else:
        findings = run(arguments.minutes, arguments.seed, arguments.folder)
    print(findings.report())
    sys.exit(bool(findings.faults))


if __name__ == "__main__":
    main()
