"""Pictures as films spoil them: by a stated amount, and the same each time."""

import numpy as np
import pytest
from skimage import data

from emolake.pipeline.evaluation.corruptions import CORRUPTIONS, corrupted
from emolake.pipeline.faces.mtcnn import Mtcnn
from emolake.pipeline.faces.still import find_still_face, misplaced

FACE = np.ascontiguousarray(np.asarray(data.astronaut())[0:220, 120:330])


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_each_spoils_a_little_and_alike_each_time(name: str) -> None:
    made = corrupted(FACE, name, 7)
    assert made.shape == FACE.shape
    assert made.dtype == np.uint8
    assert np.array_equal(made, corrupted(FACE, name, 7))
    change = np.abs(made.astype(int) - FACE).mean()
    assert (change == 0) if name == "box_error" else (1 < change < 60)


def test_a_quarter_of_the_size_is_worse_than_half() -> None:
    half, quarter = (
        np.abs(corrupted(FACE, f"{part}_size", 0).astype(int) - FACE).mean()
        for part in ("half", "quarter")
    )
    assert quarter > 1.3 * half


def test_a_misplaced_face_is_off_by_no_more_than_was_said() -> None:
    face = find_still_face(FACE, Mtcnn())
    side = (face.boxes[0, 2:] - face.boxes[0, :2]).max()
    moves = []
    for seed in range(50):
        moved = misplaced(face, 0.1, seed)
        off = (moved.boxes[0, :2] + moved.boxes[0, 2:] - face.boxes[0, :2] - face.boxes[0, 2:]) / 2
        moves.append(np.abs(off / side).max())
        assert (
            0.89
            < (moved.boxes[0, 2] - moved.boxes[0, 0]) / (face.boxes[0, 2] - face.boxes[0, 0])
            < 1.11
        )
        within = moved.landmarks[0].mean(0) - moved.boxes[0, :2]
        assert (within > 0).all(), "points move with their box"
    assert max(moves) < 0.13
    assert np.mean(moves) > 0.04
