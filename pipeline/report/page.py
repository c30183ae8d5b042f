"""The content as HTML: server-drawn SVG, so it reads without JavaScript; a few lines of it sort and
search."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from pipeline.palette import PALETTE, colour
from pipeline.report.content import MOST_TIMELINES, Report, Span, VideoReport

_WIDTH, _LANE, _GAP = 1000, 26, 6
_PER_PAGE = 50


def render(report: Report) -> str:
    """The whole page: one file, no request to anywhere."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.globals.update(
        colour=colour, bars=bars, lane_height=_LANE + _GAP, width=_WIDTH, clock=clock
    )
    template = environment.get_template("page.html.j2")
    shown = report.videos[:MOST_TIMELINES]
    return template.render(report=report, shown=shown, palette=PALETTE, per_page=_PER_PAGE)


def clock(seconds: float) -> str:
    """m:ss.s, or h:mm:ss from an hour on."""
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{int(minutes)}:{rest:04.1f}"
    return f"{int(minutes // 60)}:{int(minutes % 60):02}:{int(rest):02}"


def bars(video: VideoReport) -> list[dict[str, object]]:
    """Rectangles of a video's timeline: one lane a track, height by confidence."""
    scale = _WIDTH / max(video.duration_s, 1e-6)
    out: list[dict[str, object]] = []
    for lane, (_, spans) in enumerate(sorted(video.lanes.items())):
        for span in spans:
            height = max(_LANE * span.confidence, 3)
            out.append(
                {
                    "x": round(span.start_s * scale, 1),
                    "y": round(lane * (_LANE + _GAP) + _LANE - height, 1),
                    "width": round(max((span.end_s - span.start_s) * scale - 1, 1), 1),
                    "height": round(height, 1),
                    "fill": colour(span.emotion),
                    "told": _told(span),
                }
            )
    return out


def _told(span: Span) -> str:
    scores = ", ".join(f"{label} {score:.2f}" for label, score in span.scores[:3])
    return f"{clock(span.start_s)} - {clock(span.end_s)}  {scores}"
