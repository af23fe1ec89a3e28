"""Drawings to test the bundled model on, made by code that shares nothing with the generator of its training pictures.

Shapes are inequalities over the plane evaluated per pixel in NumPy, not outlines; colours are fixed hex values, not
sampled ranges; backgrounds are papers, walls and tables; canvases are large and of several formats. Every colour comes
with every shape once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Grid = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Values that style sheets and design systems give these names (CSS, Material, Tailwind, crayons).
PAINTS: dict[str, tuple[str, ...]] = {
    "red": ("#ff0000", "#dc143c", "#e53935"),
    "orange": ("#ffa500", "#fb8c00", "#f97316"),
    "yellow": ("#ffff00", "#ffd700", "#fdd835"),
    "green": ("#008000", "#43a047", "#22c55e"),
    "turquoise": ("#40e0d0", "#00bcd4", "#14b8a6"),
    "blue": ("#0000ff", "#1e88e5", "#4169e1"),
    "purple": ("#800080", "#8e24aa", "#7c3aed"),
    "pink": ("#ff69b4", "#ffc0cb", "#f48fb1"),
    "brown": ("#8b4513", "#795548", "#6f4e37"),
    "black": ("#000000", "#111111", "#0f172a"),
    "white": ("#ffffff", "#fafafa", "#f8fafc"),
    "gray": ("#808080", "#757575", "#6b7280"),
}


HUES = tuple(PAINTS)[:9]
"""The colours that no background has."""


class Drawing(NamedTuple):
    """One picture with one object."""

    picture: Image.Image
    colour: str
    shape: str


def _below(x: Grid, y: Grid, edges: int, turn: float) -> Grid:
    """The regular polygon's gauge: at most cos(pi / edges) inside one whose corners lie on the unit circle."""
    angles = turn + 2 * np.pi * np.arange(edges) / edges
    gauge: Grid = np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0)
    return gauge


def _star(x: Grid, y: Grid) -> Mask:
    # Fold the plane into one tenth of the star, where its border is a straight line from tip to notch.
    angle = np.arctan2(x, y)
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    across, along = radius * np.sin(folded), radius * np.cos(folded)
    notch = 0.4
    nx, ny = notch * np.sin(np.pi / 5), notch * np.cos(np.pi / 5)
    inside: Mask = across * (1 - ny) + (along - 1) * nx < 0
    return inside


def _arrow(x: Grid, y: Grid) -> Mask:
    shaft = (np.abs(y) < 0.22) & (x > -1) & (x < 0.2)
    head = (x >= 0.1) & (x + 1.2 * np.abs(y) < 0.98)
    return shaft | head


def _cloud(x: Grid, y: Grid) -> Mask:
    puffs = [(-0.6, 0.05, 0.33), (-0.15, 0.25, 0.45), (0.35, 0.15, 0.4), (0.68, -0.05, 0.27)]
    inside = (np.abs(x) < 0.66) & (y > -0.32) & (y < 0.1)
    for cx, cy, r in puffs:
        inside |= ((x - cx) ** 2 + (y - cy) ** 2 < r * r) & (y > -0.32)
    return inside


