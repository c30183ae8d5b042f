from pathlib import Path

import numpy as np
import pytest
import torch

from emolake.pipeline.config import FacesConfig, WindowsConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import pairwise_iou
from emolake.pipeline.faces.retinaface import RetinaFace, priors
from emolake.pipeline.faces.retinaface_detector import RetinaFaceDetector
from emolake.pipeline.faces.stage import FaceStage
from emolake.pipeline.models.golden import verify
from emolake.pipeline.video.frame import TimedFrame
from tests.conftest import SMALL_CROPS


@pytest.mark.parametrize("case", ["retinaface_a", "retinaface_mnet_a"])
def test_published_networks_give_the_same_heads_and_boxes(golden, case: str) -> None:
    checks = {check.stage: check for check in verify(golden / case)}
    assert {"boxes_head", "class_head", "points_head", "boxes_px", "kept"} <= set(checks)
    for check in checks.values():
        assert check.ok, check


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(RetinaFace("mobilenet0.25").state_dict(), path)
    return path


@pytest.mark.parametrize("wrapped", ["plain", "module.", "model.", "state_dict"])
def test_checkpoints_load_as_they_are_published(checkpoint, tmp_path, wrapped: str) -> None:
    state = torch.load(checkpoint, weights_only=True)
    if wrapped == "state_dict":
        state = {"state_dict": state}
    elif wrapped != "plain":
        state = {wrapped + name: tensor for name, tensor in state.items()}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    frames = [np.zeros((70, 90, 3), np.uint8)] * 2
    ours = RetinaFaceDetector(path, "biubug6", 0.0)(frames)
    theirs = RetinaFaceDetector(checkpoint, "biubug6", 0.0)(frames)
    np.testing.assert_array_equal(ours[1].boxes, theirs[0].boxes)


def test_batch_counters_may_miss_and_nothing_else(checkpoint, tmp_path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    RetinaFaceDetector(tmp_path / "old.pth", "biubug6", 0.5)
    del old["fpn.merge1.0.weight"]
    torch.save(old, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=r"1 missing: fpn\.merge1\.0\.weight"):
        RetinaFaceDetector(tmp_path / "broken.pth", "biubug6", 0.5)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="is not a checkpoint"):
        RetinaFaceDetector(tmp_path / "text.pth", "biubug6", 0.5)
    with pytest.raises(UserError, match="download RetinaFace weights"):
        RetinaFaceDetector(tmp_path / "none.pth", "biubug6", 0.5)


def test_priors_of_640_by_360_are_9520() -> None:
    made = priors(360, 640)
    assert made.shape == (9520, 4)
    np.testing.assert_allclose(made[0], [4 / 640, 4 / 360, 16 / 640, 16 / 360])
    np.testing.assert_allclose(made[1, 2:], [32 / 640, 32 / 360])


def test_the_face_stage_gives_retinaface_detections_onet_features(checkpoint, monkeypatch) -> None:
    config = FacesConfig(detector="retinaface", weights=str(checkpoint), preprocess="biubug6")
    stage = FaceStage(config, WindowsConfig(), SMALL_CROPS, 4.0)
    monkeypatch.setattr(
        "emolake.pipeline.faces.search.plausible", lambda faces, _: np.arange(len(faces)) < 3
    )
    stage.search.detector.min_score = 0.0  # type: ignore[attr-defined]
    gray = np.full((90, 120, 3), 90, np.uint8)
    (look,) = stage.search([TimedFrame(0.0, 120, 90, lambda width, height: gray)])
    assert look.found().features.shape == (3, 256)


def test_the_detector_refines_on_the_crop_alone(checkpoint) -> None:
    detector = RetinaFaceDetector(checkpoint, "biubug6", 0.0)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (200, 300, 3), np.uint8)
    boxes = np.array([[80, 60, 130, 120], [-10, 150, 30, 210]], np.float32)
    told = detector.refine([frame, frame[::-1].copy()], boxes, np.array([0, 1]))
    assert (pairwise_iou(told.boxes, boxes).diagonal() >= 0.29).all()
    far = frame.copy()
    far[:, 200:] = 0  # beyond twice the box: must not matter
    again = detector.refine([far], boxes[:1], np.zeros(1, np.intp))
    np.testing.assert_allclose(again.boxes[0], told.boxes[0], atol=1e-3)


def test_half_precision_stays_close(checkpoint) -> None:
    frames = np.random.default_rng(1).integers(0, 255, (2, 96, 128, 3), np.uint8)
    full = RetinaFaceDetector(checkpoint, "biubug6", 0.0)._decoded(frames)
    half = RetinaFaceDetector(checkpoint, "biubug6", 0.0, precision="bf16")._decoded(frames)
    for ours, theirs in zip(half, full, strict=True):
        assert 0 < np.abs(ours - theirs).max() < 0.05
