"""What can be said of a picture in a few bytes: a blurred placeholder, its main colours, a hash to find likenesses.

All three are exact functions of the pixels, rounded where floating point could differ between machines, and are
strings and integers, so that a message which carries them is the same whenever the work is repeated.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thumbnailer.rendering import flatten

Floats = NDArray[np.float64]

PALETTE_COLOURS = 5
PALETTE_TURNS = 4
# Below this a colour is the blur between two others.
PALETTE_MIN_PERMILLE = 10


@dataclass(frozen=True)
class Swatch:
    """A main colour as `#rrggbb` and its share of the visible pixels in thousandths."""

    colour: str
    permille: int


def thumbhash(image: Image.Image) -> str:
    """The picture's ThumbHash, base64 without line breaks: at most 25 bytes for shape, colours, alpha and a blur.

    `image` has mode RGB or RGBA and any size. Format: https://evanw.github.io/thumbhash/.
    """
    # The format is defined up to 100 x 100; its highest frequency is 7 half-waves, so nothing is lost.
    image = _reduced(image, 100)
    width, height = image.size
    pixels = np.asarray(image, dtype=np.float64) / 255
    alpha = pixels[..., 3]
    visible = alpha.sum()
    average = (pixels[..., :3] * alpha[..., None]).sum(axis=(0, 1)) / (visible or 1)
    red, green, blue = np.moveaxis(average + (pixels[..., :3] - average) * alpha[..., None], -1, 0)
    has_alpha = bool(alpha.min() < 1)

    # Fewer terms for lightness where alpha takes some of the room.
    most = 5 if has_alpha else 7
    across = max(1, _half_up(most * width / max(width, height)))
    down = max(1, _half_up(most * height / max(width, height)))
    l_mean, l_terms, l_scale = _cosine_terms((red + green + blue) / 3, max(3, across), max(3, down))
    p_mean, p_terms, p_scale = _cosine_terms((red + green) / 2 - blue, 3, 3)
    q_mean, q_terms, q_scale = _cosine_terms(red - green, 3, 3)

    is_landscape = width > height
    first = (
        _half_up(63 * l_mean)
        | _half_up(31.5 + 31.5 * p_mean) << 6
        | _half_up(31.5 + 31.5 * q_mean) << 12
        | _half_up(31 * l_scale) << 18
        | has_alpha << 23
    )
    second = (
        (down if is_landscape else across)
        | _half_up(63 * p_scale) << 3
        | _half_up(63 * q_scale) << 9
        | is_landscape << 15
    )
    head = first.to_bytes(3, "little") + second.to_bytes(2, "little")
    terms = l_terms + p_terms + q_terms
    if has_alpha:
        a_mean, a_terms, a_scale = _cosine_terms(alpha, 5, 5)
        head += bytes([_half_up(15 * a_mean) | _half_up(15 * a_scale) << 4])
        terms += a_terms
    # Two terms of four bits to a byte, the lower half first.
    nibbles = [_half_up(15 * term) for term in terms] + [0]
    tail = bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=False))
    return base64.b64encode(head + tail).decode("ascii")


def palette(image: Image.Image) -> list[Swatch]:
    """The main colours, at most five, the most frequent first; empty where no pixel is visible.

    `image` has mode RGB or RGBA; pixels that are more than half transparent do not count.
    """
    pixels = np.asarray(_reduced(image, 64)).reshape(-1, 4)
    visible = np.ascontiguousarray(pixels[pixels[:, 3] >= 128, :3])
    if not len(visible):
        return []
    quantized = Image.fromarray(visible[None]).quantize(PALETTE_COLOURS, Image.Quantize.MEDIANCUT)
    colours = np.reshape(quantized.getpalette() or [], (-1, 3))[: np.asarray(quantized).max() + 1]
    colours, counts = _refined(visible.astype(np.float64), colours.astype(np.float64))
    swatches = [
        Swatch("#" + bytes(map(_half_up, colour)).hex(), _half_up(1000 * int(count) / len(visible)))
        for colour, count in zip(colours, counts, strict=True)
        if count
    ]
    swatches.sort(key=lambda swatch: (-swatch.permille, swatch.colour))
    return [swatch for swatch in swatches if swatch.permille >= PALETTE_MIN_PERMILLE]


def _refined(pixels: Floats, colours: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The colours (n, 3), each moved to the mean of the pixels (m, 3) nearest to it, and how many those are.

    A few turns of k-means: after four, squared errors are 2 % above the end's. Pillow's own go on until no pixel moves.
    """
    counts = np.zeros(len(colours), np.int64)
    for _ in range(PALETTE_TURNS):
        distances = (colours**2).sum(axis=1) - 2 * pixels @ colours.T  # less what is the same for all colours
        nearest = np.argmin(np.round(distances, 3), axis=1)
        counts = np.bincount(nearest, minlength=len(colours))
        sums = np.eye(len(colours))[nearest].T @ pixels
        colours = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], colours)
    return colours, counts


def perceptual_hash(image: Image.Image) -> str:
    """64 bits as 16 hex digits that hardly change when the picture is scaled, recompressed or brightened.

    The signs, against their median, of the 8 x 8 lowest frequencies of the grey picture at 32 x 32 (DCT "pHash").
    Compare by the number of differing bits: below about 10 means the same picture. Transparency counts as white.
    """
    grey = flatten(image).convert("L").resize((32, 32), Image.Resampling.BOX)
    basis = _cosines(32, 8)
    frequencies = np.round(basis @ np.asarray(grey, dtype=np.float64) @ basis.T, 3).ravel()
    # The first is the mean: it says nothing about the shape, and would shift the median.
    # Of 63, the one in the middle. NumPy's own median would import a megabyte for it, in each child.
    bits = frequencies > np.sort(frequencies[1:])[31]
    bits[0] = False
    return np.packbits(bits).tobytes().hex()


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """The picture in mode RGBA with a long side of at most `side`, in which every pixel of it counts alike."""
    # Whole blocks first: everything after it is then work on few pixels.
    image = image.reduce(max(1, max(image.size) // (2 * side))).convert("RGBA")
    image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    return image


def _cosines(samples: int, terms: int) -> Floats:
    """DCT-II basis: (terms, samples), row k the cosine with k half-waves."""
    return np.cos(np.pi / samples * np.outer(np.arange(terms), np.arange(samples) + 0.5))


def _cosine_terms(channel: Floats, across: int, down: int) -> tuple[float, list[float], float]:
    """A channel's mean, its lower triangle of further cosine terms scaled to 0..1, and that scale."""
    height, width = channel.shape
    # Rounding makes the noise of a flat channel zero; unrounded it would be scaled up into a pattern.
    terms = np.round(_cosines(height, down) @ channel @ _cosines(width, across).T / channel.size, 9)
    kept = [float(terms[y, x]) for y in range(down) for x in range(across) if x * down < across * (down - y)]
    mean, further = kept[0], kept[1:]
    scale = max(map(abs, further))
    return mean, [0.5 + 0.5 / scale * term for term in further] if scale else further, scale


def _half_up(value: float) -> int:
    """Rounded as the ThumbHash reference does in JavaScript; Python's round takes halves to the even number."""
    return int(np.floor(value + 0.5))
