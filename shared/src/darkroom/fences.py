"""How a worker answers the known question that a fence carries. Why there are fences: docs/decisions/0002-fences.md."""

import logging
from collections.abc import Callable

from darkroom.contracts.messages import FenceAnswer, Verdict
from darkroom.errors import PermanentError, TransientError
from darkroom.tries import TriesMarkers

log = logging.getLogger(__name__)

MAX_CHARACTERS = 300
"""Of an answer: it is a row for every fence, and a line in a table."""


def verdict(answer: str, *, is_right: bool) -> FenceAnswer:
    """The answer with its verdict; a wrong one is logged as well."""
    if not is_right:
        log.error("fence.wrong", extra={"answer": answer})
    return FenceAnswer(verdict=Verdict.OK if is_right else Verdict.WRONG, answer=answer[:MAX_CHARACTERS])


def answered(task_id: str, tries: TriesMarkers, compute: Callable[[], FenceAnswer]) -> FenceAnswer:
    """What `compute` answers. Raises nothing, so that the fence comes back whatever happens.

    An error is a wrong answer, and so is the death of the process: the second time ends it, on every broker.
    """
    try:
        with tries.guard(task_id):
            return compute()
    except PermanentError as error:
        return verdict(error.problem.detail, is_right=False)
    except TransientError as error:  # not the computation's fault: nothing is known of it
        return FenceAnswer(answer=f"not computed: {error}"[:MAX_CHARACTERS])
    except Exception as error:  # whatever a codec or a network raises
        log.exception("fence.failed")
        return verdict(f"computing it raised {error!r}", is_right=False)
