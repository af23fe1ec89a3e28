"""Markers of risky work: how often one task was begun and did not end, because its process died.

A broker counts deliveries too, but also those of a restart, and Redis does not count at all. A marker is set just
before bytes that may kill the process are touched, and removed as soon as they did not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import RedisError

from darkroom.errors import PermanentError, TransientError

MARKER_EXPIRES_S = 86_400
"""Long after any redelivery; a marker left behind costs 100 bytes."""

RUNS_ALONE_FROM = 2
"""A second try shares nothing with others, so that a third one knows whom to blame."""


class TriesMarkers:
    """Counters under `tries:<task id>` in the result store."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def begin(self, task_id: str) -> int:
        """Counts a try that begins now; returns which one it is, from 1. Raises `TransientError` without Redis."""
        return self.begin_together(task_id)[0]

    def begin_together(self, *task_ids: str) -> list[int]:
        """`begin` for each of a batch, in two round trips."""
        # Not by INCR: the client sends again what was not answered in time, and one try would count as several.
        numbers = [count + 1 for count in self.unfinished(*task_ids)]
        try:
            pipeline = self._redis.pipeline()
            for task_id, number in zip(task_ids, numbers, strict=True):
                pipeline.set(f"tries:{task_id}", number, ex=MARKER_EXPIRES_S)
            pipeline.execute()
        except RedisError as error:
            raise TransientError(f"the result store cannot keep a tries marker: {error}") from error
        return numbers

    def unfinished(self, *task_ids: str) -> list[int]:
        """How many tries of each task began and did not end. Raises `TransientError` without Redis."""
        try:
            counts = self._redis.mget([f"tries:{task_id}" for task_id in task_ids]) if task_ids else []
            return [int(count or 0) for count in counts]
        except RedisError as error:
            raise TransientError(f"the result store cannot read a tries marker: {error}") from error

    def end(self, *task_ids: str) -> None:
        """Forgets tasks whose process survived them. Raises `TransientError` without Redis."""
        try:
            if task_ids:
                self._redis.delete(*(f"tries:{task_id}" for task_id in task_ids))
        except RedisError as error:
            raise TransientError(f"the result store cannot remove a tries marker: {error}") from error

    @contextmanager
    def guard(self, task_id: str) -> Iterator[None]:
        """Marks a task that runs alone while it does what may kill its process.

        Raises the permanent problem `killed-worker` instead of beginning, when a try that ran alone did not end.
        """
        if died_alone(self.begin(task_id)):
            self.end(task_id)
            raise killed_worker()
        try:
            yield
        finally:
            self.end(task_id)


def died_alone(number: int) -> bool:
    """Whether the try with this number may not begin: the one before it ran alone and did not end."""
    return number > RUNS_ALONE_FROM


def killed_worker() -> PermanentError:
    """The problem of a photo that killed the process which worked on it alone."""
    return PermanentError.of(
        "killed-worker",
        "The photo killed its worker",
        422,
        f"Processing ended its worker process {RUNS_ALONE_FROM} times, the last time with nothing else in it.",
        value=RUNS_ALONE_FROM,
        limit=RUNS_ALONE_FROM,
        remedy="Open the photo in an editor and export it again; if workers are short of memory, raise their limit "
        "and retry the image.",
    )
