"""The content as HTML: server-drawn SVG, so it reads without JavaScript; a few lines of it sort and
search."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from emolake.pipeline.corpus.estimate import Prices
from emolake.pipeline.presentation.palette import PALETTE, colour
from emolake.pipeline.presentation.report.content import Report, Span, VideoReport

_WIDTH, _LANE, _GAP = 1000, 26, 6
_STACK = 120
_PER_PAGE = 50


def render(report: Report, prices: Prices | None = None, *, linked: bool = False) -> str:
    """The whole page: one file, no request to anywhere; with prices, what each run has cost. linked: its
    moments lead to the view that serves it."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.globals.update(
        colour=colour,
        bars=bars,
        stacks=stacks,
        lane_height=_LANE + _GAP,
        width=_WIDTH,
        stack_height=_STACK,
        clock=clock,
        prices=prices,
    )
    template = environment.get_template("page.html.j2")
    return template.render(
        report=report, shown=report.videos, palette=PALETTE, per_page=_PER_PAGE, linked=linked
    )


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
    models = {key[2] for key in video.lanes}
    for lane, (key, spans) in enumerate(sorted(video.lanes.items())):
        for span in spans:
            height = max(_LANE * span.confidence, 3)
            out.append(
                {
                    "x": round(span.start_s * scale, 1),
                    "y": round(lane * (_LANE + _GAP) + _LANE - height, 1),
                    "width": round(max((span.end_s - span.start_s) * scale - 1, 1), 1),
                    "height": round(height, 1),
                    "fill": colour(span.emotion),
                    "place": f"at={(span.start_s + span.end_s) / 2:.3f}&track={key[0]}.{key[1]}",
                    "told": _told(span) + (f"  {span.model}" if len(models) > 1 else ""),
                }
            )
    return out


def stacks(report: Report) -> list[dict[str, object]]:
    """Rectangles of the emotions over time: a column a stretch, the commonest emotion of the whole
    output at the bottom, height by seconds."""
    tallest = max((sum(stretch.values()) for stretch in report.over_time), default=0.0) or 1.0
    width = _WIDTH / max(len(report.over_time), 1)
    out: list[dict[str, object]] = []
    for k, stretch in enumerate(report.over_time):
        bottom = float(_STACK)
        span = f"{clock(k * report.stretch_s)} - {clock((k + 1) * report.stretch_s)}"
        for label in report.seconds:
            if label not in stretch:
                continue
            height = _STACK * stretch[label] / tallest
            bottom -= height
            out.append(
                {
                    "x": round(k * width, 1),
                    "y": round(bottom, 1),
                    "width": round(width - 1, 1),
                    "height": round(height, 1),
                    "fill": colour(label),
                    "told": f"{span}  {label} {stretch[label]:.1f} s",
                }
            )
    return out


def _told(span: Span) -> str:
    scores = ", ".join(f"{label} {score:.2f}" for label, score in span.scores[:3])
    return f"{clock(span.start_s)} - {clock(span.end_s)}  {scores}"
