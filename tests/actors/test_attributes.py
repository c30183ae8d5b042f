"""Apparent age, gender and race: from a FairFace checkpoint to a prompt, and no further unless asked."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from emolake.actors.annotation_actor import AnnotationActor, AnnotationSettings
from emolake.actors.face_actor import FaceActor, FaceSettings, SegmentPlanner
from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.config import (
    AnnotatorConfig,
    DecodeConfig,
    FacesConfig,
    LimitsConfig,
    WindowsConfig,
)
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.attributes import CLASSES, AttributeEstimator, FairFace
from emolake.pipeline.lake.commit import RunStamp, commit_segments
from emolake.pipeline.lake.schema import VIDEO_ROW
from tests.conftest import SMALL_CROPS, read_rows
from tests.pipeline.lake.test_lake import lake_at, no_fence

DEPTHS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.rand(width) * 0.5 + 0.5,
        f"{name}.bias": torch.randn(width) * 0.1,
        f"{name}.running_mean": torch.randn(width) * 0.1,
        f"{name}.running_var": torch.rand(width) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def conv(name: str, out: int, into: int, size: int) -> dict[str, Tensor]:
    scale = (2 / (into * size * size)) ** 0.5
    return {f"{name}.weight": torch.randn(out, into, size, size) * scale}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A checkpoint with the published names and shapes (torchvision's resnet34, fc of 18)."""
    torch.manual_seed(0)
    tensors = conv("conv1", 64, 3, 7) | norm("bn1", 64)
    into = 64
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True), 1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            tensors |= conv(f"{name}.conv1", width, into, 3) | norm(f"{name}.bn1", width)
            tensors |= conv(f"{name}.conv2", width, width, 3) | norm(f"{name}.bn2", width)
            if into != width:
                tensors |= conv(f"{name}.downsample.0", width, into, 1)
                tensors |= norm(f"{name}.downsample.1", width)
            into = width
    return tensors | {"fc.weight": torch.randn(18, 512) * 0.05, "fc.bias": torch.randn(18)}


@pytest.fixture(scope="module")
def checkpoint(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fairface") / "res34_fair_align_multi_7_20190809.pt"
    torch.save(published, path)
    return path


def as_published(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """ResNet-34 (He et al. 2015) by its formula, under torchvision's names."""

    def normed(name: str, x: Tensor) -> Tensor:
        t = {k: tensors[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
        return F.batch_norm(x, t["running_mean"], t["running_var"], t["weight"], t["bias"])

    x = F.relu(normed("bn1", F.conv2d(x, tensors["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(DEPTHS, 1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, tensors[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(
                F.relu(normed(f"{name}.bn1", y)), tensors[f"{name}.conv2.weight"], padding=1
            )
            y = normed(f"{name}.bn2", y)
            if f"{name}.downsample.0.weight" in tensors:
                x = F.conv2d(x, tensors[f"{name}.downsample.0.weight"], stride=stride)
                x = normed(f"{name}.downsample.1", x)
            x = F.relu(x + y)
    return x.mean((2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]


def test_a_published_checkpoint_gives_what_its_formula_says(checkpoint, published) -> None:
    pixels = torch.randn(2, 3, 224, 224)
    ours = FairFace.read(checkpoint)(pixels)
    torch.testing.assert_close(ours, as_published(published, pixels), rtol=1e-4, atol=1e-4)
    faces = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    scores = AttributeEstimator(checkpoint).scores(faces)
    np.testing.assert_allclose(scores[:, :7].sum(1), 1, rtol=1e-5)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    given = (torch.from_numpy(faces).permute(0, 3, 1, 2) / 255 - mean) / std
    wanted = as_published(published, given)[:, 9:].softmax(1)
    np.testing.assert_allclose(scores[:, 9:], wanted, rtol=1e-3, atol=1e-5)


def test_another_file_is_told(published, tmp_path: Path) -> None:
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    torch.save({k: v for k, v in published.items() if k != "fc.bias"}, tmp_path / "less.pt")
    four = published | {"fc.weight": torch.zeros(15, 512), "fc.bias": torch.zeros(15)}
    torch.save(four, tmp_path / "multi_4.pt")
    for name in ("no.pt", "less.pt", "multi_4.pt"):
        with pytest.raises(UserError, match=r"is no FairFace checkpoint"):
            FairFace.read(tmp_path / name)


class Listener:
    """An annotator that keeps what it is given."""

    name, revision, needs = "listener", "0", SMALL_CROPS

    def __init__(self) -> None:
        self.heard: list[dict[str, str]] = []

    def annotate(self, windows: list[WindowInput]) -> list[Annotation]:
        self.heard += [dict(window.attributes) for window in windows]
        return [Annotation({"neutral": 1.0}) for _ in windows]


@pytest.fixture(scope="module")
def segments(checkpoint: Path, demo_videos: Path) -> pa.Table:
    """A real video through the face stage, whose manifest tells the age and nothing else."""
    faces = FacesConfig(attributes=str(checkpoint))
    settings = FaceSettings(DecodeConfig(), faces, WindowsConfig(), LimitsConfig(), SMALL_CROPS)
    row = dict.fromkeys(VIDEO_ROW.names) | {
        "video_id": "v", "uri": str(demo_videos / "portrait.mp4"), "corpus": "c", "attempt": 1,
        "age": "40-49 by the manifest",
    }  # fmt: skip
    return FaceActor(settings)(SegmentPlanner(settings)(pa.Table.from_pylist([row], VIDEO_ROW)))


@pytest.mark.parametrize("stored", [False, True])
def test_the_manifest_wins_and_nothing_is_stored_unasked(
    segments: pa.Table, stored: bool, tmp_path: Path
) -> None:
    settings = AnnotationSettings(("emo-llama-tiny",), AnnotatorConfig(), store_attributes=stored)
    actor = AnnotationActor(settings)
    listener = Listener()
    actor.annotators, actor.needs = [listener], listener.needs
    made = actor(segments)
    assert len(listener.heard) > 1
    for heard in listener.heard:
        assert heard["age"] == "40-49 by the manifest"
        assert heard["gender"] in CLASSES["gender"]
        assert heard["race"] in CLASSES["race"]
    stamp = RunStamp("r", "2026-01-01", "h")
    commit_segments(lake_at(tmp_path), made.to_pylist(maps_as_pydicts=None), stamp, no_fence)
    (track,) = read_rows(tmp_path, "tracks")
    told = {name: track[name] for name in ("age", "gender", "race")}
    assert told == (listener.heard[0] if stored else dict.fromkeys(told))
