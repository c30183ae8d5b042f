"""`emolake annotate`: the main job from input to a settled lake."""

from __future__ import annotations

import gc
import os
import platform
import re
import secrets
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from emolake.jobs.cli import EXIT_TOO_MANY_FAILED, tell
from emolake.jobs.parser import Options, Parser, input_options, run_id_option
from emolake.jobs.progress import Expected, Progress, Tally
from emolake.jobs.setting import Setting, computes_here, read_setting, small_models
from emolake.pipeline.corpus.listing import find_videos, named_uris
from emolake.pipeline.corpus.planning import Plan, left_of, of_run
from emolake.pipeline.errors import Damaged, JobFailed, UserError, in_a_line
from emolake.pipeline.lake.commit import RunStamp
from emolake.pipeline.lake.forgetting import remember
from emolake.pipeline.lake.iceberg import check_tables, open_catalog, publish
from emolake.pipeline.lake.lease import Fence, Lease
from emolake.pipeline.lake.ledger import ledger_of, newest_versions, video_states
from emolake.pipeline.lake.recovery import recover, tidy
from emolake.pipeline.lake.runs import end_run, refuse_other_precision, refuse_other_run, write_run
from emolake.pipeline.lake.schema import ENDPOINT_USAGE, LISTED_ROW
from emolake.pipeline.models.served import ServedConfig
from emolake.pipeline.storage.names import unsigned
from emolake.pipeline.storage.shards import Shards, together
from emolake.pipeline.storage.traffic import ours

if TYPE_CHECKING:
    from emolake.jobs.graph.pools import Pools

_VERSIONS_OF = ("emolake", "ray", "torch", "transformers", "pyarrow", "av", "fsspec", "mtcnn")

_POOLS_EVERY_S = 10.0
_RAISED_BY_US = re.compile(r"emolake\.pipeline\.errors\.(?:UserError|JobFailed|DeviceFailed): (.+)")
"""What an actor that could not start said, within the pages that Ray wraps it in."""


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
            end_run(setting.lake, run_id, in_a_line(sys.exception(), 300), used)
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
        _annotate(setting, run, record, plan, ledger, lease, progress)
        progress.waits_for("settling what was written")
        ledger = recover(setting.lake, lease.fence, own=True)
    else:
        progress.say(f"run {run.run_id}: nothing to do; {_told(plan)}")
    states = _states(plan, ledger)
    ended = {"state": "ended", "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
    told = _told_of(plan, states, progress.tally, time.monotonic() - clock)
    return record | told | _endpoint(setting, progress.tally) | ended


def _annotate(
    setting: Setting,
    run: RunStamp,
    record: dict[str, Any],
    plan: Plan,
    ledger: Shards,
    lease: Lease,
    progress: Progress,
) -> None:
    # Ray and what comes with it take seconds to import: not for a run that has nothing to do.
    import ray

    from emolake.jobs.graph.aside import Aside
    from emolake.jobs.graph.start import start_ray, stop_ray

    alone = not ray.is_initialized()
    on_term = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS")
    progress.waits_for(f"joining Ray at {address}" if address else "starting Ray")
    try:
        if alone:
            start_ray(setting.config.resources)
            signal.signal(signal.SIGTERM, on_term)  # ray.init puts its own in place
        aside, left, first, on_gpus = Aside(), plan, lease.number, False
        while left.todo.num_rows:
            pools = _pools(setting, progress, aside.gpus if left is not plan else None)
            if on_gpus and not pools.gpus:
                raise JobFailed("no GPU is left; the same command resumes")
            on_gpus = pools.gpus > 0
            try:
                _pass(setting, run, record, left, ledger, lease.fence, progress, pools)
                break
            except ray.exceptions.RayError as error:
                if (told := aside.broke(str(error))) is None:
                    raise
            progress.warn(told)
            record.setdefault("devices", []).append(told)
            # The actors of the graph that has ended go, and their GPUs are free, when nothing refers to them
            # any more; the error did, by its traceback.
            gc.collect()
            aside.take()
            # Tasks of the graph that has ended may still be at it: as those of a killed run.
            lease.renew()
            ledger = recover(setting.lake, lease.fence)
            left = replace(plan, todo=left_of(plan.todo, ledger, run.run_id, first))
            progress.tally.told_by(of_run(rows, run.run_id, first) for rows in ledger.parts())
    except ray.exceptions.RayError as error:
        raised = _RAISED_BY_US.findall(str(error))
        if not raised:
            raise
        raise JobFailed(raised[-1]) from error
    finally:
        if alone:
            stop_ray()


def _pools(setting: Setting, progress: Progress, gpus_aside: int | None) -> Pools:
    from emolake.jobs.graph.pools import pool_sizes

    return pool_sizes(
        setting.config.resources,
        progress.say,
        on_device=computes_here(setting.models, setting.config),
        rows=progress.expected.segments,
        small=small_models(setting.models, setting.config),
        gpus_aside=gpus_aside,
    )


def _pass(
    setting: Setting,
    run: RunStamp,
    record: dict[str, Any],
    plan: Plan,
    ledger: Shards,
    fence: Fence,
    progress: Progress,
    pools: Pools,
) -> None:
    """The graph, once."""
    import ray

    from emolake.jobs.graph.flow import annotated
    from emolake.jobs.graph.metrics import RunMetrics
    from emolake.jobs.graph.pools import Held

    tally = progress.tally
    tally.workers = {"faces": pools.faces.first, "annotate": pools.annotate.first}
    record["precision"] = setting.config.annotator.precision_on(gpu=pools.gpus > 0)
    if not setting.asked.reprocess:
        refuse_other_precision(setting.lake, ledger, record)
    # Before the first row: those of a run that is killed have a record as well.
    write_run(setting.lake, record | _told_of(plan, Counter(), Tally(), 0.0))
    names = ", ".join(model.config.name for model in setting.models)
    progress.waits_for(
        f"starting {pools.faces.first} face and {pools.annotate.first} annotation actors ({names})"
    )
    metrics = RunMetrics(run.run_id)
    held, looked = Held(pools), time.monotonic()
    try:
        for row in annotated(plan, setting, pools, run, fence):
            progress.add(row)
            metrics.add(row, tally)
            if time.monotonic() - looked > _POOLS_EVERY_S:
                looked = time.monotonic()
                held.look()
                tally.workers = held.workers
        held.look()
        tally.workers = held.workers
    except ray.exceptions.RayError:
        held.look()
        raise
    finally:
        tally.cpu_seconds += held.cpu_seconds
        tally.gpu_seconds += held.gpu_seconds


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
