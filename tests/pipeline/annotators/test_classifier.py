"""Image classifiers that users bring: what they tell is what their libraries compute, under our labels."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
import yaml

from emolake.jobs.cli import main
from emolake.pipeline.annotators.base import FaceCrops, WindowInput, load_annotator
from emolake.pipeline.config import AnnotatorConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.encoding import encode_crop
from emolake.pipeline.labels import label_set
from emolake.pipeline.models.catalog import model_path, model_revision, read_config
from tests.conftest import Emolake, read_rows
from tests.pipeline.annotators.classifiers import OWN_NAMES, SIZE, onnx_file, vit_folder


def window(pictures: list[np.ndarray], needs) -> WindowInput:
    crops = FaceCrops([encode_crop(p, "png") for p in pictures], np.zeros((len(pictures), 5, 2)))
    return WindowInput({needs.crops[0]: crops}, np.zeros((len(pictures), 0), np.float32))


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    noise = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [cv2.resize(one, (SIZE, SIZE)) for one in noise]


def described(path: Path, **told: object) -> str:
    path.write_text(yaml.safe_dump(told))
    return str(path)


def annotated(model: str, *windows: list[np.ndarray], **options: object):
    annotator = load_annotator(model, AnnotatorConfig(**options), "cpu")
    return annotator.annotate([window(one, annotator.needs) for one in windows])


def test_a_folder_of_transformers_tells_what_the_library_computes(tmp_path: Path) -> None:
    folder = vit_folder(tmp_path / "vit-fer")
    shown = [pictures(3), pictures(1, seed=1)]
    told = annotated(str(folder), *shown)
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.5, 0.25, 0.2])
    for annotation, pixels in zip(told, shown, strict=True):
        x = torch.tensor((np.stack(pixels) / 255 - mean) / std, dtype=torch.float32)
        with torch.no_grad():
            expected = model(x.permute(0, 3, 1, 2)).logits.softmax(-1).mean(0)
        assert list(annotation.scores) == list(label_set("fer2013"))
        assert list(annotation.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert max(told[0].scores.values()) > 0.3, "a test of equal scores would prove nothing"


def test_several_classes_may_mean_one_label_and_some_none(tmp_path: Path) -> None:
    names = ("smile", "laugh", "angry", "cat")
    folder = vit_folder(tmp_path / "vit", names)
    with pytest.raises(UserError, match="'smile', 'laugh', 'cat' of its classes are no emotion"):
        read_config(folder)
    labels = {"smile": "happy", "laugh": "happiness", "cat": None}
    told = annotated(
        described(tmp_path / "mine.yaml", weights="vit", labels=labels, label_set="fer2013"),
        pictures(2),
    )[0]
    assert set(told.scores) == set(label_set("fer2013"))
    assert told.scores["happiness"] + told.scores["anger"] == pytest.approx(1, abs=1e-5)
    assert told.scores["sadness"] == 0


@pytest.mark.parametrize("batch", ["n", 1])
def test_an_onnx_file_tells_labels_numbers_and_action_units(tmp_path: Path, batch) -> None:
    onnx_file(tmp_path / "net.onnx", 6, batch=batch)
    labels = ["anger", "happiness", "valence", "arousal", "AU1", "au12"]
    model = described(
        tmp_path / "net.yaml",
        labels=labels,
        size=SIZE,
        mean=[0, 0, 0],
        std=[1, 1, 1],
        channels="bgr",
    )
    shown = pictures(3)
    told = annotated(str(tmp_path / "net.onnx"), shown)[0]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    each = np.stack(
        [
            session.run(
                None, {"x": (p[..., ::-1] / 255).astype(np.float32).transpose(2, 0, 1)[None]}
            )[0][0]
            for p in shown
        ]
    )
    odds = np.exp(each[:, :2])
    assert told.scores["anger"] == pytest.approx((odds[:, 0] / odds.sum(1)).mean(), abs=1e-5)
    assert told.valence == pytest.approx(each[:, 2].mean(), abs=1e-5)
    assert told.arousal == pytest.approx(each[:, 3].mean(), abs=1e-5)
    shows = (1 / (1 + np.exp(-each[:, 4:]))).mean(0) >= 0.5
    assert told.action_units == [
        unit for unit, on in zip(("AU1", "AU12"), shows, strict=True) if on
    ]
    assert model_revision(model_path(model)) == model_revision(
        model_path(str(tmp_path / "net.onnx"))
    )


def test_what_describes_it_is_part_of_its_revision_and_where_it_lies_is_not(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx", 2)
    told = {"labels": ["anger", "happiness"], "size": SIZE, "mean": [0, 0, 0], "std": [1, 1, 1]}
    first = model_revision(model_path(described(tmp_path / "a.yaml", weights="net.onnx", **told)))
    (tmp_path / "far").mkdir()
    moved = described(tmp_path / "far" / "a.yaml", weights="../net.onnx", **told)
    assert model_revision(model_path(moved)) == first
    named = described(tmp_path / "c.yaml", weights="net.onnx", name="mine", **told)
    assert model_revision(model_path(named)) == first
    swapped = told | {"labels": ["happiness", "anger"]}
    other = described(tmp_path / "b.yaml", weights="net.onnx", **swapped)
    assert model_revision(model_path(other)) != first


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"labels": ["anger"]}, "gives 3 values a picture, 1 labels are described"),
        ({"size": 48}, "reads pictures of 32 pixels, described are 48"),
        ({"labels": ["anger", "cat", "fear"]}, "'cat' of its classes are no emotion"),
        ({"labels": [None, None, "valence"]}, "none of its outputs is an emotion"),
        ({"labels": ["anger", "love", "worry"]}, "no label set has all of"),
        ({"labels": None}, "`labels` must list what each of its outputs means"),
        ({"size": None}, "its description must say `size`"),
        ({"std": [0, 1, 1]}, "must be above 0"),
        ({"sise": 32}, "did you mean 'size'"),
        ({"weights": "nowhere.onnx"}, "neither a folder nor an ONNX file"),
        ({"weights": "."}, "holds no config.json"),
        ({"mean": [float("nan"), 0, 0]}, "finite number"),
        ({"name": "a\nb"}, "name"),
        ({"weights": "data.onnx"}, "is not whole: it names data.bin"),
    ],
)
def test_what_does_not_fit_is_one_line_before_work_starts(
    tmp_path: Path, capsys, told: dict[str, object], line: str
) -> None:
    onnx_file(tmp_path / "net.onnx", 3)
    onnx_file(tmp_path / "data.onnx", 3, data="data.bin")
    (tmp_path / "data.bin").unlink()
    right = {
        "labels": ["anger", "fear", "sadness"], "size": SIZE, "mean": [0, 0, 0], "std": [1, 1, 1],
        "weights": "net.onnx",
    }  # fmt: skip
    kept = {key: value for key, value in (right | told).items() if value is not None}
    model = described(tmp_path / "net.yaml", **kept)
    (tmp_path / "videos").mkdir()
    output = tmp_path / "out"
    code = main(["annotate", str(tmp_path / "videos"), "--output", str(output), "--model", model])
    error = capsys.readouterr().err
    assert code == 2
    assert line in error
    assert len(error.strip().splitlines()) == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ViTImageProcessor", {}),
        ("EfficientNetImageProcessor", {"rescale_offset": True, "include_top": True}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": SIZE}, "crop_pct": 0.875}),
        ("MobileViTImageProcessor", {"crop_size": {"height": SIZE, "width": SIZE}}),
    ],
)
def test_pictures_go_in_as_the_folders_own_processor_makes_them(
    tmp_path: Path, kind: str, more: dict[str, object]
) -> None:
    folder = vit_folder(tmp_path / "vit", image_processor_type=kind, **more)
    annotator = load_annotator(str(folder), AnnotatorConfig(), "cpu")
    side = annotator.needs.crops[0].spec.size
    shown = [cv2.resize(picture, (side, side)) for picture in pictures(2)]
    (told,) = annotator.annotate([window(shown, annotator.needs)])
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(**processor(shown, return_tensors="pt")).logits.softmax(-1).mean(0)
    assert list(told.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_weights_in_half_precision_compute_in_full(tmp_path: Path) -> None:
    shown = pictures(2)
    whole = annotated(str(vit_folder(tmp_path / "vit")), shown)[0]
    half = annotated(str(vit_folder(tmp_path / "half", dtype=torch.float16)), shown)[0]
    assert list(half.scores.values()) == pytest.approx(list(whole.scores.values()), abs=0.02)


def test_no_code_of_a_folder_is_run(tmp_path: Path, monkeypatch) -> None:
    folder = vit_folder(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "evil", "auto_map": own})
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="cannot be loaded"):
        annotated(str(folder), pictures(1))
    assert not (tmp_path / "ran").exists()


def test_weights_beside_an_onnx_file_are_part_of_its_revision(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx", 2, data="net.data")
    told = {"labels": ["anger", "happiness"], "size": SIZE, "mean": [0, 0, 0], "std": [1, 1, 1]}
    model = described(tmp_path / "net.yaml", **told)
    first = model_revision(model_path(model))
    weights = bytearray((tmp_path / "net.data").read_bytes())
    weights[0] ^= 1
    (tmp_path / "net.data").write_bytes(weights)
    assert model_revision(model_path(model)) != first


def test_a_set_that_calls_a_label_otherwise_gets_it_all_the_same(tmp_path: Path) -> None:
    folder = vit_folder(tmp_path / "vit")
    own, theirs = (
        annotated(str(folder), pictures(2), label_set=name)[0].scores for name in (None, "emollms")
    )
    assert theirs["joy"] == pytest.approx(own["happiness"], abs=1e-5)
    vit_folder(tmp_path / "tweets", ("joy", "love", "trust"))
    assert read_config(tmp_path / "tweets").label_set == "emollms"


@pytest.mark.parametrize("values", [[0, 0, 5], [-1, 0, 5]])
def test_probabilities_that_are_all_elsewhere_leave_all_alike(tmp_path: Path, values) -> None:
    labels: list[str | None] = ["anger", "happiness", None]
    told = {"labels": labels, "size": SIZE, "mean": [0, 0, 0], "std": [1, 1, 1]}
    onnx_file(tmp_path / "net.onnx", 3, weights=np.array([values] * 3, np.float32))
    model = described(tmp_path / "net.yaml", probabilities=True, label_set="fer2013", **told)
    scores = annotated(model, pictures(1))[0].scores
    assert (scores["anger"], scores["happiness"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("config", "processor", "line"),
    [
        ({"id2label": {"a": "angry"}}, {}, "does not tell its classes"),
        ({"problem_type": "multi_label_classification"}, {}, "do not exclude each other"),
        (
            {"architectures": ["DeiTForImageClassificationWithTeacher"], "id2label": {"0": "cat"}},
            {},
            "'cat'",
        ),
        ({}, {"size": {"height": 32, "width": 24}}, "it reads no squares"),
        ({}, {"size": 100000}, "are no faces' crops"),
    ],
)
def test_a_folder_that_cannot_serve_is_told_in_one_line(
    tmp_path: Path, config: dict[str, object], processor: dict[str, object], line: str
) -> None:
    folder = vit_folder(tmp_path / "vit", **processor)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | config))
    with pytest.raises(UserError, match=line):
        read_config(folder)


def test_a_folder_whose_processor_makes_other_sizes_is_refused_when_it_is_loaded(
    tmp_path: Path,
) -> None:
    folder = vit_folder(tmp_path / "vit", size={"height": 48, "width": 48})
    with pytest.raises(UserError, match="does not take a crop of 48 pixels"):
        annotated(str(folder), pictures(1))


def test_a_label_set_that_none_of_its_classes_is_in_is_refused(tmp_path: Path, capsys) -> None:
    folder = vit_folder(tmp_path / "vit", ("worry", "doubt", "contempt"))
    (tmp_path / "videos").mkdir()
    asked = ["--model", str(folder), "--set", "annotator.label_set=fer2013"]
    assert main(["plan", str(tmp_path / "videos"), "--output", str(tmp_path / "out"), *asked]) == 2
    assert "none of them is a label of fer2013" in capsys.readouterr().err


def test_classifiers_annotate_beside_ours_and_are_compared(
    clips: Path, emolake: Emolake, tmp_path: Path
) -> None:
    vit_folder(tmp_path / "vit")
    onnx_file(tmp_path / "net.onnx", 7, size="s")
    net = described(
        tmp_path / "net.yaml", labels=list(OWN_NAMES), size=SIZE, mean=[0.5] * 3, std=[0.5] * 3
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").symlink_to(clips / "single_face.mp4")
    models = f"emo-llama-tiny,{tmp_path / 'vit'},{net}"
    done = emolake(
        "annotate", tmp_path / "in", "--output", tmp_path / "out", "--model", models, "--quiet"
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out", "annotations")
    of = {
        name: [r for r in rows if r["model"] == name] for name in ("emo-llama-tiny", "vit", "net")
    }
    assert len(of["emo-llama-tiny"]) == len(of["vit"]) == len(of["net"]) >= 2
    for name in ("vit", "net"):
        assert all(sum(dict(r["scores"]).values()) == pytest.approx(1, abs=1e-4) for r in of[name])
        assert len({round(r["confidence"], 4) for r in of[name]}) > 1
