"""One tree of all options: defaults, validation, config_hash. `jobs.options` fills it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from emolake.pipeline.errors import UserError, in_a_line

CORPUS_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
"""It becomes the name of a folder, which may be 255 bytes long."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DecodeConfig(_Part):
    """Video bytes -> timed frames."""

    backend: Literal["pyav", "decord"] = Field("pyav", description="decoder library")
    sample_fps: float = Field(4.0, gt=0, le=240, description="frames looked at per second of video")
    segment_seconds: float = Field(
        300.0, ge=0.1, description="a longer video is split into segments of this length"
    )
    threads: int = Field(1, ge=1, le=64, description="decoder threads per face actor")
    fast: bool = Field(
        False,
        description="leave out the smoothing of block edges (of H.264, HEVC and VP8, by PyAV in software): "
        "faster, and not quite the picture that was encoded (docs/benchmarks.md)",
    )
    hwaccel: Literal["cuda", "qsv", "vaapi", "videotoolbox"] | None = Field(
        None, description="hardware decoder of PyAV's; without such a device, software decodes"
    )
    max_pixels: int = Field(
        7680 * 4320, gt=0, description="a frame with more pixels makes its video `too_large`"
    )

    @model_validator(mode="after")
    def _can_be_fast(self) -> DecodeConfig:
        if self.fast and self.backend != "pyav":
            raise ValueError(f"fast goes with backend pyav, and not with {self.backend}")
        if self.fast and self.hwaccel:
            raise ValueError(f"fast goes without hwaccel: {self.hwaccel} has no such choice")
        return self


class FacesConfig(_Part):
    """Frames -> detections -> tracks."""

    detector: Literal["mtcnn", "retinaface", "yunet", "scrfd"] = Field(
        "mtcnn", description="face detector; scrfd needs emolake[onnx]"
    )
    weights: str | None = Field(
        None,
        description="its weights, unless it is mtcnn: a RetinaFace checkpoint, or the ONNX file of YuNet or "
        "SCRFD (a published file, on every node)",
    )
    preprocess: Literal["retinaface-pytorch", "biubug6"] = Field(
        "retinaface-pytorch", description="whose RetinaFace checkpoint it is; the file cannot tell"
    )
    detect_width: int = Field(
        640, ge=64, description="width frames are scaled down to for detection"
    )
    min_face: int = Field(40, ge=12, description="smallest face side in pixels at detect_width")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of RetinaFace's network"
    )
    min_score: float = Field(
        0.9,
        ge=0,
        le=1,
        description="a detection from this score on can begin a track; with scrfd 0.5",
    )
    weak_score: float = Field(
        0.7, ge=0, le=1, description="one from this score on can continue a track; with scrfd 0.5"
    )
    detect_every_seconds: float = Field(
        1.0,
        ge=0,
        description="whole frames are searched this often and after every cut; in between known "
        "faces are followed (0: every sampled frame is searched)",
    )
    batch_frames: int = Field(8, ge=1, le=256, description="frames per detector call")
    min_iou: float = Field(0.25, gt=0, lt=1, description="overlap that continues a track")
    max_gap_seconds: float = Field(1.5, ge=0, description="a face missing longer ends its track")
    min_track_seconds: float = Field(
        0.2,
        ge=0,
        description="shorter tracks are dropped; by default what 4 samples a second show once is kept",
    )
    identity: Literal["dlib"] | None = Field(
        None,
        description="group the tracks of a video by person (column person_id); the video is then "
        "not split into segments; needs emolake[identity]",
    )
    attributes: str | None = Field(
        None,
        description="FairFace checkpoint (res34_fair_align_multi_7, a file on every node) that tells a "
        "face's apparent age, gender and race to a model tuned to read them; a manifest's columns win",
    )
    store_attributes: bool = Field(
        False, description="keep the age, gender and race that were used in the tracks table"
    )
    store_thumbnails: bool = Field(
        False, description="keep a small picture of each track's face in the tracks table"
    )
    blur_thumbnails: bool = Field(True, description="blur those pictures beyond recognition")
    cut_threshold: float = Field(
        0.25,
        gt=0,
        le=1,
        description="colour-histogram distance of two frames that, with other edges, makes a cut",
    )

    @model_validator(mode="before")
    @classmethod
    def _scores_of_the_detector(cls, given: Any) -> Any:
        """SCRFD is published with a threshold below the fields' defaults, which would lose its faces."""
        if isinstance(given, Mapping) and given.get("detector") == "scrfd":
            return {"min_score": 0.5, "weak_score": 0.5, **given}
        return given


