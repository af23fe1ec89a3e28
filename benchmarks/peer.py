"""Another project's way of computing embeddings, in an environment of its own: what it needs may not suit ours."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORKER = Path(__file__).parent / "peers" / "worker.py"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}
"""One thread, no GPU, no network."""


class Peer:
    """A running `peers/worker.py`. Raises `RuntimeError` when it has ended; why stands on its standard error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.versions: dict[str, str] = self._answer()

    def embed(self, proxies: list[bytes]) -> tuple[NDArray[np.float32], float]:
        """Vectors, (n, dim), rows of length 1, of a batch of proxies; and the CPU time that they took, in seconds."""
        request = [base64.b64encode(proxy).decode() for proxy in proxies]
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._answer()
        return np.array(answer["vectors"], np.float32), answer["cpu_s"]

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"{self._process.args!r} has ended")
        return json.loads(line)


@contextmanager
def started(environment: Path, name: str, model: Path, dtype: str, batch: int) -> Iterator[Peer]:
    """A peer that runs on its environment's Python, until the block ends."""
    # -I: nothing that lies around the environment is imported, our own packages least of all.
    with subprocess.Popen(  # it ends when its input does
        [environment / "bin" / "python", "-I", WORKER, name, model, dtype, str(batch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    ) as process:
        yield Peer(process)
