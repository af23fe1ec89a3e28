"""A few hundred mutated files, the same ones each time. `make fuzz` goes on for as long as one likes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fuzz_prepare
from fuzz_prepare import LIMITS, Findings, run
from hostile_child import HUNG, Ended, in_child
from hostile_corpus import SEEDS

from thumbnailer.problems import unforeseen

FILES = 400


def test_a_mutated_file_is_prepared_or_refused_with_a_foreseen_cause(tmp_path: Path) -> None:
    # A process of its own is small: each file has a fork, and one of this process would cost four times as much.
    command = [sys.executable, fuzz_prepare.__file__, "--files", str(FILES), "--folder", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(rf"\b{FILES}\b", ended.stdout), ended.stdout


def test_a_fault_is_told_and_its_file_kept(tmp_path: Path) -> None:
    findings = Findings()
    for number, ended in enumerate(
        [Ended(HUNG), Ended("killed by 11"), Ended(unforeseen(KeyError()).slug), Ended("ready", peak_bytes=2**40)]
    ):
        findings.add(bytes([number]), ended, tmp_path)
    findings.add(b"fine", Ended("ready"), tmp_path)

    assert len(findings.faults) == 4
    assert {path.name for path in tmp_path.iterdir()} == set(findings.faults)
    assert findings.report().count("FAULT") == 4


def test_a_run_ends_in_time_and_reports_the_worst(tmp_path: Path) -> None:
    findings = run(0.01, first_seed=1, folder=tmp_path)
    assert findings.ends.total() >= 1
    assert findings.faults == {}
    assert "slowest" in findings.report()


def test_a_child_that_hangs_is_ended_and_said_to_hang() -> None:
    assert in_child([SEEDS["AVIF"]()], LIMITS, 1e-6)[-1].end == HUNG
