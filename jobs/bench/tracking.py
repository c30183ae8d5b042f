"""What tracks and cuts are worth against a truth: MOTA and IDF1 by `motmetrics`, HOTA after its paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from emolake.jobs.bench.films import Boxes, Change
from emolake.pipeline.errors import UserError
from emolake.pipeline.faces.detector import pairwise_iou

SAME_IOU = 0.5  # of a told box and a true one, as MOTChallenge has it for MOTA and IDF1
_HOTA_IOUS = np.arange(0.05, 0.99, 0.05)


@dataclass(frozen=True)
class Scores:
    """fragments: tracks that hold part of a person's face, a person; switches: of motmetrics."""

    mota: float
    idf1: float
    hota: float
    fragments: float
    switches: int


def without_optional(told: Boxes, truth: Boxes, optional: Boxes) -> Boxes:
    """What was told but for boxes on faces that may be found or missed, as MOTChallenge leaves out."""
    if not told or not optional:
        return told
    names = list(told)
    boxes = np.stack([told[n] for n in names])
    free = set(range(len(names)))
    if truth:
        iou = pairwise_iou(np.stack(list(truth.values())), boxes)
        rows, columns = linear_sum_assignment(-iou)
        free -= {int(c) for r, c in zip(rows, columns, strict=True) if iou[r, c] >= SAME_IOU}
    near = pairwise_iou(np.stack(list(optional.values())), boxes).max(0) >= SAME_IOU
    return {n: told[n] for k, n in enumerate(names) if k not in free or not near[k]}


def scores(truth: list[Boxes], told: list[Boxes]) -> Scores:
    """truth, told: persons and tracks of each frame."""
    try:
        import motmetrics
    except ImportError:
        raise UserError("bench scenes needs motmetrics: pip install 'emolake[bench]'") from None
    counted = motmetrics.MOTAccumulator(auto_id=True)
    shown_as: dict[int, set[int]] = {}
    for here, found in zip(truth, told, strict=True):
        iou = _iou(here, found)
        counted.update(list(here), list(found), np.where(iou >= SAME_IOU, 1 - iou, np.nan))
        rows, columns = linear_sum_assignment(-iou)
        people, tracks = list(here), list(found)
        for r, c in zip(rows, columns, strict=True):
            if iou[r, c] >= SAME_IOU:
                shown_as.setdefault(people[r], set()).add(tracks[c])
    names = ["mota", "idf1", "num_switches"]
    row = motmetrics.metrics.create().compute(counted, metrics=names).iloc[0]
    people_seen = len({person for here in truth for person in here})
    return Scores(
        float(row["mota"]),
        float(row["idf1"]),
        hota(truth, told),
        sum(map(len, shown_as.values())) / max(people_seen, 1),
        int(row["num_switches"]),
    )


def _iou(here: Boxes, found: Boxes) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    if not here or not found:
        return np.zeros((len(here), len(found)))
    return pairwise_iou(np.stack(list(here.values())), np.stack(list(found.values()))).astype(float)


def hota(truth: list[Boxes], told: list[Boxes]) -> float:
    """Higher order tracking accuracy (Luiten et al. 2021, IJCV 129): the geometric mean of detection and
    association accuracy, over IoU thresholds from 0.05 to 0.95.

    Matches of a frame are chosen as TrackEval does: by how well two identities agree over all frames,
    then by IoU. (TrackEval itself brings another OpenCV, which overwrites the headless one.)
    """
    people = {p: k for k, p in enumerate(sorted({p for here in truth for p in here}))}
    tracks = {t: k for k, t in enumerate(sorted({t for found in told for t in found}))}
    n_people, n_tracks = np.zeros(len(people)), np.zeros(len(tracks))
    together = np.zeros((len(people), len(tracks)))
    frames = []
    for here, found in zip(truth, told, strict=True):
        rows, columns = [people[p] for p in here], [tracks[t] for t in found]
        iou = _iou(here, found)
        n_people[rows] += 1
        n_tracks[columns] += 1
        both = iou.sum(0)[None] + iou.sum(1)[:, None] - iou
        share = np.divide(iou, both, out=np.zeros_like(iou), where=both > 1e-9)
        together[np.ix_(rows, columns)] += share
        frames.append((rows, columns, iou))
    agree = together / np.maximum(n_people[:, None] + n_tracks[None] - together, 1e-9)
    matched = np.zeros((len(_HOTA_IOUS), len(people), len(tracks)))
    for rows, columns, iou in frames:
        best = linear_sum_assignment(-agree[np.ix_(rows, columns)] * iou)
        for r, c in zip(*best, strict=True):
            matched[iou[r, c] >= _HOTA_IOUS - 1e-9, rows[r], columns[c]] += 1
    hits = matched.sum((1, 2))
    union = np.maximum(n_people[:, None] + n_tracks[None] - matched, 1)
    association = (matched * matched / union).sum((1, 2)) / np.maximum(hits, 1)
    detection = hits / np.maximum(n_people.sum() + n_tracks.sum() - hits, 1)
    return float(np.sqrt(detection * association).mean())


def cut_errors(changes: list[Change], told: list[int]) -> tuple[int, int, int]:
    """Found, missed and false cuts. A change is found by a cut from its first frame to the one after
    its last; more of them within a dissolve end nothing more."""
    found = sum(any(c.first <= t <= c.last + 1 for t in told) for c in changes)
    false = sum(not any(c.first <= t <= c.last + 1 for c in changes) for t in told)
    return found, len(changes) - found, false
