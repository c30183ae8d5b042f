"""`emolake view`: an output in the browser, to watch and to correct."""

from __future__ import annotations

import asyncio
import getpass
import importlib.util
import sys
import tempfile
import webbrowser
from argparse import ArgumentTypeError
from pathlib import Path
from threading import Thread

from emolake.jobs.interrupts import EXIT_INTERRUPTED, leave_to_asyncio
from emolake.jobs.parser import Options, Parser, output_argument, storage_option
from emolake.pipeline.errors import UserError
from emolake.pipeline.evaluation.audit import UNITS
from emolake.pipeline.lake.reading import opened
from emolake.pipeline.presentation.view import PER, QUEUES
from emolake.pipeline.storage.files import Storage, parse_options


def declare(parser: Parser) -> None:
    output_argument(parser)
    parser.option("--port", "N", "of 127.0.0.1; 0 takes a free one", type=_port, default=0)
    parser.flag("--no-browser", "only print the address")
    parser.option("--reviewer", "NAME", "who corrects (default: your login)")
    parser.add_argument(
        "--queue", choices=QUEUES, default=None,
        help="what to be asked about, and open the browser there; random is for `measure`",
    )  # fmt: skip
    parser.add_argument("--per", choices=PER, default=None, help="one of each in turn")
    parser.add_argument(
        "--unit", choices=UNITS, default=UNITS[0],
        help="what is drawn at random: windows, or videos with all of theirs",
    )  # fmt: skip
    parser.option("--seed", "N", "of the order; one seed asks the same again", type=int, default=0)
    parser.flag("--blind", "ask without showing the model's answer")
    parser.flag("--blur-faces", "no recognisable face is shown")
    storage_option(parser)
    parser.calls(run, "emolake view out/ --queue random --blind")


def _port(told: str) -> int:
    if not told.isdecimal() or int(told) > 65535:
        raise ArgumentTypeError(f"{told!r} is no port; there are 0 to 65535")
    return int(told)


def _open(file: Path, address: str) -> None:
    """In the browser, by a file of ours: a command line with the token could be read by other users."""
    file.write_text(f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={address}">')
    Thread(target=webbrowser.open, args=(file.as_uri(),), daemon=True).start()


def run(options: Options) -> int:
    if any(importlib.util.find_spec(name) is None for name in ("aiohttp", "duckdb")):
        raise UserError("`view` needs more packages: pip install 'emolake[view]'")
    from emolake.jobs.view.pictures import Pictures
    from emolake.jobs.view.server import Viewer, listening
    from emolake.pipeline.presentation.view.index import Index, Queue

    storage = Storage(parse_options(options.storage_options))
    lake = opened(options.output, storage.options)
    told = {name: getattr(options, name) for name in ("queue", "per", "unit")}
    queue = Queue.of(told | {"seed": str(options.seed)})
    with listening(options.port) as sock, tempfile.TemporaryDirectory(prefix="emolake-") as scratch:
        folder = Path(scratch)
        index = Index(lake, folder, options.reviewer or getpass.getuser())
        pictures = Pictures(folder, storage.options, offline=index.all_local())
        viewer = Viewer(
            index, pictures, storage, queue, blind=options.blind, blur=options.blur_faces
        )
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
        print(f"{address}/?token={viewer.token}", flush=True)
        print("serves until Ctrl-C", file=sys.stderr)
        if not options.no_browser:
            page = "/review" if options.queue else "/"
            _open(folder / "open.html", f"{address}{page}?token={viewer.token}")
        leave_to_asyncio()
        try:
            asyncio.run(viewer.serve(sock))
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            pictures.stop()
            index.close()
    return 0
