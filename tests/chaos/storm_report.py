"""What a storm did and what came of it, as a page for people."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from darkroom_house import SETTINGS, House, Stage
from storm import CLIENTS, Course, StormOptions, line_of
from verdict import Verdict


@dataclass(frozen=True)
class StormReport:
    """How a storm went and how it ended, with all that is needed to repeat it."""

    options: StormOptions
    disk: str
    machine: str
    course: Course
    verdict: Verdict

    @property
    def is_passed(self) -> bool:
        """Whether everything was as it must be."""
        return not self.verdict.faults

    def as_markdown(self) -> str:
        """A section: the figures, each kind of fault, every strike. Without dates and ids, which say nothing."""
        verdict = "nothing lost, nothing wrong" if self.is_passed else "WRONG"
        return "\n".join(
            [
                f"## On {self.options.broker}: {verdict}",
                "",
                *(f"- **WRONG**: {fault}" for fault in self.verdict.faults),
                *([] if self.is_passed else [""]),
                *_table(("what", "figure"), self._figures()),
                "",
                *_table(("kind of fault", "strikes", "in flight at them, in all", "at least"), self._kinds()),
                "",
                "```",
                *map(line_of, self.course.struck),
                "```",
                "",
            ]
        )

    def _figures(self) -> list[tuple[str, str]]:
        options, course, figures = self.options, self.course, self.verdict.figures
        answers = ", ".join(f"{count:,} x {answer}" for answer, count in sorted(course.answers.items()))
        ledger = ", ".join(f"{count:,} {name}" for name, count in figures["ledger"].items())
        return [
            ("seed", str(options.seed)),
            ("machine", self.machine),
            ("settings", ", ".join(f"{name}={value}" for name, value in SETTINGS.items())),
            ("full disk", self.disk),
            ("storm", f"{len(course.struck)} strikes of {len(options.kinds)} kinds in {course.took_s:,.0f} s"),
            ("uploads", f"{options.uploads:,} by {CLIENTS} clients"),
            ("clients met", answers),
            ("their own list of 202s", f"{len(course.accepted):,}"),
            ("ledger", ledger),
            ("originals", f"{figures['originals']:,}, dispatched {figures['dispatches']:,} times in all"),
            ("recovered", f"{course.recovered_s:.0f} s after the last cause was gone"),
            ("every blob found whole", f"{course.whole_s:.0f} s after the last cause was gone"),
            ("farthest vector", f"{figures['farthest_vector']:.1e} (1 - cosine) from a direct computation"),
            ("blobs left by killed processes", f"{figures['left_for_the_sweeper']}, which the sweeper removed"),
        ]

    def _kinds(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for kind in sorted(self.options.kinds):
            struck = [one.in_flight for one in self.course.struck if one.kind == kind]
            work = sum((Counter(one) for one in struck), Counter[str]())
            least = min((sum(one.values()) for one in struck), default=0)
            rows.append((kind, str(len(struck)), _work(work), str(least)))
        return rows


def markdown(reports: Sequence[StormReport], arguments: str) -> str:
    """The page: how to repeat it, and a section for each storm."""
    return "\n".join(
        [
            "# What a storm did",
            "",
            "Written by the command below; [chaos](chaos.md) says what a strike is and what must be true afterwards.",
            "",
            "```",
            f'make chaos ARGS="{arguments}"',
            "```",
            "",
            *(report.as_markdown() for report in reports),
        ]
    )


def report_of(house: House, options: StormOptions, course: Course, verdict: Verdict) -> StormReport:
    """The report of one storm on this machine."""
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return StormReport(options, house.disk.how, machine, course, verdict)


def _work(work: Counter[str]) -> str:
    in_stores = [f"{work.pop(stage.value)} {stage.value}" for stage in Stage if work[stage.value]]
    in_queues = sum(work.values())
    return ", ".join([*in_stores, *([f"{in_queues} in queues"] if in_queues else [])])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
