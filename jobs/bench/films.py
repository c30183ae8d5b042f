"""Generated stills and films with their truth: conditions a face is seen under, faces that show for a
moment, crowds that cross, and edits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.jobs.bench.heads import SIZE, Box, Head, background, camera, timed_frame
from emolake.pipeline.video.frame import Frame, TimedFrame

FPS = 4  # frames sampled a second, as `decode.sample_fps` has it

Boxes = dict[int, Box]
"""Number of a person or a track -> its box in one frame."""

_COVERED = 0.4  # part of a face behind nearer heads from which on it need not be found


@dataclass
class Film:
    """Frames with the faces that must be found in each, and those that may be: covered, half outside."""

    frames: list[TimedFrame] = field(default_factory=list)
    truth: list[Boxes] = field(default_factory=list)
    optional: list[Boxes] = field(default_factory=list)


@dataclass(frozen=True)
class Condition:
    """How the faces of a still are seen. size: width of a face before it is turned, pixels; roll, yaw:
    degrees; gain: part of the light that is left; blur: as a part of the face's width; covered: the
    half of it that is."""

    group: str
    name: str
    size: float = 64
    roll: float = 0
    yaw: float = 0
    gain: float = 1
    blur: float = 0
    covered: str = ""
    count: int = 4


CONDITIONS = (
    *(Condition("size", f"{s} px", size=s, count=4 if s < 100 else 1)
      for s in (16, 24, 32, 48, 64, 96, 160, 400)),
    *(Condition("roll", f"{r}°", roll=r) for r in (15, 30, 45, 90, 180)),
    *(Condition("yaw", f"{y}°", yaw=y) for y in (30, 45, 60)),
    *(Condition("light", f"{g:g}", gain=g) for g in (0.5, 0.25, 0.1)),
    *(Condition("blur", f"{b:.0%} of a face", blur=b) for b in (0.03, 0.06, 0.1)),
    *(Condition("covered", f"{half} half", covered=half) for half in ("lower", "left")),
    *(Condition("faces", f"{n} of 40 px", size=40, count=n) for n in (0, 1, 15, 30, 60)),
)  # fmt: skip


def still(condition: Condition, heads: list[Head], rng: np.random.Generator) -> tuple[Frame, Boxes]:
    """One frame with faces in cells of a grid, so that none covers another."""
    frame = background(rng)
    count, size = condition.count, condition.size
    columns = max(math.ceil(math.sqrt(count * 16 / 9)), 1)
    rows = math.ceil(count / columns)
    cell = np.array([SIZE[0] / columns, SIZE[1] / max(rows, 1)])
    free = np.maximum(cell - np.array([1.6, 2.1]) * size, 0) / 2
    truth: Boxes = {}
    for k, place in enumerate(rng.permutation(columns * rows)[:count]):
        head = heads[rng.integers(len(heads))]
        if condition.covered:
            head = head.half_covered(condition.covered)
        middle = (np.array([place % columns, place // columns]) + 0.5) * cell
        x, y = middle + rng.uniform(-1, 1, 2) * free
        matrix = head.pose(x, y, size, condition.roll * rng.choice([-1, 1]), condition.yaw)
        truth[k] = head.paste(frame, matrix)
    return camera(frame, rng, condition.gain, condition.blur * size), truth


def brief(
    heads: list[Head], shown_s: float, rng: np.random.Generator, seconds: float = 6.0
) -> Film:
    """One shot in which a face shows for a moment, in every other one beside somebody who stays."""
    film, frame = Film(), background(rng)
    who, other = (heads[k] for k in rng.choice(len(heads), 2, replace=len(heads) < 2))
    x, y, size = rng.uniform(560, 860), rng.uniform(120, 420), rng.uniform(50, 90)
    begins = rng.uniform(0.75, seconds - 0.75 - shown_s)
    stays = rng.random() < 0.5
    for k in range(round(seconds * FPS)):
        picture, here = frame.copy(), {}
        if stays:
            here[0] = other.paste(picture, other.pose(250 + 10 * math.sin(k / 6), 280, 80))
        if begins <= k / FPS < begins + shown_s:
            here[1] = who.paste(picture, who.pose(x, y, size))
        film.frames.append(timed_frame(k / FPS, camera(picture, rng)))
        film.truth.append(here)
    return film


@dataclass(frozen=True)
class Walker:
    """Somebody in a crowd: whose head, how near (face width in pixels), the path's start, its speed in
    pixels a second, its sway, and when the face is turned away."""

    head: Head
    width: float
    start: NDArray[np.float64]
    speed: NDArray[np.float64]
    sway: NDArray[np.float64]
    away_s: tuple[float, float]

    def at(self, time_s: float) -> NDArray[np.float64]:
        """Centre of the face; the walker turns back at the frame's edges."""
        margin = np.array([0.5, 0.7]) * self.width
        room = np.array(SIZE) - 2 * margin
        swayed = 0.3 * self.width * np.sin(self.sway[:2] * time_s + self.sway[2:])
        along = (self.start * room + self.speed * time_s + swayed) % (2 * room)
        return margin + np.where(along > room, 2 * room - along, along)

    def matrix(self, time_s: float) -> NDArray[np.float64]:
        x, y = self.at(time_s)
        return self.head.pose(x, y, self.width * (1 + 0.08 * math.sin(time_s)))


