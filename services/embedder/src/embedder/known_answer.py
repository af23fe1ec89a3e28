"""A picture whose vector is known, taken through preprocessing and the loaded model by every fence."""

from __future__ import annotations

import argparse
import io
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from darkroom.contracts.messages import FenceAnswer
from darkroom.errors import ConfigurationError
from darkroom.fences import verdict
from darkroom.settings import ModelSettings
from embedder.model import ClipModel, load_model

Vector = NDArray[np.float32]

STORED = "known-answer.npy"
"""A model's folder may hold the right answer, float16, (dim,), as the bundled one does: then weights that were damaged
before they were loaded show as well. `python -m embedder.known_answer FOLDER` writes it."""

SAME = 0.999
"""Cosine with the answer of this process at its start: the same weights, picture and precision."""

SAME_MODEL = 0.99
"""Cosine with the stored answer, which another processor computed, perhaps in another precision: that costs 1e-4."""


@cache
def question() -> bytes:
    """A drawing as a proxy is: a JPEG of 96 x 96 pixels."""
    image = Image.new("RGB", (96, 96), (235, 235, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 70, 96, 96), fill=(60, 140, 60))
    draw.ellipse((14, 10, 62, 58), fill=(215, 35, 35))
    draw.rectangle((66, 40, 88, 80), fill=(40, 70, 190))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling="4:4:4")
    return file.getvalue()


class KnownAnswer:
    """The answers of one model to compare with: that of now, and the stored one if its folder has one."""

    def __init__(self, model: ClipModel) -> None:
        """Computes the picture once. Raises `ConfigurationError` for a stored answer that cannot be one."""
        self._model = model
        self._at_start = compute(model)
        self._stored = read_stored(model.folder / STORED, model.dim)

    def compare(self) -> FenceAnswer:
        """What the model makes of the picture, beside what it should be. Raises whatever the network raises."""
        vector = compute(self._model)
        start = float(vector @ self._at_start)
        answer, is_right = f"cosine {start:.4f} to the answer at the start", start >= SAME
        if self._stored is not None:
            stored = float(vector @ self._stored)
            answer, is_right = f"{answer}, {stored:.4f} to the stored one", is_right and stored >= SAME_MODEL
        return verdict(answer, is_right=is_right)


def compute(model: ClipModel) -> Vector:
    """The picture's vector, of L2 norm 1."""
    vector: Vector = model.embed_pictures([model.preprocessing.pixels(question())])[0]
    return vector


def read_stored(path: Path, dim: int) -> Vector | None:
    """The stored answer, of L2 norm 1; None where there is none. Raises `ConfigurationError` when it cannot be one."""
    if not path.exists():
        return None
    try:
        vector = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. Write it again or remove it") from error
    if vector.shape != (dim,):
        raise ConfigurationError(f"{path} has shape {vector.shape}, the model's vectors have ({dim},): remove it")
    unit: Vector = vector / np.linalg.norm(vector)
    return unit


def main() -> None:
    """Writes the answer of the model in a folder beside it, computed in float32 on the CPU."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    model = load_model(str(folder), ModelSettings(model_device="cpu", model_dtype="float32"))
    np.save(folder / STORED, compute(model).astype("<f2"), allow_pickle=False)


if __name__ == "__main__":
    main()
