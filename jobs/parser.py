"""What can be typed: every command with its options. Nothing heavy is imported here: `--help` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from emolake.pipeline.errors import UserError

_SETS = ("raf-db", "affectnet", "fer2013", "ferplus", "dfew", "mafw", "ferv39k")


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="emolake", description="Annotate video archives with facial emotions.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _annotate(commands)
    _plan(commands)
    _submit(commands)
    _jobs(commands)
    _status(commands)
    _report(commands)
    _export(commands)
    _compact(commands)
    _publish(commands)
    _models(commands)
    _evaluate(commands)
    _instruct(commands)
    _tune(commands)
    _bench(commands)
    return parser


def _version() -> str:
    from importlib.metadata import version

    return f"emolake {version('emolake')}"


def _add(commands: Any, name: str, function: str, summary: str, example: str) -> Any:
    module, _, attribute = function.partition(":")
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example: {example}",
        formatter_class=_Help,
    )
    parser.set_defaults(module=module, function=attribute)
    return parser


def _annotate(commands: Any) -> None:
    parser = _add(
        commands, "annotate", "annotate:annotate_command",
        "find the faces of videos and write their emotions as Parquet",
        "emolake annotate s3://archive/2024/ --output s3://lake/emotions --corpus news",
    )  # fmt: skip
    _input_options(parser)
    parser.add_argument("--run-id", metavar="ID", help="name of this run (default: made from time)")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    _json_option(parser)


def _plan(commands: Any) -> None:
    parser = _add(
        commands, "plan", "plan:plan_command",
        "count what annotate would do and what it would skip, and why",
        "emolake plan videos/ --output out/",
    )  # fmt: skip
    _input_options(parser)
    parser.add_argument(
        "--estimate", metavar="OUTPUT",
        help="also tell hours, cost and balance, by the last run of an output over a sample",
    )  # fmt: skip
    parser.add_argument(
        "--hours", type=float, metavar="H", help="length of what is to do (default: by its bytes)"
    )
    _prices_option(parser)
    _json_option(parser)


def _prices_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prices", type=Path, metavar="FILE",
        help="YAML: currency, cpu_hour, gpu_hour, million_requests, gb_read, gb_written",
    )  # fmt: skip


def _submit(commands: Any) -> None:
    parser = _add(
        commands, "submit", "submit:submit_command",
        "run the same job on a Ray cluster, follow its log and return its exit code",
        "emolake submit s3://archive/ --output s3://lake/emotions --address http://HOST:8265",
    )  # fmt: skip
    _input_options(parser)
    parser.add_argument("--run-id", metavar="ID", help="name of this run (default: made from time)")
    _address_option(parser)
    parser.add_argument("--no-wait", action="store_true", help="do not follow it")
    parser.add_argument("--submission-id", metavar="ID", help="name of the job on the cluster")
    parser.add_argument(
        "--working-dir", type=Path, metavar="DIR",
        help="sent along, where the cluster's image has no emolake",
    )  # fmt: skip
    parser.add_argument(
        "--runtime-env", type=Path, metavar="FILE", help="YAML of a Ray runtime environment"
    )
    parser.add_argument(
        "--entrypoint-cpus", type=float, metavar="N", help="CPUs kept for the driver (default: 0)"
    )
    _json_option(parser)


def _jobs(commands: Any) -> None:
    parser = _add(
        commands, "jobs", "submit:jobs_command",
        "list the jobs of a cluster",
        "emolake jobs --address http://HOST:8265",
    )  # fmt: skip
    _address_option(parser)
    _json_option(parser)


def _address_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", required=True, metavar="URL", help="the cluster's dashboard, http://HOST:8265"
    )


def _input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", nargs="+", metavar="INPUT", help="file, folder, glob, fsspec URI or manifest"
    )
    parser.add_argument("--output", required=True, metavar="URI", help="where the tables stand")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML of options")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="one option, for example faces.min_face=32; repeatable, wins over the file",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME_OR_PATH", help="embedded model or model folder (emo-llama-tiny)"
    )
    parser.add_argument("--corpus", metavar="NAME", help="partition the rows go to (default)")
    parser.add_argument(
        "--reprocess", action="store_true", help="do all again; new rows replace the old ones"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="try also what failed for good before"
    )
    parser.add_argument(
        "--since", metavar="TIME",
        help="only videos written since then: 2026-01-31, 2026-01-31T06:00+01:00, 7d or 36h",
    )  # fmt: skip
    _storage_option(parser)


def _status(commands: Any) -> None:
    parser = _add(
        commands, "status", "status:status_command",
        "show the ledger: videos by state, failures by reason, runs",
        "emolake status out/",
    )  # fmt: skip
    parser.add_argument("output", metavar="OUTPUT", help="where the tables stand")
    _storage_option(parser)
    _json_option(parser)


def _report(commands: Any) -> None:
    parser = _add(
        commands, "report", "report:report_command",
        "write a self-contained page: timelines, failures, runs",
        "emolake report out/ --html report.html",
    )  # fmt: skip
    parser.add_argument("output", metavar="OUTPUT", help="where the tables stand")
    parser.add_argument(
        "--html", type=Path, default=Path("report.html"), metavar="FILE", help="page to write"
    )
    _prices_option(parser)
    _storage_option(parser)
    _json_option(parser)


def _export(commands: Any) -> None:
    parser = _add(
        commands, "export", "export:export_command",
        "one annotated video to watch, or for annotation tools",
        "emolake export out/ interview.mp4 --video drawn.mp4 --elan interview.eaf",
    )  # fmt: skip
    parser.add_argument("output", metavar="OUTPUT", help="where the tables stand")
    parser.add_argument("name", metavar="VIDEO", help="uri, file name, or start of a video_id")
    for option, what in {
        "--video": "the video with boxes, tracks and emotions drawn in, sound kept",
        "--csv": "a row a window",
        "--elan": "tiers for ELAN (.eaf)",
        "--vtt": "WebVTT cues",
    }.items():
        parser.add_argument(option, type=Path, metavar="FILE", help=what)
    parser.add_argument(
        "--frames", type=Path, metavar="DIR", help="a drawn still at the middle of each window"
    )
    _storage_option(parser)
    _json_option(parser)


def _compact(commands: Any) -> None:
    parser = _add(
        commands, "compact", "compact:compact_command",
        "merge small files into large ones; safe to kill, refused while a run has the output",
        "emolake compact s3://lake/emotions",
    )  # fmt: skip
    parser.add_argument("output", metavar="OUTPUT", help="where the tables stand")
    parser.add_argument(
        "--target-mb", type=int, default=256, metavar="MB", help="size of a file to aim at"
    )
    _storage_option(parser)
    _json_option(parser)


def _publish(commands: Any) -> None:
    parser = _add(
        commands, "publish", "publish:publish_command",
        "bring the tables into an Apache Iceberg catalogue: one snapshot of what is new",
        "emolake publish out/ --catalog sqlite:///catalog.db",
    )  # fmt: skip
    parser.add_argument("output", metavar="OUTPUT", help="where the tables stand")
    parser.add_argument(
        "--catalog", required=True, metavar="NAME",
        help="a catalogue of pyiceberg's configuration, or sqlite:///FILE",
    )  # fmt: skip
    parser.add_argument(
        "--namespace", default="emolake", metavar="NAME", help="namespace of the tables"
    )
    _storage_option(parser)
    _json_option(parser)


def _models(commands: Any) -> None:
    models = commands.add_parser("models", help="list, show and verify models")
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _add(
        actions, "list", "models:list_command", "list the embedded models", "emolake models list"
    )
    _json_option(listing)
    show = _add(
        actions, "show", "models:show_command", "show a model's card and sizes",
        "emolake models show emo-llama-tiny",
    )  # fmt: skip
    show.add_argument("name", metavar="NAME", help="embedded model or model folder")
    _json_option(show)
    convert = _add(
        actions, "convert", "models:convert_command",
        "turn a published checkpoint into a model folder",
        "emolake models convert --family llama-vid llama-vid-7b/ --vision eva_vit_g.pth --output DIR",
    )  # fmt: skip
    convert.add_argument("source", type=Path, metavar="SRC", help="the published folder or file")
    convert.add_argument(
        "--family", required=True, choices=("llama-vid", "emola", "emotion-llama"),
        help="whose layout it is",
    )  # fmt: skip
    convert.add_argument("--output", required=True, type=Path, metavar="DIR", help="new folder")
    convert.add_argument(
        "--base", type=Path, metavar="DIR", help="language model's folder, where SRC is an adapter"
    )
    convert.add_argument(
        "--vision", type=Path, metavar="PATH", help="the vision tower's file or folder, if apart"
    )
    convert.add_argument(
        "--question-tokenizer", type=Path, metavar="PATH",
        help="llama-vid: the Q-Former's (bert-base-uncased)",
    )  # fmt: skip
    _json_option(convert)
    verify = _add(
        actions, "verify", "models:verify_command",
        "compare our arithmetic with a published implementation's golden case",
        "emolake models verify golden/llamavid_a",
    )  # fmt: skip
    verify.add_argument("case", type=Path, metavar="CASE_DIR", help="folder of the case")
    _json_option(verify)


def _evaluate(commands: Any) -> None:
    parser = _add(
        commands, "evaluate", "evaluate:evaluate_command",
        "score a model on labelled pictures or videos, or an output against labels",
        "emolake evaluate --model emo-llama-tiny --data fer2013_valid.parquet",
    )  # fmt: skip
    parser.add_argument(
        "--model", default="emo-llama-tiny", metavar="M,...",
        help="name or folder; several are read in one pass and compared",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="Parquet, CSV or JSONL with label, and image, uri or frames; a file or fsspec URI",
    )
    parser.add_argument("--output", metavar="OUTPUT", help="score what stands there instead")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="for --output: Parquet or CSV with uri (or file name), label, and maybe start_s, end_s",
    )
    parser.add_argument(
        "--reading", metavar="MODEL", help="for --output: whose rows, where several models wrote"
    )
    _storage_option(parser)
    parser.add_argument("--label-set", metavar="NAME", help="labels asked for (default: model's)")
    parser.add_argument(
        "--corruptions", nargs="?", const="all", metavar="NAME,...",
        help="for --data: score the pictures also as films spoil them, a line each (all, or those named)",
    )  # fmt: skip
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="page of plots to write, to be read offline"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="for --data: one option, for example annotator.precision=bfloat16; repeatable",
    )  # fmt: skip
    _json_option(parser)


def _instruct(commands: Any) -> None:
    parser = _add(
        commands, "instruct", "instruct:instruct_command",
        "make instruction data from a labelled set, by templates or by a model that looks",
        "emolake instruct raf-db RAF-DB/ --split train --kind reason --output raf.parquet",
    )  # fmt: skip
    parser.add_argument(
        "set", choices=(*_SETS, "table"), help="how the set is laid out; table: one of your own"
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="its folder, or the table's file"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help=".parquet or .jsonl to write"
    )
    parser.add_argument("--split", default="train", help="train, valid or test")
    parser.add_argument(
        "--fold", type=int, default=1, metavar="N", help="dfew, mafw: which of five"
    )
    parser.add_argument("--label-set", metavar="NAME", help="labels asked for (default: the set's)")
    parser.add_argument(
        "--kind",
        default="label",
        metavar="KIND,...",
        help="label, reason, description: records an example",
    )
    parser.add_argument(
        "--templates", type=Path, metavar="FILE", help="questions and answers (YAML)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the choice of templates"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="so many examples at most")
    parser.add_argument(
        "--endpoint", metavar="URL",
        help="OpenAI-compatible API whose model writes the descriptions; it is sent the faces' pictures",
    )  # fmt: skip
    parser.add_argument("--endpoint-model", metavar="NAME", help="the model's name there")
    parser.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="variable that holds the key",
    )
    parser.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests at a time"
    )
    parser.add_argument(
        "--requests-per-minute", type=float, metavar="N", help="so many at most (default: no limit)"
    )
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of one request")
    parser.add_argument("--retries", type=int, default=5, metavar="N", help="of a failed request")
    parser.add_argument(
        "--attempts",
        type=int,
        default=3,
        metavar="N",
        help="for an answer that agrees with the label",
    )
    parser.add_argument(
        "--token-prices", metavar="IN,OUT", help="of a million tokens read and written"
    )
    _json_option(parser)


def _tune(commands: Any) -> None:
    parser = _add(
        commands, "tune", "tune:tune_command",
        "train a model on labelled face pictures; started again it resumes",
        "emolake tune --config emo-llama-tiny --set data.train=train.parquet --output my-model",
    )  # fmt: skip
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML, or the name of an embedded recipe"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="one option of the recipe, for example data.train=FILE; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="model folder to write"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (torch's default)")
    _json_option(parser)


def _bench(commands: Any) -> None:
    parser = _add(
        commands, "bench", "bench.command:bench_command",
        "measure against a peer in the same run (docs/benchmarks.md)",
        "emolake bench faces --clips clips/ --json",
    )  # fmt: skip
    parser.add_argument(
        "name", choices=("faces", "annotate", "pipeline", "plan", "scale"), help="what to measure"
    )
    parser.add_argument(
        "--clips", type=Path, metavar="DIR", help="folder of videos (default: the demo's)"
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE",
        help="faces: spans and boxes of the people in the clips (default: truth.json beside them)",
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="faces: draw a contact sheet with boxes and track numbers",
    )
    parser.add_argument(
        "--shape", choices=("tiny", "100m", "7b"),
        help="annotate: the embedded model, or random weights of that size (default: tiny, 100m)",
    )  # fmt: skip
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="annotate: append the costliest operators"
    )
    _json_option(parser)


def _storage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage-option", action="append", default=[], metavar="KEY=VALUE",
        dest="storage_options",
        help="passed to fsspec, for example endpoint_url=http://host:9000; repeatable",
    )  # fmt: skip


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable result")
