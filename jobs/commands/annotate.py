"""`emolake annotate`: the main job from input to a settled lake."""

from __future__ import annotations

import platform
import re
import secrets
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow.compute as pc

from emolake.jobs.cli import EXIT_TOO_MANY_FAILED, tell
from emolake.jobs.parser import Options, Parser, input_options, run_id_option
from emolake.jobs.progress import Expected, Progress, Tally
from emolake.jobs.setting import Setting, read_setting
from emolake.pipeline.corpus.listing import find_videos, named_uris
from emolake.pipeline.corpus.planning import Plan
from emolake.pipeline.errors import Damaged, JobFailed, UserError, in_a_line
from emolake.pipeline.lake.commit import RunStamp
from emolake.pipeline.lake.forgetting import remember
from emolake.pipeline.lake.iceberg import check_tables, open_catalog, publish
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.lake.ledger import ledger_of, newest_versions, video_states
from emolake.pipeline.lake.recovery import recover, tidy
from emolake.pipeline.lake.runs import end_run, refuse_other_run, write_run
from emolake.pipeline.lake.schema import ENDPOINT_USAGE, LISTED_ROW
from emolake.pipeline.models.served import ServedConfig
from emolake.pipeline.storage.names import unsigned
from emolake.pipeline.storage.shards import Shards, together
from emolake.pipeline.storage.traffic import ours

_VERSIONS_OF = ("emolake", "ray", "torch", "transformers", "pyarrow", "av", "fsspec", "mtcnn")


def declare(parser: Parser) -> None:
    input_options(parser)
    run_id_option(parser)
    parser.flag("--quiet", "no progress on standard error")
    parser.calls(
        run, "emolake annotate s3://archive/2024/ --output s3://lake/emotions --corpus news"
    )


def run(options: Options) -> int:
    before = ours()
    run_id = _run_id(options.run_id)
    setting = read_setting(options)
    with Progress(quiet=options.quiet) as progress:
        progress.tally.driver_before = before
        result = _job(options, setting, run_id, progress)
    code = tell(options, result, _summary(result))
    failed, total = result["videos"]["failed"], result["videos"]["total"]
    tried = total - result["videos"]["skipped"]
    if tried and failed / tried > setting.config.limits.max_failed_fraction:
        print(f"emolake: {failed} of {tried} videos failed", file=sys.stderr)
        return EXIT_TOO_MANY_FAILED
    return code


def _job(options: Options, setting: Setting, run_id: str, progress: Progress) -> dict[str, Any]:
    """The run's record at its end."""
    more = f" and {len(options.input) - 1} more" if len(options.input) > 1 else ""
    named = in_a_line(unsigned(options.input[0]))
    progress.waits_for(f"listing {named}{more}", soon=False)
    videos = Shards.of(LISTED_ROW, find_videos(options.input, setting.storage))
    iceberg, catalog = setting.config.iceberg, None
    if iceberg.catalog:
        catalog = open_catalog(iceberg.catalog, setting.lake, setting.storage.options)
        check_tables(setting.lake, catalog, iceberg.namespace)
    started = datetime.now(UTC)
    run = RunStamp(run_id, started.strftime("%Y-%m-%d"), setting.config_hash)
    try:
        refuse_other_run(setting.lake, run_id, setting.config_hash)
        lease = Lease.acquire(setting.lake, run_id, say=progress.say)
    except OSError as error:
        raise UserError(
            f"output {setting.lake.uri} cannot be written: {in_a_line(error, 300)}"
        ) from None
    record = _record(setting, run, started)
    try:
        if setting.asked.reprocess:
            remember(setting.lake, named_uris(options.input), lease.fence)
        result = _run(setting, run, record, videos, lease, progress)
        lease.fence()  # who has the output by now may have taken names out of the record
        write_run(setting.lake, result)
        if catalog is not None:
            progress.waits_for("publishing to Iceberg")
            publish(setting.lake, catalog, iceberg.namespace, run_id, lease.fence)
    except OSError as error:
        raise JobFailed(setting.lake.cannot_write(error)) from error
    except Damaged as error:
        raise JobFailed(str(error)) from None
    finally:
        if sys.exception() is not None:
            used = _endpoint(setting, progress.tally)
            end_run(setting.lake, run_id, in_a_line(sys.exception(), 300), used, lease.fence)
        lease.release()
        if sys.exception() is not None:
            tidy(setting.lake, run_id)
    return result


