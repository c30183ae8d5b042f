"""Faces as archives have them, on generated scenes whose truth is known: what is found by size, turn and
light, in the moment it shows, who is who in a crowd, and where shots end."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emolake.jobs.bench import films
from emolake.jobs.bench.clips import good_clips
from emolake.jobs.bench.films import FPS, Boxes, Film
from emolake.jobs.bench.heads import SIZE, Head, heads_of, timed_frame
from emolake.jobs.bench.measurement import Measurement, less_is_better, more_is_better
from emolake.jobs.bench.poses import pose_errors
from emolake.jobs.bench.tracking import Scores, cut_errors, scores, without_optional
from emolake.jobs.bench.truth import read_truth, true_box
from emolake.pipeline.config import FacesConfig, WindowsConfig, validated
from emolake.pipeline.faces.cuts import CutDetector
from emolake.pipeline.faces.detector import Detections, Detector, pairwise_iou
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.faces.search import FaceSearch
from emolake.pipeline.faces.stage import FaceStage, make_detector
from emolake.pipeline.faces.tracker import Tracker
from emolake.pipeline.video.frame import Frame

_SEED = 7
_SAME_BOX_IOU = 0.4  # of a found face and a true one
_SHOWN_S = (0.25, 0.4, 0.5, 0.75, 1.0, 1.5)
_EVERY_S = (0.0, 0.5, 1.0, 2.0)
_YAWS = (0.0, 15.0, 30.0, 45.0, 60.0)
_MOST_DEGREES = 10.0
_PLAIN = {"48 px", "64 px", "96 px", "160 px", "400 px", "1 of 40 px", "15°", "0.5"}
"""Conditions under which every face has to be found."""

Systems = dict[str, FacesConfig]


def bench_scenes(_clips: list[Path], scratch: Path, options: Namespace) -> Iterator[Measurement]:
    """Each name is `group | condition | system | what`, which `table` sets out."""
    import torch

    torch.set_num_threads(1)
    parts = options.part or [*_PARTS]
    systems = dict(map(_system, options.detector or ["mtcnn", "mtcnn,min_face=16"]))
    heads = heads_of(options.faces, np.random.default_rng(_SEED))
    for part in parts:
        yield from _PARTS[part](heads, systems, options.scenes)
    if options.clips and "brief" in parts:
        clips = good_clips(options.clips, scratch)
        for name, config in systems.items():
            yield from _clips_by_interval(clips, options.truth, name, config)
    if options.sheet:
        from emolake.jobs.bench.sheet import scenes_sheet

        scenes_sheet(heads, {name: whole_frames(c) for name, c in systems.items()}, options.sheet)


def _system(told: str) -> tuple[str, FacesConfig]:
    """`NAME[=WEIGHTS][,OPTION=VALUE...]` -> its name and the options of `faces`."""
    kind, *pairs = told.split(",")
    name, _, weights = kind.partition("=")
    given = {"detect_width": SIZE[0], "detector": name} | ({"weights": weights} if weights else {})
    config = validated(
        FacesConfig, given | dict(p.split("=", 1) for p in pairs if "=" in p), f"--detector {told}"
    )
    return ",".join([name, *pairs]), config


def found_in(pictures: list[Frame], search: FaceSearch) -> list[Detections]:
    """The sure faces of pictures that have nothing to do with each other."""
    frames = [timed_frame(float(k), picture) for k, picture in enumerate(pictures)]
    least = search.config.min_score
    return [look.found().select(look.found().scores >= least) for look in search(frames)]


def whole_frames(config: FacesConfig) -> FaceSearch:
    config = config.model_copy(update={"detect_every_seconds": 0.0})
    return FaceSearch(make_detector(config), config)


def count_found(truth: Boxes, faces: Detections) -> int:
    """True faces that a found one lies on, one to one."""
    from scipy.optimize import linear_sum_assignment

    if not truth or not len(faces):
        return 0
    iou = pairwise_iou(np.stack(list(truth.values())), faces.boxes)
    rows, columns = linear_sum_assignment(-iou)
    return int((iou[rows, columns] >= _SAME_BOX_IOU).sum())


def _stills(heads: list[Head], systems: Systems, scenes: int) -> Iterator[Measurement]:
    searches = {name: whole_frames(config) for name, config in systems.items()}
    for condition in films.CONDITIONS:
        rng = np.random.default_rng(_SEED)
        made = [films.still(condition, heads, rng) for _ in range(scenes)]
        for name, search in searches.items():
            faces = found_in([picture for picture, _ in made], search)
            shown = sum(len(truth) for _, truth in made)
            hits = sum(count_found(truth, f) for (_, truth), f in zip(made, faces, strict=True))
            false = sum(map(len, faces)) - hits
            title = f"{condition.group} | {condition.name} | {name}"
            if shown:
                least = 0.95 if condition.name in _PLAIN else 0.0
                yield more_is_better(f"{title} | recall", hits, shown, "faces", least)
            yield Measurement(
                f"{title} | false/frame", false, scenes, 1 - false / scenes, "faces", 0.9
            )


class _Counted:
    """A detector that counts the pixels it searches, in millions."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.searched = detector, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.detector, name)

    def __call__(self, frames: list[Frame]) -> list[Detections]:
        self.searched += sum(frame.shape[0] * frame.shape[1] for frame in frames) / 1e6
        return self.detector(frames)


