"""The HTTP interface: what can be asked, and how it is answered. docs/serve.md describes it."""

import json
import re
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.scenes import SWITCHES
from serve.desk import Desk
from serve.events import EventStream
from serve.preview import unpack
from serve.request import LONGEST_PROMPT, LONGEST_TITLE, clean_text
from serve.takes import FILES, Take
from utils.errors import UserError
from utils.settings import require_choice

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
NUMBER = re.compile(r"\d{1,9}")
REPORT_POLICY = (  # a report is one page with its script within; it gets no rights here
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; media-src data: blob:; frame-ancestors 'self'"
)
KEEP = {"cache-control": "private, max-age=86400, immutable"}  # a block's pictures stay as they are


def application(desk: Desk) -> Starlette:
    """The routes, in the order of docs/serve.md."""
    api = Interface(desk)
    routes = [
        Route("/", page, methods=["GET"]),
        Route("/page/{name}", page, methods=["GET"]),
        Route("/api/choices", api.choices, methods=["GET"]),
        Route("/api/takes", api.list, methods=["GET"]),
        Route("/api/takes", api.submit, methods=["POST"]),
        Route("/api/takes/{number}", api.one, methods=["GET"]),
        Route("/api/takes/{number}", api.rename, methods=["PATCH"]),
        Route("/api/takes/{number}", api.delete, methods=["DELETE"]),
        Route("/api/takes/{number}/{wish:str}", api.steer, methods=["POST"]),
        Route("/api/takes/{number}/blocks", api.blocks, methods=["GET"]),
        Route("/api/takes/{number}/frames/{block}", api.frames, methods=["GET"]),
        Route("/api/takes/{number}/picture/{frame}", api.picture, methods=["GET"]),
        Route("/api/takes/{number}/files/{kind}", api.file, methods=["GET"]),
        Route("/api/uploads", api.upload, methods=["POST"]),
        Route("/api/reports/{first}/{second}", api.make_report, methods=["POST"]),
        Route("/api/reports/{first}/{second}", api.report, methods=["GET"]),
        Route("/api/events", EventStream(desk.events, desk.news), methods=["GET"]),
    ]
    handlers = {UserError: refuse, HTTPException: refuse, Exception: refuse}
    return Starlette(routes=routes, exception_handlers=handlers)


def refuse(_: HttpRequest, error: Exception) -> Response:
    """An error as JSON; of unforeseen ones, a word. What is left of the request is not read."""
    headers = {"connection": "close"}
    if isinstance(error, UserError):
        return JSONResponse({"error": str(error)}, 400, headers)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, headers)
    return JSONResponse({"error": f"unforeseen {type(error).__name__}"}, 500, headers)


def page(request: HttpRequest) -> Response:
    """One of the page's own files."""
    name = request.path_params.get("name", "index.html")
    for path in PAGE.iterdir():
        if path.name == name and path.suffix in TYPES:
            return Response(path.read_bytes(), media_type=TYPES[path.suffix])
    raise HTTPException(404, "there is no such page")


