"""Memory is given back when nothing more is done."""

import threading

from thumbnailer.trimming import Trimmer


def test_memory_is_given_back_after_every_pause():
    given_back = threading.Semaphore(0)
    trimmer = Trimmer(given_back.release, quiet_s=0.01)
    trimmer.start()
    for _ in range(2):
        trimmer.used()
        assert given_back.acquire(timeout=60)
    assert not given_back.acquire(blocking=False), "nothing was done since"
