"""`emolake export`: one annotated video as an overlay, stills, or a file for annotation tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.corpus.listing import find_videos
from emolake.pipeline.errors import UserError, VideoError
from emolake.pipeline.presentation.export.overlay import painter, write_stills
from emolake.pipeline.presentation.export.story import Story, read_story
from emolake.pipeline.presentation.export.text import (
    as_csv,
    as_elan,
    as_fiftyone,
    as_label_studio,
    as_vtt,
)
from emolake.pipeline.storage.files import Storage, is_local, parse_options
from emolake.pipeline.video.decode import Source
from emolake.pipeline.video.transcode import transcode

_TEXTS: dict[str, Callable[[Story], str]] = {
    "csv": as_csv,
    "elan": as_elan,
    "vtt": as_vtt,
    "label_studio": as_label_studio,
    "fiftyone": as_fiftyone,
}


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option("name", "VIDEO", "uri, file name, or start of a video_id")
    for option, what in {
        "--video": "the video with boxes, tracks and emotions drawn in, sound kept",
        "--csv": "a row a window",
        "--elan": "tiers for ELAN (.eaf)",
        "--vtt": "WebVTT cues",
        "--label-studio": "a task for Label Studio with predictions, at the true frame rate",
        "--fiftyone": "labels.json of a FiftyOneTemporalDetectionDataset",
    }.items():
        parser.option(option, "FILE", what, type=Path)
    parser.option("--frames", "DIR", "a drawn still at the middle of each window", type=Path)
    parser.flag("--blur-faces", "with --video and --frames: no recognisable face is shown")
    parser.flag("--no-overlay", "with --video and --frames: nothing is drawn in")
    parser.flag("--no-sound", "with --video: silent")
    storage_option(parser)
    parser.calls(run, "emolake export out/ interview.mp4 --video drawn.mp4 --elan interview.eaf")


def run(options: Options) -> int:
    asked = {name: getattr(options, name) for name in ("video", "frames", *_TEXTS)}
    if not any(asked.values()):
        raise UserError("export to what? give --video, --frames, --csv, --elan, --vtt, ...")
    if (options.blur_faces or options.no_overlay) and not (options.video or options.frames):
        raise UserError("--blur-faces and --no-overlay go with --video or --frames")
    if options.no_sound and not options.video:
        raise UserError("--no-sound goes with --video")
    storage = Storage(parse_options(options.storage_options))
    story = read_story(options.output, options.name, storage.options)
    told: dict[str, object] = {"video_id": story.video_id, "uri": story.uri}
    for name, text in _TEXTS.items():
        if asked[name] is not None:
            _write(name, asked[name], text(story))
            told[name] = str(asked[name])
    if options.blur_faces and _has_changed(story, storage):
        story = replace(story, whole=False)
    paint = painter(story, overlay=not options.no_overlay, blur=options.blur_faces)
    if options.blur_faces and not story.whole:
        told["blurred"] = (
            "all: not all of it was analysed as it is now, or faces were met and not kept"
        )
    try:
        if options.video is not None:
            told["frames_drawn"] = transcode(
                _source(storage, story.uri), options.video, paint, sound=not options.no_sound
            )
            told["video"] = str(options.video)
        if options.frames is not None:
            told["stills"] = write_stills(story, _source(storage, story.uri), options.frames, paint)
            told["frames"] = str(options.frames)
    except VideoError as error:
        raise UserError(f"{story.uri} cannot be read any more: {error}") from None
    written = ", ".join(str(path) for path in asked.values() if path is not None)
    lines = [f"{story.name}: {len(story.faces)} faces -> {written}"]
    if "blurred" in told:
        lines.append(f"blurred is {told['blurred']}")
    return tell(options, told, *lines)


def _has_changed(story: Story, storage: Storage) -> bool:
    """Whether another file lies there by now than the one whose faces are told."""
    there = [
        name for some in find_videos([story.uri], storage) for name in some["video_id"].to_pylist()
    ]
    return there != [story.video_id]


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--{option} {path} cannot be written: {error.strerror}") from None


def _source(storage: Storage, uri: str) -> Source:
    fs, path = storage.locate(uri)
    try:
        return path if is_local(fs) else fs.open(path, "rb")
    except OSError as error:
        raise UserError(f"{uri} cannot be read any more: {error}") from None