class Interface:
    """The answers; those that read files or compute run in threads."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def choices(self, _: HttpRequest) -> Response:
        return JSONResponse(self.desk.choices)

    def list(self, _: HttpRequest) -> Response:
        return JSONResponse({"takes": [self.desk.describe(take) for take in self.desk.takes.all()]})

    async def submit(self, request: HttpRequest) -> Response:
        content = await _json(request)
        takes = await run_in_threadpool(self.desk.submit, content)
        return JSONResponse({"takes": [self.desk.describe(take) for take in takes]}, 201)

    def one(self, request: HttpRequest) -> Response:
        take = self._take(request)
        return JSONResponse(self.desk.describe(take) | {"command": self.desk.studio.command(take)})

    async def rename(self, request: HttpRequest) -> Response:
        take = self._take(request)
        content = await _json(request)
        take.title = clean_text(content.get("title", ""), "title", LONGEST_TITLE)
        await run_in_threadpool(take.save)
        self.desk.tell(take.number)
        return JSONResponse(self.desk.describe(take))

    def delete(self, request: HttpRequest) -> Response:
        self.desk.delete(self._take(request))
        return Response(status_code=204)

    async def steer(self, request: HttpRequest) -> Response:
        take = self._take(request)
        wish = request.path_params["wish"]
        jobs = self.desk.jobs
        plain = {"pause": jobs.pause, "resume": jobs.resume, "stop": jobs.stop}
        if wish == "switch":
            content = await _json(request)
            prompt = clean_text(content.get("prompt", ""), "prompt", LONGEST_PROMPT)
            how = content.get("how") or "text"
            if not prompt.strip():
                raise UserError("prompt is empty; describe what is to come")
            require_choice("how", str(how), SWITCHES)
            jobs.switch(take, prompt, how)
        elif wish in plain:
            await run_in_threadpool(plain[wish], take)
        else:
            raise HTTPException(404, "a take can be told pause, resume, stop or switch")
        return JSONResponse(self.desk.describe(take))

    def blocks(self, request: HttpRequest) -> Response:
        take = self._take(request)
        since = _number(request.query_params.get("from", "0"))
        return JSONResponse({"blocks": take.blocks.since(since), "drift": take.blocks.drift(take.fps)})

    def frames(self, request: HttpRequest) -> Response:
        content = self._take(request).preview.read(_number(request.path_params["block"]))
        if content is None:
            raise HTTPException(404, "there is no such block yet")
        return Response(content, media_type="application/octet-stream", headers=KEEP)

    def picture(self, request: HttpRequest) -> Response:
        take = self._take(request)
        frame = _number(request.path_params["frame"])
        for entry in take.blocks.since(0):
            if entry["first"] <= frame < entry["first"] + entry["frames"]:
                content = take.preview.read(entry["block"])
                if content is not None:
                    pictures = unpack(content)
                    return Response(pictures[frame - entry["first"]], media_type="image/jpeg", headers=KEEP)
        raise HTTPException(404, "there is no such frame yet")

    def file(self, request: HttpRequest) -> Response:
        take = self._take(request)
        kind = request.path_params["kind"]
        if kind not in FILES:
            raise HTTPException(404, f"a take's files are {', '.join(FILES)}")
        path = take.file(kind)
        if not path.is_file():
            raise HTTPException(404, f"take {take.number} has no {kind} yet")
        return FileResponse(path, filename=f"take{take.number:04d}{FILES[kind]}", content_disposition_type="inline")

    async def upload(self, request: HttpRequest) -> Response:
        if self.desk.uploading.locked():
            raise HTTPException(503, "another upload is on its way; try again in a moment")
        async with self.desk.uploading:
            content = await request.body()
            return JSONResponse(await run_in_threadpool(self.desk.uploads.keep, content), 201)

    def make_report(self, request: HttpRequest) -> Response:
        first, second = self._take(request, "first"), self._take(request, "second")
        self.desk.reports.make(first, second)
        return JSONResponse({"state": self.desk.reports.state(first, second)}, 202)

    def report(self, request: HttpRequest) -> Response:
        first, second = self._take(request, "first"), self._take(request, "second")
        state = self.desk.reports.state(first, second)
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"state": state})
        if state != "done":
            raise HTTPException(404, f"the report is not there: {state}")
        content = self.desk.reports.path(first, second).read_bytes()
        headers = {"content-security-policy": REPORT_POLICY}
        return Response(content, media_type="text/html", headers=headers)

    def _take(self, request: HttpRequest, name: str = "number") -> Take:
        number = _number(request.path_params[name])
        try:
            return self.desk.takes.get(number)
        except UserError as error:
            raise HTTPException(404, str(error)) from error


def _number(text: str) -> int:
    if not NUMBER.fullmatch(text):
        raise HTTPException(404, "a number is expected there")
    return int(text)


async def _json(request: HttpRequest) -> dict[str, Any]:
    """The body as a JSON object; sent as JSON, which forms of other sites cannot do."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send JSON, with content-type: application/json")
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is no JSON") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return content
