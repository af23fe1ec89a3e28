"""Measures a checkpoint: `python services/embedder/training/evaluate.py DIR` prints a table and exits 1 on a miss.

The checkpoint is loaded through the Auto classes, as any model from a hub would be.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from captions import caption_scene
from drawings import HUES, Drawing, make_drawings
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scenes import Kind, make_scene
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

UNSEEN_SEED = 977_000
"""Far from every seed that training uses."""

_GALLERIES = (100, 250, 1000)

Vectors = NDArray[np.float32]


class Figure(NamedTuple):
    """One measured share, and the least that it may be (None where it is only reported)."""

    name: str
    value: float
    least: float | None


class Checkpoint:
    """A checkpoint folder as a function from pictures and texts to unit vectors."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Float32, (n, 192), rows of L2 norm 1."""
        rows = []
        for start in range(0, len(pictures), 32):
            inputs = self._processor(images=list(pictures[start : start + 32]), return_tensors="pt")
            rows.append(self._model.get_image_features(**inputs).pooler_output)
        return _unit(torch.cat(rows))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Float32, (n, 192), rows of L2 norm 1."""
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return _unit(self._model.get_text_features(**inputs).pooler_output)


def _unit(rows: torch.Tensor) -> Vectors:
    unit: Vectors = torch.nn.functional.normalize(rows.float()).numpy()
    return unit


def recall_on_scenes(
    checkpoint: Checkpoint, kind: Kind, count: int, galleries: Sequence[int] = (100,), seed: int = UNSEEN_SEED
) -> list[tuple[float, float]]:
    """For each gallery size R@1 from text to picture and from picture to text, over `count` scenes of an unseen seed.

    The scenes are split into galleries of that many pictures, each with its fullest caption. The first hit counts when
    the caption is true of the picture, by their facts: several scenes may show the same red star.
    """
    scenes = [make_scene(seed, index, kind) for index in range(count)]
    captions = [caption_scene(np.random.default_rng([seed, index]), scene)[0] for index, scene in enumerate(scenes)]
    pictures = checkpoint.embed_images([Image.fromarray(scene.pixels) for scene in scenes])
    scores = checkpoint.embed_texts([caption.text for caption in captions]) @ pictures.T

    def holds(text: int, picture: int) -> bool:
        return set(captions[text].requires) <= scenes[picture].facts

    recalls = []
    for gallery in galleries:
        found, named = [], []
        for start in range(0, count, gallery):
            block = scores[start : start + gallery, start : start + gallery]
            found += [holds(start + text, start + int(picture)) for text, picture in enumerate(block.argmax(1))]
            named += [holds(start + int(text), start + picture) for picture, text in enumerate(block.argmax(0))]
        recalls.append((float(np.mean(found)), float(np.mean(named))))
    return recalls


def colour_precision(checkpoint: Checkpoint, drawings: Sequence[Drawing], pictures: Vectors, template: str) -> float:
    """P@8 of queries for a colour, such as `red`, over the colours that no background of the drawings has."""
    scores = checkpoint.embed_texts([template.format(c=colour) for colour in HUES]) @ pictures.T
    best = np.argsort(-scores, axis=1)[:, :8]
    return float(np.mean([[drawings[i].colour == colour for i in row] for colour, row in zip(HUES, best, strict=True)]))


def object_ranks(
    checkpoint: Checkpoint, drawings: Sequence[Drawing], pictures: Vectors, template: str
) -> NDArray[np.int64]:
    """For each drawing the rank, from 0, that it has in the search for its colour and shape."""
    texts = [_with_article(template.format(c=d.colour, s=d.shape)) for d in drawings]
    scores = checkpoint.embed_texts(texts) @ pictures.T
    own = np.diagonal(scores)[:, None]
    ranks: NDArray[np.int64] = (scores > own).sum(1)
    return ranks


def _with_article(text: str) -> str:
    return text.replace("a orange", "an orange")


def measure(checkpoint: Checkpoint, scenes: int = 1000) -> list[Figure]:
    """All figures, those of the drawings and those of `scenes` unseen scenes of each kind."""
    figures = []
    for kind, name in (("single", "one object"), ("mixed", "mixed scenes")):
        recalls = recall_on_scenes(checkpoint, kind, scenes, _GALLERIES)  # type: ignore[arg-type]
        for gallery, (to_picture, to_text) in zip(_GALLERIES, recalls, strict=True):
            least = 0.9 if gallery == _GALLERIES[0] else None
            figures.append(Figure(f"unseen seeds, {name}, text to 1 of {gallery} pictures R@1", to_picture, least))
            figures.append(Figure(f"unseen seeds, {name}, picture to 1 of {gallery} texts R@1", to_text, least))
    drawings = make_drawings()
    pictures = checkpoint.embed_images([drawing.picture for drawing in drawings])
    for template, least in (("{c}", 0.95), ("something {c}", 0.95), ("a {c} shape", None)):
        precision = colour_precision(checkpoint, drawings, pictures, template)
        figures.append(Figure(f"drawings, {template.format(c='red')!r} P@8", precision, least))
    with_article = object_ranks(checkpoint, drawings, pictures, "a {c} {s}")
    for template in ("a {c} {s}", "{c} {s}", "{s} {c}", "a picture of a {c} {s}"):
        ranks = object_ranks(checkpoint, drawings, pictures, template)
        query = repr(_with_article(template.format(c="red", s="star")))
        required = template in ("a {c} {s}", "{c} {s}")
        figures.append(Figure(f"drawings, {query} top-1", float((ranks == 0).mean()), 0.6 if required else None))
        figures.append(Figure(f"drawings, {query} top-5", float((ranks < 5).mean()), 0.95 if required else None))
        if template == "{c} {s}":
            lost = float((with_article == 0).mean() - (ranks == 0).mean())
            figures.append(Figure("drawings, top-1 without article against with", 1 - lost, 0.97))
    for name, change in _CHANGES.items():
        changed = checkpoint.embed_images([change(drawing.picture) for drawing in drawings])
        same = (changed @ pictures.T).argmax(1) == np.arange(len(drawings))
        figures.append(Figure(f"drawings, picture to picture, {name} R@1", float(same.mean()), None))
    return figures


def _recompress(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def _crop(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: ImageOps.crop(picture, int(min(picture.size) * share / 2))


_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 50": _recompress,
    "half size": lambda picture: picture.reduce(2),
    "mirrored": ImageOps.mirror,
    "cropped by 20 %": _crop(0.2),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("--by-shape", action="store_true", help="also show top-1 on the drawings by shape and colour")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(arguments.checkpoint)
    figures = measure(checkpoint)
    for figure in figures:
        verdict = ""
        if figure.least is not None:
            verdict = f">= {figure.least:<5} {'ok' if figure.value >= figure.least else 'MISS'}"
        print(f"{figure.name:<64} {figure.value:.3f}  {verdict}")
    if arguments.by_shape:
        drawings = make_drawings()
        pictures = checkpoint.embed_images([drawing.picture for drawing in drawings])
        hits = object_ranks(checkpoint, drawings, pictures, "{c} {s}") == 0
        for key in ("shape", "colour"):
            values = np.array([getattr(drawing, key) for drawing in drawings])
            shares = (f"{value} {hits[values == value].mean():.2f}" for value in dict.fromkeys(values))
            print(f"top-1 by {key}: " + "  ".join(shares))
    sys.exit(any(figure.least is not None and figure.value < figure.least for figure in figures))


if __name__ == "__main__":
    main()