def _search_every(config: FacesConfig, every_s: float) -> tuple[FaceSearch, _Counted]:
    config = config.model_copy(update={"detect_every_seconds": every_s})
    counted = _Counted(make_detector(config))
    detector: Any = counted
    return FaceSearch(detector, config), counted


def _brief(heads: list[Head], systems: Systems, scenes: int) -> Iterator[Measurement]:
    """Whether a face is found in at least one of the frames that show it, and the pixels searched."""
    default = FacesConfig().detect_every_seconds
    searches = {
        (name, every): _search_every(config, every)
        for name, config in systems.items()
        for every in _EVERY_S
    }
    pixels = 0.0
    for shown_s in _SHOWN_S:
        rng = np.random.default_rng(_SEED)
        made = [films.brief(heads, shown_s, rng) for _ in range(scenes)]
        shown = sum(any(1 in here for here in film.truth) for film in made)
        pixels += sum(len(film.frames) for film in made) * SIZE[0] * SIZE[1] / 1e6
        for (name, every), (search, _) in searches.items():
            hits = sum(_noticed(film, search) for film in made)
            least = 1.0 if every == default and shown_s >= 0.4 else 0.0
            title = f"shown {shown_s:g} s | detect every {every:g} s | {name} | recall"
            yield more_is_better(title, hits, shown, "faces", least)
    for (name, every), (_, counted) in searches.items():
        title = f"pixels searched | detect every {every:g} s | {name} | part"
        share = counted.searched / pixels
        yield Measurement(title, counted.searched, pixels, share, "Mpx", 0.0)


def _noticed(film: Film, search: FaceSearch) -> bool:
    looks = list(search(film.frames))  # to the end, since what is searched is counted
    sure = [look.found().select(look.found().scores >= search.config.min_score) for look in looks]
    return any(
        count_found({1: here[1]}, faces)
        for here, faces in zip(film.truth, sure, strict=True)
        if 1 in here
    )


def _clips_by_interval(
    clips: list[Path], given: Path | None, name: str, config: FacesConfig
) -> Iterator[Measurement]:
    """Face-seconds of real clips that are found, and pixels searched, by interval."""
    from emolake.jobs.bench.faces import frames_of

    truth = read_truth(given, clips)
    for every in _EVERY_S:
        search, counted = _search_every(config, every)
        hits = shown = 0
        pixels = 0.0
        for path in clips:
            people = [p for p in truth.get(path.name, []) if p["level"] != "optional"]
            for look in search(frames_of(path)):
                at = look.frame.time_s
                here = [p for p in people if p["start_s"] <= at <= p["end_s"]]
                boxes = {k: true_box(person, at) for k, person in enumerate(here)}
                pixels += look.picture.shape[0] * look.picture.shape[1] / 1e6
                shown += len(boxes)
                sure = look.found().select(look.found().scores >= config.min_score)
                hits += count_found(boxes, sure)
        title = f"{{}} | detect every {every:g} s | {name} | {{}}"
        yield more_is_better(title.format("clips", "recall"), hits, shown, "faces", 0.0)
        yield Measurement(
            title.format("pixels of clips searched", "part"),
            counted.searched, pixels, counted.searched / pixels, "Mpx", 0.0,
        )  # fmt: skip


