import itertools

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from emolake.pipeline.faces.detector import Detections, non_maximum_suppression, pairwise_iou
from emolake.pipeline.faces.mtcnn import Mtcnn, _MaxPool
from emolake.pipeline.faces.search import plausible


def test_iou_of_known_boxes() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1]], np.float32)
    b = np.array([[1, 1, 3, 3]], np.float32)
    np.testing.assert_allclose(pairwise_iou(a, b), [[1 / 7], [0]], rtol=1e-6)


def test_suppression_keeps_the_best_of_each_pile() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [2, 2, 5, 5]], np.float32)
    scores = np.array([0.8, 0.9, 0.5, 0.7], np.float32)
    assert non_maximum_suppression(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert non_maximum_suppression(boxes, scores, 0.5, over_smaller=True).tolist() == [1, 2]


def test_mtcnn_finds_the_five_people_of_a_group_picture(clips) -> None:
    picture = cv2.cvtColor(cv2.imread(str(clips / "multi_face.jpg")), cv2.COLOR_BGR2RGB)
    (faces,) = Mtcnn()([picture])
    assert len(faces) == 5
    assert faces.features.shape == (5, 256)
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks.transpose(1, 0, 2)
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 0] < right_mouth[:, 0]).all()
    assert (nose[:, 1] > left_eye[:, 1]).all()
    assert (nose[:, 1] < left_mouth[:, 1]).all()


def test_a_batch_finds_what_single_frames_find(clips) -> None:
    picture = cv2.cvtColor(cv2.imread(str(clips / "multi_face.jpg")), cv2.COLOR_BGR2RGB)
    frames = [picture, np.ascontiguousarray(picture[:, ::-1]), np.zeros_like(picture)]
    mtcnn = Mtcnn()
    together = mtcnn(frames)
    for frame, found in zip(frames, together, strict=True):
        (alone,) = mtcnn([frame])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(found.features, alone.features, atol=1e-3)


def test_no_frames_no_faces() -> None:
    assert Mtcnn()([]) == []


def test_frames_smaller_than_the_smallest_face_have_none() -> None:
    (faces,) = Mtcnn(min_face=40)([np.zeros((16, 16, 3), np.uint8)])
    assert len(faces) == 0


def test_implausible_detections_are_dropped() -> None:
    upright = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], np.float32)
    outside = upright + np.array([200, 0], np.float32)
    faces = Detections(
        np.tile(np.array([[0, 0, 100, 100]], np.float32), (4, 1)),
        np.array([0.99, 0.99, 0.99, 0.5], np.float32),
        np.stack([upright, upright[::-1], outside, upright]),
        np.zeros((4, 0), np.float32),
    )
    assert plausible(faces, 0.9).tolist() == [True, False, False, False]


@pytest.mark.parametrize("overhangs", [False, True])
@pytest.mark.parametrize("kernel", [2, 3])
def test_maxima_of_rows_and_columns_are_torchs_pooling(kernel: int, overhangs: bool) -> None:
    ours, theirs = (
        _MaxPool(kernel, overhangs=overhangs),
        nn.MaxPool2d(kernel, 2, ceil_mode=overhangs),
    )
    for height, width in itertools.product(range(kernel, 9), repeat=2):
        hidden = torch.randn(2, 5, height, width).to(memory_format=torch.channels_last)
        assert torch.equal(ours(hidden), theirs(hidden)), (height, width)
