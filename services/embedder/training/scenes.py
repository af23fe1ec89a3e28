"""Generated pictures with the facts that hold for them: 64 x 64 pixels, drawn from a seed and an index.

Masks are drawn by Pillow at three times the size and shrunk; colours and backgrounds are NumPy arrays.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from vocabulary import BACKGROUNDS, COLOUR_NAMES, COLOURS, FACTS, LANDSCAPES, SHAPE_NAMES, TONED_COLOURS

SIZE = 64
PATCHES = 8
_SCALE = 3
_CANVAS = SIZE * _SCALE

Floats = NDArray[np.floating[Any]]
Kind = Literal["single", "mixed"]
Part = tuple[NDArray[np.float64], bool]
"""Outline points, shape (n, 2), x right and y down in about -1..1, and whether the part adds ink or cuts it out."""


@dataclass
class Thing:
    """One object of a scene."""

    shape: str
    colour: str
    tone: str | None
    rgb: Floats
    size: str | None


@dataclass
class Scene:
    """One picture and what is true of it."""

    pixels: NDArray[np.uint8]  # (64, 64, 3), sRGB
    things: list[Thing]
    background: str
    background_colours: list[str]
    picture_tone: str | None
    shape_patches: NDArray[np.int8]  # (8, 8), number of the shape covering the patch plus one, 0 for background
    colour_patches: NDArray[np.int8]  # (8, 8), the same for colours
    mask: NDArray[np.bool_]  # (64, 64), where an object is
    facts: set[int] = field(default_factory=set)


def make_scene(seed: int, index: int, kind: Kind) -> Scene:
    """Picture `index` of `seed`: `single` has one mostly large object, `mixed` none to four or a landscape."""
    rng = np.random.default_rng([seed, index, 0 if kind == "single" else 1])
    count = 1 if kind == "single" else int(rng.choice(5, p=(0.12, 0.28, 0.30, 0.17, 0.13)))
    if kind == "mixed" and count == 0 and rng.random() < 0.5:
        name = str(rng.choice(list(LANDSCAPES)))
        canvas, colours = _landscape(rng, name)
        things: list[Thing] = []
        background = name
        labels = _Labels()
    else:
        things = _choose_things(rng, count)
        canvas, background, colours = _choose_background(rng, things, count)
        canvas, labels = _draw_things(rng, canvas, things, big=kind == "single")
    canvas = _expose(rng, canvas)
    luminance = float((canvas @ np.array([0.299, 0.587, 0.114], np.float32)).mean())
    picture_tone = "dark" if luminance < 0.28 else "light" if luminance > 0.8 else None
    pixels = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)
    scene = Scene(pixels, things, background, colours, picture_tone, labels.shapes, labels.colours, labels.mask)
    scene.facts = _facts(scene)
    return scene


def colour_sample(rng: np.random.Generator, name: str, tone: str | None = None) -> Floats:
    """An sRGB colour in 0..1, float32 of shape (3,), that goes by this name."""
    box = TONED_COLOURS[(tone, name)] if tone else COLOURS[name]
    hue, saturation, value = (rng.uniform(*bounds) for bounds in box)
    return np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value), np.float32)


# --- what is in the picture -------------------------------------------------------------------------------------------


def _choose_things(rng: np.random.Generator, count: int) -> list[Thing]:
    things: list[Thing] = []
    alike = count > 1 and rng.random() < 0.4
    for _ in range(count):
        if alike and things:
            first = things[0]
            rgb = np.clip(first.rgb + rng.normal(0, 0.01, 3), 0, 1).astype(np.float32)
            things.append(Thing(first.shape, first.colour, first.tone, rgb, None))
            continue
        colour = str(rng.choice(COLOUR_NAMES))
        tones = [tone for tone, of in TONED_COLOURS if of == colour]
        tone = str(rng.choice(tones)) if tones and rng.random() < 0.22 else None
        shape = str(rng.choice(SHAPE_NAMES))
        things.append(Thing(shape, colour, tone, colour_sample(rng, colour, tone), None))
    return things


def _choose_background(rng: np.random.Generator, things: list[Thing], count: int) -> tuple[Floats, str, list[str]]:
    shares = (0.55, 0.20, 0.06, 0.04, 0.04, 0.11) if count else (0.25, 0.25, 0.15, 0.13, 0.13, 0.09)
    kind = str(rng.choice(BACKGROUNDS, p=shares))
    first_name, first = _contrasting(rng, things)
    if kind in ("plain", "texture"):
        second_name, second = first_name, first
    elif kind == "gradient" and rng.random() < 0.5:
        second_name, second = first_name, np.clip(first * rng.uniform(0.6, 0.85), 0, 1).astype(np.float32)
        if not _contrast(second, things):
            second = first
    else:
        second_name, second = _contrasting(rng, things)
        for _ in range(8):
            if np.abs(second - first).max() > 0.25:
                break
            second_name, second = _contrasting(rng, things)
    weight = _pattern(rng, kind)[..., None]
    canvas = first * (1 - weight) + second * weight
    if kind == "texture":
        coarse = int(rng.choice([4, 8, 16, 32, 64]))
        grain = rng.normal(0, rng.uniform(0.03, 0.09), (coarse, coarse)).astype(np.float32)
        smooth = Image.fromarray(grain).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        canvas = canvas + np.asarray(smooth)[..., None]
    names = [first_name] if first_name == second_name else [first_name, second_name]
    return np.clip(canvas, 0, 1).astype(np.float32), kind, names


def _grid() -> tuple[Floats, Floats]:
    """x and y of each pixel's centre, float32, (64, 64), in 0..1."""
    y, x = (np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5) / SIZE
    return x, y


