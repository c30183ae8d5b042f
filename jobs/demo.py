"""`make demo`: a small corpus of real video files, annotated with the embedded model.

The pictures are photographs that scikit-image ships; one is a portrait, which the camera pans and zooms
over. One clip shows eight people at a time, of Labeled Faces in the Wild, one shows no face, and one file is
cut in half.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from emolake.jobs.cli import main as emolake
from emolake.pipeline.errors import UserError

FPS = 25
SIZE = (640, 360)

_SHOTS = (
    ((38, 52, 104), (7, 26, 42, 46, 57, 60, 73, 92)),
    ((184, 100, 52), (0, 16, 29, 49, 51, 56, 64, 77)),
    ((30, 104, 70), (19, 22, 35, 37, 65, 69, 87, 97)),
    ((214, 190, 128), (1, 18, 31, 52, 53, 79, 91, 94)),
)
"""A wall's colour, and who hangs there, by number in scikit-image's part of the collection: people who look
calm, astonished, this and that, and glad."""
_SHOT_S = 2.0
_ACROSS, _FACE = 4, 136  # to a row, pixels

Camera = Callable[[float], tuple[float, float, float]]
"""Time as a part of the clip -> centre x, y (fractions of the picture) and zoom."""


def make_corpus(folder: Path) -> list[Path]:
    """Writes the demo's videos; quick to call again."""
    try:
        from skimage import data
    except ImportError:
        raise UserError("the demo needs scikit-image: pip install 'emolake[demo]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    portrait, cup = np.asarray(data.astronaut()), np.asarray(data.coffee())
    clips: dict[str, tuple[NDArray[np.uint8], float, Camera]] = {
        "portrait.mp4": (portrait, 6.0, lambda t: (0.43, 0.24, 1.6 + 0.8 * t)),
        "pan_away.mp4": (portrait, 8.0, _pan_away),
        "no_face.mp4": (cup, 4.0, lambda t: (0.5 + 0.1 * t, 0.5, 1.2)),
    }
    paths = []
    for name, (picture, seconds, camera) in clips.items():
        path = folder / name
        if not path.exists():
            write_clip(path, picture, seconds, camera)
        paths.append(path)
    damaged = folder / "damaged.mp4"
    if not damaged.exists():
        whole = (folder / "portrait.mp4").read_bytes()
        partial = damaged.with_name(f".{damaged.name}")
        partial.write_bytes(whole[: len(whole) // 2])
        partial.replace(damaged)
    return [*paths, damaged]


def make_people(folder: Path) -> None:
    """Writes a clip of many faces and of emotions that change, where this scikit-image has the faces."""
    from skimage import data

    source, path = Path(data.__file__).with_name("lfw_subset.npy"), folder / "people.mp4"
    if path.exists() or not source.exists():
        return
    faces = np.asarray(np.load(source) * 255, np.uint8)
    walls = [_wall(colour, faces[list(numbers)]) for colour, numbers in _SHOTS]
    _write(path, _SHOT_S * len(walls), lambda t: _shown(walls, t * len(walls)))


def _wall(colour: tuple[int, int, int], faces: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(360, 640, 3): N faces (N, 25, 25), side by side in rows."""
    wall = np.full((SIZE[1], SIZE[0], 3), colour, np.uint8)
    across, down = SIZE[0] // _ACROSS, SIZE[1] // -(-len(faces) // _ACROSS)
    for k, face in enumerate(faces):
        left = k % _ACROSS * across + (across - _FACE) // 2
        top = k // _ACROSS * down + (down - _FACE) // 2
        large = cv2.resize(face, (_FACE, _FACE), interpolation=cv2.INTER_CUBIC)
        wall[top : top + _FACE, left : left + _FACE] = large[..., None]
    return wall


def _shown(walls: list[NDArray[np.uint8]], at: float) -> NDArray[np.uint8]:
    return _view(walls[int(at)], 0.5, 0.5, 1.0 + 0.05 * (at % 1))


def _pan_away(t: float) -> tuple[float, float, float]:
    """Rests on the face, then leaves it."""
    gone = max(0.0, t - 0.5)
    return 0.43 + 0.4 * gone, 0.24 + 0.9 * gone, 2.0


def write_clip(path: Path, picture: NDArray[np.uint8], seconds: float, camera: Camera) -> None:
    """An H.264 file of a camera that moves over `picture`, (H, W, 3) uint8 RGB."""
    _write(path, seconds, lambda t: _view(picture, *camera(t)))


def _write(path: Path, seconds: float, shown: Callable[[float], NDArray[np.uint8]]) -> None:
    """shown: time as a part of the clip -> its picture."""
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        count = round(seconds * FPS)
        for k in range(count):
            view = av.VideoFrame.from_ndarray(shown(k / count), format="rgb24")
            for packet in stream.encode(view):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    partial.replace(path)


def _view(picture: NDArray[np.uint8], x: float, y: float, zoom: float) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = zoom * SIZE[0] / width
    matrix = np.array(
        [
            [scale, 0, SIZE[0] / 2 - scale * x * width],
            [0, scale, SIZE[1] / 2 - scale * y * height],
        ]
    )
    view = cv2.warpAffine(picture, matrix, SIZE, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(view, np.uint8)


def main(folder: Path) -> int:
    """Makes the corpus under `folder`, annotates it and shows the ledger and the emotions found."""
    videos, output = folder / "videos", folder / "output"
    make_corpus(videos)
    make_people(videos)
    code = emolake(["annotate", str(videos), "--output", str(output), "--corpus", "demo"])
    if code:
        return code
    emolake(["status", str(output)])
    _show_emotions(output)
    return emolake(["report", str(output), "--html", str(folder / "report.html")])


def _show_emotions(output: Path) -> None:
    import pyarrow.dataset as ds

    rows = ds.dataset(output / "annotations", format="parquet").to_table(
        columns=["uri", "start_s", "end_s", "emotion"]
    )
    seen = defaultdict[tuple[str, float, float], Counter[str]](Counter)
    for row in rows.to_pylist():
        seen[Path(row["uri"]).name, row["start_s"], row["end_s"]][row["emotion"]] += 1
    print("\nwhen, and how many faces show what:")
    for (name, start_s, end_s), emotions in sorted(seen.items()):
        told = ", ".join(f"{emotion} {faces}" for emotion, faces in emotions.most_common())
        print(f"  {name:<14} {start_s:5.2f} - {end_s:5.2f} s  {told}")
    print(f"\nask more of it: duckdb -c \"FROM '{output}/annotations/*/*/*.parquet'\"")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))
