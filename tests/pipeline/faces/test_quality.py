"""How well a window shows its face."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emolake.pipeline.faces.quality import MEAN_HEAD, blur_of, head_pose, quality_of


def seen(yaw: float, pitch: float, roll: float, size: float = 80.0) -> np.ndarray:
    """The mean head's five points turned so, in pixels of a picture. Turns are told as people see them,
    in axes x right, y down, z towards the camera, which is a left-handed frame."""
    turn = (
        Rotation.from_euler("z", roll, degrees=True)
        * Rotation.from_euler("x", pitch, degrees=True)
        * Rotation.from_euler("y", yaw, degrees=True)
    )
    return (turn.apply(MEAN_HEAD)[:, :2] * size + 200).astype(np.float32)


@pytest.mark.parametrize("angle", [-40, -15, 0, 20, 45])
def test_a_turned_head_is_told_as_it_is_turned(angle: float) -> None:
    assert head_pose(seen(angle, 0, 0)) == pytest.approx((angle, 0, 0), abs=0.5)
    assert head_pose(seen(0, angle, 0)) == pytest.approx((0, angle, 0), abs=0.5)
    assert head_pose(seen(0, 0, angle)) == pytest.approx((0, 0, angle), abs=0.5)


def test_signs_are_those_of_the_docstring() -> None:
    to_the_right, up = seen(20, 0, 0), seen(0, 20, 0)
    eyes = to_the_right[:2].mean(0)
    assert to_the_right[2, 0] > eyes[0], "a positive yaw: the nose at larger x"
    straight = seen(0, 0, 0)
    nose = up[2, 1] - up[:2, 1].mean()
    assert nose < straight[2, 1] - straight[:2, 1].mean(), "a positive pitch: the nose higher"
    clockwise = seen(0, 0, 20)
    assert clockwise[1, 1] > clockwise[0, 1], "a positive roll: the eye at larger x lower"


def test_blur_grows_with_blur_and_brightness_with_light() -> None:
    rng = np.random.default_rng(0)
    sharp = cv2.resize(rng.integers(0, 255, (24, 24, 3), np.uint8).astype(np.uint8), (96, 96))
    told = [
        blur_of(cv2.GaussianBlur(sharp[..., 0], (0, 0), s) if s else sharp[..., 0])
        for s in (0, 1, 2)
    ]
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1
    box, points = np.array([10, 20, 50, 80], np.float32), seen(0, 0, 0)
    dark, light = (
        quality_of([box], [points], [0.9], np.full((48, 48, 3), value, np.uint8))
        for value in (20, 200)
    )
    assert dark.brightness < 0.1 < 0.7 < light.brightness
    assert light.face_px == 40
    assert light.score == pytest.approx(0.9)
    assert quality_of([box], [points], [0.9], None).blur is None


def test_one_wrong_box_does_not_speak_for_the_window() -> None:
    right, wrong = np.array([0, 0, 60, 60], np.float32), np.array([0, 0, 6, 6], np.float32)
    told = quality_of([right, wrong, right], [seen(0, 0, 0)] * 3, [0.9] * 3, None)
    assert told.face_px == 60
