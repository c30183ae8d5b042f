"""`make demo`: a small corpus of real video files, annotated with the embedded model.

The pictures are public-domain photographs that scikit-image ships; one is a portrait, which the
camera pans and zooms over. One clip shows no face, and one file is cut in half.
"""

from __future__ import annotations

import sys
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
    whole = (folder / "portrait.mp4").read_bytes()
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(whole[: len(whole) // 2])
    return [*paths, damaged]


def _pan_away(t: float) -> tuple[float, float, float]:
    """Rests on the face, then leaves it."""
    gone = max(0.0, t - 0.5)
    return 0.43 + 0.4 * gone, 0.24 + 0.9 * gone, 2.0


def write_clip(path: Path, picture: NDArray[np.uint8], seconds: float, camera: Camera) -> None:
    """An H.264 file of a camera that moves over `picture`, (H, W, 3) uint8 RGB."""
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        count = round(seconds * FPS)
        for k in range(count):
            view = _view(picture, *camera(k / count))
            for packet in stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")):
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
    code = emolake(["annotate", str(videos), "--output", str(output), "--corpus", "demo"])
    if code:
        return code
    emolake(["status", str(output)])
    _show_emotions(output)
    return emolake(["report", str(output), "--html", str(folder / "report.html")])


def _show_emotions(output: Path) -> None:
    import pyarrow.dataset as ds

    rows = ds.dataset(output / "annotations", format="parquet").to_table(
        columns=["uri", "start_s", "end_s", "track_id", "emotion", "confidence"]
    )
    print("\nwindows:")
    for row in rows.sort_by([("uri", "ascending"), ("start_s", "ascending")]).to_pylist():
        print(
            f"  {Path(row['uri']).name:<14} {row['start_s']:5.2f} - {row['end_s']:5.2f} s  "
            f"face {row['track_id']}  {row['emotion']:<10} {row['confidence']:.2f}"
        )
    print(f"\nask more of it: duckdb -c \"FROM '{output}/annotations/*/*/*.parquet'\"")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))