def _clip(values: Floats) -> Floats:
    clipped: Floats = np.clip(values, 0, 1)
    return clipped


def _contrast(rgb: Floats, things: list[Thing]) -> bool:
    return all(np.abs(thing.rgb - rgb).sum() > 0.55 for thing in things)


def _contrasting(rng: np.random.Generator, things: list[Thing]) -> tuple[str, Floats]:
    """A background colour with its name that no object disappears in."""
    taken = {thing.colour for thing in things}
    while True:
        # Most pictures people draw stand on white, gray or black.
        name = str(rng.choice(("white", "gray", "black"))) if rng.random() < 0.4 else str(rng.choice(COLOUR_NAMES))
        tones = [tone for tone, of in TONED_COLOURS if of == name]
        tone = str(rng.choice(tones)) if tones and rng.random() < 0.45 else None
        rgb = colour_sample(rng, name, tone)
        if rng.random() < 0.12 and name == "white":  # paper: cream, ivory and the like are called white
            rgb = rgb * np.array([1.0, rng.uniform(0.95, 1.0), rng.uniform(0.86, 0.97)], np.float32)
        if name not in taken and _contrast(rgb, things):
            return name, rgb


def _pattern(rng: np.random.Generator, kind: str) -> Floats:
    """How much of the second background colour shows at each pixel: float32, (64, 64), in 0..1."""
    x, y = _grid()
    angle = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.6:
        angle = float(rng.choice([0.0, 0.5, 1.0, 1.5])) * math.pi
    along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    across = (y - 0.5) * math.cos(angle) - (x - 0.5) * math.sin(angle)
    if kind == "gradient":
        if rng.random() < 0.25:
            return _clip(np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) * 1.5)
        return np.clip(along / 1.1 + 0.5, 0, 1).astype(np.float32)
    frequency = rng.uniform(2.5, 9)
    sharpness = SIZE / frequency / 4
    wave = np.sin(2 * math.pi * (along * frequency + rng.random()))
    if kind == "stripes":
        return np.clip(wave * sharpness + 0.5, 0, 1).astype(np.float32)
    other = np.sin(2 * math.pi * (across * frequency + rng.random()))
    if kind == "checkerboard":
        return np.clip(wave * other * sharpness * 1.5 + 0.5, 0, 1).astype(np.float32)
    if kind == "dots":
        return np.clip(((wave + other) / 2 - rng.uniform(0.3, 0.6)) * sharpness * 2 + 0.5, 0, 1).astype(np.float32)
    return np.zeros((SIZE, SIZE), np.float32)


