"""Markers of risky work: how often one task was begun and did not end, because its process died.

A broker counts deliveries too, but also those of a restart, and Redis does not count at all. A marker is set just
before bytes that may kill the process are touched, and removed as soon as they did not.
"""

from redis import Redis

MARKER_EXPIRES_S = 86_400
"""Long after any redelivery; a marker left behind costs 100 bytes."""

RUNS_ALONE_FROM = 2
"""A second try shares nothing with others, so that a third one knows whom to blame."""


class TriesMarkers:
    """Counters under `tries:<task id>` in the result store."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    def begin(self, task_id: str) -> int:
        """Counts a try that begins now; returns which one it is, from 1."""
        key = f"tries:{task_id}"
        pipeline = self._redis.pipeline()
        pipeline.incr(key)
        pipeline.expire(key, MARKER_EXPIRES_S)
        return int(pipeline.execute()[0])

    def end(self, *task_ids: str) -> None:
        """Forgets tasks whose process survived them."""
        if task_ids:
            self._redis.delete(*(f"tries:{task_id}" for task_id in task_ids))

    def tries(self, task_id: str) -> int:
        """How many tries began and did not end."""
        return int(self._redis.get(f"tries:{task_id}") or 0)


def died_alone(number: int) -> bool:
    """Whether the try with this number may not begin: the one before it ran alone and killed its process."""
    return number > RUNS_ALONE_FROM
