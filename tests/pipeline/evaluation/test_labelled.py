"""Labelled tables: from rows of any format to what the stages of the main job take."""

import base64
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emolake.pipeline.config import DecodeConfig
from emolake.pipeline.corpus.segments import segment_rows
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.labelled import LabelledTable
from emolake.pipeline.lake.schema import VIDEO_ROW
from emolake.pipeline.video.decode import VideoInfo


def rows_of(table: LabelledTable) -> list[dict]:
    return [
        row for part in table.parts for made in table.media(part, 2) for row in made.to_pylist()
    ]


def test_rows_keep_their_numbers_over_row_groups(tmp_path: Path) -> None:
    images = [bytes([k]) for k in range(8)]
    pq.write_table(
        pa.table({"image": images, "label": ["happy"] * 8}),
        tmp_path / "t.parquet",
        row_group_size=3,
    )
    table = LabelledTable.read(tmp_path / "t.parquet")
    assert len(table.parts) == 3
    made = rows_of(table)
    assert [int(row["video_id"]) for row in made] == list(range(8))
    assert [row["pictures"][0]["bytes"] for row in made] == images
    assert "image" not in table.told.column_names, "bytes are read where they are used"


def test_media_of_every_kind(tmp_path: Path) -> None:
    given = [
        {"uri": "a.mp4", "start_s": 1.5, "end_s": 4.0, "label": "happy", "age": 31},
        {"uri": "s3://b/c.mkv", "label": "joy"},
        {"uri": "sub/d.jpg", "label": "sad"},
        {"frames": ["1.png", "/x/2.png"], "label": "sad"},
        {"image": base64.b64encode(b"picture").decode(), "label": "fear"},
        {"image": "no base64!", "label": "fear"},
        {"label": "fear"},
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    table = LabelledTable.read(file)
    assert table.has_videos
    made = rows_of(table)
    here = str(tmp_path)
    assert made[0]["uri"] == f"{here}/a.mp4"
    assert made[0]["span"] == {"start_s": 1.5, "end_s": 4.0}
    assert made[1]["uri"] == "s3://b/c.mkv"
    assert made[1]["span"] is None
    assert made[2]["pictures"] == [{"uri": f"{here}/sub/d.jpg", "bytes": None}]
    assert [p["uri"] for p in made[3]["pictures"]] == [f"{here}/1.png", "/x/2.png"]
    assert made[4]["pictures"] == [{"uri": None, "bytes": b"picture"}]
    assert made[5]["pictures"][0]["bytes"] == b""
    assert [row["missing"] for row in made] == [None] * 6 + ["not_found"]
    assert table.attributes()[0] == {"age": "31"}
    labels = ("fear", "happiness", "sadness")
    assert table.label_indices(labels) == [1, 1, 2, 2, 0, 0, 0]
    assert table.label_indices(labels[1:]) == [0, 0, 1, 1, None, None, None], (
        "fear is of other sets"
    )
    bored = LabelledTable(table.uri, pa.table({"label": ["bored"]}), ("label",), ())
    with pytest.raises(UserError, match="label 'bored' is not in the label set"):
        bored.label_indices(labels)


@pytest.mark.parametrize(
    ("span", "found"),
    [
        (None, [(0, 0.0, 300.0), (1, 300.0, math.inf)]),
        ((10.0, 20.0), [(0, 10.0, 20.0)]),
        ((290.0, 310.0), [(0, 290.0, 300.0), (1, 300.0, 310.0)]),
        ((400.0, None), [(1, 400.0, math.inf)]),
    ],
)
def test_a_span_is_all_that_is_looked_at(span, found) -> None:
    told = None if span is None else dict(zip(("start_s", "end_s"), span, strict=True))
    video = dict.fromkeys(VIDEO_ROW.names) | {"span": told, "size": None}
    info = VideoInfo(duration_s=600.0, fps=25.0, width=64, height=64, codec="h264")
    rows = segment_rows(video, info, DecodeConfig(segment_seconds=300))
    assert [(r["segment"], r["start_s"], r["end_s"]) for r in rows] == found