def _facts(scene: Scene) -> set[int]:
    facts: set[tuple[str, ...]] = {("background", scene.background)}
    if scene.picture_tone:
        facts.add(("picture tone", scene.picture_tone))
    for colour in scene.background_colours:
        facts |= {("background colour", colour), ("any colour", colour)}
    for thing in scene.things:
        facts |= {("object colour", thing.colour), ("any colour", thing.colour), ("shape", thing.shape)}
        facts.add(("object", thing.colour, thing.shape))
        if thing.tone:
            facts.add(("toned colour", thing.tone, thing.colour))
        if thing.size:
            facts.add(("size", thing.size, thing.shape))
    shapes = [thing.shape for thing in scene.things]
    for shape in set(shapes):
        facts.add(("count", ("one", "two", "three", "four")[shapes.count(shape) - 1], shape))
    return {FACTS[fact] for fact in facts}


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Labels:
    """What lies where in a picture; nothing to begin with."""

    def __init__(self) -> None:
        self.shapes = np.zeros((PATCHES, PATCHES), np.int8)
        self.colours = np.zeros((PATCHES, PATCHES), np.int8)
        self.mask = np.zeros((SIZE, SIZE), np.bool_)


def _draw_things(rng: np.random.Generator, canvas: Floats, things: list[Thing], *, big: bool) -> tuple[Floats, _Labels]:
    labels = _Labels()
    for thing, (x, y, radius) in zip(things, _places(rng, len(things), big=big), strict=True):
        diameter = 2 * radius / SIZE
        thing.size = "big" if diameter > 0.66 else "small" if diameter < 0.34 else None
        large = Image.new("L", (_CANVAS, _CANVAS))
        draw = ImageDraw.Draw(large)
        placement = _placement(rng, thing.shape, radius)
        parts = _parts(rng, thing.shape)
        if rng.random() < 0.15 and thing.shape not in ("circle", "oval", "ring", "crescent", "flower", "cloud"):
            parts = [(_round_corners(points), ink) for points, ink in parts]
        for points, ink in parts:
            placed = (points @ placement.T + (x, y)) * _SCALE
            draw.polygon([tuple(point) for point in placed], fill=255 if ink else 0)
        style = rng.random()
        if style < 0.08:  # a soft shadow behind
            shadow = _shrink(rng, large.filter(ImageFilter.BoxBlur(6)))
            shadow = np.roll(shadow, (int(rng.integers(1, 4)), int(rng.integers(-2, 3))), (0, 1))
            canvas = canvas * (1 - 0.45 * shadow[..., None])
        elif style < 0.2:  # an outline, black or white or a darker shade of the fill
            widened = _shrink(rng, large.filter(ImageFilter.MaxFilter(int(rng.choice([5, 7, 9])))))[..., None]
            line = thing.rgb * 0.5 if rng.random() < 0.4 else np.float32(rng.choice([0.03, 0.97]))
            canvas = canvas * (1 - widened) + line * widened
        mask = _shrink(rng, large)
        canvas = canvas * (1 - mask[..., None]) + _fill(rng, thing.rgb) * mask[..., None]
        covered = mask.reshape(PATCHES, SIZE // PATCHES, PATCHES, SIZE // PATCHES).mean((1, 3)) > 0.35
        labels.shapes[covered] = SHAPE_NAMES.index(thing.shape) + 1
        labels.colours[covered] = COLOUR_NAMES.index(thing.colour) + 1
        labels.mask |= mask > 0.5
    return canvas.astype(np.float32), labels


def _places(rng: np.random.Generator, count: int, *, big: bool) -> list[tuple[float, float, float]]:
    """Centre and radius in pixels of each object; they do not overlap."""
    if count == 1:
        radius = SIZE * (rng.uniform(0.2, 0.5) if big else rng.uniform(0.12, 0.42))
        room = max(SIZE / 2 - 0.88 * radius, 0)
        if rng.random() < 0.3:
            room *= 0.2
        return [(SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room), radius)]
    if count == 2:
        slots = [(0.27, 0.5), (0.73, 0.5)] if rng.random() < 0.6 else [(0.5, 0.27), (0.5, 0.73)]
        if rng.random() < 0.25:
            slots = [(0.28, 0.3), (0.72, 0.7)] if rng.random() < 0.5 else [(0.72, 0.3), (0.28, 0.7)]
    elif count == 3 and rng.random() < 0.35:
        slots = [(0.2, 0.5), (0.5, 0.5), (0.8, 0.5)]
    else:
        slots = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]
    chosen = [slots[i] for i in rng.permutation(len(slots))[:count]]
    largest = 0.15 if len(slots) == 3 else 0.235
    return [
        (
            SIZE * (x + rng.uniform(-0.03, 0.03)),
            SIZE * (y + rng.uniform(-0.03, 0.03)),
            SIZE * rng.uniform(largest * 0.6, largest),
        )
        for x, y in chosen
    ]