class WindowsConfig(_Part):
    """Tracks -> windows of aligned crops: the temporal frame tokens."""

    window_seconds: float = Field(2.0, gt=0, description="length of a window")
    frames_per_window: int = Field(
        8, ge=1, le=64, description="frames of a window given to the model"
    )
    speech_seconds: float = Field(
        0.0,
        ge=0,
        description="EmoLLMs: length of the stretches of transcript that are read (0: cue by cue)",
    )
    crop_format: Literal["png", "jpeg"] = Field(
        "png", description="how crops travel between stages: lossless, or JPEG of quality 95"
    )


ANNOTATOR_FOLDERS = ("face_mae", "video_mae", "audio_encoder", "recognizer")
ANNOTATOR_FILES = (*ANNOTATOR_FOLDERS, "landmark_network")
"""Options that name models; their content counts for results, and not where they lie."""


RESULTS_VERSION = 4
"""Of the code: raised by whoever changes what a run of one configuration writes, by which rows of before and
after are told apart."""

Precision = Literal["float32", "bfloat16"]


class AnnotatorConfig(_Part):
    """Windows -> annotations."""

    label_set: str | None = Field(None, description="label set asked for; default: the model's own")
    use_attributes: bool = Field(
        True,
        description="put the manifest's age, gender and race into the prompt of a model tuned for it",
    )
    micro_batch: int | None = Field(
        None, ge=1, description="windows per forward pass; default: what fits the GPU, 16 on a CPU"
    )
    precision: Precision | None = Field(
        None,
        description="numbers the model multiplies in (sums stay float32); default: bfloat16 on a GPU, "
        "float32 on a CPU. A CPU with AVX-512 BF16 or AMX is two to three times faster in bfloat16",
    )
    quantize: Literal["int8"] | None = Field(
        None,
        description="hold the language model's weights in 8 bits (emolake[quantize]): half the memory of "
        "bfloat16, scores that differ slightly; not EmoLLMs",
    )
    compile: bool = Field(
        False, description="compile the vision side with torch.compile; pays on long runs on a GPU"
    )
    abstain_below: float | None = Field(
        None,
        ge=0,
        le=1,
        description="a window whose winning label is less probable than this is marked (column uncertain); "
        "its scores stay",
    )
    flip: bool = Field(
        False,
        description="EMO-LLaMA: score each window also in the mirror and take the mean; twice the work",
    )
    describe: bool = Field(
        False, description="write an answer in words too (column description); not EmoLLMs"
    )
    read_answer: bool = Field(
        False,
        description="EmoLA, Emotion-LLaMA: the label is the one that the written answer names, as in "
        "their papers, with the score 1; where it names none, the scored one stands",
    )
    action_units: bool = Field(
        False, description="EmoLA: ask for facial action units too (column action_units)"
    )
    max_answer_tokens: int = Field(
        96, ge=1, description="length of a written answer; a longer one ends at its last sentence"
    )
    face_mae: str | None = Field(
        None, description="Emotion-LLaMA: folder of the face encoder (ViTMAE); none: zeros"
    )
    video_mae: str | None = Field(
        None, description="Emotion-LLaMA: folder of the clip encoder (VideoMAE); none: zeros"
    )
    audio_encoder: str | None = Field(
        None, description="Emotion-LLaMA: folder of the audio encoder (HuBERT); none: zeros"
    )
    recognizer: str | None = Field(
        None,
        description="folder of a Whisper checkpoint: what is said, where a model reads it and the video "
        "has no transcript",
    )
    regression: Literal["answer", "expected"] = Field(
        "answer",
        description="EmoLLMs: numbers as the model writes them, or as the mean over scored numbers",
    )
    send_pictures: bool = Field(
        False,
        description="a model behind an endpoint is sent the pictures that it is asked about; without this it "
        "is refused",
    )
    landmark_network: str | None = Field(
        None, description="EmoLA: InsightFace's 2d106det.onnx (a file, on every node)"
    )

    def precision_on(self, *, gpu: bool) -> Precision:
        """What comes out of `precision` on such a machine."""
        return self.precision or ("bfloat16" if gpu else "float32")

    @property
    def names_folders(self) -> bool:
        """Whether models of others' are loaded beside the annotator's own."""
        return any(getattr(self, name) is not None for name in ANNOTATOR_FOLDERS)


class LimitsConfig(_Part):
    """What one bad video may cost."""

    segment_timeout_seconds: float = Field(60.0, gt=0, description="time a segment may take, plus")
    timeout_per_video_second: float = Field(4.0, ge=0, description="this per second of its video")
    child_memory_mb: int = Field(
        6144, ge=1024, description="address space of a decoding process, megabytes"
    )
    max_attempts: int = Field(3, ge=1, description="tries in all for a failure that may pass")
    max_failed_fraction: float = Field(
        1.0, ge=0, le=1, description="a larger part of failed videos makes the exit code 3"
    )


