"""How far reviewers agree, by NLTK's measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any


def agreement(said: Sequence[tuple[str, Hashable, str]]) -> dict[str, Any]:
    """said: reviewer, what was looked at, label.

    pairs: of each two reviewers who looked at the same things how many those are, the share `same`, and
    Cohen's kappa (1960). alpha: Krippendorff's (nominal; 1980) over all that two or more looked at. A
    measure is None where only one label was used: it is not defined there.
    """
    by: dict[str, dict[Hashable, str]] = {}
    for reviewer, thing, label in said:
        by.setdefault(reviewer, {})[thing] = label
    pairs = []
    for first, second in combinations(sorted(by), 2):
        both = by[first].keys() & by[second].keys()
        if not both:
            continue
        same = sum(by[first][thing] == by[second][thing] for thing in both)
        of_two = [(r, thing, by[r][thing]) for r in (first, second) for thing in both]
        pairs.append(
            {
                "first": first, "second": second, "windows": len(both), "same": same / len(both),
                "kappa": _measured(of_two, "kappa"),
            }
        )  # fmt: skip
    seen = Counter(thing for of_one in by.values() for thing in of_one)
    of_all = [(r, thing, label) for r, of_one in by.items() for thing, label in of_one.items()]
    of_all = [told for told in of_all if seen[told[1]] > 1]
    return {"pairs": pairs, "alpha": _measured(of_all, "alpha") if of_all else None}


def _measured(said: list[tuple[str, Hashable, str]], name: str) -> float | None:
    from nltk.metrics.agreement import AnnotationTask

    if len({label for _, _, label in said}) < 2:
        return None
    return float(getattr(AnnotationTask(data=said), name)())
