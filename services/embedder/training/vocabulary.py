"""What the bundled model is taught: its colours, shapes, backgrounds, and the facts that make a caption true.

A picture is described by the set of facts that hold for it, a caption by the set that it requires. A caption is true of
a picture exactly when the second set lies in the first; training uses this to leave false negatives out of its loss,
and evaluation to count any picture that fits a query as found.
"""

from __future__ import annotations

from typing import NamedTuple


class HsvRange(NamedTuple):
    """A box in HSV space: hue in degrees (may be negative, taken modulo 360), saturation and value in 0..1."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


# Boxes keep clear of each other: between two of them people disagree on the word, and so would the captions.
COLOURS: dict[str, HsvRange] = {
    "red": HsvRange((-8, 7), (0.70, 1.0), (0.70, 1.0)),
    "orange": HsvRange((19, 39), (0.75, 1.0), (0.86, 1.0)),
    "yellow": HsvRange((47, 62), (0.65, 1.0), (0.86, 1.0)),
    "green": HsvRange((92, 152), (0.45, 1.0), (0.42, 0.88)),
    "turquoise": HsvRange((169, 187), (0.50, 1.0), (0.55, 1.0)),
    "blue": HsvRange((206, 244), (0.60, 1.0), (0.55, 1.0)),
    "purple": HsvRange((262, 300), (0.45, 1.0), (0.42, 0.85)),
    "pink": HsvRange((318, 351), (0.25, 0.75), (0.90, 1.0)),
    "brown": HsvRange((13, 31), (0.50, 0.90), (0.30, 0.58)),
    "black": HsvRange((0, 360), (0.0, 0.25), (0.0, 0.13)),
    "white": HsvRange((0, 360), (0.0, 0.05), (0.93, 1.0)),
    "gray": HsvRange((0, 360), (0.0, 0.09), (0.38, 0.68)),
}

# Only where the toned colour still carries the plain colour's name: light red is pink, dark orange is brown.
TONED_COLOURS: dict[tuple[str, str], HsvRange] = {
    ("dark", "red"): HsvRange((-8, 5), (0.75, 1.0), (0.35, 0.58)),
    ("dark", "green"): HsvRange((95, 155), (0.55, 1.0), (0.18, 0.38)),
    ("dark", "turquoise"): HsvRange((172, 188), (0.6, 1.0), (0.32, 0.5)),
    ("dark", "blue"): HsvRange((212, 244), (0.65, 1.0), (0.22, 0.48)),
    ("dark", "purple"): HsvRange((264, 298), (0.5, 1.0), (0.22, 0.40)),
    ("dark", "brown"): HsvRange((13, 30), (0.5, 0.9), (0.18, 0.29)),
    ("dark", "gray"): HsvRange((0, 360), (0.0, 0.1), (0.21, 0.33)),
    ("light", "yellow"): HsvRange((48, 62), (0.28, 0.5), (0.94, 1.0)),
    ("light", "green"): HsvRange((92, 145), (0.28, 0.5), (0.82, 1.0)),
    ("light", "turquoise"): HsvRange((169, 187), (0.25, 0.42), (0.88, 1.0)),
    ("light", "blue"): HsvRange((200, 226), (0.28, 0.5), (0.88, 1.0)),
    ("light", "purple"): HsvRange((258, 292), (0.22, 0.42), (0.82, 1.0)),
    ("light", "brown"): HsvRange((20, 32), (0.35, 0.55), (0.6, 0.74)),
    ("light", "gray"): HsvRange((0, 360), (0.0, 0.07), (0.74, 0.86)),
}

COLOUR_SYNONYMS: dict[str, tuple[str, ...]] = {
    "gray": ("grey",),
    "purple": ("violet",),
    "turquoise": ("cyan", "teal"),
}
TONED_SYNONYMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("dark", "blue"): ("navy", "navy blue"),
    ("light", "blue"): ("sky blue",),
    ("dark", "turquoise"): ("teal",),
}

SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "disk", "round shape", "ball"),
    "oval": ("ellipse",),
    "square": (),
    "rectangle": (),
    "triangle": (),
    "star": (),
    "heart": (),
    "hexagon": (),
    "pentagon": (),
    "diamond": ("rhombus",),
    "cross": ("plus", "plus sign"),
    "ring": ("donut",),
    "crescent": ("moon", "crescent moon"),
    "arrow": (),
    "semicircle": ("half circle",),
    "drop": ("teardrop",),
    "flower": (),
    "cloud": (),
}
"""Each shape's word and its synonyms."""

BACKGROUNDS = ("plain", "gradient", "stripes", "checkerboard", "dots", "texture")
LANDSCAPES: dict[str, tuple[str, ...]] = {
    "sunset": ("a sunset", "sunset over the sea", "sunset", "the sun going down", "an orange evening sky"),
    "night": ("a night sky", "night", "stars in the night sky", "night sky with stars", "a starry night"),
    "sea": ("the sea", "sea under a blue sky", "ocean", "water and sky", "the blue sea"),
    "field": ("a green field under a blue sky", "meadow", "grass and sky", "a field", "green grass"),
    "mountains": ("mountains", "snowy mountains", "a mountain", "mountain peaks", "mountains under the sky"),
    "desert": ("a desert", "sand dunes", "desert", "sand under the sky", "yellow sand"),
    "forest": ("a forest", "trees", "green trees", "forest", "many trees"),
}
TONES = ("dark", "light")
COUNT_WORDS = ("one", "two", "three", "four")

COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = tuple(SHAPES)


def _number_facts() -> dict[tuple[str, ...], int]:
    facts: list[tuple[str, ...]] = []
    facts += [("object colour", colour) for colour in COLOURS]
    facts += [("any colour", colour) for colour in COLOURS]
    facts += [("shape", shape) for shape in SHAPES]
    facts += [("object", colour, shape) for colour in COLOURS for shape in SHAPES]
    facts += [("toned colour", tone, colour) for tone in TONES for colour in COLOURS]
    facts += [("size", size, shape) for size in ("big", "small") for shape in SHAPES]
    facts += [("background colour", colour) for colour in COLOURS]
    facts += [("background", kind) for kind in (*BACKGROUNDS, *LANDSCAPES)]
    facts += [("count", word, shape) for word in COUNT_WORDS for shape in SHAPES]
    facts += [("picture tone", tone) for tone in TONES]
    return {fact: number for number, fact in enumerate(facts)}


FACTS = _number_facts()
"""The column of each fact in a picture's and a caption's fact vector."""