def _run(
    setting: Setting,
    run: RunStamp,
    record: dict[str, Any],
    videos: Shards,
    lease: Lease,
    progress: Progress,
) -> dict[str, Any]:
    clock = time.monotonic()
    progress.waits_for("reading the ledger")
    ledger = recover(setting.lake, lease.fence)
    plan = setting.plan(videos, ledger)
    progress.expected = Expected(plan.todo.parts())
    progress.tally.started = time.monotonic()
    if plan.todo.num_rows:
        progress.say(f"run {run.run_id}: {_told(plan)}")
        for model in setting.models:
            if not model.config.trained:
                name = model.config.name
                progress.say(f"model {name} has random weights: its labels mean nothing")
        record |= _told_of(plan, Counter(), Tally(), 0.0)
        # Ray and what comes with it take seconds to import: not for a run that has nothing to do.
        from emolake.jobs.graph.passes import Passes

        Passes(setting, run, record, plan, lease, progress).annotate(ledger)
        progress.waits_for("settling what was written")
        ledger = recover(setting.lake, lease.fence, own=True)
    else:
        progress.say(f"run {run.run_id}: nothing to do; {_told(plan)}")
    states = _states(plan, ledger)
    ended = {"state": "ended", "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
    told = _told_of(plan, states, progress.tally, time.monotonic() - clock)
    return record | told | _endpoint(setting, progress.tally) | ended


def _record(setting: Setting, run: RunStamp, started: datetime) -> dict[str, Any]:
    """What is known of a run before it does anything."""
    return {
        "run_id": run.run_id,
        "state": "running",
        "output": setting.lake.uri,
        "model": setting.models[0].told,
        "models": [model.told for model in setting.models],
        "versions": _versions(),
        "config": setting.config.model_dump(mode="json"),
        "config_hash": run.config_hash,
        "storage_options": sorted(setting.storage.options),
        "started_at": started.isoformat(timespec="seconds"),
        "finished_at": None,
    }


def _states(plan: Plan, ledger: Shards) -> Counter[str]:
    """What became of the videos that were to be done."""
    count = Counter[str]()
    for todo, rows in together(plan.todo, ledger):
        tried = rows.filter(pc.is_in(rows["video_id"], todo["video_id"]))
        states = video_states(newest_versions(ledger_of(tried).rows))
        count.update(state.state for state in states.values())
    return count


def _told_of(plan: Plan, states: Counter[str], tally: Tally, wall_seconds: float) -> dict[str, Any]:
    """What the run has done until now."""
    return {
        "videos": {
            "total": plan.total,
            **{name: states[name] for name in ("annotated", "no_face", "failed")},
            "skipped": sum(plan.why_skipped.values()),
        },
        "segments": tally.segments,
        "tracks": tally.tracks,
        "tracks_dropped": tally.tracks_dropped,
        "windows": tally.windows,
        **({"untold": dict(tally.untold)} if tally.untold else {}),
        "video_seconds": round(tally.video_seconds, 3),
        "wall_seconds": round(wall_seconds, 3),
        "start_seconds": round(tally.start_s, 3) if tally.start_s is not None else None,
        "first_segment_seconds": round(tally.first_s, 3) if tally.first_s is not None else None,
        "stages": tally.stages(),
        "cost": _cost(tally),
        "skipped_because": dict(plan.why_skipped),
        "repeated": plan.repeated,
    }


def _endpoint(setting: Setting, tally: Tally) -> dict[str, Any]:
    """What models behind endpoints took, and what it costs where all of them say their price."""
    served = [model.config for model in setting.models if isinstance(model.config, ServedConfig)]
    if not served:
        return {}
    used = [tally.endpoint[model.name] for model in served]
    told: dict[str, Any] = {name: sum(of[name] for of in used) for name in ENDPOINT_USAGE}
    costs = [model.cost(of) for model, of in zip(served, used, strict=True)]
    known = [cost for cost in costs if cost is not None]
    return {
        "endpoint": told | ({"cost": round(sum(known), 6)} if len(known) == len(served) else {})
    }


def _cost(tally: Tally) -> dict[str, float]:
    """What the run took, by the units that are paid for; the driver's own traffic counts too."""
    driver = ours().since(tally.driver_before)
    return {
        "cpu_seconds": round(tally.cpu_seconds, 3),
        "gpu_seconds": round(tally.gpu_seconds, 3),
        **{name: driver[name] + tally.traffic[name] for name in driver},
    }


def _run_id(given: str | None) -> str:
    if given is None:
        return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", given):
        raise UserError(f"--run-id {given!r} may hold letters, digits, '.', '_' and '-' only")
    return given


def _told(plan: Plan) -> str:
    todo = ", ".join(f"{n} {why}" for why, n in plan.why_done.items()) or "none"
    skipped = ", ".join(f"{n} {why}" for why, n in plan.why_skipped.items()) or "none"
    twice = f"; {plan.repeated} named more than once count once" if plan.repeated else ""
    return f"{plan.total} videos: to do {todo}; skipped {skipped}{twice}"


def _versions() -> dict[str, str]:
    told = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            continue
    return told


def _summary(result: dict[str, Any]) -> str:
    videos = result["videos"]
    lines = [
        f"run {result['run_id']} -> {result['output']}",
        f"videos: {videos['total']} in all: {videos['annotated']} annotated, "
        f"{videos['no_face']} without a face, {videos['failed']} failed, "
        f"{videos['skipped']} skipped",
    ]
    if result["segments"]:
        lines.append(
            f"{result['segments']} segments, {result['tracks']} face tracks, "
            f"{result['windows']} windows; {result['video_seconds']:.0f} s of video in "
            f"{result['wall_seconds']:.1f} s"
        )
    else:
        lines.append("nothing was left to do")
    return "\n".join(lines)