def _placement(rng: np.random.Generator, shape: str, radius: float) -> NDArray[np.float64]:
    """The 2 x 2 matrix that takes a unit shape to its size, stretch and turn."""
    if shape == "oval":
        stretch = rng.uniform(1.5, 2.3)
    elif shape == "rectangle":
        stretch = rng.uniform(1.55, 2.8)
    elif shape in ("circle", "square"):
        stretch = rng.uniform(1.0, 1.16)
    elif shape == "diamond":
        stretch = rng.uniform(1.0, 1.9)
    else:
        stretch = rng.uniform(1.0, 1.33)
    scale = np.array([1.0, 1 / stretch])
    if rng.random() < (0.3 if shape == "diamond" else 0.5):
        scale = scale[::-1]
    if shape in ("circle", "ring", "flower"):
        turn = rng.uniform(0, 2 * math.pi)
    elif shape == "crescent":
        turn = rng.uniform(-0.8, 0.8) + (math.pi if rng.random() < 0.5 else 0)
    elif shape in ("arrow", "semicircle"):
        turn = float(rng.choice([0.0, 0.5, 1.0, 1.5])) * math.pi + rng.normal(0, 0.08)
    elif shape in ("triangle", "star") and rng.random() < 0.15:
        turn = rng.uniform(0, 2 * math.pi)
    elif shape == "oval" and rng.random() < 0.3:
        turn = rng.uniform(0, math.pi)
    elif shape in ("square", "diamond"):
        turn = float(np.clip(rng.normal(0, 0.07), -0.15, 0.15))
    else:
        turn = rng.normal(0, 0.13)
    cos, sin = math.cos(turn), math.sin(turn)
    shear = np.array([[1.0, rng.normal(0, 0.03)], [0.0, 1.0]])
    matrix: NDArray[np.float64] = np.array([[cos, -sin], [sin, cos]]) @ shear @ np.diag(scale) * radius
    return matrix


def _shrink(rng: np.random.Generator, mask: Image.Image) -> Floats:
    # The two differ in how crisp an edge becomes, as pictures from elsewhere do.
    way = Image.Resampling.BOX if rng.random() < 0.5 else Image.Resampling.BICUBIC
    shrunk: Floats = np.asarray(mask.resize((SIZE, SIZE), way), np.float32) / 255
    return shrunk


def _fill(rng: np.random.Generator, rgb: Floats) -> Floats:
    style = rng.random()
    if style < 0.72:
        return np.broadcast_to(rgb, (SIZE, SIZE, 3))
    if style < 0.88:  # shaded from one side to the other
        weight = _pattern(rng, "gradient")[..., None]
        return _clip(rgb * (1 - weight * rng.uniform(0.08, 0.25)) + 0.06 * (1 - weight))
    grain = rng.normal(0, rng.uniform(0.02, 0.06), (SIZE, SIZE, 1)).astype(np.float32)
    return _clip(rgb + grain)


