"""Captions for generated scenes, by templates, each with the facts that it requires."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scenes import Scene, Thing
from vocabulary import COLOUR_SYNONYMS, COUNT_WORDS, FACTS, LANDSCAPES, SHAPES, TONED_SYNONYMS

CAPTIONS = 6
"""Captions of each scene: the fullest one, two that name one object, three of any kind."""


class Caption(NamedTuple):
    """A text and the columns of the facts that a picture must have for it to be true."""

    text: str
    requires: tuple[int, ...]


# Half of them without an article, as people type queries.
_NAMING = (
    "a {c} {s}", "{c} {s}", "{c} {s}", "one {c} {s}", "the {c} {s}", "{s}, {c}", "a {s} that is {c}", "{c} {s} shape",
    "a picture of a {c} {s}", "picture of {c} {s}", "a drawing of a {c} {s}", "{c} coloured {s}", "a {s} in {c}",
    "a photo of a {c} {s}", "{s} {c}", "image of a {c} {s}",
)  # fmt: skip
_COLOUR_ONLY = (
    "{c}",
    "{c}",
    "something {c}",
    "a {c} shape",
    "{c} shape",
    "a {c} thing",
    "{c} object",
    "the colour {c}",
)
_SHAPE_ONLY = ("a {s}", "{s}", "{s}", "a {s} shape", "the {s}", "picture of a {s}", "drawing of {s}")
_ON_COLOUR = (
    "{o} on a {b} background", "{o} on {b}", "{o} on {b} background", "{o} in front of a {b} background",
    "{o} against {b}",
)  # fmt: skip
_ON_KIND = {
    "gradient": ("{o} on a gradient", "{o} on a gradient background", "{o} over a colour gradient"),
    "stripes": ("{o} on stripes", "{o} on a striped background", "{o} in front of stripes"),
    "checkerboard": ("{o} on a checkerboard", "{o} on a checkered background"),
    "dots": ("{o} on dots", "{o} on a dotted background", "{o} on polka dots"),
    "texture": ("{o} on a textured background", "{o} on a rough background"),
}
_KIND_ONLY = {
    "plain": ("a plain background", "plain background", "a single colour"),
    "gradient": ("a gradient", "gradient", "a smooth gradient", "colour gradient"),
    "stripes": ("stripes", "a striped pattern", "striped background", "lines"),
    "checkerboard": ("a checkerboard", "checkerboard", "checkered pattern", "chessboard"),
    "dots": ("polka dots", "a dotted pattern", "dots", "dotted background"),
    "texture": ("a textured surface", "texture", "rough texture", "noise"),
}
_BACKGROUND_COLOUR = ("a {b} background", "{b} background", "{b} picture", "mostly {b}", "a {b} picture", "{b}")
_PICTURE_TONE = {
    "dark": ("a dark picture", "dark", "dark image", "a dark background"),
    "light": ("a bright picture", "bright", "light picture", "a light background"),
}
_SIZES = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}


def caption_scene(rng: np.random.Generator, scene: Scene) -> list[Caption]:
    """Six captions that are true of the scene: the fullest first, then two on one object, then three of any kind."""
    if not scene.things:
        return [_full(rng, scene), *(_of_background(rng, scene) for _ in range(CAPTIONS - 1))]
    naming = [_of_thing(rng, _pick_thing(rng, scene), _NAMING) for _ in range(2)]
    return [_full(rng, scene), *naming, *(_of_any_kind(rng, scene) for _ in range(CAPTIONS - 3))]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _pick_thing(rng: np.random.Generator, scene: Scene) -> Thing:
    return scene.things[int(rng.integers(len(scene.things)))]


def _colour_word(rng: np.random.Generator, thing: Thing) -> tuple[str, tuple[int, ...]]:
    """A word for the object's colour, often with the tone where it has one, and the facts that the tone adds."""
    if thing.tone and rng.random() < 0.6:
        names = (f"{thing.tone} {thing.colour}", *TONED_SYNONYMS.get((thing.tone, thing.colour), ()))
        return _pick(rng, names), (FACTS[("toned colour", thing.tone, thing.colour)],)
    return _plain_word(rng, thing.colour), ()


def _plain_word(rng: np.random.Generator, colour: str) -> str:
    synonyms = COLOUR_SYNONYMS.get(colour, ())
    return _pick(rng, synonyms) if synonyms and rng.random() < 0.35 else colour


def _shape_word(rng: np.random.Generator, shape: str) -> str:
    synonyms = SHAPES[shape]
    return _pick(rng, synonyms) if synonyms and rng.random() < 0.25 else shape


def _articles(text: str) -> str:
    """The text with `a` before a vowel turned into `an`."""
    words = text.split(" ")
    for i, word in enumerate(words[:-1]):
        if word == "a" and words[i + 1][0] in "aeio":
            words[i] = "an"
    return " ".join(words)


