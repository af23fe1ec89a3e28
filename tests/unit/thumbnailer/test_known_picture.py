"""The question that fences carry through the thumbnailer's queues, and that every way to break it is found out."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from PIL import Image

from darkroom.contracts.messages import Verdict
from thumbnailer import decoding, describing, known_answer, rendering


def test_the_renderer_gives_the_known_answer_every_time() -> None:
    answers = {known_answer.answer() for _ in range(3)}
    assert {answer.verdict for answer in answers} == {Verdict.OK}
    assert len(answers) == 1


def test_the_question_stays_small() -> None:
    assert len(known_answer.question()) < 10_000


def redrawn(change: Callable[[Image.Image], Image.Image]) -> Callable[[pytest.MonkeyPatch], None]:
    """Has the decoder give another picture."""

    def install(patch: pytest.MonkeyPatch) -> None:
        decode = decoding.decode

        def broken(*arguments: object) -> decoding.Photo:
            photo = decode(*arguments)  # type: ignore[arg-type]
            return replace(photo, picture=change(photo.image))

        patch.setattr(decoding, "decode", broken)

    return install


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the note about its rotation is ignored": lambda patch: patch.setattr(decoding, "TRANSPOSITIONS", {}),
    "upside down": redrawn(lambda image: image.rotate(180)),
    "mirrored": redrawn(lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "red and blue exchanged": redrawn(lambda image: Image.merge("RGB", image.split()[::-1])),
    "too dark": redrawn(lambda image: image.point(lambda level: int(level * 0.9))),
    "not shrunk": lambda patch: patch.setattr(rendering, "SMALL_SIDE", 288),
    "another hash": lambda patch: patch.setattr(describing, "perceptual_hash", lambda image: "0" * 16),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_picture_is_a_wrong_answer(fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        assert known_answer.answer().verdict is Verdict.WRONG
    assert known_answer.answer().verdict is Verdict.OK