class PoolSize(_Part):
    """Actors of a pool: `4` for exactly so many, `{min: 2, max: 8}` for as many of them as the cluster holds
    at the time; without `max`, for all that fit."""

    min: int = Field(1, ge=1)
    max: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _exactly(cls, given: Any) -> Any:
        return given if isinstance(given, Mapping | PoolSize) else {"min": given, "max": given}

    @model_validator(mode="after")
    def _in_order(self) -> PoolSize:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"min is {self.min} and max {self.max}")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, plain: Any) -> Any:
        return self.min if self.min == self.max else plain(self)


class ResourcesConfig(_Part):
    """How the job spreads over the machine or cluster; changes no result."""

    face_actors: PoolSize | None = Field(
        None,
        description="so many, or {min: 4, max: 64}: as many as the cluster holds at the time; default: "
        "as many as CPUs on one machine, all that fit on a cluster",
    )
    gpus_per_face_actor: float = Field(
        0.0, ge=0, description="a fraction of a GPU for the face detector of each face actor"
    )
    annotation_actors: PoolSize | None = Field(
        None,
        description="the same; default: one a GPU; without GPUs up to one for four CPUs on one machine, all "
        "that fit on a cluster",
    )
    gpus_per_annotation_actor: float | None = Field(
        None, ge=0, description="default: 1 where the cluster has a GPU, else 0"
    )
    segments_per_commit: int = Field(
        8, ge=1, description="segments written as one commit: what a crash can cost"
    )
    segments_per_call: int | None = Field(
        None,
        ge=1,
        description="segments that an annotation actor takes at a time; default: 1 on a CPU, on a GPU as "
        "many as an eighth of a node's object store holds, 16 at most",
    )
    object_store_mb: int = Field(
        1024, ge=80, description="object store of a Ray that this job starts itself, megabytes"
    )


class IcebergConfig(_Part):
    """The tables as Apache Iceberg, besides the Parquet; changes no result. Needs emolake[iceberg]."""

    catalog: str | None = Field(
        None,
        description="each run is published to it as one snapshot a table: a catalogue of pyiceberg's "
        "own configuration by name, or sqlite:///FILE",
    )
    namespace: str = Field(
        "emolake", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="namespace of its tables"
    )


class Config(_Part):
    """The whole tree."""

    model: str = Field(
        "emo-llama-tiny",
        description="an embedded model's name, a model folder, a hub's org/name[@revision], or the file that "
        "describes a classifier; several, with commas between, annotate in one pass",
    )
    corpus: str = Field("default", pattern=CORPUS_NAME, description="partition name of the rows")
    decode: DecodeConfig = DecodeConfig()
    faces: FacesConfig = FacesConfig()
    windows: WindowsConfig = WindowsConfig()
    annotator: AnnotatorConfig = AnnotatorConfig()
    limits: LimitsConfig = LimitsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    iceberg: IcebergConfig = IcebergConfig()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.model.split(","))

    def results_hash(self, model_revision: str, files: Mapping[str, str]) -> str:
        """12 hex digits over all that changes results, and nothing else. files: option that names a
        file -> hash of its content, which counts and not its path."""
        telling = {
            "code": RESULTS_VERSION,
            "decode": self.decode.model_dump(exclude={"threads"}),
            "faces": self.faces.model_dump(exclude={"batch_frames", "weights", "attributes"}),
            "windows": self.windows.model_dump(),
            "annotator": self.annotator.model_dump(
                exclude={"micro_batch", "compile", "send_pictures", *ANNOTATOR_FILES}
            ),
            "model": model_revision,
            "files": dict(files),
        }
        return hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:12]


def read_yaml(file: Path, called: str) -> dict[str, Any]:
    """The key: value pairs of a YAML file; UserError where there are none. called: as it was named."""
    try:
        tree = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"{called} {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{called} {file} is not YAML: {in_a_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{called} {file} must hold key: value pairs")
    return {str(key): value for key, value in tree.items()}


def validated(kind: type[Any], tree: Mapping[str, Any], source: str) -> Any:
    """`tree` as the pydantic model `kind`; the first mistake as one line."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise mistake(kind, error, source) from None


def mistake(kind: type[BaseModel], error: ValidationError, source: str) -> UserError:
    """The first of them, as one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UserError(f"{source}: {unknown(kind, key)}")
    given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
    return UserError(f"{source}: {key}: {first['msg']}{given}")


def all_keys(kind: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every leaf option by its dotted name."""
    keys: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys |= all_keys(inner, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field
    return keys


def unknown(kind: type[BaseModel], key: str) -> str:
    """What to say of a key that no option has: the nearest that one has."""
    known = all_keys(kind)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    if not near:
        last = key.rpartition(".")[2]
        near = [k for k in known if k.rpartition(".")[2] == last][:1]
    mend = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
    return f"unknown key {key!r}{mend}"