def _of_thing(rng: np.random.Generator, thing: Thing, templates: tuple[str, ...]) -> Caption:
    colour, toned = _colour_word(rng, thing)
    text = _pick(rng, templates).format(c=colour, s=_shape_word(rng, thing.shape))
    return Caption(_articles(text), (FACTS[("object", thing.colour, thing.shape)], *toned))


def _object_phrase(rng: np.random.Generator, scene: Scene) -> Caption:
    """All objects of the scene in one phrase, equal ones counted."""
    groups: dict[tuple[str, str], list[Thing]] = {}
    for thing in scene.things:
        groups.setdefault((thing.colour, thing.shape), []).append(thing)
    article = "a " if rng.random() < 0.5 else ""
    phrases: list[str] = []
    requires: list[int] = []
    for (colour_name, shape), things in groups.items():
        colour, toned = _colour_word(rng, things[0])
        word = _shape_word(rng, shape)
        if len(things) == 1:
            phrases.append(f"{article}{colour} {word}")
        else:
            phrases.append(f"{COUNT_WORDS[len(things) - 1]} {colour} {_plural(word)}")
            requires.append(FACTS[("count", COUNT_WORDS[len(things) - 1], shape)])
        requires += [FACTS[("object", colour_name, shape)], *toned]
    joint = " and " if article or rng.random() < 0.6 else ", "
    return Caption(joint.join(phrases), tuple(requires))


def _plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x")) else "s")


def _full(rng: np.random.Generator, scene: Scene) -> Caption:
    if not scene.things:
        return _of_background(rng, scene)
    phrase = _object_phrase(rng, scene)
    text, requires = phrase
    if len(scene.things) <= 2 and rng.random() < 0.75:
        kinds = _ON_KIND.get(scene.background)
        if kinds and rng.random() < 0.7:
            return Caption(
                _articles(_pick(rng, kinds).format(o=text)), (*requires, FACTS[("background", scene.background)])
            )
        if len(scene.background_colours) == 1:
            colour = scene.background_colours[0]
            text = _pick(rng, _ON_COLOUR).format(o=text, b=_plain_word(rng, colour))
            requires = (*requires, FACTS[("background colour", colour)])
    return Caption(_articles(text), requires)


def _of_background(rng: np.random.Generator, scene: Scene) -> Caption:
    if scene.background in LANDSCAPES:
        return Caption(_pick(rng, LANDSCAPES[scene.background]), (FACTS[("background", scene.background)],))
    if scene.picture_tone and rng.random() < 0.15:
        return Caption(_pick(rng, _PICTURE_TONE[scene.picture_tone]), (FACTS[("picture tone", scene.picture_tone)],))
    kind = FACTS[("background", scene.background)]
    colours = scene.background_colours
    requires = tuple(FACTS[("background colour", colour)] for colour in colours)
    if len(colours) == 1 and (scene.background == "plain" or rng.random() < 0.4):
        return Caption(_articles(_pick(rng, _BACKGROUND_COLOUR).format(b=_plain_word(rng, colours[0]))), requires)
    text = _pick(rng, _KIND_ONLY[scene.background])
    if rng.random() < 0.35:
        return Caption(text, (kind,))
    words = " and ".join(_plain_word(rng, colour) for colour in colours)
    if text.startswith("a "):
        text = text[2:]
    return Caption(f"{words} {text}", (kind, *requires))


def _of_any_kind(rng: np.random.Generator, scene: Scene) -> Caption:
    thing = _pick_thing(rng, scene)
    choice = rng.random()
    if choice < 0.30:
        return _of_thing(rng, thing, _NAMING)
    if choice < 0.45:
        colour, toned = _colour_word(rng, thing)
        text = _articles(_pick(rng, _COLOUR_ONLY).format(c=colour))
        return Caption(text, (FACTS[("any colour", thing.colour)], *toned))
    if choice < 0.62:
        text = _articles(_pick(rng, _SHAPE_ONLY).format(s=_shape_word(rng, thing.shape)))
        return Caption(text, (FACTS[("shape", thing.shape)],))
    if choice < 0.70 and thing.size:
        size = _pick(rng, _SIZES[thing.size])
        text = f"{size} {_plain_word(rng, thing.colour)} {_shape_word(rng, thing.shape)}"
        requires = (FACTS[("object", thing.colour, thing.shape)], FACTS[("size", thing.size, thing.shape)])
        return Caption(f"a {text}" if rng.random() < 0.5 else text, requires)
    same = [other for other in scene.things if other.shape == thing.shape]
    if choice < 0.80 and len(same) > 1:
        word = COUNT_WORDS[len(same) - 1]
        return Caption(f"{word} {_plural(_shape_word(rng, thing.shape))}", (FACTS[("count", word, thing.shape)],))
    if choice < 0.88:
        return _of_background(rng, scene)
    return _full(rng, scene)
