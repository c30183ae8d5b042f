"""A run's passes through the graph: one, and another over what is left for each device that broke."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from dataclasses import dataclass, replace
from typing import Any

import ray

from emolake.jobs.graph.aside import Aside
from emolake.jobs.graph.pools import Held, Pools, pool_sizes
from emolake.jobs.graph.start import start_ray, stop_ray
from emolake.jobs.progress import Progress
from emolake.jobs.setting import Setting, computes_here, small_models
from emolake.pipeline.corpus.planning import Plan, left_of, of_run
from emolake.pipeline.errors import JobFailed
from emolake.pipeline.lake.commit import RunStamp
from emolake.pipeline.lake.lease import Lease
from emolake.pipeline.lake.recovery import recover
from emolake.pipeline.lake.runs import refuse_other_precision, write_run
from emolake.pipeline.storage.shards import Shards

_POOLS_EVERY_S = 10.0
_RAISED_BY_US = re.compile(r"emolake\.pipeline\.errors\.(?:UserError|JobFailed|DeviceFailed): (.+)")
"""What an actor that could not start said, within the pages that Ray wraps it in."""


@dataclass
class Passes:
    """Of one run, which has the lease. record: what is known of it before its first row; a pass adds the
    precision, and a device that breaks is told there."""

    setting: Setting
    run: RunStamp
    record: dict[str, Any]
    plan: Plan
    lease: Lease
    progress: Progress

    def annotate(self, ledger: Shards) -> None:
        """Commits what the plan says. JobFailed where the run cannot go on."""
        alone = not ray.is_initialized()
        on_term = signal.getsignal(signal.SIGTERM)
        address = os.environ.get("RAY_ADDRESS")
        self.progress.waits_for(f"joining Ray at {address}" if address else "starting Ray")
        try:
            if alone:
                start_ray(self.setting.config.resources)
                signal.signal(signal.SIGTERM, on_term)  # ray.init puts its own in place
            self._until_nothing_is_left(ledger)
        except ray.exceptions.RayError as error:
            raised = _RAISED_BY_US.findall(str(error))
            if not raised:
                raise
            raise JobFailed(raised[-1]) from error
        finally:
            if alone:
                stop_ray()

    def _until_nothing_is_left(self, ledger: Shards) -> None:
        aside, left, first, on_gpus = Aside(), self.plan, self.lease.number, False
        while left.todo.num_rows:
            pools = self._pools(aside.gpus if left is not self.plan else None)
            if on_gpus and not pools.gpus:
                raise JobFailed("no GPU is left; the same command resumes")
            on_gpus = pools.gpus > 0
            try:
                self._pass(left, ledger, pools)
                break
            except ray.exceptions.RayError as error:
                if (told := aside.broke(str(error))) is None:
                    raise
            self.progress.warn(told)
            self.record.setdefault("devices", []).append(told)
            # The actors of the graph that has ended go, and their GPUs are free, when nothing refers to them
            # any more; the error did, by its traceback.
            gc.collect()
            aside.take()
            # Tasks of the graph that has ended may still be at it: as those of a killed run.
            self.lease.renew()
            ledger = recover(self.setting.lake, self.lease.fence)
            run_id = self.run.run_id
            left = replace(self.plan, todo=left_of(self.plan.todo, ledger, run_id, first))
            self.progress.tally.told_by(of_run(rows, run_id, first) for rows in ledger.parts())

    def _pools(self, gpus_aside: int | None) -> Pools:
        setting = self.setting
        return pool_sizes(
            setting.config.resources,
            self.progress.say,
            on_device=computes_here(setting.models, setting.config),
            rows=self.progress.expected.segments,
            small=small_models(setting.models, setting.config),
            gpus_aside=gpus_aside,
        )

    def _pass(self, left: Plan, ledger: Shards, pools: Pools) -> None:
        """The graph, once."""
        # Imported while Ray came up, by `start_ray`.
        from emolake.jobs.graph.flow import annotated
        from emolake.jobs.graph.metrics import RunMetrics

        setting, progress, tally = self.setting, self.progress, self.progress.tally
        tally.workers = {"faces": pools.faces.first, "annotate": pools.annotate.first}
        self.record["precision"] = setting.config.annotator.precision_on(gpu=pools.gpus > 0)
        if not setting.asked.reprocess:
            refuse_other_precision(setting.lake, ledger, self.record)
        # Before the first row: those of a run that is killed have a record as well.
        self.lease.fence()
        write_run(setting.lake, self.record)
        names = ", ".join(model.config.name for model in setting.models)
        progress.waits_for(
            f"starting {pools.faces.first} face and {pools.annotate.first} annotation actors ({names})"
        )
        metrics = RunMetrics(self.run.run_id)
        held, looked = Held(pools), time.monotonic()
        try:
            for row in annotated(left, setting, pools, self.run, self.lease.fence):
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
