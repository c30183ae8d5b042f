"""Tracks -> windows: which frames of a track a model sees together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from emolake.pipeline.config import WindowsConfig
from emolake.pipeline.faces.tracker import Sighting, Track


@dataclass(frozen=True)
class Window:
    """A stretch of a track. sightings: at most frames_per_window, evenly chosen, in time order;
    n_interpolated: sampled frames of the stretch in which the face was not found but bridged."""

    index: int
    start_s: float
    end_s: float
    sightings: list[Sighting]
    n_interpolated: int = 0

    @property
    def middle(self) -> Sighting:
        return self.sightings[len(self.sightings) // 2]


def track_end(track: Track, cell_s: float, bound_s: float) -> float:
    """When a track ends: a sampling cell past its last sighting, but not past `bound_s` (the
    segment's or video's end) nor the moment it was known to be gone."""
    ends = [track.sightings[-1].time_s + cell_s, bound_s]
    if track.lost_s is not None:
        ends.append(track.lost_s)
    return max(min(ends), track.sightings[-1].time_s)


def windows_of(track: Track, start_s: float, end_s: float, config: WindowsConfig) -> list[Window]:
    """A track's part of each slot of window_seconds on the video's own clock.

    So windows of tracks seen together lie together, and a segment boundary moves none. A track's
    first and last window are as short as it comes out; a slot in which the face was not seen gives
    no window, and the numbering goes on without it.
    """

    def slot_of(time_s: float) -> int:
        return int(time_s / config.window_seconds + 1e-6)

    groups: dict[int, list[Sighting]] = {}
    for sighting in track.sightings:
        groups.setdefault(slot_of(sighting.time_s), []).append(sighting)
    bridged = Counter(slot_of(box.time_s) for box in track.bridged)
    windows = []
    for index, (slot, members) in enumerate(sorted(groups.items())):
        count = min(len(members), config.frames_per_window)
        chosen = np.linspace(0, len(members) - 1, count).round().astype(int)
        opening = max(slot * config.window_seconds, start_s)
        closing = min((slot + 1) * config.window_seconds, end_s)
        closing = max(closing, members[-1].time_s)
        seen = [members[i] for i in chosen]
        windows.append(Window(index, opening, closing, seen, bridged[slot]))
    return windows
