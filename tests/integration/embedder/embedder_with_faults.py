"""The embedder with a bundled model that tests can stop, break and kill. Run by test_embedder_worker.py.

Files in EMBEDDER_TEST_FOLDER control it: while `closed` exists no picture batch gets through, while `broken` exists
every one fails. A batch with a red picture fails, one with a magenta picture kills the process.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from darkroom.errors import ConfigurationError
from embedder import worker
from embedder.model import ClipModel, load_model

FOLDER = Path(os.environ["EMBEDDER_TEST_FOLDER"])
RED = np.array([1, 0, 0])
MAGENTA = np.array([1, 0, 1])


class ModelWithFaults(ClipModel):
    def embed_pictures(self, pixels):
        while (FOLDER / "closed").exists():
            time.sleep(0.01)
        if (FOLDER / "broken").exists():
            raise RuntimeError("the device is lost")
        colours = [each.mean(axis=(1, 2)) / 2 + 0.5 for each in pixels]
        if any(np.allclose(colour, MAGENTA, atol=0.1) for colour in colours):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(np.allclose(colour, RED, atol=0.1) for colour in colours):
            raise RuntimeError("red")
        return super().embed_pictures(pixels)


def load(source, settings):
    model = load_model(source, settings)
    model.__class__ = ModelWithFaults
    return model


if __name__ == "__main__":
    try:
        worker.serve(load)
    except ConfigurationError as error:
        sys.exit(str(error))