def crowd(
    heads: list[Head], count: int, rng: np.random.Generator, *, speed: float = 2.0
) -> list[Walker]:
    """People who cross; the nearer ones pass before the others. speed: of the fastest, in face widths
    a second. One in four turns away for three quarters of a second."""
    walkers = []
    for k in rng.permutation(max(count, len(heads)))[:count]:
        width = float(rng.uniform(36, 72))
        angle, pace = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1.0) * speed * width
        away = rng.uniform(1, 7) if rng.random() < 0.25 else math.inf
        walkers.append(
            Walker(
                heads[k % len(heads)], width, rng.uniform(0, 1, 2),
                pace * np.array([math.cos(angle), 0.4 * math.sin(angle)]),
                np.concatenate([rng.uniform(0.5, 1.5, 2), rng.uniform(0, 6, 2)]),
                (away, away + 0.75),
            )
        )  # fmt: skip
    return sorted(walkers, key=lambda walker: walker.width)


def crowd_film(
    walkers: list[Walker], rng: np.random.Generator, seconds: float = 9.0, *, drawn: bool = True
) -> Film:
    """The crowd's film; not drawn, its frames are missing and its truth is the same."""
    film, scene = Film(), background(rng)
    for k in range(round(seconds * FPS)):
        time_s = k / FPS
        here: Boxes = {}
        optional: Boxes = {}
        picture = scene.copy() if drawn else scene
        for number, walker in enumerate(walkers):
            away = walker.away_s[0] <= time_s < walker.away_s[1]
            matrix = walker.matrix(time_s)
            box = walker.head.box(matrix)
            if drawn:
                (walker.head.away() if away else walker.head).paste(picture, matrix)
            covered = _covered(box, [w.head.box(w.matrix(time_s)) for w in walkers[number + 1 :]])
            (optional if away or covered >= _COVERED else here)[number] = box
        if drawn:
            film.frames.append(timed_frame(time_s, camera(picture, rng)))
        film.truth.append(here)
        film.optional.append(optional)
    return film


def split_screen(heads: list[Head], rng: np.random.Generator, seconds: float = 9.0) -> Film:
    """Two places side by side with somebody in each. The right half goes to another place and person, and a
    screen on the left one's wall from one face to another, each where the one before was; what is beside
    them goes on."""
    film, half = Film(), SIZE[0] // 2
    places = [background(rng)[:, :half] for _ in range(3)]
    pictures = [background(rng)[:140, :120] for _ in range(2)]
    people = [heads[k] for k in rng.choice(len(heads), 5, replace=len(heads) < 5)]
    sways = rng.uniform(0, 6, 5)
    goes, turns = rng.uniform(3, seconds - 2, 2)
    for k in range(round(seconds * FPS)):
        time_s = k / FPS
        right, shown = 1 + (time_s >= goes), 3 + (time_s >= turns)
        picture = np.hstack([places[0], places[right]])
        here: Boxes = {}
        picture[20:160, 20:140] = pictures[shown - 3]
        here[shown] = people[shown].paste(picture, people[shown].pose(80, 100, 48))
        for who, x in ((0, half * 0.6), (right, half * 1.5)):
            sway = 12 * math.sin(1.5 * time_s + sways[who])
            here[who] = people[who].paste(picture, people[who].pose(x + sway, 300, 90))
        film.frames.append(timed_frame(time_s, camera(picture, rng)))
        film.truth.append(here)
        film.optional.append({})
    return film


