"""Errors of the gateway that carry more than a problem."""

import math
from collections.abc import Sequence

from darkroom.contracts.problems import Problem, problem
from darkroom.errors import PermanentError, TransientError

RETRY_AFTER_S = 2
"""What a client is told: the dispatcher's and the pools' own pauses are of that order."""

RETRY_AFTER_FULL_S = {"backlog-full": 10, "storage-full": 60}
"""A backlog gets shorter by work, and room is made by people or by the sweeper."""


def retry_after_s(problem: Problem) -> int | None:
    """When the same request may be accepted; None: never, unless something about it changes."""
    return RETRY_AFTER_FULL_S.get(problem.slug, RETRY_AFTER_S if problem.status == 503 else None)


class UnavailableError(TransientError):
    """Another part of the system is away; `problem` says which, and the same request will work later."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem

    @classmethod
    def of(cls, slug: str, title: str, detail: str, *, limit: int | None = None, remedy: str) -> "UnavailableError":
        """The error for a problem of status 503."""
        return cls(problem(slug, title, 503, detail, limit=limit, remedy=remedy))


class RateLimitedError(PermanentError):
    """The same request may be accepted after `retry_after_s` whole seconds."""

    def __init__(self, problem: Problem, retry_after_s: float) -> None:
        super().__init__(problem)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class InvalidFieldsError(PermanentError):
    """Values of the request cannot be accepted; `violations` has the path of each and what is wrong with it."""

    def __init__(self, problem: Problem, violations: Sequence[tuple[str, str]]) -> None:
        super().__init__(problem)
        self.violations = tuple(violations)
