"""Who is who in one video: tracks grouped into persons by face embedding, across cuts.

Optional and off by default. The network is dlib's face recognition ResNet (public domain weights of
the `face_recognition_models` package): 128-d, trained so that one person's faces lie within 0.6 of
each other. Embeddings live as long as their segment is worked on and are stored nowhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from emolake.pipeline.faces.align import is_frontal
from emolake.pipeline.faces.brought import identity_models
from emolake.pipeline.faces.tracker import Sighting, Track
from emolake.pipeline.video.frame import Frame

_SAME_PERSON = 0.5  # distance of two tracks' mean embeddings; dlib's 0.6 is for single pictures
_MOST_LOOKS = 3  # embeddings of a track
_LOOKS_APART_S = 1.0


class FaceIdentity:
    """Gathers embeddings while the frames are at hand, and groups the tracks at the end."""

    def __init__(self) -> None:
        import dlib

        folder = identity_models()
        self._rectangle = dlib.rectangle
        self._points: Any = dlib.shape_predictor(
            str(folder / "shape_predictor_5_face_landmarks.dat")
        )
        self._network: Any = dlib.face_recognition_model_v1(
            str(folder / "dlib_face_recognition_resnet_model_v1.dat")
        )

    def look(self, frame: Frame, sighting: Sighting, track: Track) -> None:
        """Adds the embedding of a sighting (full-frame pixels) to its track, if it tells more.

        A profile says little of who it is and waits for a better look, unless it is the first.
        """
        apart = sighting.time_s - (track.looked_s if track.looked_s is not None else -np.inf)
        if len(track.embeddings) >= _MOST_LOOKS or apart < _LOOKS_APART_S:
            return
        if track.embeddings and not is_frontal(sighting.landmarks):
            return
        track.looked_s = sighting.time_s
        track.embeddings.append(self.embedding(frame, sighting.box))

    def embedding(self, frame: Frame, box: NDArray[np.float32]) -> NDArray[np.float64]:
        """(128,) of the face in a box (4,) of a frame (H, W, 3)."""
        face = self._rectangle(*(int(v) for v in box))
        shape = self._points(frame, face)
        return np.array(self._network.compute_face_descriptor(frame, shape))


def persons(tracks: list[Track]) -> list[int]:
    """A person's number for each track, from 0 in the order of the tracks.

    Nearest groups join first, while their mean embeddings are near enough; tracks that are seen at
    the same time are two people, however alike.
    """
    if not tracks:
        return []
    sums = np.stack([np.sum(track.embeddings, axis=0) for track in tracks])
    counts = np.array([len(track.embeddings) for track in tracks], np.float64)
    first = np.array([track.sightings[0].time_s for track in tracks])
    last = np.array([track.sightings[-1].time_s for track in tracks])
    apart = (first[:, None] <= last) & (first <= last[:, None])
    person = np.arange(len(tracks))
    means = sums / counts[:, None]
    distance = np.where(apart, np.inf, cdist(means, means))
    while True:
        i, j = sorted(np.unravel_index(int(distance.argmin()), distance.shape))
        if distance[i, j] > _SAME_PERSON:
            break
        person[person == j] = i
        sums[i] += sums[j]
        counts[i] += counts[j]
        apart[i] |= apart[j]
        apart[:, i] |= apart[:, j]
        gone = np.isin(np.arange(len(tracks)), person, invert=True)
        means = sums / counts[:, None]
        near = np.where(apart[i] | gone, np.inf, np.linalg.norm(means - means[i], axis=1))
        distance[i], distance[:, i] = near, near
        distance[j], distance[:, j] = np.inf, np.inf
    _, number = np.unique(person, return_inverse=True)
    return number.tolist()