def _covered(face: Box, nearer: list[Box]) -> float:
    """The part of a face's oval that lies behind the heads about nearer faces."""
    x1, y1, x2, y2 = face
    x, y = np.meshgrid(np.linspace(x1, x2, 15), np.linspace(y1, y2, 15))
    inside = np.hypot((2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)) <= 1
    behind = np.zeros_like(inside)
    for bx1, by1, bx2, by2 in nearer:
        w, h = bx2 - bx1, by2 - by1
        centre = (by1 + by2) / 2 - 0.17 * h
        behind |= np.hypot((x - (bx1 + bx2) / 2) / (0.77 * w), (y - centre) / (0.82 * h)) <= 0.94
    return float((inside & behind).sum() / inside.sum())


@dataclass(frozen=True)
class Change:
    """Where an edit changes shots: from the first frame that is not the old shot's alone to the first
    that is the new one's alone, in frames."""

    kind: str
    first: int
    last: int


def edited(
    heads: list[Head], rng: np.random.Generator, shots: int = 12
) -> tuple[list[Frame], list[Change]]:
    """An edit: hard cuts (some to another part of the same picture), dissolves of half a second to a
    second and a half, and within the shots flashes, light that changes, pans and whip pans."""
    frames: list[Frame] = []
    changes: list[Change] = []
    scene = _scene(heads, rng)
    for number in range(shots):
        length = int(rng.integers(3 * FPS, 6 * FPS))
        moves = str(rng.choice(["still", "pan", "whip", "light", "flash", "flash"]))
        view = _shot(scene, moves, length, rng)
        if number == 0:
            frames += view
        else:
            kind = str(rng.choice(["cut", "cut", "dissolve"]))
            mixed = int(rng.integers(FPS // 2, 3 * FPS // 2)) if kind == "dissolve" else 0
            changes.append(Change(kind, len(frames) - mixed, len(frames)))
            for k in range(mixed):
                part = (k + 1) / (mixed + 1)
                at = len(frames) - mixed + k
                frames[at] = cv2.addWeighted(frames[at], 1 - part, view[0], part, 0).astype(
                    np.uint8
                )
            frames += view
        scene = scene[:, ::-1] if rng.random() < 0.3 else _scene(heads, rng)
    return [camera(frame, rng) for frame in frames], changes


def _scene(heads: list[Head], rng: np.random.Generator) -> Frame:
    """A place three times as wide as the frame, with somebody in it."""
    wide = np.hstack([background(rng) for _ in range(3)])
    for x in (350, 1250, 2200):
        head = heads[rng.integers(len(heads))]
        head.paste(wide, head.pose(x + rng.uniform(-90, 90), rng.uniform(180, 340), 90))
    return wide


def _shot(scene: Frame, moves: str, length: int, rng: np.random.Generator) -> list[Frame]:
    """(H, W, 3) views of a scene; a whip pan crosses a frame's width in half a second."""
    far = {"pan": 40, "whip": SIZE[0] // 2}.get(moves, 0)
    starts = int(rng.integers(2, max(length - 4, 3)))
    flash = int(rng.integers(1, length - 1)) if moves == "flash" else -1
    shift, frames = int(rng.integers(0, SIZE[0] // 2)), []
    for k in range(length):
        x = shift + far * (min(k, 20) if moves == "pan" else min(max(k - starts, 0), 2))
        frame = np.ascontiguousarray(scene[:, x : x + SIZE[0]])
        if moves == "light":
            frame = (frame * (0.35 if k >= starts else 1.0)).astype(np.uint8)
        if k == flash:
            lit = frame.astype(np.float32) * rng.uniform(1.3, 2.5) + rng.uniform(40, 120)
            frame = np.clip(lit, 0, 255).astype(np.uint8)
        frames.append(frame)
    return frames
