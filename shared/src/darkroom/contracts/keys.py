"""Where every blob lies. Derived keys follow from hash and recipe, so running twice writes the same blobs."""

from typing import Self

from darkroom.contracts.base import BlobKey, Frozen, ModelId, OutputFormat, Sha256, ThumbnailSize

RENDER_VERSION = 1
"""Raised whenever decoding or rendering would give other bytes for the same original."""


class Recipe(Frozen):
    """Everything besides the original that decides what its artefacts look like."""

    output: OutputFormat
    version: int

    @classmethod
    def current(cls, output: OutputFormat = OutputFormat.WEBP) -> Self:
        """The recipe of this release. Not defaults: a message that waits through an upgrade keeps its own version."""
        return cls(output=output, version=RENDER_VERSION)

    @classmethod
    def from_slug(cls, slug: str) -> Self:
        """The recipe that has this slug; raises `ValueError` for anything else."""
        version, _, output = slug.removeprefix("r").partition("-")
        return cls(output=OutputFormat(output), version=int(version))

    @property
    def slug(self) -> str:
        """The recipe as a path segment, such as `r1-webp`."""
        return f"r{self.version}-{self.output.value}"


def original_key(sha256: Sha256) -> BlobKey:
    """The uploaded bytes, untouched."""
    return f"originals/{sha256[:2]}/{sha256}"


def derived_prefix(sha256: Sha256) -> str:
    """Everything rendered from one original, whatever the recipe."""
    return f"derived/{sha256[:2]}/{sha256}/"


def thumbnail_key(sha256: Sha256, recipe: Recipe, size: ThumbnailSize) -> BlobKey:
    """One rendition."""
    return f"{derived_prefix(sha256)}{recipe.slug}/{size.value}.{recipe.output.value}"


def proxy_key(sha256: Sha256, recipe: Recipe) -> BlobKey:
    """The small picture that embedding works from: long side 768 px, JPEG q95 4:4:4, already upright and sRGB."""
    return f"{derived_prefix(sha256)}{recipe.slug}/proxy.jpg"


def prepared_key(sha256: Sha256, recipe: Recipe) -> BlobKey:
    """Manifest of `prepare`, written last: where it exists, `large` and `proxy` do too."""
    return f"{derived_prefix(sha256)}{recipe.slug}/prepared.json"


def described_key(sha256: Sha256, recipe: Recipe) -> BlobKey:
    """Manifest of `thumbnails`, written last: where it exists, `medium` and `small` do too."""
    return f"{derived_prefix(sha256)}{recipe.slug}/described.json"


def embedding_key(model_id: ModelId, sha256: Sha256) -> BlobKey:
    """One vector as a NumPy file, float16, shape (dim,), L2 norm 1."""
    return f"embeddings/{model_id}/{sha256}.npy"


def query_key(query_id: str, name: str) -> BlobKey:
    """A blob of a search by picture: gone at its end, or swept by age."""
    return f"queries/{query_id}/{name}"


def probe_key(task_id: str) -> BlobKey:
    """A blob of a probe of the store: gone at its end, or swept by age."""
    return f"probes/{task_id}"


def backup_key(name: str) -> BlobKey:
    """One database dump."""
    return f"backups/{name}"
