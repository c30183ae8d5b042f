import math
from pathlib import Path

import numpy as np
import pytest

from emolake.pipeline.config import FacesConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import Detections
from emolake.pipeline.faces.search import plausible
from emolake.pipeline.faces.stage import make_detector
from emolake.pipeline.faces.yunet import YuNet
from tests.pipeline.faces.networks import (
    STRAIGHT,
    best_of_each_pile,
    cell,
    head,
    mosaic,
    onnx_detector,
)

STRIDES = (8, 16, 32)
RNG = np.random.default_rng(4)
HEADS = {
    # Red and green tell the face; past 1 and below 0 they are cut off.
    "cls": np.array([0.005, 0, 0, 0.1]).reshape(4, 1, 1),
    "obj": np.array([0, 0.006, 0, -0.2]).reshape(4, 1, 1),
    "bbox": head(RNG, 1, (0.5, 0.5, 1.1, 1.3), 0.001),
    "kps": head(RNG, 1, np.ravel(STRAIGHT), 0.001),
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return onnx_detector(tmp_path / "yunet.onnx", HEADS, STRIDES, batch=1)


def published(frame: np.ndarray, min_score: float) -> list[tuple[float, list[float], list[float]]]:
    """The formulas of YuNet's heads, a cell at a time."""
    height, width = (-(-side // 32) * 32 for side in frame.shape[:2])
    picture = np.zeros((height, width, 3))
    picture[: frame.shape[0], : frame.shape[1]] = frame[..., ::-1]  # it reads BGR
    faces = []
    for stride in STRIDES:
        for row in range(height // stride):
            for column in range(width // stride):
                told = {
                    name: cell(picture, stride, row, column) @ weights[:, 0]
                    for name, weights in HEADS.items()
                }
                cls, obj = (min(max(told[name][0], 0), 1) for name in ("cls", "obj"))
                score = math.sqrt(cls * obj)
                if score < min_score:
                    continue
                x, y = (column + told["bbox"][0]) * stride, (row + told["bbox"][1]) * stride
                w, h = math.exp(told["bbox"][2]) * stride, math.exp(told["bbox"][3]) * stride
                points = [
                    (value + (row if k % 2 else column)) * stride
                    for k, value in enumerate(told["kps"])
                ]
                faces.append((score, [x - w / 2, y - h / 2, x + w / 2, y + h / 2], points))
    return best_of_each_pile(faces, 0.3, border=0, whole=True)


def assert_published(found: Detections, frame: np.ndarray, min_score: float) -> None:
    assert (np.diff(found.scores) <= 0).all()
    found = found.select(np.argsort(found.boxes[:, 0]))
    expected = sorted(published(frame, min_score), key=lambda face: face[1][0])
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.scores, [face[0] for face in expected], atol=1e-5)
    np.testing.assert_allclose(found.boxes, [face[1] for face in expected], atol=1e-3)
    points = found.landmarks.reshape(-1, 10)
    np.testing.assert_allclose(points, [face[2] for face in expected], atol=1e-3)


def test_faces_are_those_of_the_published_formulas_at_every_frame_size(weights) -> None:
    detector = YuNet(weights, 0.7)
    for height, width in ((90, 150), (96, 64), (90, 150)):
        frames = [mosaic(seed, height, width) for seed in range(2)]
        for frame, found in zip(frames, detector(frames), strict=True):
            assert_published(found, frame, 0.7)


def test_a_file_of_fixed_size_runs_at_the_frames_size(tmp_path) -> None:
    fixed = onnx_detector(tmp_path / "f.onnx", HEADS, STRIDES, batch=1, size=(640, 640))
    frame = mosaic(7, 90, 150)
    assert_published(YuNet(fixed, 0.7)([frame])[0], frame, 0.7)


def test_an_expected_face_is_refined_on_its_square_alone(weights) -> None:
    detector = YuNet(weights, 0.5)
    frame = np.zeros((256, 320, 3), np.uint8)
    frame[96:128, 128:160] = 255  # one cell of the coarsest level
    box = np.array([[96, 64, 192, 160]], np.float32)
    told = detector.refine([frame], box, np.zeros(1, np.intp))
    assert told.scores[0] == pytest.approx(1)
    assert plausible(told, 0.9).all(), "points in the order that Detections wants"
    left_eye, right_eye, _, left_mouth, right_mouth = told.landmarks[0]
    assert left_eye[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    nobody = detector.refine([frame * 0], box, np.zeros(1, np.intp))
    assert nobody.scores.tolist() == [0]


def test_no_frames_no_faces_and_a_black_frame_has_none(weights) -> None:
    detector = YuNet(weights, 0.5)
    assert detector([]) == []
    assert [len(found) for found in detector([np.zeros((40, 50, 3), np.uint8)])] == [0]


def test_the_configuration_makes_it(weights) -> None:
    made = make_detector(FacesConfig(detector="yunet", weights=str(weights)))
    assert isinstance(made, YuNet)


@pytest.mark.parametrize("what", ["text", "another network"])
def test_a_file_that_is_no_yunet_is_refused_without_a_word_of_opencvs(
    tmp_path, capfd, what: str
) -> None:
    path = tmp_path / "x.onnx"
    if what == "text":
        path.write_text("no network")
    else:
        onnx_detector(path, {"cls": HEADS["cls"]}, STRIDES)
    with pytest.raises(UserError, match=r"x\.onnx is no YuNet of 2023 or later"):
        YuNet(path, 0.5)
    assert capfd.readouterr() == ("", "")
