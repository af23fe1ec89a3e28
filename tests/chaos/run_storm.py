"""Brings a storm over a Darkroom of its own: `make chaos`, `make chaos ARGS=--long`. docs/chaos.md says more."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from darkroom_house import House
from faults import KINDS
from storm import StormOptions, run_storm
from storm_report import StormReport, markdown, report_of
from verdict import judge

BROKERS = ("redis", "rabbitmq")
SHORT_UPLOADS = 300
LONG_MINUTES = 30.0
LONG_UPLOADS = 5000
STRIKE_EVERY_S = 12.0
SEED = 20261121


def weather(options: StormOptions, folder: Path, say: Callable[[str], None] = print) -> StormReport:
    """Starts a Darkroom in an empty folder, brings the storm over it, judges it, and stops it."""
    say(f"storm on {options.broker}: seed {options.seed}, {options.uploads} uploads, {options.strikes} strikes")
    with House(options.broker, folder) as house:
        say(f"disk: {house.disk.how}")
        course = run_storm(house, options, say)
        verdict = judge(house, course, options.seed, options.uploads, say)
        return report_of(house, options, course, verdict)


def short_form(broker: str, seed: int = SEED) -> StormOptions:
    """Every kind of fault once."""
    return StormOptions(broker, seed, SHORT_UPLOADS, tuple(KINDS), len(KINDS))


def judged_short_form(broker: str) -> StormReport:
    """The short form in a folder of its own."""
    # Not in pytest's own folder: the path of a socket in it would be too long.
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as folder:
        return weather(short_form(broker), Path(folder))


def long_form(broker: str, seed: int, minutes: float, uploads: int) -> StormOptions:
    """A strike every 12 s, or more often so that every kind has its turn; pauses beyond every time limit."""
    strikes = max(len(KINDS), int(minutes * 60 / STRIKE_EVERY_S))
    return StormOptions(
        broker, seed, uploads, tuple(KINDS), strikes, longest_hold_s=10.0, pace_s=minutes * 60 / strikes
    )


def main(arguments: Sequence[str]) -> int:
    """0 when nothing was lost and nothing wrong on any broker."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="of the photos and of what strikes when (%(default)s)")
    parser.add_argument(
        "--broker", choices=[*BROKERS, "both"], default="both", help="(%(default)s, one after the other)"
    )
    parser.add_argument(
        "--long", action="store_true", help=f"{LONG_MINUTES:g} minutes and {LONG_UPLOADS:,} uploads on each broker"
    )
    parser.add_argument("--minutes", type=float, help="of strikes on each broker, for another long form")
    parser.add_argument("--uploads", type=int, help="on each broker, for another long form")
    parser.add_argument("--report", type=Path, help="a Markdown file for what was done and what came of it")
    parser.add_argument("--keep", type=Path, help="a new folder, of a short name, in which logs and database are left")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    reports: list[StormReport] = []
    for broker in BROKERS if given.broker == "both" else (given.broker,):
        options = short_form(broker, given.seed)
        if given.long or given.minutes or given.uploads:
            minutes, uploads = given.minutes or LONG_MINUTES, given.uploads or LONG_UPLOADS
            options = long_form(broker, given.seed, minutes, uploads)
        with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as folder:
            reports.append(weather(options, given.keep / broker if given.keep else Path(folder), _say))
        _say(f"\n{reports[-1].as_markdown()}")
        if given.report is not None:
            given.report.parent.mkdir(parents=True, exist_ok=True)
            given.report.write_text(markdown(reports, _again(given)))
    return 0 if all(report.is_passed for report in reports) else 1


def _again(given: argparse.Namespace) -> str:
    """The arguments that repeat a storm."""
    chosen = {"minutes": given.minutes, "uploads": given.uploads}
    others = [f"--{name} {value:g}" for name, value in chosen.items() if value]
    return " ".join([f"--broker {given.broker}", f"--seed {given.seed}", *(["--long"] if given.long else []), *others])


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