def _expose(rng: np.random.Generator, canvas: Floats) -> Floats:
    """The picture with a little of what cameras, scanners and encoders add."""
    if rng.random() < 0.2:
        canvas = canvas * (1 - 0.18 * _pattern(rng, "gradient")[..., None])
    if rng.random() < 0.25:
        canvas = canvas + rng.normal(0, rng.uniform(0.004, 0.03), canvas.shape).astype(np.float32)
    if rng.random() < 0.3:
        picture = Image.fromarray(np.clip(canvas * 255, 0, 255).astype(np.uint8))
        if rng.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
        else:
            picture = picture.filter(ImageFilter.UnsharpMask(1, int(rng.integers(30, 110)), 0))
        canvas = np.asarray(picture, np.float32) / 255
    return np.clip(canvas, 0, 1)


def _landscape(rng: np.random.Generator, name: str) -> tuple[Floats, list[str]]:
    x, y = _grid()
    horizon = rng.uniform(0.42, 0.68) + 0.02 * np.sin(x * rng.uniform(4, 12) + rng.random() * 6)
    land = np.clip((y - horizon) * SIZE, 0, 1)[..., None]

    def ramp(top: Floats, bottom: Floats) -> Floats:
        return top + (bottom - top) * _clip(y / 0.6)[..., None]

    def disc(cx: float, cy: float, radius: float) -> Floats:
        return _clip((radius - np.hypot(x - cx, y - cy)) * SIZE + 0.5)[..., None]

    sky = ramp(colour_sample(rng, "blue", "light"), colour_sample(rng, "blue", "light") * 0.4 + 0.6)
    if name == "sunset":
        top = colour_sample(rng, str(rng.choice(["purple", "red", "orange"]))) * 0.8
        sky = ramp(top, colour_sample(rng, str(rng.choice(["orange", "yellow"]))))
        sun = disc(rng.uniform(0.25, 0.75), rng.uniform(0.35, 0.55), rng.uniform(0.07, 0.15))
        sky = sky * (1 - sun) + colour_sample(rng, "yellow", "light") * sun
        ground = colour_sample(rng, str(rng.choice(["blue", "purple"])), "dark")
        return sky * (1 - land) + ground * (0.8 + 0.3 * (1 - y[..., None])) * land, ["orange"]
    if name == "night":
        sky = ramp(colour_sample(rng, "black"), colour_sample(rng, "blue", "dark") * rng.uniform(0.5, 1))
        for _ in range(int(rng.integers(12, 50))):
            star = disc(rng.random(), rng.random(), rng.uniform(0.002, 0.012))
            sky = sky * (1 - star) + rng.uniform(0.7, 1) * star
        if rng.random() < 0.5:
            cx, cy, radius = rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.5), rng.uniform(0.06, 0.14)
            moon = disc(cx, cy, radius) * (1 - disc(cx + radius * 0.6, cy, radius) * float(rng.random() < 0.6))
            sky = sky * (1 - moon) + colour_sample(rng, "yellow", "light") * moon
        if rng.random() < 0.5:
            sky = sky * (1 - land * 0.8)
        return sky, ["black", "blue"]
    if name == "sea":
        waves = 0.06 * np.sin(y * rng.uniform(60, 110) + np.sin(x * 9) * 2)[..., None]
        return sky * (1 - land) + (colour_sample(rng, "blue") * 0.85 + waves) * land, ["blue"]
    if name == "field":
        grass = colour_sample(rng, "green") + rng.normal(0, 0.04, (SIZE, SIZE, 1))
        sun = disc(rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.25), rng.uniform(0.06, 0.12) * (rng.random() < 0.5))
        sky = sky * (1 - sun) + colour_sample(rng, "yellow") * sun
        return (sky * (1 - land) + grass * land).astype(np.float32), ["green", "blue"]
    if name == "mountains":
        picture = sky
        for _ in range(int(rng.integers(2, 5))):
            peak, summit, slope = rng.random(), rng.uniform(0.15, 0.4), rng.uniform(0.9, 1.8)
            depth = y - summit - np.abs(x - peak) * slope
            rock = colour_sample(rng, str(rng.choice(["gray", "brown"]))) * (0.85 + 0.3 * (x > peak))[..., None]
            snow = np.clip((0.14 - depth + 0.03 * np.sin(x * 40)) * SIZE, 0, 1)[..., None]
            inside = np.clip(depth * SIZE, 0, 1)[..., None]
            picture = picture * (1 - inside) + (rock * (1 - snow) + 0.97 * snow) * inside
        return picture.astype(np.float32), ["blue", "gray", "white", "brown"]
    if name == "desert":
        sand = np.array([rng.uniform(0.8, 0.95), rng.uniform(0.62, 0.75), rng.uniform(0.35, 0.5)], np.float32)
        dunes = 0.08 * np.sin(x * rng.uniform(3, 8) + y * rng.uniform(8, 20))[..., None]
        return sky * (1 - land) + (sand + dunes) * land, ["yellow", "blue", "brown"]
    picture = sky * (1 - land) + colour_sample(rng, "green", "dark") * land
    for base in np.sort(rng.uniform(0.55, 1.05, int(rng.integers(7, 14)))):
        cx, height = rng.random(), rng.uniform(0.25, 0.5)
        depth = y - (base - height)
        crown = np.clip((depth * rng.uniform(0.25, 0.4) - np.abs(x - cx)) * SIZE, 0, 1) * (y < base)
        tree = colour_sample(rng, "green", "dark" if rng.random() < 0.5 else None)
        picture = picture * (1 - crown[..., None]) + tree * crown[..., None]
    return picture.astype(np.float32), ["green", "blue"]


