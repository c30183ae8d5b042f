"""What a run tells Prometheus, through Ray's own endpoint on every node (names get the prefix `ray_`).

Everything is counted by the driver as rows are committed, so a killed task counts nothing twice.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from emolake.jobs.progress import STAGES, Tally

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class RunMetrics:
    """Counters of one run; labels: run_id and corpus-wide states, never a video's name."""

    def __init__(self, run_id: str) -> None:
        own = {"run_id": run_id}

        def counter(name: str, told: str, *tags: str) -> Counter:
            made = Counter(f"emolake_{name}", told, tag_keys=("run_id", *tags))
            made.set_default_tags(own)
            return made

        self._segments = counter("segments", "Segments committed.", "state")
        self._failures = counter("failures", "Segments that failed, by reason.", "reason")
        self._retries = counter("retries", "Segments that were tried before.")
        self._video_seconds = counter("video_seconds", "Seconds of video looked at.")
        self._faces = counter("faces", "Face tracks found.")
        self._windows = counter("windows", "Windows annotated.")
        self._bytes_read = counter("bytes_read", "Bytes of videos read.")
        self._requests = counter("requests", "Requests to the object store.")
        self._stage = Histogram(
            "emolake_stage_seconds",
            "Seconds a stage was busy with a segment.",
            boundaries=_SECONDS,
            tag_keys=("run_id", "stage"),
        )
        self._stage.set_default_tags(own)
        self._busy = Gauge(
            "emolake_busy_fraction",
            "Part of the time since the run's start in which a stage's workers were busy.",
            tag_keys=("run_id", "stage"),
        )
        self._busy.set_default_tags(own)

    def add(self, row: dict[str, Any], tally: Tally) -> None:
        """row: schema.COMMITTED_ROW, which `tally` holds already."""
        self._segments.inc(1, {"state": row["state"]})
        if row["state"] == "failed":
            self._failures.inc(1, {"reason": row["reason"] or "unknown"})
        if row["attempt"] > 1:
            self._retries.inc(1)
        for counter, name in (
            (self._video_seconds, "video_seconds"),
            (self._faces, "n_tracks"),
            (self._windows, "n_windows"),
            (self._bytes_read, "bytes_read"),
            (self._requests, "requests"),
        ):
            if row[name]:
                counter.inc(row[name])
        told = tally.stages()
        for stage, seconds in zip(
            STAGES, ("face_seconds", "annotate_seconds", "write_seconds"), strict=True
        ):
            self._stage.observe(max(row[seconds], 1e-6), {"stage": stage})
            self._busy.set(told[stage]["busy_fraction"], {"stage": stage})
