"""A pool of captioned scenes as arrays, made on all cores from one seed."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import numpy as np
from captions import CAPTIONS, caption_scene
from numpy.typing import NDArray
from scenes import Kind, make_scene
from vocabulary import COLOUR_NAMES, FACTS, SHAPE_NAMES

_CHUNK = 500


@dataclass
class Pool:
    """n captioned scenes."""

    pixels: NDArray[np.uint8]  # (n, 64, 64, 3)
    facts: NDArray[np.uint8]  # (n, facts), 1 where the fact holds
    requires: NDArray[np.uint8]  # (n, 6, facts), 1 where the caption requires the fact
    shape_patches: NDArray[np.int8]  # (n, 8, 8)
    colour_patches: NDArray[np.int8]  # (n, 8, 8)
    mask: NDArray[np.uint8]  # (n, 512), the 64 x 64 object mask, eight pixels a byte
    colour: NDArray[np.int64]  # (n,), number of the first object's colour, -1 without objects
    captions: list[list[str]]  # n lists of 6


def make_pool(seed: int, kind: Kind, count: int, processes: int = 2) -> Pool:
    """`count` scenes of `seed` (a multiple of 500); the number of processes does not change them."""
    chunks = [(seed, kind, start) for start in range(0, count, _CHUNK)]
    if processes == 1:
        parts = [_make_chunk(chunk) for chunk in chunks]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as workers:
            parts = workers.map(_make_chunk, chunks, chunksize=1)
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    return Pool(
        **arrays,
        captions=[texts for part in parts for texts in part.captions],
    )


_ARRAYS = ("pixels", "facts", "requires", "shape_patches", "colour_patches", "mask", "colour")


def _make_chunk(chunk: tuple[int, Kind, int]) -> Pool:
    seed, kind, start = chunk
    pool = Pool(
        pixels=np.empty((_CHUNK, 64, 64, 3), np.uint8),
        facts=np.zeros((_CHUNK, len(FACTS)), np.uint8),
        requires=np.zeros((_CHUNK, CAPTIONS, len(FACTS)), np.uint8),
        shape_patches=np.empty((_CHUNK, 8, 8), np.int8),
        colour_patches=np.empty((_CHUNK, 8, 8), np.int8),
        mask=np.empty((_CHUNK, 512), np.uint8),
        colour=np.full(_CHUNK, -1),
        captions=[],
    )
    for i in range(_CHUNK):
        scene = make_scene(seed, start + i, kind)
        captions = caption_scene(np.random.default_rng([seed, start + i, 2]), scene)
        pool.pixels[i] = scene.pixels
        pool.facts[i, list(scene.facts)] = 1
        for k, caption in enumerate(captions):
            pool.requires[i, k, list(caption.requires)] = 1
        pool.shape_patches[i] = scene.shape_patches
        pool.colour_patches[i] = scene.colour_patches
        if scene.things:
            pool.colour[i] = COLOUR_NAMES.index(scene.things[0].colour)
        pool.mask[i] = np.packbits(scene.mask)
        pool.captions.append([caption.text for caption in captions])
    return pool


def implied(requires: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The required facts with those that follow from them: a red star is a star, and red. Same shape as given."""
    closed = requires.copy()
    for colour in COLOUR_NAMES:
        for shape in SHAPE_NAMES:
            held = requires[..., FACTS[("object", colour, shape)]]
            for fact in (("object colour", colour), ("any colour", colour), ("shape", shape)):
                closed[..., FACTS[fact]] |= held
    return closed
