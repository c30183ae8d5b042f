import math

import av
import cv2
import numpy as np
import pytest

from emolake.pipeline.config import DecodeConfig, FacesConfig, WindowsConfig
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.brought import identity_models
from emolake.pipeline.faces.identity import persons
from emolake.pipeline.faces.stage import FaceStage
from emolake.pipeline.faces.tracker import Sighting, Track
from emolake.pipeline.video.decode import Ending, sampled_frames
from tests.conftest import SMALL_CROPS

NOTHING = np.zeros(0, np.float32)


def track(start_s: float, end_s: float, *embedding: float) -> Track:
    sightings = [Sighting(t, NOTHING, 0.9, NOTHING, NOTHING) for t in (start_s, end_s)]
    return Track(sightings, embeddings=[np.array(embedding)])


def test_tracks_of_near_embeddings_are_one_person() -> None:
    tracks = [track(0, 1, 0, 0), track(2, 3, 1, 0), track(4, 5, 0.1, 0), track(6, 7, 1.1, 0.1)]
    assert persons(tracks) == [0, 1, 0, 1]


def test_who_is_seen_at_the_same_time_is_two_people() -> None:
    twins = [track(0, 2, 0, 0), track(1, 3, 0.01, 0), track(4, 5, 0.02, 0)]
    number = persons(twins)
    assert number[0] != number[1]
    assert number[2] in number[:2]


def test_a_group_is_judged_by_its_mean() -> None:
    chain = [track(2 * k, 2 * k + 1, 0.4 * k, 0) for k in range(4)]
    assert len(set(persons(chain))) > 1


def test_missing_packages_are_named_before_any_work(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"emolake\[identity\]"):
        identity_models()


def test_no_tracks_no_persons() -> None:
    assert persons([]) == []


def test_a_person_is_known_again_after_a_cut_to_another(clips, tmp_path) -> None:
    pytest.importorskip("dlib")
    film = tmp_path / "cuts.mp4"
    spliced = [
        ("single_face.mp4", 0.0),
        ("WolfgangLanger_Pexels.mp4", 12.0),
        ("noface_face.mov", 4.2),
    ]
    with av.open(str(film), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for name, start in spliced:
            frames = sampled_frames(
                str(clips / name), DecodeConfig(sample_fps=10), start, start + 1.9, Ending()
            )
            for frame in frames:
                picture = cv2.resize(frame.rgb(), (640, 360))
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    stage = FaceStage(FacesConfig(identity="dlib"), WindowsConfig(), SMALL_CROPS, 4.0)
    frames = sampled_frames(str(film), DecodeConfig(), 0.0, math.inf, Ending())
    assert [t["person_id"] for t in stage(frames).tracks] == [0, 1, 0]
