"""A small archive to be looked at: films of a face that walks, whose place is known at each moment."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests

from emolake.jobs.view.pictures import Pictures
from emolake.jobs.view.server import Viewer, listening
from emolake.pipeline.lake.commit import commit_segments
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.presentation.view.index import Index, Queue
from emolake.pipeline.storage.files import Storage
from tests.pipeline.lake.test_lake import RUN, no_fence, segment
from tests.pipeline.video.test_odd_videos import film, portrait

SECONDS, RATE = 6, 10
WIDTH, HEIGHT, FACE = 320, 240, 96
EMOTIONS = ("happiness", "neutral", "sadness")


def left_at(time_s: float) -> float:
    """Left edge of the face, pixels: it walks from left to right."""
    return 10 + (WIDTH - FACE - 20) * time_s / SECONDS


def walk(path: Path, seconds: float = SECONDS, **options: Any) -> Path:
    face = portrait(FACE, FACE)
    pictures = []
    for k in range(round(seconds * RATE)):
        picture = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
        left = round(left_at(k / RATE))
        picture[70 : 70 + FACE, left : left + FACE] = face
        pictures.append(picture)
    return film(path, pictures, rate=RATE, **options)


def video(path: Path | str, name: str, models: tuple[str, ...] = ("m",), **changes: Any) -> dict:
    """A row to commit: three windows of two seconds, an emotion each."""
    row = segment(name, windows=3, uri=str(path), duration_s=float(SECONDS), **changes)
    annotations = []
    for model in models:
        for k, annotation in enumerate(row["annotations"]):
            emotion = EMOTIONS[k] if model == "m" else "neutral"
            middle = left_at(2 * k + 1) / WIDTH
            annotations.append(
                annotation
                | {
                    "emotion": emotion, "confidence": 0.9 - 0.2 * k, "model": model,
                    "scores": [(emotion, 0.9 - 0.2 * k), ("fear", 0.1 + 0.2 * k)],
                    "transcript": "good morning" if k == 1 else None,
                    "bbox": {
                        "x1": middle, "y1": 70 / HEIGHT, "x2": middle + FACE / WIDTH,
                        "y2": (70 + FACE) / HEIGHT,
                    },
                }
            )  # fmt: skip
    row["annotations"] = annotations
    for track in row["tracks"]:
        track |= {
            "end_s": float(SECONDS),
            "path": [
                {
                    "time_s": t, "x1": left_at(t) / WIDTH, "y1": 70 / HEIGHT,
                    "x2": (left_at(t) + FACE) / WIDTH, "y2": (70 + FACE) / HEIGHT,
                    "interpolated": False,
                }
                for t in np.arange(0, SECONDS, 0.5).tolist()
            ],
        }  # fmt: skip
    return row


def small_archive(folder: Path) -> Lake:
    """walk: plays anywhere, read by two models; avi, fields: no browser plays them; cut: ends before its
    index; gone: is not there; empty: a video without a face."""
    films = folder / "films"
    films.mkdir(parents=True)
    plain = walk(films / "walk.mp4", g="10")
    walk(films / "empty.mp4")
    rows = [
        video(plain, "walk", ("m", "n")),
        video(walk(films / "old.avi", codec="mpeg4"), "avi"),
        video(
            walk(films / "fields.mpg", codec="mpeg2video", flags="+ildct+ilme", top="1"), "fields"
        ),
        video(films / "gone.mp4", "gone", corpus="other"),
        segment("empty", windows=0, uri=str(films / "empty.mp4")),
    ]
    (films / "cut.mp4").write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    rows.append(video(films / "cut.mp4", "cut", corpus="other"))
    lake = Lake.at(str(folder / "out"), Storage())
    commit_segments(lake, rows, RUN, no_fence)
    return lake


@dataclass
class Served:
    """A view that runs, and a browser's session with it."""

    viewer: Viewer
    address: str
    session: requests.Session

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.address + path, timeout=120, **options)

    def post(self, path: str, told: Any, **options: Any) -> requests.Response:
        return self.session.post(self.address + path, json=told, timeout=120, **options)

    def say(self, video_id: str, window: int, label: str | None, **more: Any) -> requests.Response:
        told = {"video_id": video_id, "segment": 0, "track_id": 0, "window": window}
        return self.post("/api/say", told | {"kind": "emotion", "label": label} | more)


@contextmanager
def served(
    lake: Lake, reviewer: str = "ann", storage: Storage | None = None, *, blind: bool = False,
    blur: bool = False,
) -> Iterator[Served]:  # fmt: skip
    storage = storage or Storage()
    with listening(0) as sock, tempfile.TemporaryDirectory() as scratch:
        index = Index(lake, Path(scratch), reviewer)
        pictures = Pictures(Path(scratch), storage.options, offline=index.all_local())
        viewer = Viewer(index, pictures, storage, Queue(), blind=blind, blur=blur)
        loop = asyncio.new_event_loop()
        serving = loop.create_task(viewer.serve(sock))
        thread = threading.Thread(
            target=lambda: loop.run_until_complete(asyncio.wait([serving])), daemon=True
        )
        thread.start()
        session = requests.Session()
        found = Served(viewer, f"http://127.0.0.1:{sock.getsockname()[1]}", session)
        try:
            assert found.get(f"/?token={viewer.token}").status_code == 200
            yield found
        finally:
            loop.call_soon_threadsafe(serving.cancel)
            thread.join(20)
            pictures.stop()
            index.close()
