"""Gives back the memory that photos took, once no further one has come for a while.

glibc keeps what is freed for the next photo: up to 50 MiB in a child. Told to give everything back at once
(`MALLOC_TRIM_THRESHOLD_`), it spends half again as much CPU on each photo; so only the first after a pause pays.
"""

import ctypes
import threading
from collections.abc import Callable

from celery.signals import task_postrun

QUIET_S = 5.0


class Trimmer:
    """Calls `give_back` each time when, after something was done, nothing more is for `quiet_s` seconds."""

    def __init__(self, give_back: Callable[[], object], quiet_s: float = QUIET_S) -> None:
        self._give_back = give_back
        self._quiet_s = quiet_s
        self._was_used = threading.Event()

    def start(self) -> None:
        """Watches from now on, in a thread that sleeps while there is nothing to give back."""
        threading.Thread(target=self._watch, name="trimmer", daemon=True).start()

    def used(self, **_: object) -> None:
        """Something was done."""
        self._was_used.set()

    def _watch(self) -> None:
        while True:
            self._was_used.wait()
            while self._was_used.is_set():
                self._was_used.clear()
                self._was_used.wait(self._quiet_s)
            self._give_back()


def trim_between_photos(**_: object) -> None:
    """Trims the memory of this process, a child of the pool, after its tasks. Does nothing without glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        trimmer = Trimmer(lambda: malloc_trim(0))
        trimmer.start()
        task_postrun.connect(trimmer.used, weak=False)
