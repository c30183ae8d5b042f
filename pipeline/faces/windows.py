"""Tracks -> windows: which frames of a track a model sees together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config import WindowsConfig
from pipeline.faces.tracker import Sighting, Track


@dataclass(frozen=True)
class Window:
    """A stretch of a track. sightings: at most frames_per_window, evenly chosen, in time order."""

    index: int
    start_s: float
    end_s: float
    sightings: list[Sighting]

    @property
    def middle(self) -> Sighting:
        return self.sightings[len(self.sightings) // 2]


def track_end(track: Track, sample_fps: float, bound_s: float) -> float:
    """When a track ends: a sample's length past its last sighting, but not past `bound_s` (the
    segment's or video's end) nor the moment it was known to be gone."""
    ends = [track.sightings[-1].time_s + 1 / sample_fps, bound_s]
    if track.lost_s is not None:
        ends.append(track.lost_s)
    return max(min(ends), track.sightings[-1].time_s)


def windows_of(track: Track, end_s: float, config: WindowsConfig) -> list[Window]:
    """Windows of window_seconds from the track's start; a shorter end is a window of its own.

    A stretch in which the face was not seen gives no window, and the numbering goes on without it.
    """
    start = track.sightings[0].time_s
    groups: dict[int, list[Sighting]] = {}
    for sighting in track.sightings:
        slot = int((sighting.time_s - start) / config.window_seconds + 1e-6)
        groups.setdefault(slot, []).append(sighting)
    windows = []
    for index, (slot, members) in enumerate(sorted(groups.items())):
        count = min(len(members), config.frames_per_window)
        chosen = np.linspace(0, len(members) - 1, count).round().astype(int)
        opening = start + slot * config.window_seconds
        closing = min(opening + config.window_seconds, end_s)
        closing = max(closing, members[-1].time_s)
        windows.append(Window(index, opening, closing, [members[i] for i in chosen]))
    return windows
