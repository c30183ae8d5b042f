"""Fused scores are the weighted mean, and the weights follow who was right."""

from pathlib import Path

import pyarrow as pa
import pytest

from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.fusion import fit_weights, fused

SCHEMA = pa.schema(
    [
        ("video_id", pa.string()), ("uri", pa.string()), ("segment", pa.int32()),
        ("track_id", pa.int32()), ("window", pa.int32()), ("start_s", pa.float64()),
        ("end_s", pa.float64()), ("model", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float32())),
    ]
)  # fmt: skip


def row(window: int, model: str, **scores: float) -> dict:
    place = {"video_id": "v", "uri": "/a/v.mp4", "segment": 0, "track_id": 0, "window": window}
    span = {"start_s": 2.0 * window, "end_s": 2.0 * window + 2}
    return place | span | {"model": model, "scores": list(scores.items())}


def labelled(path: Path, text: str) -> Path:
    path.write_text("uri,start_s,end_s,label\n" + text)
    return path


def test_the_mean_is_weighted_and_synonyms_are_one_label() -> None:
    table = pa.Table.from_pylist(
        [
            row(0, "a", happiness=0.8, sadness=0.2),
            row(0, "b", joy=0.4, sadness=0.6),
            row(1, "b", joy=0.1, sadness=0.9),
        ],
        SCHEMA,
    )
    first, second = fused(table, {"a": 0.75, "b": 0.25}).to_pylist()
    assert dict(first["scores"]) == pytest.approx({"happiness": 0.7, "sadness": 0.3})
    assert (first["emotion"], first["models"]) == ("happiness", ["a", "b"])
    assert first["confidence"] == pytest.approx(0.7)
    assert second["models"] == ["b"], "who has not read a window has no say in it"
    assert dict(second["scores"]) == pytest.approx({"happiness": 0.1, "sadness": 0.9})


def test_weights_by_hand(tmp_path: Path) -> None:
    rows = []
    for window in range(4):
        right = 0.9 if window < 3 else 0.1
        rows.append(row(window, "mostly-right", anger=right, fear=1 - right))
        rows.append(row(window, "other", anger=1 - right, fear=right))
    table = pa.Table.from_pylist(rows, SCHEMA)
    labels = labelled(tmp_path / "l.csv", "v.mp4,0,8,angry\n")
    weights = fit_weights(table, labels)
    # Likelihood (0.1 + 0.8 w)^3 (0.9 - 0.8 w) has its top where 3 (0.9 - 0.8 w) = 0.1 + 0.8 w.
    assert weights["mostly-right"] == pytest.approx(2.6 / 3.2, abs=1e-3)
    assert sum(weights.values()) == pytest.approx(1)


def test_labels_of_other_videos_are_told(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(0, "a", anger=1.0)], SCHEMA)
    with pytest.raises(UserError, match="labels no window"):
        fit_weights(table, labelled(tmp_path / "l.csv", "w.mp4,0,8,anger\n"))
