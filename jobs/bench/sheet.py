"""A contact sheet of the face stage: what it saw, to look at."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.jobs.bench import films
from emolake.jobs.bench.heads import Head, timed_frame
from emolake.jobs.bench.truth import Truth, true_box
from emolake.pipeline.config import DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.needs import Needs
from emolake.pipeline.faces.search import FaceSearch
from emolake.pipeline.faces.stage import FaceStage
from emolake.pipeline.faces.tracker import Sighting, Track
from emolake.pipeline.video.decode import Ending, sampled_frames

_ACROSS = 8
_TILE = (320, 180)
_COLOURS = [(86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0)]
"""Okabe and Ito's palette, RGB: apart for colour-blind eyes."""
_TRUE = (255, 255, 255)


def contact_sheet(clips: list[Path], truth: Truth, target: Path) -> None:
    """A row a clip, frames evenly spread: detected boxes solid, bridged ones dashed, white the truth.

    UserError where the picture cannot be written.
    """
    decode = DecodeConfig()
    stage = FaceStage(FacesConfig(), WindowsConfig(), Needs(), decode.sample_fps)
    rows = []
    for path in clips:
        frames = list(sampled_frames(str(path), decode, 0.0, math.inf, Ending()))
        tracks = stage.tracks(frames)
        chosen = np.linspace(0, len(frames) - 1, _ACROSS).round().astype(int)
        tiles = []
        for index in chosen:
            frame = frames[index]
            picture = frame.rgb().copy()
            for person in truth.get(path.name, []):
                if person["start_s"] <= frame.time_s <= person["end_s"]:
                    _draw(picture, true_box(person, frame.time_s), _TRUE, dashed=False, text="")
            for number, track in enumerate(tracks):
                _draw_track(picture, track, number, frame.time_s)
            tiles.append(_tile(picture, f"{path.name[:24]} {frame.time_s:.2f} s"))
        rows.append(np.hstack(tiles))
    _write(np.vstack(rows), target)


def scenes_sheet(heads: list[Head], systems: dict[str, FaceSearch], target: Path) -> None:
    """A tile a condition: white the true faces, in colours what each system found, and how many.

    UserError where the picture cannot be written.
    """
    tiles = []
    for seed, condition in enumerate(films.CONDITIONS):
        picture, truth = films.still(condition, heads, np.random.default_rng(seed))
        seen, told = picture.copy(), []
        for box in truth.values():
            _draw(seen, box, _TRUE, dashed=False, text="")
        for number, (name, search) in enumerate(systems.items()):
            (look,) = search([timed_frame(0.0, picture)])
            faces = look.found().select(look.found().scores >= search.config.min_score)
            for box in faces.boxes:
                _draw(seen, box, _COLOURS[number % len(_COLOURS)], dashed=False, text="")
            told.append(f"{name} {len(faces)}")
        tiles.append(
            _tile(seen, f"{condition.group} {condition.name}: {len(truth)}; {'; '.join(told)}")
        )
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % _ACROSS)
    _write(
        np.vstack([np.hstack(tiles[k : k + _ACROSS]) for k in range(0, len(tiles), _ACROSS)]),
        target,
    )


def _write(picture: NDArray[np.uint8], target: Path) -> None:
    sheet = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(target), sheet):
        raise UserError(f"--sheet {target} cannot be written; name a .png in a folder that exists")


def _draw_track(picture: NDArray[np.uint8], track: Track, number: int, time_s: float) -> None:
    for seen in track.places():
        if seen.time_s == time_s:
            sure = isinstance(seen, Sighting)
            text = f"{number} {seen.score:.2f}" if isinstance(seen, Sighting) else f"{number}"
            _draw(picture, seen.box, _COLOURS[number % len(_COLOURS)], dashed=not sure, text=text)


def _draw(
    picture: NDArray[np.uint8],
    box: NDArray[np.float32],
    colour: tuple[int, int, int],
    *,
    dashed: bool,
    text: str,
) -> None:
    width = max(picture.shape[1] // 320, 1)
    x1, y1, x2, y2 = (int(v) for v in box)
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for (ax, ay), (bx, by) in pairwise(corners):
        parts = 9 if dashed else 1
        for k in range(0, parts, 2):
            ends = [
                (round(ax + (bx - ax) * t / parts), round(ay + (by - ay) * t / parts))
                for t in (k, k + 1)
            ]
            cv2.line(picture, ends[0], ends[1], colour, width)
    if text:
        size = picture.shape[1] / 900
        cv2.putText(
            picture, text, (x1, max(y1 - 4, 14)), cv2.FONT_HERSHEY_SIMPLEX, size, colour, width
        )


def _tile(picture: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    width, height = _TILE
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    tile = np.zeros((height + 20, width, 3), np.uint8)
    tile[20 : 20 + size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    cv2.putText(tile, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1)
    return tile
