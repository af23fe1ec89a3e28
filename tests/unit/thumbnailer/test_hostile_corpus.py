"""Every file of the hostile corpus meets an end that its table allows, in a process with ceilings."""

from __future__ import annotations

import math
from itertools import groupby

import pytest
from hostile_child import in_child, levels_apart
from hostile_corpus import CORPUS, MEMORY_BYTES, READY, SEEDS, boundaries

from gateway.sniffing import SNIFF_BYTES, sniff
from thumbnailer.decoding import Limits

LIMITS = Limits(pixels=100_000_000, frames=1000, memory_bytes=MEMORY_BYTES)
LIMIT_S = 60
"""A machine with other work takes its time; what hangs, hangs longer."""

LOSSY_LEVELS = 8
"""A flat colour that went through JPEG, WebP or AVIF is off by that much."""

# The cuts of one seed share a child.
GROUPS = {title: list(names) for title, names in groupby(CORPUS, lambda name: name.partition(" at byte ")[0])}


@pytest.mark.parametrize("title", GROUPS)
def test_hostile_files_meet_an_end_that_their_table_allows(title: str) -> None:
    hostiles = [CORPUS[name] for name in GROUPS[title]]
    files = [hostile.make() for hostile in hostiles]

    for hostile, data, ended in zip(hostiles, files, in_child(files, LIMITS, LIMIT_S), strict=True):
        assert ended.end in hostile.ends, (hostile.name, ended)
        held_bytes = len(data)
        if ended.end == READY:
            assert ended.image is not None and hostile.shown is not None
            assert levels_apart(ended.image, hostile.shown()) <= LOSSY_LEVELS, hostile.name
            held_bytes += 4 * math.prod(ended.image.size)  # in hand, while another one is made of it
        else:
            assert ended.said
        assert ended.peak_bytes < 1.5 * MEMORY_BYTES + held_bytes, hostile.name
        # The gateway turns away what the thumbnailer would not even open, and nothing else.
        assert (sniff(data[:SNIFF_BYTES]) is None) == (ended.end == "unsupported-format"), hostile.name


@pytest.mark.parametrize("name", SEEDS)
def test_every_kind_of_file_is_cut_at_several_boundaries_and_whole_without_a_cut(name: str) -> None:
    data = SEEDS[name]()
    assert len(boundaries(name, data)) >= 5
    assert [ended.end for ended in in_child([data], LIMITS, LIMIT_S)] == [READY]
