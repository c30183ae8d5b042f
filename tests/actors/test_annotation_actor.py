"""Whose fault it is when a model fails: a window's, a device's, or the model's own."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime

from emolake.actors import annotation_actor
from emolake.actors.annotation_actor import AnnotationActor, AnnotationSettings
from emolake.pipeline.annotators.base import Annotation, WindowInput
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.corpus.segments import pictures_row, without_faces
from emolake.pipeline.errors import DeviceFailed, JobFailed, UserError
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.lake.schema import FACES_ROW, VIDEO_ROW

ON_CPU = AnnotationSettings(("invented",), AnnotatorConfig())


class Invented:
    """Answers what is said, or raises what it is told to for it."""

    name, revision, needs = "invented", "1", Needs(transcript=True)

    def __init__(self) -> None:
        self.raises: Callable[[str], Exception | None] = lambda said: None

    def annotate(self, windows: Sequence[WindowInput]) -> list[Annotation]:
        for window in windows:
            if error := self.raises(str(window.transcript)):
                raise error
        return [Annotation({"joy": 1.0}) for _ in windows]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Invented:
    model = Invented()
    monkeypatch.setattr(annotation_actor, "load_annotator", lambda *_: model)
    return model


def said(*words: str) -> pa.Table:
    """One segment a word, and nothing in a segment for an empty one."""
    told = {"video_id": "v", "uri": "/v.mp4", "corpus": "c", "attempt": 1, "size": 1}
    video = dict.fromkeys(VIDEO_ROW.names) | told
    rows = []
    for index, word in enumerate(words):
        cues = [{"start_s": 0.0, "end_s": 1.0, "text": word}] if word else []
        rows.append(without_faces(pictures_row(video)) | {"segment": index, "cues": cues})
    return pa.Table.from_pylist(rows, FACES_ROW)


def test_a_window_the_model_cannot_take_costs_its_segment_alone(model: Invented) -> None:
    model.raises = lambda word: ValueError("no") if word == "bad" else None
    rows = AnnotationActor(ON_CPU)(said("fine", "bad", "fine")).to_pylist()
    assert [row["reason"] for row in rows] == [None, "model_error", None]
    assert [len(row["annotations"]) for row in rows] == [1, 0, 1]


def test_windows_go_to_the_model_in_parts_and_come_back_to_their_rows(
    model: Invented, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []

    def told_apart(windows: Sequence[WindowInput]) -> list[Annotation]:
        calls.append([int(window.features[0, 0]) for window in windows])
        return [Annotation({"joy": 1.0}, description=str(k)) for k in calls[-1]]

    monkeypatch.setattr(model, "annotate", told_apart)
    monkeypatch.setattr(model, "needs", Needs(features=True))
    monkeypatch.setattr(annotation_actor, "_READ", 2)
    # Each window holds 4 kB: a part ends with the one that fills it.
    monkeypatch.setattr(annotation_actor, "_AT_ONCE", 3 * 4096 - 1)
    rows = said("", "", "").to_pylist()
    for row, windows in zip(rows, ([0, 1], [], [2, 3, 4, 5, 6]), strict=True):
        row["windows"] = [
            {"track_id": k, "crops": [], "frames": [], "features": [np.full(1024, k, np.float32)]}
            for k in windows
        ]
    out = AnnotationActor(ON_CPU)(pa.Table.from_pylist(rows, FACES_ROW)).to_pylist()
    assert calls == [[0, 1, 2], [3, 4, 5], [6]]
    for row in out:
        told = [(made["track_id"], made["description"]) for made in row["annotations"]]
        assert told == [(k, str(k)) for k, _ in told]
        assert row["spent"][0]["windows"] == len(told)
    assert [len(row["annotations"]) for row in out] == [2, 0, 5]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        onnxruntime.Fail("CUDA failure 700: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
    ],
)
def test_a_broken_device_is_the_jobs_matter(model: Invented, error: Exception) -> None:
    model.raises = lambda word: error if word == "bad" else None
    with pytest.raises(DeviceFailed, match=r"the device of \S+ failed: ") as told:
        AnnotationActor(ON_CPU)(said("fine", "bad"))
    assert "\n" not in str(told.value)
    assert str(told.value).endswith(", at /v.mp4 segment 0 and 1 more")


def test_a_device_that_breaks_while_models_load_is_told_from_a_model(
    model: Invented, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise UserError("model m does not take a crop: CUDA error: an illegal memory access")

    monkeypatch.setattr(annotation_actor, "load_annotator", breaks)
    with pytest.raises(UserError):
        AnnotationActor(ON_CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceFailed, match="illegal memory access"):
        AnnotationActor(replace(ON_CPU, device="cuda"))


@pytest.mark.parametrize(
    "told",
    [
        "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`",
        "CUDA error: invalid configuration argument",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    ],
)
def test_a_window_that_no_kernel_takes_is_no_devices_fault(model: Invented, told: str) -> None:
    model.raises = lambda word: RuntimeError(told) if word == "bad" else None
    rows = AnnotationActor(ON_CPU)(said("fine", "bad")).to_pylist()
    assert [row["reason"] for row in rows] == [None, "model_error"]


def test_an_endpoints_device_is_not_ours(model: Invented) -> None:
    model.raises = lambda word: OSError("500: CUDA error: device-side assert triggered")
    (row,) = AnnotationActor(ON_CPU)(said("bad")).to_pylist()
    assert row["reason"] == "model_error"


def test_memory_that_runs_out_is_the_batchs_matter(model: Invented) -> None:
    model.raises = lambda word: torch.OutOfMemoryError("CUDA error: out of memory")
    (row,) = AnnotationActor(ON_CPU)(said("much")).to_pylist()
    assert row["reason"] == "model_error"


def test_a_model_that_fails_on_everything_ends_the_job(model: Invented) -> None:
    model.raises = lambda word: KeyError("weights") if word == "bad" else None
    actor = AnnotationActor(ON_CPU)
    for _ in range(24):
        actor(said("bad", ""))  # where there is nothing to see nothing is proven
    actor(said("fine"))
    for _ in range(24):
        actor(said("bad"))
    with pytest.raises(JobFailed, match="25 segments in a row"):
        actor(said("bad"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_granted_gpu_that_torch_does_not_see_is_refused(model: Invented) -> None:
    settings = AnnotationSettings(("invented",), AnnotatorConfig(), device="cuda")
    with pytest.raises(JobFailed, match="torch sees none"):
        AnnotationActor(settings)


def test_a_node_with_another_model_is_refused(model: Invented) -> None:
    with pytest.raises(JobFailed, match=r"is another one \(revision 1\) than .* \(2\)"):
        AnnotationActor(AnnotationSettings(("invented",), AnnotatorConfig(), revisions=("2",)))
    AnnotationActor(AnnotationSettings(("invented",), AnnotatorConfig(), revisions=("1",)))