# --- shapes as outlines -----------------------------------------------------------------------------------------------


def _ngon(n: int, turn: float = 0.0, radius: float = 1.0) -> NDArray[np.float64]:
    angle = np.arange(n) * 2 * math.pi / n + turn - math.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius


def _round_corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outline with each corner cut twice (Chaikin), the cut at a sixth of the edges."""
    for _ in range(2):
        following = np.roll(points, -1, 0)
        points = np.stack([points * 5 / 6 + following / 6, points / 6 + following * 5 / 6], 1).reshape(-1, 2)
    return points


def _discs(centres: list[tuple[float, float, float]]) -> list[Part]:
    return [(_ngon(40, radius=radius) + np.array([x, y]), True) for x, y, radius in centres]


def _parts(rng: np.random.Generator, shape: str) -> list[Part]:
    """Outlines of one shape, about -1..1, to be drawn one over the other."""
    u = rng.uniform
    if shape in ("circle", "oval"):
        return [(_ngon(56), True)]
    if shape in ("square", "rectangle"):
        return [(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.92, True)]
    if shape == "triangle":
        kind = rng.random()
        apex = 0.0 if kind < 0.65 else u(-0.5, 0.5) if kind < 0.8 else -0.9
        points = np.array([[apex, -0.9], [0.95, 0.8], [-0.95, 0.8]])
        return [(points * (1, -1) if rng.random() < 0.2 else points, True)]
    if shape == "star":
        n = int(rng.choice([4, 5, 6, 7, 8], p=[0.08, 0.72, 0.12, 0.04, 0.04]))
        inner = u(0.3, 0.5) if n <= 5 else u(0.42, 0.62)
        points = np.empty((2 * n, 2))
        points[0::2] = _ngon(n)
        points[1::2] = _ngon(n, math.pi / n, inner)
        return [(points, True)]
    if shape == "heart":
        if rng.random() < 0.5:
            t = np.linspace(0, 2 * math.pi, 60)
            x = np.sin(t) ** 3
            c2, c3 = u(4.2, 5.8), u(1.2, 2.6)
            y = -(13 * np.cos(t) - c2 * np.cos(2 * t) - c3 * np.cos(3 * t) - np.cos(4 * t)) / 16
            return [(np.stack([x, y + 0.1], 1), True)]
        lobe = u(0.44, 0.54)
        top = -u(0.25, 0.45)
        side = lobe * u(0.92, 1.0)
        body = np.array([[-0.5 - side * 0.86, top + 0.22], [0, 0.95], [0.5 + side * 0.86, top + 0.22], [0, top]])
        return [*_discs([(-0.5, top, lobe), (0.5, top, lobe)]), (body, True)]
    if shape == "hexagon":
        return [(_ngon(6, math.pi / 6 if rng.random() < 0.5 else 0.0), True)]
    if shape == "pentagon":
        return [(_ngon(5, math.pi if rng.random() < 0.08 else 0.0), True)]
    if shape == "diamond":
        return [(_ngon(4), True)]
    if shape == "cross":
        arm = u(0.2, 0.42)
        points = np.array(
            [
                *([-arm, -1], [arm, -1], [arm, -arm], [1, -arm], [1, arm], [arm, arm]),
                *([arm, 1], [-arm, 1], [-arm, arm], [-1, arm], [-1, -arm], [-arm, -arm]),
            ]
        )
        return [(points, True)]
    if shape == "ring":
        return [(_ngon(56), True), (_ngon(56, radius=u(0.42, 0.8)), False)]
    if shape == "crescent":
        bite = _ngon(56, radius=u(0.75, 1.0)) + np.array([u(0.38, 0.65), u(-0.1, 0.1)])
        return [(_ngon(56), True), (bite, False)]
    if shape == "arrow":
        shaft, neck, barb = u(0.14, 0.34), u(-0.15, 0.3), u(0.55, 0.9)
        points = np.array(
            [[-1, -shaft], [neck, -shaft], [neck, -barb], [1, 0], [neck, barb], [neck, shaft], [-1, shaft]]
        )
        return [(points, True)]
    if shape == "semicircle":
        angle = np.linspace(math.pi, 2 * math.pi, 30)
        return [(np.stack([np.cos(angle), np.sin(angle) + 0.45], 1), True)]
    if shape == "drop":
        if rng.random() < 0.5:
            t = np.linspace(0, 2 * math.pi, 60)
            return [(np.stack([np.sin(t) * np.sin(t / 2) ** u(1.2, 2.2) * 0.8, -np.cos(t)], 1), True)]
        low, radius = u(0.3, 0.42), u(0.52, 0.62)
        return [
            *_discs([(0, low, radius)]),
            (np.array([[0, -1], [radius * 0.93, low - 0.2], [-radius * 0.93, low - 0.2]]), True),
        ]
    if shape == "flower":
        n, petal = int(rng.integers(5, 9)), u(0.28, 0.42)
        parts = _discs([(float(x), float(y), petal) for x, y in _ngon(n, radius=1 - petal)])
        parts.append((_ngon(40, radius=u(0.45, 0.6)), True))
        if rng.random() < 0.5:
            parts.append((_ngon(40, radius=u(0.18, 0.3)), False))
        return parts
    if shape == "cloud":
        bumps = [(-0.55, 0.15, u(0.32, 0.42)), (0.0, -0.1, u(0.45, 0.6)), (0.55, 0.12, u(0.34, 0.44))]
        if rng.random() < 0.5:
            bumps.append((u(0.2, 0.4), -0.15, u(0.35, 0.45)))
        base = np.array([[-0.6, 0.0], [0.6, 0.0], [0.6, 0.52], [-0.6, 0.52]])
        return [*_discs(bumps), (base, True)]
    raise ValueError(f"no outline for {shape!r}: the known shapes are {', '.join(SHAPE_NAMES)}")
