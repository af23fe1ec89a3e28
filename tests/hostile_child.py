"""What the pure part of `prepare` makes of a file, in a child process that may hang, die or be killed of it."""

import os
import pickle
import resource
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostile_corpus import READY
from PIL import Image, ImageChops

from thumbnailer import ceilings, decoding, describing, rendering
from thumbnailer.decoding import Limits
from thumbnailer.problems import PictureProblem

HUNG = "hung"


@dataclass(frozen=True)
class Ended:
    """How it ended: READY with the decoded picture, a problem's slug, HUNG, `killed by 11`, or an error's name.

    `said`: what the problem says. `cpu_s` and `peak_bytes` are what the child took beyond what it began with.
    """

    end: str
    said: str = ""
    image: Image.Image | None = None
    cpu_s: float = 0
    peak_bytes: int = 0


def prepare(data: bytes, limits: Limits) -> Image.Image:
    """Decodes, renders and describes, as the tasks of a photo do; returns the decoded picture."""
    photo = decoding.decode(data, limits)
    large, proxy = rendering.render_large(photo), rendering.render_proxy(photo)
    source = rendering.thumbnail_source(proxy.data, large.data)
    rendering.render_medium(source)
    rendering.render_small(source)
    describing.palette(source)
    describing.thumbhash(source)
    describing.perceptual_hash(source)
    return photo.image


def in_child(files: Sequence[bytes], limits: Limits, limit_s: float) -> list[Ended]:
    """`prepare` of each file in a fork of this process, which is killed after so many seconds for one.

    A child that dies ends the list: its last end says how.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a test runner's own handler is inherited
        taken = _take_what_is_free()
        try:
            with os.fdopen(writing, "wb") as pipe:
                for data in files:
                    signal.setitimer(signal.ITIMER_REAL, limit_s)
                    pickle.dump(_measured(data, limits), pipe)
                    pipe.flush()
        finally:
            taken.clear()
            os._exit(0)
    os.close(writing)
    ends: list[Ended] = []
    with os.fdopen(reading, "rb") as pipe, suppress(EOFError):
        while True:
            ends.append(pickle.load(pipe))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        ends.append(Ended(HUNG if number == signal.SIGALRM else f"killed by {number}"))
    return ends


def _take_what_is_free() -> list[bytearray]:
    """The free blocks of the heap that a long test run has left, in our hands: a decode in them would need no more."""
    taken = []
    for size in (2**24, 2**22, 2**20, 2**16):
        # More than what Python itself takes and gives back between two looks.
        grown = ceilings.private_bytes() + max(2 * size, 2**22)
        while ceilings.private_bytes() < grown:
            taken.append(bytearray(size))
    return taken


def _measured(data: bytes, limits: Limits) -> Ended:
    begun_s, before = time.process_time(), _peak_bytes()
    with warnings.catch_warnings(), Path(os.devnull).open("wb") as nowhere:
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)  # codecs write there what they think
        image = None
        try:
            image = prepare(data, limits)
            end, said = READY, ""
        except PictureProblem as problem:
            end, said = problem.slug, f"{problem} {problem.problem.remedy or ''}".strip()
        except Exception as error:
            end, said = type(error).__name__, str(error)
    return Ended(end, said, image, time.process_time() - begun_s, _peak_bytes() - before)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of a channel; 255 where the sizes differ."""
    if one.size != other.size:
        return 255
    mode = "RGB" if one.mode == other.mode == "RGB" else "RGBA"
    difference = ImageChops.difference(*(image.convert(mode) for image in (one, other)))
    return max(high for _, high in difference.getextrema())