FIGURES: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": lambda x, y: x * x + y * y < 1,
    "oval": lambda x, y: x * x + (y / 0.58) ** 2 < 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.86,
    "rectangle": lambda x, y: (np.abs(x) < 1) & (np.abs(y) < 0.5),
    "triangle": lambda x, y: _below(x, y + 0.2, 3, -np.pi / 2) < 0.55,
    "star": _star,
    "heart": lambda x, y: ((1.2 * x) ** 2 + (1.2 * y + 0.1) ** 2 - 1) ** 3 < (1.2 * x) ** 2 * (1.2 * y + 0.1) ** 3,
    "hexagon": lambda x, y: _below(x, y, 6, np.pi / 6) < 0.866,
    "pentagon": lambda x, y: _below(x, y, 5, -np.pi / 2) < 0.809,
    "diamond": lambda x, y: np.abs(x) / 0.72 + np.abs(y) < 1,
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.28) & (np.maximum(np.abs(x), np.abs(y)) < 0.95),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.8) < 0.2,
    "crescent": lambda x, y: (x * x + y * y < 1) & ((x - 0.42) ** 2 + (y - 0.1) ** 2 > 0.64),
    "arrow": _arrow,
    "semicircle": lambda x, y: (x * x + (y + 0.4) ** 2 < 1) & (y > -0.4),
    "drop": lambda x, y: x * x < 0.22 * (1 - y) ** 3 * (1 + y) / 1.3,
    "flower": lambda x, y: np.hypot(x, y) < 0.72 + 0.26 * np.cos(6 * np.arctan2(y, x)),
    "cloud": _cloud,
}
"""Whether a point of the plane (x right, y up, about -1..1) lies in the shape."""

_FORMATS = ((360, 270), (300, 300), (270, 360), (390, 260))
_GROUNDS = ("#f5f0e1", "#ffffff", "#e8e8e8", "#cfd8dc", "#b0b0b0", "#5c5c5c", "#37474f", "#2b2b2b", "#1a1a2e")


def make_drawings(seed: int = 7) -> list[Drawing]:
    """One drawing of every shape in every colour: 12 x 18 = 216 RGB pictures, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [_draw(rng, colour, hexes, shape) for colour, hexes in PAINTS.items() for shape in FIGURES]


def _rgb(value: str) -> Grid:
    return np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


def _draw(rng: np.random.Generator, colour: str, hexes: tuple[str, ...], shape: str) -> Drawing:
    width, height = _FORMATS[rng.integers(len(_FORMATS))]
    short = min(width, height)
    paint = _rgb(hexes[rng.integers(len(hexes))])
    grounds = [g for g in _GROUNDS if np.abs(_rgb(g) - paint).sum() > 140]
    canvas = _ground(rng, _rgb(grounds[rng.integers(len(grounds))]), width, height)

    radius = short * rng.uniform(0.2, 0.4)
    centre = np.array([width, height]) / 2 + rng.uniform(-0.08, 0.08, 2) * short
    turn, stretch = rng.normal(0, 0.08), rng.uniform(0.9, 1.1)
    # Two samples a pixel side: the share of them that lies inside is the pixel's coverage.
    fine = 2
    v, u = (np.mgrid[0 : height * fine, 0 : width * fine] + 0.5) / fine
    dx, dy = (u - centre[0]) / radius, (centre[1] - v) / radius
    x = (dx * np.cos(turn) + dy * np.sin(turn)) / stretch
    y = (dy * np.cos(turn) - dx * np.sin(turn)) * stretch
    inside = FIGURES[shape](x, y).astype(np.float64)
    coverage = inside.reshape(height, fine, width, fine).mean((1, 3))[..., None]
    canvas = canvas * (1 - coverage) + paint * coverage
    return Drawing(Image.fromarray(np.clip(canvas, 0, 255).round().astype(np.uint8)), colour, shape)


def _ground(rng: np.random.Generator, base: Grid, width: int, height: int) -> Grid:
    """A background around one neutral colour: bare, squared paper, a wall with a table, a lamp's glow, or sandpaper."""
    y, x = np.mgrid[0:height, 0:width]
    canvas = np.broadcast_to(base, (height, width, 3)).copy()
    look = rng.integers(5)
    if look == 1:
        step = int(rng.integers(18, 40))
        canvas[(x % step < 2) | (y % step < 2)] *= 0.88
    elif look == 2:
        canvas[y > height * 0.7] *= 0.8
    elif look == 3:
        canvas *= (1.06 - 0.3 * np.hypot((x - width / 2) / width, (y - height / 2) / height))[..., None]
    elif look == 4:
        canvas += rng.normal(0, 9, (height, width, 1))
    return canvas