_LEAST_SPLIT = 0.8  # IDF1; it is 0.75 where each place is one track
_CROWDS = {
    "10 people": (10, 2.0, 0.9),
    "30 people": (30, 2.0, 0.8),
    "10 people, fast": (10, 5.0, 0.0),
}
"""Their number, the fastest's speed in face widths a second, and the IDF1 to reach."""


def _crowds(heads: list[Head], systems: Systems, scenes: int) -> Iterator[Measurement]:
    """By the whole stage; and the tracker alone, given noisy truth."""
    few = max(scenes // 6, 1)
    for title, (count, speed, least) in _CROWDS.items():
        told: list[Scores] = []
        for seed in range(scenes):
            rng = np.random.default_rng(_SEED + seed)
            walkers = films.crowd(heads, count, rng, speed=speed)
            film = films.crowd_film(walkers, rng, drawn=False)
            told.append(_scored(film, tracked(film, FacesConfig(), rng)))
        yield from _means(title, "tracker on noisy truth", told, least)
        for name, config in systems.items():
            stage = FaceStage(config, WindowsConfig(), Needs(), FPS)
            told = []
            for seed in range(few):
                rng = np.random.default_rng(_SEED + seed)
                film = films.crowd_film(films.crowd(heads, count, rng, speed=speed), rng)
                told.append(_scored(film, _told(stage.tracks(film.frames), len(film.truth))))
            yield from _means(title, name, told, least)


def tracked(film: Film, config: FacesConfig, rng: np.random.Generator) -> list[Boxes]:
    """The tracker's boxes for each frame of a film, from true boxes that are moved and resized by 5 % of
    a face, one in ten missed and one in fifty too many."""
    tracker = Tracker(
        min_score=config.min_score, min_iou=config.min_iou, max_gap_seconds=config.max_gap_seconds
    )
    for k, here in enumerate(film.truth):
        boxes = [b for b in here.values() if rng.random() > 0.1]
        boxes += [_stray(b, rng) for b in here.values() if rng.random() < 0.02]
        placed = np.array(boxes, np.float32).reshape(-1, 4)
        side = np.tile(placed[:, 2:] - placed[:, :2], 2)
        n = len(placed)
        faces = Detections(
            (placed + rng.normal(0, 0.05, placed.shape) * side).astype(np.float32),
            np.full(n, 0.99, np.float32),
            np.zeros((n, 5, 2), np.float32),
            np.zeros((n, 0), np.float32),
        )
        tracker.update(k / FPS, faces, cut=False)
    return _told(tracker.finish(), len(film.truth))


def _split(heads: list[Head], systems: Systems, scenes: int) -> Iterator[Measurement]:
    """Half a frame, and a screen within it, that go from one face to another while the rest goes on."""
    for name, config in systems.items():
        stage = FaceStage(config, WindowsConfig(), Needs(), FPS)
        told = []
        for seed in range(scenes):
            film = films.split_screen(heads, np.random.default_rng(_SEED + seed))
            told.append(_scored(film, _told(stage.tracks(film.frames), len(film.truth))))
        yield from _means("split screen", name, told, _LEAST_SPLIT)


def _stray(box: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return box + np.tile(rng.uniform(-2, 2, 2) * (box[2] - box[0]), 2).astype(np.float32)


def _told(tracks: list[Any], frames: int) -> list[Boxes]:
    told: list[Boxes] = [{} for _ in range(frames)]
    for number, track in enumerate(tracks):
        for place in track.places():
            told[round(place.time_s * FPS)][number] = place.box
    return told


def _scored(film: Film, told: list[Boxes]) -> Scores:
    frames = zip(told, film.truth, film.optional, strict=True)
    return scores(film.truth, [without_optional(*frame) for frame in frames])


def _means(title: str, name: str, told: list[Scores], least: float) -> Iterator[Measurement]:
    def mean(what: Callable[[Scores], float]) -> float:
        return float(np.mean([what(s) for s in told]))

    yield more_is_better(f"{title} | IDF1 | {name} | ", mean(lambda s: s.idf1), 1.0, "IDF1", least)
    yield more_is_better(f"{title} | MOTA | {name} | ", mean(lambda s: s.mota), 1.0, "MOTA", 0.0)
    yield more_is_better(f"{title} | HOTA | {name} | ", mean(lambda s: s.hota), 1.0, "HOTA", 0.0)
    parts = mean(lambda s: s.fragments)
    yield more_is_better(f"{title} | fragments a person | {name} | ", parts, 1.0, "tracks", 0.0)


def _poses(_heads: list[Head], _systems: Systems, scenes: int) -> Iterator[Measurement]:
    for yaw in _YAWS:
        rng = np.random.default_rng(_SEED)
        for what, error in zip(
            ("yaw", "pitch", "roll"), pose_errors(yaw, rng, scenes * 100), strict=True
        ):
            title = f"head turned | yaw {yaw:g}° | error of | {what}"
            yield less_is_better(title, float(error), _MOST_DEGREES, "degrees", 1.0)


def _cuts(heads: list[Head], _systems: Systems, scenes: int) -> Iterator[Measurement]:
    config = FacesConfig()
    counts: dict[str, dict[str, list[int]]] = {}
    for seed in range(scenes):
        frames, changes = films.edited(heads, np.random.default_rng(_SEED + seed))
        for name, told in _cutters(config, frames).items():
            of_all = cut_errors(changes, told)
            by_kind = {
                kind: cut_errors([c for c in changes if c.kind == kind], told)[:2]
                for kind in ("cut", "dissolve")
            }
            for what, numbers in {"all": of_all, **by_kind}.items():
                row = counts.setdefault(name, {}).setdefault(what, [0, 0, 0])
                for k, number in enumerate(numbers):
                    row[k] += number
    for name, kinds in counts.items():
        found, missed, false = kinds["all"]
        f1 = 2 * found / max(2 * found + missed + false, 1)
        least = 0.9 if name == "emolake" else 0.0
        yield more_is_better(f"shot changes | F1 | {name} | ", f1, 1.0, "F1", least)
        for kind in ("cut", "dissolve"):
            hits, lost, _ = kinds[kind]
            title = f"shot changes | {kind}s found | {name} | "
            yield more_is_better(title, hits, hits + lost, "changes", 0.0)
        title = f"shot changes | false | {name} | "
        yield Measurement(title, false, found + missed, 1 - false / (found + missed), "cuts", 0.0)


def _cutters(config: FacesConfig, frames: list[Frame]) -> dict[str, list[int]]:
    """The frames at which each detector says that a shot begins; PySceneDetect's where it is there."""
    is_cut = CutDetector(config.cut_threshold)
    width = FacesConfig().detect_width
    looked = [timed_frame(k / FPS, frame).rgb(width) for k, frame in enumerate(frames)]
    told = {"emolake": [k for k, frame in enumerate(looked) if is_cut(frame)]}
    try:
        import scenedetect
    except ImportError:
        return told
    kinds = {
        "scenedetect content": scenedetect.ContentDetector(min_scene_len=1),
        "scenedetect adaptive": scenedetect.AdaptiveDetector(min_scene_len=1),
        "scenedetect histogram": scenedetect.HistogramDetector(min_scene_len=1),
        "scenedetect hash": scenedetect.HashDetector(min_scene_len=1),
    }
    for name, detector in kinds.items():
        at: list[Any] = []
        code = scenedetect.FrameTimecode(0, float(FPS))
        for k, frame in enumerate(looked):
            code = scenedetect.FrameTimecode(k, float(FPS))
            at += detector.process_frame(code, np.ascontiguousarray(frame[..., ::-1]))
        at += detector.post_process(code)
        told[name] = [code.frame_num for code in at]
    return told


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line a condition, a column for each system and what was measured of it."""
    lines: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    for row in rows:
        group, condition, system, what = row["name"].split(" | ")
        value = row["ratio"]
        if what == "false/frame":
            value = row["ours"] / row["peer"]
        elif row["unit"] in ("tracks", "cuts", "degrees"):
            value = row["ours"]
        column = f"{system} {what}".strip()
        columns[column] = None
        mark = "" if row["ok"] else " below"
        lines.setdefault(f"{group}: {condition}", {})[column] = f"{value:.2f}{mark}"
    yield "| | " + " | ".join(columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for line, cells in lines.items():
        yield f"| {line} | " + " | ".join(cells.get(column, "") for column in columns) + " |"


_PARTS: dict[str, Callable[[list[Head], Systems, int], Iterator[Measurement]]] = {
    "stills": _stills, "brief": _brief, "crowds": _crowds, "split": _split, "cuts": _cuts, "poses": _poses,
}  # fmt: skip
