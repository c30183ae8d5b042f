"""The tables of the lake and the row that travels between stages.

One row through the pipeline is one segment of one video. Each stage adds columns to it and drops
what nobody needs any more; the write task explodes it into the three tables.
"""

from __future__ import annotations

import pyarrow as pa

from emolake.pipeline.labels import ATTRIBUTES

SCHEMA_VERSION = 1
VIDEO_ITSELF = -1
"""track_id of annotations that belong to the video and to no face: of what is said in it."""

_box = pa.struct(
    [("x1", pa.float32()), ("y1", pa.float32()), ("x2", pa.float32()), ("y2", pa.float32())]
)
_scores = pa.map_(pa.string(), pa.float32())
_path = pa.list_(
    pa.struct(
        [
            ("time_s", pa.float64()),
            *((name, pa.float32()) for name in ("x1", "y1", "x2", "y2")),
            ("interpolated", pa.bool_()),
        ]
    )
)
"""Where a face was in each sampled frame; interpolated: not found there, but bridged."""


def _columns(*fields: tuple[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in fields]


def _maybe(*fields: tuple[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=True) for name, kind in fields]


QUALITY = pa.struct(
    [
        (name, pa.float32())
        for name in ("face_px", "blur", "brightness", "yaw", "pitch", "roll", "score")
    ]
)
"""See faces.quality.Quality."""

_where_the_model_gives_it = (
    ("description", pa.string()),
    ("action_units", pa.list_(pa.string())),
    ("valence", pa.float32()),
    ("arousal", pa.float32()),
    ("intensity", pa.float32()),
    ("transcript", pa.string()),
    ("uncertain", pa.bool_()),
    ("sentiment", pa.int32()),
    ("absent", pa.list_(pa.string())),
)

ANNOTATIONS = pa.schema(
    [
        *_columns(
            ("video_id", pa.string()),
            ("uri", pa.string()),
            ("segment", pa.int32()),
            ("track_id", pa.int32()),
            ("window", pa.int32()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("n_frames", pa.int32()),
            ("bbox", _box),
            ("emotion", pa.string()),
            ("confidence", pa.float32()),
            ("scores", _scores),
        ),
        *_maybe(
            *_where_the_model_gives_it,
            ("quality", QUALITY),
            ("n_interpolated", pa.int32()),
            ("person_id", pa.int32()),
        ),
        *_columns(
            ("model", pa.string()),
            ("model_revision", pa.string()),
            ("config_hash", pa.string()),
            ("run_id", pa.string()),
            ("schema_version", pa.int32()),
        ),
    ]
)

TRACKS = pa.schema(
    [
        *_columns(
            ("video_id", pa.string()),
            ("uri", pa.string()),
            ("segment", pa.int32()),
            ("track_id", pa.int32()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("n_detections", pa.int32()),
            ("mean_score", pa.float32()),
            ("mean_box", _box),
            ("dominant_emotion", pa.string()),
            ("emotion_scores", _scores),
            ("run_id", pa.string()),
            ("schema_version", pa.int32()),
        ),
        *_maybe(
            ("n_interpolated", pa.int32()),
            ("person_id", pa.int32()),
            ("path", _path),
            ("thumbnail", pa.binary()),
            *((name, pa.string()) for name in ATTRIBUTES),
        ),
    ]
)
"""Beyond the contract, here and in annotations: `n_interpolated`, sampled frames within the span in
which the face was not found and its box is bridged (the model never sees those); `person_id`, tracks
of one video that show one person, where the user asked for it; `absent`, what a model reads and a
window had not (`sound`, `transcript`), and answers of its that could not be read (`valence_answer`,
...); `sentiment`, from -3, very negative, to 3. `path`: the box in each sampled frame.
`thumbnail`: a JPEG of the face, `age`, `gender` and `race`: what was known or estimated of the person,
where the user asked for them to be kept."""

VIDEOS = pa.schema(
    [
        *_columns(("video_id", pa.string()), ("uri", pa.string())),
        *_maybe(("size", pa.int64())),
        *_columns(("segment", pa.int32()), ("n_segments", pa.int32()), ("state", pa.string())),
        *_maybe(
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("duration_s", pa.float64()),
            ("fps", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("codec", pa.string()),
        ),
        *_columns(
            ("n_tracks", pa.int32()),
            ("n_windows", pa.int32()),
            ("commit_id", pa.string()),
            ("run_id", pa.string()),
            ("finished_at", pa.timestamp("us", tz="UTC")),
            ("attempt", pa.int32()),
            ("config_hash", pa.string()),
            ("schema_version", pa.int32()),
        ),
        *_maybe(("n_dropped_tracks", pa.int32()), ("lease", pa.int64())),
    ]
)
"""The ledger. Beyond the contract: `attempt`, how often a segment was tried; `config_hash`, under
which configuration it was done; `n_dropped_tracks`, faces seen for too short a time to keep; `lease`, the
number of the lease under which the row was written, by which rows are ordered (lake.order)."""


def sort_keys(schema: pa.Schema) -> list[str]:
    """The columns that a table's files are sorted by."""
    return [k for k in ("video_id", "segment", "track_id", "window") if k in schema.names]


TABLES = {"annotations": ANNOTATIONS, "tracks": TRACKS, "videos": VIDEOS}
"""What runs write."""

LABELS = pa.schema(
    [
        *_columns(
            ("label_id", pa.string()),
            ("video_id", pa.string()),
            ("uri", pa.string()),
            ("segment", pa.int32()),
            ("track_id", pa.int32()),
            ("window", pa.int32()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("kind", pa.string()),
        ),
        *_maybe(("label", pa.string())),
        *_columns(
            ("reviewer", pa.string()),
            ("revision", pa.int32()),
            ("said_at", pa.timestamp("us", "UTC")),
            ("blind", pa.bool_()),
        ),
        *_maybe(
            ("queue", pa.string()),
            ("emotion", pa.string()),
            ("confidence", pa.float32()),
            ("model", pa.string()),
            ("model_revision", pa.string()),
            ("config_hash", pa.string()),
        ),
        *_columns(("schema_version", pa.int32())),
    ]
)
"""What people said of windows, a row each time. kind: what is said (lake.labels.KINDS); label: what it is,
null where it is taken back; revision: 1 for a reviewer's first word on a window and kind, the highest counts;
blind: said without the model's answer in sight; queue: the order in which it came to be asked; emotion and
after it: the model's answer of that time, and whose."""


def schema_of(table: str) -> pa.Schema:
    """Of any table of an output."""
    return LABELS if table == "labels" else TABLES[table]


LISTED_ROW = pa.schema(
    [
        *_columns(("video_id", pa.string()), ("uri", pa.string())),
        *_maybe(
            ("size", pa.int64()),
            ("modified", pa.float64()),
            ("signed_uri", pa.string()),
            ("corpus", pa.string()),
            ("transcript_uri", pa.string()),
            ("age", pa.string()),
            ("gender", pa.string()),
            ("race", pa.string()),
            ("missing", pa.string()),
        ),
    ]
)
"""A video of the input. size null and `missing` a reason where it cannot be read; modified: when it
was last written, seconds since 1970, where the storage tells; signed_uri: what it is opened by, where that
is a secret and not its uri. It goes from here to the reading child and into no table."""

_span = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())])
_picture = pa.struct([("uri", pa.string()), ("bytes", pa.binary())])

VIDEO_ROW = pa.schema(
    [
        *_columns(("video_id", pa.string()), ("uri", pa.string())),
        *_maybe(("size", pa.int64()), ("signed_uri", pa.string())),
        *_columns(("corpus", pa.string()), ("attempt", pa.int32())),
        *_maybe(
            ("segments", pa.list_(pa.int32())),
            ("n_segments", pa.int32()),
            ("transcript_uri", pa.string()),
            ("age", pa.string()),
            ("gender", pa.string()),
            ("race", pa.string()),
            ("missing", pa.string()),
            ("span", _span),
            ("pictures", pa.list_(_picture)),
        ),
    ]
)
"""A video to be done. segments: those wanted, null for all; n_segments: how many it has, where it was opened
before; missing: why it cannot be opened. Only labelled tables have the rest: span, the stretch of the video
that is meant (end_s null: to its end); pictures, of one face each, that take the place of a video, each by
its uri or its encoded bytes."""

SEGMENT_ROW = pa.schema(
    [
        *[f for f in VIDEO_ROW if f.name not in ("segments", "n_segments", "missing", "span")],
        *_columns(("segment", pa.int32()), ("n_segments", pa.int32())),
        *_columns(("start_s", pa.float64()), ("end_s", pa.float64())),
        *_maybe(
            ("duration_s", pa.float64()),
            ("fps", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("codec", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ),
        *_columns(("failed", pa.bool_())),
        *_columns(("bytes_read", pa.int64()), ("requests", pa.int64())),
    ]
)
"""A segment to be done; `failed` with a reason where probing already found it cannot be. bytes_read,
requests: what has been spent on it until here."""

_track = pa.struct(
    [
        ("track_id", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("n_detections", pa.int32()),
        ("n_interpolated", pa.int32()),
        ("mean_score", pa.float32()),
        ("mean_box", _box),
        ("person_id", pa.int32()),
        ("path", _path),
        ("thumbnail", pa.binary()),
        *((name, pa.string()) for name in ATTRIBUTES),
    ]
)
"""age, gender, race: as estimated, until the annotation stage has read them; from there on those that are
to be stored."""

_crops = pa.struct(
    [
        ("pictures", pa.list_(pa.binary())),
        ("landmarks", pa.list_(pa.list_(pa.float32(), 10))),
    ]
)
"""pictures: encoded face crops, one a frame; landmarks: x1 y1 ... x5 y5 per frame as fractions of the
crop."""

_window = pa.struct(
    [
        ("track_id", pa.int32()),
        ("window", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("n_interpolated", pa.int32()),
        ("bbox", _box),
        ("quality", QUALITY),
        ("n_frames", pa.int32()),
        ("crops", pa.list_(_crops)),
        ("frames", pa.list_(pa.list_(pa.binary()))),
        ("features", pa.list_(pa.list_(pa.float32()))),
    ]
)
"""crops, frames: one entry a view of needs.Needs, in its order; frames: encoded whole frames;
features: the detector's global face feature per frame."""

_sound = pa.struct([("start_s", pa.float64()), ("samples", pa.binary())])
"""samples: int16, little-endian, 16 kHz, mono."""
_cue = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("text", pa.string())])

FACES_ROW = pa.schema(
    [
        *[f for f in SEGMENT_ROW if f.name != "pictures"],
        pa.field("tracks", pa.list_(_track), nullable=False),
        pa.field("windows", pa.list_(_window), nullable=False),
        pa.field("n_dropped_tracks", pa.int32(), nullable=False),
        pa.field("sound", _sound),
        pa.field("cues", pa.list_(_cue)),
        pa.field("frames_seen", pa.int64(), nullable=False),
        pa.field("video_seconds", pa.float64(), nullable=False),
        pa.field("face_seconds", pa.float64(), nullable=False),
    ]
)
"""A segment whose faces are found. sound, cues: of the whole segment, where a model reads them and
the video has them. video_seconds: span of the frames decoded; face_seconds: how long the face stage
took."""

_annotation = pa.struct(
    [
        ("track_id", pa.int32()),
        ("window", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("n_frames", pa.int32()),
        ("n_interpolated", pa.int32()),
        ("bbox", _box),
        ("emotion", pa.string()),
        ("confidence", pa.float32()),
        ("scores", _scores),
        *_where_the_model_gives_it,
        ("quality", QUALITY),
        ("model", pa.string()),
        ("model_revision", pa.string()),
    ]
)
"""One annotation a window and model."""

ENDPOINT_USAGE = ("requests", "input_tokens", "output_tokens")
"""What models behind an endpoint took."""
_spent = pa.list_(
    pa.struct(
        [
            ("model", pa.string()),
            ("windows", pa.int32()),
            ("seconds", pa.float64()),
            *((name, pa.int64()) for name in ENDPOINT_USAGE),
        ]
    )
)
"""What each model took of a segment."""

ANNOTATED_ROW = pa.schema(
    [
        *[f for f in FACES_ROW if f.name not in ("windows", "sound", "cues")],
        pa.field("annotations", pa.list_(_annotation), nullable=False),
        pa.field("annotate_seconds", pa.float64(), nullable=False),
        pa.field("spent", _spent, nullable=False),
    ]
)

COMMITTED_ROW = pa.schema(
    [
        *_columns(
            ("video_id", pa.string()),
            ("segment", pa.int32()),
            ("n_segments", pa.int32()),
            ("state", pa.string()),
        ),
        *_maybe(("size", pa.int64()), ("reason", pa.string())),
        *_columns(
            ("attempt", pa.int32()),
            ("n_tracks", pa.int32()),
            ("n_windows", pa.int32()),
            ("n_dropped_tracks", pa.int32()),
            ("video_seconds", pa.float64()),
            ("face_seconds", pa.float64()),
            ("annotate_seconds", pa.float64()),
            ("write_seconds", pa.float64()),
            ("bytes_read", pa.int64()),
            ("bytes_written", pa.int64()),
            ("requests", pa.int64()),
        ),
        *_maybe(("spent", _spent), ("problem", pa.string())),
    ]
)
"""What a write task tells the driver of each segment it committed, or why it could not."""
