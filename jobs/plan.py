"""`emolake plan`: what annotate would do, without doing it."""

from __future__ import annotations

import argparse

from jobs.cli import print_json
from jobs.setup import read_setting, read_videos


def plan_command(options: argparse.Namespace) -> int:
    setting = read_setting(options)
    plan = setting.plan(read_videos(options, setting.storage))
    result = {
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
    if options.json:
        print_json(result)
        return 0
    print(f"{plan.total} videos for {setting.lake.uri}")
    if plan.repeated:
        print(f"{plan.repeated} named more than once; each counts once")
    print(f"to do: {plan.todo.num_rows}" + _reasons(dict(plan.why_done)))
    print(f"skipped: {sum(plan.why_skipped.values())}" + _reasons(dict(plan.why_skipped)))
    return 0


def _reasons(counts: dict[str, int]) -> str:
    return "".join(f"\n  {count:6} {why}" for why, count in counts.items())
