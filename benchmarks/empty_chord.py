"""The tasks of a photo without their work, for `flow.py`: what Celery alone needs for the same chord.

Run by `celery --app empty_chord worker`. DARKROOM_BENCH_REDIS is broker and result store. The settings are those
without which a message could be lost, or nobody could see where it is; all else is as Celery has it.
"""

import os
from typing import Any

from celery import Celery, chord

DONE = "empty-chord-done"
"""Counts the chords that have ended."""

Message = dict[str, Any]

app = Celery("empty_chord", broker=os.environ["DARKROOM_BENCH_REDIS"], backend=os.environ["DARKROOM_BENCH_REDIS"])
app.conf.update(
    task_acks_late=True,
    task_track_started=True,
    worker_prefetch_multiplier=1,
    task_routes={
        "prepare": {"queue": "thumbnailer"},
        "thumbnails": {"queue": "thumbnailer"},
        "embed": {"queue": "embedder"},
        "finalize": {"queue": "finalize"},
    },
)


@app.task(name="prepare")
def prepare(message: Message) -> Message:
    """Sends the two halves on, to be joined."""
    chord([thumbnails.s(message), embed.s(message)])(finalize.s(message))
    return message


@app.task(name="thumbnails")
def thumbnails(message: Message) -> Message:
    """One half."""
    return message


@app.task(name="embed")
def embed(message: Message) -> Message:
    """The other."""
    return message


@app.task(name="finalize")
def finalize(parts: list[Message], message: Message) -> None:
    """The end."""
    app.backend.client.incr(DONE)
