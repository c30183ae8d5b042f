"""Pages, pictures and answers over HTTP, for one person of this machine.

Who may ask: who has the token, which stands in the address that is printed and then in a cookie. Other
pages of the browser have neither, and neither a name that resolves to this machine nor a foreign form gets
anywhere: Host, Origin and Sec-Fetch-Site are checked at each request.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

import numpy as np
from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, ValidationError

from emolake.jobs.view.pictures import REMADE_S, Pictures
from emolake.pipeline.config import mistake
from emolake.pipeline.errors import UserError, VideoError, in_a_line
from emolake.pipeline.evaluation.audit import UNITS
from emolake.pipeline.lake.labels import NO_EMOTION, WINDOW
from emolake.pipeline.lake.schema import VIDEO_ITSELF
from emolake.pipeline.presentation import view
from emolake.pipeline.presentation.blur import Hidden, lasting
from emolake.pipeline.presentation.palette import PALETTE, colour
from emolake.pipeline.presentation.report.content import read_report
from emolake.pipeline.presentation.report.page import clock, render
from emolake.pipeline.presentation.view.index import FACETS, PAGE, SORTS, Filter, Index, Queue
from emolake.pipeline.storage.files import Storage

_ROOM = Path(view.__file__).parent
_BLOCK = 1 << 20  # bytes of a video at once
_THREADS = 16
_NAMES = ("127.0.0.1", "localhost")
_FAR_OUT = -9.0  # where a box may begin: faces leave the picture
_OTHERS_S = 3.0  # how old what others have said may be
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; media-src 'self'; "
    "style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OWN_SCRIPT = _HEADERS["Content-Security-Policy"].replace(
    "script-src 'self'", "script-src 'unsafe-inline'"
)
"""Of the report, which is one file."""
_ASSETS = {"view.css": "text/css", "view.js": "text/javascript"}
_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


Int32 = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]


class Word(BaseModel, extra="forbid", strict=True):
    """What the page sends of a window. label: None takes back; queue: how it came to be asked, as
    `Queue.told`."""

    video_id: str
    segment: Int32
    track_id: Int32
    window: Int32
    kind: str
    label: str | None
    blind: bool = False
    queue: dict[str, str] | None = None


class Viewer:
    """One output, served. queue: what `/review` asks about unless its address says otherwise; blind: whether
    it asks so; blur: no recognisable face leaves this process."""

    def __init__(
        self,
        index: Index,
        pictures: Pictures,
        storage: Storage,
        queue: Queue,
        *,
        blind: bool,
        blur: bool,
    ) -> None:
        self.index, self.pictures, self.storage = index, pictures, storage
        self.queue, self.blind, self.blur = queue, blind, blur
        self.token = secrets.token_urlsafe(24)
        self._threads = ThreadPoolExecutor(_THREADS, "view")
        self._saving = ThreadPoolExecutor(2, "say")  # pictures may take all the others
        self._others_at = time.monotonic()
        self._pages = Environment(
            loader=FileSystemLoader(_ROOM), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._pages.globals.update(
            colour=colour,
            clock=clock,
            address=_address,
            queues=view.QUEUES,
            per=view.PER,
            units=UNITS,
        )

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded, _told], client_max_size=1 << 16)
        app.add_routes(
            [
                web.get("/", self._archive),
                web.get("/review", self._review),
                web.get("/report", self._report),
                web.get("/video/{video}", self._video),
                web.get("/api/video/{video}", self._story),
                web.get("/api/next", self._next),
                web.post("/api/say", self._say),
                web.post("/api/read", self._read),
                web.get("/media/{video}", self._media),
                web.get("/remade/{video}/{number}", self._remade),
                web.get("/still/{video}", self._still),
                web.get("/{asset}", self._asset),
            ]
        )
        return app

    async def serve(self, sock: socket.socket) -> None:
        """Until it is cancelled."""
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
            for pool in (self._threads, self._saving):
                pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    async def _at_once(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._saving, work, *given)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        cookie = f"emolake-{port}"
        ours = {f"{name}:{port}" for name in _NAMES} | (set(_NAMES) if port == 80 else set())
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        if (
            request.host not in ours
            or (origin is not None and origin not in {f"http://{host}" for host in ours})
            or (site and not self._opened_by_us(request))
        ):
            raise web.HTTPForbidden(text="this page is for the browser of this machine alone")
        given = request.query.get("token") or request.cookies.get(cookie) or ""
        if not secrets.compare_digest(given.encode(errors="surrogateescape"), self.token.encode()):
            raise web.HTTPForbidden(
                text="open the address that `emolake view` printed, with its token"
            )
        if request.method == "POST" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="what is sent has to be JSON")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(
                {k: v for k, v in _HEADERS.items() if k not in response.headers}
            )
            if "token" in request.query:
                response.set_cookie(cookie, self.token, httponly=True, samesite="Strict", path="/")
        return response

    def _opened_by_us(self, request: web.Request) -> bool:
        """From the file that the command opens, which has the token and no origin."""
        given = request.query.get("token", "").encode(errors="surrogateescape")
        return request.method == "GET" and secrets.compare_digest(given, self.token.encode())

    def _page(self, name: str, **told: Any) -> web.Response:
        text = self._pages.get_template(name).render(
            output=self.index.lake.uri, overview=self.index.overview(), read_at=self.index.read_at,
            reviewer=self.index.reviewer, **told,
        )  # fmt: skip
        return web.Response(text=text, content_type="text/html")

    async def _archive(self, request: web.Request) -> web.StreamResponse:
        asked = Filter.of(request.query.items())
        page = _whole(request.query.get("page", "1"), "page")
        count, moments = await self._in_thread(self.index.moments, asked, page - 1)
        facets = await self._in_thread(self.index.facets, asked)
        told = dict.fromkeys(FACETS) | asked.told()
        return await self._in_thread(
            lambda: self._page(
                "archive.html.j2", asked=asked, told=told, count=count, moments=moments,
                facets=facets, facet_names=FACETS, page=page, pages=max(-(-count // PAGE), 1),
                sorts=SORTS, queue=self.queue.told(),
            )
        )  # fmt: skip

    async def _review(self, request: web.Request) -> web.StreamResponse:
        told = {key: value for key, value in request.query.items() if key != "token"}
        queue = Queue.of(self.queue.told() | told)
        blind = told.get("blind", "1" if self.blind else "") == "1"
        return await self._in_thread(
            lambda: self._page("video.html.j2", data=self._data(None, queue, blind))
        )

    async def _report(self, _: web.Request) -> web.StreamResponse:
        report = await self._in_thread(read_report, self.index.lake)
        for video in report.videos if self.blur else ():
            video.thumbnails.clear()  # as sharp as they were stored
        text = await self._in_thread(lambda: render(report, linked=True))
        headers = {"Content-Security-Policy": _OWN_SCRIPT}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _video(self, request: web.Request) -> web.StreamResponse:
        segments = await self._in_thread(self._segments, request)
        data = self._data(segments[0]["video_id"], None, False)
        return await self._in_thread(lambda: self._page("video.html.j2", data=data))

    def _data(self, video_id: str | None, queue: Queue | None, blind: bool) -> dict[str, Any]:
        """What the page's script begins with."""
        return {
            "video_id": video_id, "queue": queue and queue.told(), "blind": blind,
            "labels": [*PALETTE, *NO_EMOTION], "colours": PALETTE, "stretch_s": REMADE_S,
            "reviewer": self.index.reviewer,
        }  # fmt: skip

    def _segments(self, request: web.Request) -> list[dict[str, Any]]:
        segments = self.index.video(request.match_info["video"])
        if not segments:
            raise web.HTTPNotFound(text="the output knows no such video")
        return segments

    async def _story(self, request: web.Request) -> web.StreamResponse:
        segments = await self._in_thread(self._segments, request)
        blind = request.query.get("blind") == "1"
        await self._hear_others()
        told = await self._in_thread(self._told, segments, blind)
        response = web.json_response(told)
        response.enable_compression()
        return response

    def _told(self, segments: list[dict[str, Any]], blind: bool) -> dict[str, Any]:
        """A video's lanes, paths and labels. blind: nothing that anybody answered."""
        first = segments[0]
        annotations, tracks = self._rows_of(first["video_id"])
        people = [] if blind else self.index.said_of(first["video_id"])
        lanes: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in sorted(annotations, key=lambda row: row["start_s"]):
            key = (row["segment"], row["track_id"], "" if blind else row["model"])
            lane = lanes.setdefault(
                key,
                {
                    "segment": row["segment"], "track_id": row["track_id"], "model": key[2],
                    "name": _lane_name(row), "windows": [],
                },
            )  # fmt: skip
            window = {name: row[name] for name in ("window", "start_s", "end_s")}
            if not blind:
                window |= {name: row[name] for name in _ANSWER} | {"scores": _ranked(row["scores"])}
            elif any(w["window"] == row["window"] for w in lane["windows"][-1:]):
                continue  # another model's
            lane["windows"].append(window)
        return {
            "video_id": first["video_id"], "uri": first["uri"], "state": first["state"],
            "reason": first["reason"], "fps": first["fps"],
            "duration_s": max(
                [*(s["duration_s"] or 0.0 for s in segments), *(r["end_s"] for r in annotations)]
            ),
            "lanes": [lanes[key] for key in sorted(lanes)],
            "paths": [
                {
                    "segment": track["segment"], "track_id": track["track_id"],
                    "start_s": track["start_s"], "end_s": track["end_s"], "path": _path(track),
                }
                for track in tracks
            ],
            "labels": [
                {name: row[name] for name in (*WINDOW, "kind", "label", "reviewer", "start_s", "end_s")}
                for row in people
            ],
        } | self._playing(first["video_id"], first["uri"])  # fmt: skip

    def _rows_of(self, video_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        try:
            return self.index.rows_of(video_id)
        except FileNotFoundError:  # compacted since
            self._read_anew()
            return self.index.rows_of(video_id)

    def _read_anew(self) -> None:
        self.index.read()
        self.pictures.forget(offline=self.index.all_local())

    def _playing(self, video_id: str, uri: str) -> dict[str, Any]:
        """How the browser gets the video: as it is or remade, or why it gets none."""
        try:
            why = self.pictures.why_remade(uri)
        except VideoError as error:
            return {"gone": f"{error.reason}: {error.detail}"}
        if self.blur:
            all_of_it = self._blurred(video_id) == "all"
            why = "faces are blurred" + (
                ", and as not all of it was analysed, so is the rest" if all_of_it else ""
            )
        return {"remade": why}

    async def _hear_others(self) -> None:
        if time.monotonic() - self._others_at > _OTHERS_S:
            self._others_at = time.monotonic()
            await self._at_once(self.index.read_labels)

    async def _next(self, request: web.Request) -> web.StreamResponse:
        queue = Queue.of(request.query)
        await self._hear_others()
        found, done, total = await self._at_once(self.index.next_in, queue)
        item = found and {name: found[name] for name in (*WINDOW, "start_s", "end_s", "uri")}
        # What the model had right is told to nobody who is asked blind: it would be the answer, one late.
        blind = request.query.get("blind") == "1"
        taught = None if blind else await self._at_once(self.index.taught)
        return web.json_response(
            {"item": item, "done": done, "total": total, "taught": taught, "queue": str(queue)}
        )

    async def _say(self, request: web.Request) -> web.StreamResponse:
        try:
            word = Word.model_validate_json(await request.read())
        except ValidationError as error:
            raise mistake(Word, error, "what is said of a window") from None
        told = word.model_dump() | {"queue": word.queue and str(Queue.of(word.queue))}
        # A browser that leaves in the middle stops nothing here: what it sent is stored.
        stored = await asyncio.shield(self._at_once(self.index.say, told))
        kept = (*WINDOW, "kind", "label", "reviewer", "start_s", "end_s", "revision", "before")
        return web.json_response({name: stored[name] for name in kept})

    async def _read(self, _: web.Request) -> web.StreamResponse:
        await self._in_thread(self._read_anew)
        return web.json_response(await self._in_thread(self.index.overview))

    async def _still(self, request: web.Request) -> web.StreamResponse:
        segments = await self._in_thread(self._segments, request)
        asked = request.query
        time_s = _real(asked.get("at", "0"), "at")
        box = (
            [_real(part, "box", _FAR_OUT) for part in asked["box"].split(",")]
            if asked.get("box")
            else None
        )
        if box is not None and len(box) != 4:
            raise UserError("box is x1,y1,x2,y2")
        paths = await self._in_thread(self._blurred, segments[0]["video_id"])
        uri = segments[0]["uri"]
        data = await self._in_thread(self.pictures.still, uri, time_s, box, paths)
        headers = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=data, content_type="image/jpeg", headers=headers)

    def _blurred(self, video_id: str) -> Hidden:
        if not self.blur:
            return None
        _, tracks = self._rows_of(video_id)
        if not self.index.whole(video_id):
            return "all"
        return [
            lasting(np.array(_path(track))[:, :5], track["start_s"], track["end_s"]).tolist()
            for track in tracks
        ]

    async def _media(self, request: web.Request) -> web.StreamResponse:
        """The bytes that are asked for of a video, from wherever it lies."""
        if self.blur:
            raise web.HTTPForbidden(text="faces are blurred; the file itself is not shown")
        segments = await self._in_thread(self._segments, request)
        uri = segments[0]["uri"]
        fs, path = await self._in_thread(self.storage.locate, uri)
        size = (await self._in_thread(fs.info, path))["size"]
        if size is None:
            raise OSError(f"{in_a_line(uri)} does not tell its length, so no part of it can be had")
        headers = {"Accept-Ranges": "bytes"} | _HEADERS
        headers["Content-Type"] = _TYPES.get(Path(uri).suffix.lower(), "video/mp4")
        span = _range(request.headers.get("Range"), size)
        start, stop = (0, size) if span is None else span
        if start >= stop and span is not None:
            headers["Content-Range"] = f"bytes */{size}"
            raise web.HTTPRequestRangeNotSatisfiable(headers=headers)
        headers["Content-Length"] = str(stop - start)
        if span is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        response = web.StreamResponse(status=200 if span is None else 206, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        try:
            for at in range(start, stop, _BLOCK):
                end = min(at + _BLOCK, stop)
                data = await self._in_thread(
                    lambda a, e: fs.cat_file(path, start=a, end=e), at, end
                )
                if len(data) != end - at:
                    raise OSError(f"{in_a_line(uri)} has become shorter")
                await response.write(data)
            await response.write_eof()
        except OSError:
            # What was promised cannot be kept: the browser has to see that, and no second answer.
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _remade(self, request: web.Request) -> web.StreamResponse:
        segments = await self._in_thread(self._segments, request)
        number = _whole(request.match_info["number"], "stretch", least=0)
        paths = await self._in_thread(self._blurred, segments[0]["video_id"])
        made, begins_s = await self._in_thread(
            self.pictures.remade, segments[0]["uri"], number, paths
        )
        return web.FileResponse(made, headers={"X-Begins": f"{begins_s:.6f}"})

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["asset"]
        if name not in _ASSETS:
            raise web.HTTPNotFound(text="there is no such page")
        return web.Response(text=(_ROOM / name).read_text(), content_type=_ASSETS[name])


_ANSWER = ("emotion", "confidence", "uncertain", "transcript", "description", "person_id")


@web.middleware
async def _told(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as one line."""
    try:
        return await handler(request)
    except UserError as error:
        return web.Response(status=400, text=in_a_line(error, 500))
    except VideoError as error:
        return web.Response(status=404, text=in_a_line(f"{error.reason}: {error.detail}", 500))
    except FileNotFoundError:
        return web.Response(status=404, text="the video is not there any more")
    except OSError as error:
        return web.Response(status=502, text=f"the store does not answer: {in_a_line(error, 300)}")


def listening(port: int) -> socket.socket:
    """A socket of this machine alone; port: 0 for a free one. UserError where it is taken."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port} cannot be used: {in_a_line(error)}; name another") from None


def _address(path: str, *told: Mapping[str, Any], **more: Any) -> str:
    """An address with what is asked; what is empty is left out."""
    asked: dict[str, Any] = {}
    for part in (*told, more):
        asked |= part
    kept = {name: value for name, value in asked.items() if value not in ("", None, (), [])}
    query = urlencode(kept, doseq=True)
    return f"{path}?{query}" if query else path


def _range(told: str | None, size: int) -> tuple[int, int] | None:
    """The one part of `size` bytes that is asked for (RFC 9110, 14.2), empty where there is none such; None
    where all is: no range, several, or another unit."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", told or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(size - int(found[2]), 0), size
    return int(found[1]), min(int(found[2]) + 1, size) if found[2] else size


def _whole(told: str, name: str, least: int = 1) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", told) or int(told) < least:
        raise UserError(f"{name} {told[:40]!r} is no number from {least} on")
    return int(told)


def _real(told: str, name: str, least: float = 0.0) -> float:
    try:
        number = float(told)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise UserError(f"{name} {told[:40]!r} is no number from {least:g} on")
    return number


def _lane_name(row: Mapping[str, Any]) -> str:
    if row["track_id"] == VIDEO_ITSELF:
        return "speech"
    return f"face {row['segment']}.{row['track_id']}"


def _ranked(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(((k, round(v, 4)) for k, v in scores.items()), key=lambda told: -told[1])


def _path(track: Mapping[str, Any]) -> list[list[float]]:
    return [
        [
            round(p["time_s"], 3),
            *(round(p[n], 4) for n in ("x1", "y1", "x2", "y2")),
            int(p["interpolated"]),
        ]
        for p in track["path"] or ()
    ]
