import numpy as np
import pytest
from skimage.transform import SimilarityTransform

from emolake.pipeline.faces.align import (
    ARCFACE_TEMPLATE,
    CropSpec,
    box_matrix,
    crop_matrix,
    cut,
    is_frontal,
    similarity,
    transform_points,
)


def test_similarity_equals_the_least_squares_one_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        source = rng.normal(size=(5, 2)).astype(np.float32) * 40 + 100
        target = rng.normal(size=(5, 2)).astype(np.float32) * 20 + 50
        reference = SimilarityTransform.from_estimate(source, target).params[:2]
        np.testing.assert_allclose(similarity(source, target), reference, atol=1e-3, rtol=1e-4)


def test_similarity_of_one_point_repeated_is_a_shift() -> None:
    source = np.ones((5, 2), np.float32)
    moved = similarity(source, source + 3)
    np.testing.assert_allclose(moved, [[1, 0, 3], [0, 1, 3]])


def test_template_with_margin_keeps_the_face_in_the_middle() -> None:
    plain, wide = CropSpec(112).template(), CropSpec(112, margin=0.25).template()
    np.testing.assert_allclose(plain[0], [38.2946, 51.6963], rtol=1e-5)
    np.testing.assert_allclose(np.ptp(wide[:, 0]), np.ptp(plain[:, 0]) / 1.5, rtol=1e-5)
    np.testing.assert_allclose(wide - 56, (plain - 56) / 1.5, atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, 9.0])
def test_cut_puts_the_landmarks_where_the_template_has_them(scale: float) -> None:
    spec = CropSpec(64, margin=0.1)
    points = (ARCFACE_TEMPLATE * 100 + [30, 20]).astype(np.float32) * np.float32(scale)
    frame = np.zeros((round(180 * scale), round(200 * scale), 3), np.uint8)
    for x, y in points:
        radius = 2 * scale
        ys, xs = np.mgrid[: frame.shape[0], : frame.shape[1]]
        frame[(xs - x) ** 2 + (ys - y) ** 2 <= radius**2] = 255
    crop = cut(frame, crop_matrix(np.zeros(4, np.float32), points, spec), spec.size)
    for x, y in spec.template():
        near = crop[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5, 0].astype(float)
        ys, xs = np.mgrid[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5]
        assert near.sum() > 0
        assert abs((near * xs).sum() / near.sum() - x) < 0.6
        assert abs((near * ys).sum() / near.sum() - y) < 0.6


def test_cut_off_the_frame_repeats_the_border() -> None:
    frame = np.full((40, 40, 3), 200, np.uint8)
    matrix = box_matrix(np.array([-30, -30, 20, 20], np.float32), CropSpec(32))
    assert (cut(frame, matrix, 32) == 200).all()
    far = box_matrix(np.array([400, 400, 440, 440], np.float32), CropSpec(32))
    assert (cut(frame, far, 32) == 200).all()


def test_box_and_landmark_crops_show_a_face_alike() -> None:
    spec = CropSpec(112)
    points = ARCFACE_TEMPLATE * 112
    # An MTCNN box by the medians the box crop is built on.
    height = 112 / 1.05
    centre = np.array([56, 56 - 0.075 * height])
    half = np.array([height / 1.39, height]) / 2
    box = np.concatenate([centre - half, centre + half]).astype(np.float32)
    by_box = transform_points(points, box_matrix(box, spec))
    np.testing.assert_allclose(by_box, spec.template(), atol=0.5)


def test_profile_and_upside_down_points_are_not_frontal() -> None:
    points = ARCFACE_TEMPLATE * 100
    assert is_frontal(points)
    profile = points.copy()
    profile[2, 0] = points[0, 0] - 10
    assert not is_frontal(profile)
    assert not is_frontal(points[::-1].copy())
