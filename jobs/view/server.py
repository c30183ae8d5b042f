"""Pages, pictures and answers over HTTP, for one person of this machine.

Who may ask: who has the token, which stands in the address that is printed and then in a cookie. Other
pages of the browser have neither, and neither a name that resolves to this machine nor a foreign form gets
anywhere: Host, Origin and Sec-Fetch-Site are checked at each request.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ValidationError

from emolake.jobs.view.pictures import REMADE_S, Pictures
from emolake.pipeline.config import mistake
from emolake.pipeline.errors import UserError, VideoError, in_a_line
from emolake.pipeline.lake.labels import NO_EMOTION, WINDOW
from emolake.pipeline.lake.schema import VIDEO_ITSELF
from emolake.pipeline.presentation import view
from emolake.pipeline.presentation.palette import PALETTE, colour
from emolake.pipeline.presentation.report.content import read_report
from emolake.pipeline.presentation.report.page import clock, render
from emolake.pipeline.presentation.view.index import FACETS, PAGE, PER, SORTS, Filter, Index, Queue
from emolake.pipeline.storage.files import Storage

_ROOM = Path(view.__file__).parent
_BLOCK = 1 << 20  # bytes of a video at once
_THREADS = 16
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


class Word(BaseModel, extra="forbid", strict=True):
    """What the page sends of a window. label: None takes back; queue: how it came to be asked, as
    `Queue.told`."""

    video_id: str
    segment: int
    track_id: int
    window: int
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
        self._others_at = time.monotonic()
        self._pages = Environment(
            loader=FileSystemLoader(_ROOM), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._pages.globals.update(colour=colour, clock=clock, address=_address)

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
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        cookie = f"emolake-{port}"
        ours = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        origin = request.headers.get("Origin")
        if (
            request.host not in ours
            or (origin is not None and origin not in {f"http://{host}" for host in ours})
            or request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        ):
            raise web.HTTPForbidden(text="this page is for the browser of this machine alone")
        given = request.query.get("token") or request.cookies.get(cookie) or ""
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            raise web.HTTPForbidden(
                text="open the address that `emolake view` printed, with its token"
            )
        if request.method != "GET" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="what is sent has to be JSON")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(
                {k: v for k, v in _HEADERS.items() if k not in response.headers}
            )
            if "token" in request.query:
                response.set_cookie(cookie, self.token, httponly=True, samesite="Strict", path="/")
        return response

    def _page(self, name: str, **told: Any) -> web.Response:
        text = self._pages.get_template(name).render(
            output=self.index.lake.uri, overview=self.index.overview(), read_at=self.index.read_at,
            reviewer=self.index.reviewer, **told,
        )  # fmt: skip
        return web.Response(text=text, content_type="text/html")

    async def _archive(self, request: web.Request) -> web.StreamResponse:
        asked = Filter.of(request.query)
        page = _whole(request.query.get("page", "1"), "page")
        count, moments = await self._in_thread(self.index.moments, asked, page - 1)
        facets = await self._in_thread(self.index.facets, asked)
        return await self._in_thread(
            lambda: self._page(
                "archive.html.j2", asked=asked, told=asked.told(), count=count, moments=moments,
                facets=facets, facet_names=FACETS, page=page, pages=max(-(-count // PAGE), 1),
                sorts=SORTS, queue=self.queue.told(),
            )
        )  # fmt: skip

    async def _review(self, request: web.Request) -> web.StreamResponse:
        told = {key: value for key, value in request.query.items() if key != "token"}
        queue = Queue.of(self.queue.told() | told)
        blind = told.get("blind", "1" if self.blind else "") == "1"
        return await self._in_thread(
            lambda: self._page("video.html.j2", data=self._data(None, queue, blind), per=PER)
        )

    async def _report(self, _: web.Request) -> web.StreamResponse:
        report = await self._in_thread(read_report, self.index.lake)
        text = await self._in_thread(lambda: render(report, linked=True))
        headers = {"Content-Security-Policy": _OWN_SCRIPT}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _video(self, request: web.Request) -> web.StreamResponse:
        segments = await self._in_thread(self._segments, request)
        data = self._data(segments[0]["video_id"], None, False)
        return await self._in_thread(lambda: self._page("video.html.j2", data=data, per=PER))

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
        try:
            told = await self._in_thread(self._told, segments, blind)
        except FileNotFoundError:  # compacted since
            await self._in_thread(self.index.read)
            segments = await self._in_thread(self._segments, request)
            told = await self._in_thread(self._told, segments, blind)
        response = web.json_response(told)
        response.enable_compression()
        return response

    def _told(self, segments: list[dict[str, Any]], blind: bool) -> dict[str, Any]:
        """A video's lanes, paths and labels. blind: nothing that anybody answered."""
        first = segments[0]
        annotations, tracks = self.index.rows_of(first["video_id"])
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
        } | self._playing(first["uri"])  # fmt: skip

    def _playing(self, uri: str) -> dict[str, Any]:
        """How the browser gets the video: as it is or remade, or why it gets none."""
        try:
            why = self.pictures.why_remade(uri)
        except VideoError as error:
            return {"gone": f"{error.reason}: {error.detail}"}
        return {"remade": "faces are blurred" if self.blur else why}

    async def _hear_others(self) -> None:
        if time.monotonic() - self._others_at > _OTHERS_S:
            self._others_at = time.monotonic()
            await self._in_thread(self.index.read_labels)

    async def _next(self, request: web.Request) -> web.StreamResponse:
        queue = Queue.of(request.query)
        await self._hear_others()
        found, done, total = await self._in_thread(self.index.next_in, queue)
        item = found and {name: found[name] for name in (*WINDOW, "start_s", "end_s", "uri")}
        taught = await self._in_thread(self.index.taught)
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
        stored = await asyncio.shield(self._in_thread(self.index.say, told))
        kept = (*WINDOW, "kind", "label", "reviewer", "start_s", "end_s", "revision")
        return web.json_response({name: stored[name] for name in kept})

    async def _read(self, _: web.Request) -> web.StreamResponse:
        await self._in_thread(self.index.read)
        return web.json_response(self.index.overview())

    async def _still(self, request: web.Request) -> web.StreamResponse:
        segments = await self._in_thread(self._segments, request)
        asked = request.query
        time_s = _real(asked.get("at", "0"), "at")
        box = [_real(part, "box") for part in asked["box"].split(",")] if asked.get("box") else None
        if box is not None and len(box) != 4:
            raise UserError("box is x1,y1,x2,y2")
        paths = await self._in_thread(self._blurred, segments[0]["video_id"])
        uri = segments[0]["uri"]
        data = await self._in_thread(self.pictures.still, uri, time_s, box, paths)
        headers = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=data, content_type="image/jpeg", headers=headers)

    def _blurred(self, video_id: str) -> list[Any]:
        if not self.blur:
            return []
        _, tracks = self.index.rows_of(video_id)
        return [[point[:5] for point in _path(track)] for track in tracks] or [[]]

    async def _media(self, request: web.Request) -> web.StreamResponse:
        """The bytes that are asked for of a video, from wherever it lies."""
        if self.blur:
            raise web.HTTPForbidden(text="faces are blurred; the file itself is not shown")
        segments = await self._in_thread(self._segments, request)
        uri = segments[0]["uri"]
        fs, path = await self._in_thread(self.storage.locate, uri)
        size = (await self._in_thread(fs.info, path))["size"]
        try:
            start, stop, _ = request.http_range.indices(size)
        except ValueError:
            start = stop = size
        ranged = "Range" in request.headers
        headers = {"Accept-Ranges": "bytes"} | _HEADERS
        if ranged and start >= stop:
            headers["Content-Range"] = f"bytes */{size}"
            raise web.HTTPRequestRangeNotSatisfiable(headers=headers)
        headers["Content-Type"] = _TYPES.get(Path(uri).suffix.lower(), "video/mp4")
        headers["Content-Length"] = str(stop - start)
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        response = web.StreamResponse(status=206 if ranged else 200, headers=headers)
        await response.prepare(request)
        for at in range(start, stop, _BLOCK):
            end = min(at + _BLOCK, stop)
            await response.write(
                await self._in_thread(lambda a, e: fs.cat_file(path, start=a, end=e), at, end)
            )
        await response.write_eof()
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
    query = urlencode({name: value for name, value in asked.items() if value not in ("", None)})
    return f"{path}?{query}" if query else path


def _whole(told: str, name: str, least: int = 1) -> int:
    if not told.isdecimal() or not least <= int(told) < 1 << 31:
        raise UserError(f"{name} {told!r} is no number from {least} on")
    return int(told)


def _real(told: str, name: str) -> float:
    try:
        return float(told)
    except ValueError:
        raise UserError(f"{name} {told!r} is no number") from None


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
