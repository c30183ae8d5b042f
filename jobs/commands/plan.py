"""`emolake plan`: what annotate would do and what that would take, without doing it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from emolake.jobs.cli import tell
from emolake.jobs.parser import Options, Parser, input_options, prices_option
from emolake.jobs.setting import Setting, read_setting
from emolake.pipeline.corpus.estimate import Estimate, Prices, Sample, estimate
from emolake.pipeline.corpus.listing import find_videos
from emolake.pipeline.corpus.planning import Plan
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.lake.layout import Lake
from emolake.pipeline.lake.ledger import ledger_parts
from emolake.pipeline.lake.reading import steady_ledger
from emolake.pipeline.lake.runs import read_runs
from emolake.pipeline.lake.schema import LISTED_ROW
from emolake.pipeline.storage.shards import Shards


def declare(parser: Parser) -> None:
    input_options(parser)
    parser.option(
        "--estimate",
        "OUTPUT",
        "also tell hours, cost and balance, by the last run of an output over a sample",
    )
    parser.option("--hours", "H", "length of what is to do (default: by its bytes)", type=float)
    prices_option(parser)
    parser.flag("--quiet", "as of annotate: a plan says nothing on its way")
    parser.calls(run, "emolake plan videos/ --output out/")


def run(options: Options) -> int:
    setting = read_setting(options)
    prices = Prices.read(options.prices) if options.prices else None
    sample = _sample(options.estimate, setting) if options.estimate else None
    videos = Shards.of(LISTED_ROW, find_videos(options.input, setting.storage))
    plan = setting.plan(videos, setting.ledger())
    result: dict[str, Any] = {
        "output": setting.lake.uri,
        "model": setting.models[0].told,
        "models": [model.told for model in setting.models],
        "config_hash": setting.config_hash,
        "videos": {
            "total": plan.total,
            "todo": plan.todo.num_rows,
            "skipped": sum(plan.why_skipped.values()),
        },
        "repeated": plan.repeated,
        "todo_because": dict(plan.why_done),
        "skipped_because": dict(plan.why_skipped),
    }
    foreseen = None
    if sample is not None:
        resources = setting.config.resources
        asked = {"faces": resources.face_actors, "annotate": resources.annotation_actors}
        # Of a range its end: what the run grows to where the cluster lets it.
        workers = {pool: size.max for pool, size in asked.items() if size is not None}
        foreseen = estimate(sample, _video_seconds(plan, sample, options.hours), workers)
        money = {"money": prices.of(foreseen.cost), "currency": prices.currency} if prices else {}
        result["estimate"] = {"from_run": sample.run_id} | asdict(foreseen) | money
    lines = [f"{plan.total} videos for {setting.lake.uri}"]
    if plan.repeated:
        lines.append(f"{plan.repeated} named more than once; each counts once")
    lines.append(f"to do: {plan.todo.num_rows}" + _reasons(dict(plan.why_done)))
    lines.append(f"skipped: {sum(plan.why_skipped.values())}" + _reasons(dict(plan.why_skipped)))
    if foreseen is not None:
        lines.append(_told(foreseen, prices))
    return tell(options, result, *lines)


def _sample(output: str, setting: Setting) -> Sample:
    """The last run of an output that looked at videos, and what a second of those takes on disk."""
    lake = Lake.at(output, setting.storage)
    try:
        runs = [run for run in read_runs(lake) if run["video_seconds"] and run.get("cost")]
        seconds, size = 0.0, 0
        for part in ledger_parts(steady_ledger(lake, whole=True)):
            once = pc.and_(
                pc.greater(part.live["duration_s"], 0), pc.equal(part.live["segment"], 0)
            )
            known = part.live.filter(once)
            seconds += pc.sum(known["duration_s"]).as_py() or 0.0
            size += pc.sum(known["size"]).as_py() or 0
    except OSError as error:
        raise UserError(f"{output} cannot be read: {in_a_line(error)}") from None
    if not runs or not seconds:
        raise UserError(f"--estimate {output} holds no run over videos; annotate a sample there")
    return Sample.of(runs[0], size / seconds)


def _video_seconds(plan: Plan, sample: Sample, hours: float | None) -> float:
    if hours is not None:
        return 3600 * hours
    size = sum(pc.sum(part["size"]).as_py() or 0 for part in plan.todo.parts())
    return float(size / sample.bytes_per_second)


def _told(foreseen: Estimate, prices: Prices | None) -> str:
    cost, workers = foreseen.cost, foreseen.workers
    lines = [
        f"estimate: {foreseen.video_hours:.2f} h of video take {foreseen.wall_hours:.2f} h on "
        f"{workers['faces']} face and {workers['annotate']} annotation actors, bound by "
        f"{foreseen.bound_by}",
        f"  busy: faces {foreseen.stage_hours['faces']:.2f} h, annotate "
        f"{foreseen.stage_hours['annotate']:.2f} h; {foreseen.balance:.1f} face actors keep one "
        f"annotation actor busy",
        f"  {cost['cpu_seconds'] / 3600:.2f} CPU-hours, {cost['gpu_seconds'] / 3600:.2f} GPU-hours, "
        f"{cost['bytes_read'] / 1e9:.2f} GB read, {cost['bytes_written'] / 1e9:.3f} GB written, "
        f"{cost['requests']:.0f} requests",
    ]
    if prices is not None:
        money = prices.of(cost)
        per_hour = money / max(foreseen.video_hours, 1e-9)
        lines.append(
            f"  {money:.2f} {prices.currency}, {per_hour:.4f} {prices.currency} per hour of video"
        )
    return "\n".join(lines)


def _reasons(counts: dict[str, int]) -> str:
    return "".join(f"\n  {count:6} {why}" for why, count in counts.items())
