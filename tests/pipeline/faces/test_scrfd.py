import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from emolake.pipeline.config import Config, FacesConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import Detections
from emolake.pipeline.faces.scrfd import Scrfd
from emolake.pipeline.faces.search import plausible
from emolake.pipeline.faces.stage import make_detector
from tests.pipeline.faces.networks import (
    STRAIGHT,
    Heads,
    best_of_each_pile,
    cell,
    head,
    mosaic,
    onnx_detector,
)


def heads(anchors: int) -> Heads:
    rng = np.random.default_rng(anchors)
    # It sees -1 to 1. Red tells the face of the first anchor of a cell, green that of the second.
    score = np.zeros((4, anchors, 1))
    score[3] = 0.5
    for k in range(anchors):
        score[k, k] = 0.5
    return {
        "score": score,
        "bbox": head(rng, anchors, (1.3, 1.4, 1.5, 1.6), 0.1),
        "kps": head(rng, anchors, np.ravel(STRAIGHT), 0.1),
    }


STRIDES = {1: (8, 16, 32, 64, 128), 2: (8, 16, 32)}
"""Of the published files, by the anchors of a cell."""


def published(
    frame: np.ndarray, min_score: float, anchors: int, size: Sequence[int] | None = None
) -> list[tuple[float, list[float], list[float]]]:
    """InsightFace's formulas, an anchor at a time. size: height and width of the input, if fixed."""
    height, width = frame.shape[:2]
    scale = 1.0
    if size is None:
        step = max(STRIDES[anchors])
        size = [-(-height // step) * step, -(-width // step) * step]
    else:
        if height / width > size[0] / size[1]:
            inner = (int(size[0] / (height / width)), size[0])
        else:
            inner = (size[1], int(size[1] * (height / width)))
        scale = inner[1] / height
        frame = cv2.resize(frame, inner)
    canvas = np.zeros((*size, 3))
    canvas[: frame.shape[0], : frame.shape[1]] = frame
    seen = (canvas - 127.5) / 128
    faces = []
    for stride in STRIDES[anchors]:
        for row in range(size[0] // stride):
            for column in range(size[1] // stride):
                for anchor in range(anchors):
                    colour = cell(seen, stride, row, column)
                    told = {name: colour @ w[:, anchor] for name, w in heads(anchors).items()}
                    score = told["score"][0]
                    if score < min_score:
                        continue
                    x, y = column * stride, row * stride
                    left, top, right, bottom = told["bbox"] * stride
                    box = [x - left, y - top, x + right, y + bottom]
                    points = [
                        (y if k % 2 else x) + value * stride for k, value in enumerate(told["kps"])
                    ]
                    faces.append((score, [v / scale for v in box], [v / scale for v in points]))
    return best_of_each_pile(faces, 0.4, border=1, whole=False)


def assert_published(
    found: Detections, expected: list[tuple[float, list[float], list[float]]]
) -> None:
    assert (np.diff(found.scores) <= 0).all()
    found = found.select(np.argsort(found.boxes[:, 0]))
    expected = sorted(expected, key=lambda face: face[1][0])
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.scores, [face[0] for face in expected], atol=1e-5)
    np.testing.assert_allclose(found.boxes, [face[1] for face in expected], atol=1e-3)
    points = found.landmarks.reshape(-1, 10)
    np.testing.assert_allclose(points, [face[2] for face in expected], atol=1e-3)


@pytest.mark.parametrize("anchors", [1, 2])
@pytest.mark.parametrize(
    ("batch", "in_one_row"), [("n", False), ("n", True), (1, False), (1, True)]
)
def test_faces_are_those_of_the_published_formulas(
    tmp_path, anchors: int, batch: int | str, in_one_row: bool
) -> None:
    path = onnx_detector(
        tmp_path / "x.onnx", heads(anchors), STRIDES[anchors], batch=batch, in_one_row=in_one_row
    )
    detector = Scrfd(path, 0.6)
    frames = [mosaic(seed, 90, 150) for seed in range(2)]
    for frame, found in zip(frames, detector(frames), strict=True):
        assert_published(found, published(frame, 0.6, anchors))


@pytest.mark.parametrize("shape", [(90, 150), (150, 90)])
def test_a_file_of_fixed_size_sees_a_frame_in_its_upper_left_corner(tmp_path, shape) -> None:
    size = (96, 128)
    path = onnx_detector(tmp_path / "x.onnx", heads(2), STRIDES[2], batch=1, size=size)
    frames = [mosaic(seed, *shape) for seed in range(2)]
    for frame, found in zip(frames, Scrfd(path, 0.6)(frames), strict=True):
        assert_published(found, published(frame, 0.6, 2, size))


@pytest.mark.parametrize("size", [("h", "w"), (256, 256)])
def test_an_expected_face_is_refined_on_its_square_alone(tmp_path, size) -> None:
    detector = Scrfd(onnx_detector(tmp_path / "x.onnx", heads(2), STRIDES[2], size=size), 0.5)
    frame = np.zeros((256, 320, 3), np.uint8)
    frame[64:192, 64:192] = mosaic(1, 128, 128) // 4
    frame[96:128, 128:160] = 255
    boxes = np.array([[96, 64, 160, 128], [200, 180, 240, 230]], np.float32)
    told = detector.refine([frame, frame], boxes, np.array([0, 1]))
    assert told.scores[0] > 0.9
    assert told.scores[1] == 0, "nobody is there"
    assert plausible(told, 0.5).tolist() == [True, False]
    left_eye, right_eye, _, left_mouth, right_mouth = told.landmarks[0]
    assert left_eye[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    far = frame.copy()
    far[:, 192:] = 255
    again = detector.refine([far], boxes[:1], np.zeros(1, np.intp))
    np.testing.assert_allclose(again.boxes[0], told.boxes[0], atol=1e-3)
    if size == ("h", "w"):  # the square is 128 pixels of the frame as they are
        alone = detector([np.ascontiguousarray(frame[32:160, 64:192])])[0]
        corner = np.array([64, 32, 64, 32], np.float32)
        assert (np.abs(alone.boxes + corner - told.boxes[0]).max(1) < 1e-3).any()


def test_no_frames_no_faces_and_a_black_frame_has_none(tmp_path) -> None:
    detector = Scrfd(onnx_detector(tmp_path / "x.onnx", heads(2), STRIDES[2]), 0.5)
    assert detector([]) == []
    assert [len(found) for found in detector([np.zeros((40, 50, 3), np.uint8)])] == [0]


@pytest.mark.parametrize("anchors", [1, 2])
def test_a_file_without_landmarks_is_refused(tmp_path, anchors: int) -> None:
    two = {name: weights for name, weights in heads(anchors).items() if name != "kps"}
    path = onnx_detector(tmp_path / "scrfd_10g.onnx", two, STRIDES[anchors])
    with pytest.raises(UserError, match=r"scrfd_10g\.onnx tells no landmarks; take a \*_kps or"):
        Scrfd(path, 0.5)


def test_another_network_is_refused(tmp_path) -> None:
    swapped = dict(zip(("a", "b", "c"), reversed(heads(2).values()), strict=True))
    few = {"score": heads(2)["score"]}
    for case, batch in ((swapped, "n"), (few, "n"), (heads(2), 4)):
        path = onnx_detector(tmp_path / "x.onnx", case, STRIDES[2], batch=batch)
        with pytest.raises(UserError, match="is no SCRFD with landmarks"):
            Scrfd(path, 0.5)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(UserError, match="is no ONNX model"):
        Scrfd(tmp_path / "text.onnx", 0.5)


def test_without_onnxruntime_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    path = onnx_detector(tmp_path / "x.onnx", heads(2), STRIDES[2])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"scrfd needs onnxruntime: pip install 'emolake\[onnx\]'"):
        Scrfd(path, 0.5)


def test_the_configuration_makes_it_with_its_published_threshold(tmp_path: Path) -> None:
    weights = str(onnx_detector(tmp_path / "x.onnx", heads(2), STRIDES[2]))
    made = make_detector(FacesConfig(detector="scrfd", weights=weights))
    assert isinstance(made, Scrfd)
    assert made.min_score == 0.5


def test_scores_that_are_given_or_another_detectors_stay() -> None:
    given = FacesConfig.model_validate({"detector": "scrfd", "min_score": 0.7})
    assert (given.min_score, given.weak_score) == (0.7, 0.5)
    for detector in ("mtcnn", "retinaface", "yunet"):
        other = FacesConfig(detector=detector)
        assert (other.min_score, other.weak_score) == (0.9, 0.7)
    config = Config(faces=FacesConfig(detector="scrfd"))
    assert Config.model_validate(config.model_dump()) == config
