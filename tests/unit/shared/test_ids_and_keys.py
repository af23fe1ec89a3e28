"""Ids that sort by time, and the blob keys that everything else follows from."""

import uuid
from collections.abc import Callable

import pytest
from pydantic import TypeAdapter

from darkroom.contracts import keys
from darkroom.contracts.base import BlobKey, OutputFormat, ThumbnailSize
from darkroom.contracts.keys import Recipe
from darkroom.ids import uuid7

SHA256 = "ab" + "5f" * 31
RECIPE = Recipe.current()


def test_a_uuid7_has_the_layout_of_rfc_9562() -> None:
    made = uuid7(0x017F22E279B0, 0xCC3 << 62 | 0x18C4DC0C0C07398F)

    # The example of RFC 9562, appendix A.6.
    assert made == uuid.UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_uuid7s_sort_by_their_time_whatever_their_random_bits() -> None:
    made = [uuid7(ms, bits) for ms in (0, 1, 2**40, 2**48 - 1) for bits in (0, 1, 2**62, 2**74 - 1)]

    assert made == sorted(made)
    assert [str(one) for one in made] == sorted(str(one) for one in made)
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(("unix_ms", "random_bits"), [(-1, 0), (2**48, 0), (0, -1), (0, 2**74)])
def test_what_does_not_fit_into_a_uuid7_is_refused(unix_ms: int, random_bits: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        uuid7(unix_ms, random_bits)


DERIVED: dict[str, Callable[[str, Recipe], str]] = {
    "prepared": keys.prepared_key,
    "described": keys.described_key,
    "proxy": keys.proxy_key,
    **{
        size.value: lambda sha256, recipe, size=size: keys.thumbnail_key(sha256, recipe, size) for size in ThumbnailSize
    },
}


def test_every_artefact_has_a_key_of_its_own_under_the_prefix_that_the_sweeper_removes() -> None:
    made = [make(SHA256, RECIPE) for make in DERIVED.values()]

    assert len(set(made)) == len(made)
    assert all(key.startswith(keys.derived_prefix(SHA256)) for key in made)
    assert not keys.original_key(SHA256).startswith(keys.derived_prefix(SHA256))


@pytest.mark.parametrize("name", DERIVED)
def test_another_recipe_never_overwrites_an_artefact(name: str) -> None:
    recipes = [Recipe(output=output, version=version) for output in OutputFormat for version in (1, 2)]

    made = {DERIVED[name](SHA256, recipe) for recipe in recipes}

    assert len(made) == len(recipes)


def test_every_key_passes_the_contract_for_keys() -> None:
    made = [make(SHA256, RECIPE) for make in DERIVED.values()]
    made += [
        keys.original_key(SHA256),
        keys.embedding_key("tiny@0123456789ab", SHA256),
        keys.query_key("0190", "proxy.jpg"),
        keys.backup_key("2026-01-02.dump"),
    ]

    for key in made:
        TypeAdapter(BlobKey).validate_python(key)


def test_keys_are_what_they_were() -> None:
    # A change would orphan every stored blob: raise RENDER_VERSION, or migrate.
    recipe = Recipe(output=OutputFormat.WEBP, version=1)

    assert keys.original_key(SHA256) == f"originals/ab/{SHA256}"
    assert keys.thumbnail_key(SHA256, recipe, ThumbnailSize.LARGE) == f"derived/ab/{SHA256}/r1-webp/large.webp"
    assert keys.proxy_key(SHA256, recipe) == f"derived/ab/{SHA256}/r1-webp/proxy.jpg"
    assert keys.prepared_key(SHA256, recipe) == f"derived/ab/{SHA256}/r1-webp/prepared.json"
    assert keys.described_key(SHA256, recipe) == f"derived/ab/{SHA256}/r1-webp/described.json"
    assert keys.embedding_key("tiny@0123456789ab", SHA256) == f"embeddings/tiny@0123456789ab/{SHA256}.npy"
