"""Who may ask, and how much: addresses, origins, the token, sizes. Wraps the whole application."""

import asyncio
import hashlib
import hmac
import json
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.settings import ServeSettings

COOKIE = "longlive_token"
MOST_JSON = 1 << 16  # bytes of a request's body, but for uploads
PATIENCE = 20.0  # seconds between two pieces of a request's body
UPLOADS = "/api/uploads"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Refused(Exception):
    """A request that is not answered; status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def new_token() -> str:
    return secrets.token_urlsafe(32)


class Safety:
    """The door: everything that comes in passes it.

    Args:
        token: demanded of every request; None where only this machine can ask.
        most_upload: bytes.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, token: str | None, most_upload: int) -> None:
        self.app, self.settings, self.token, self.most_upload = app, settings, token, most_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_address(headers)
            self._check_origin(headers, scope)
            cookie = self._check_token(headers, scope)
            most = self.most_upload if scope["path"] == UPLOADS else MOST_JSON
            _check_length(headers, most)
        except Refused as refused:
            await _refuse(send, refused.status, str(refused))
            return
        if cookie is not None:  # the token leaves the address line
            location = scope["path"].encode("ascii", "ignore") or b"/"
            headers_out = [(b"location", location), (b"set-cookie", cookie.encode())]
            await send({"type": "http.response.start", "status": 303, "headers": headers_out})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._pass(scope, receive, send, most)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        """Let the application answer, its headers made safe and the body counted as it comes."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, _Counted(receive, most), guarded)

    def _check_address(self, headers: dict[str, str]) -> None:
        """The name that the client used for this machine: another site's name that leads here is refused."""
        host = _hostname(headers.get("host", ""))
        known = {"localhost", "127.0.0.1", "::1", (self.settings.name or "localhost").lower()}
        if self.settings.is_open:
            known |= {self.settings.host.lower(), socket.gethostname().lower()}
        if host in known or (self.settings.is_open and _is_address(host)):
            return
        raise Refused(403, "this server is not known by that name; use the address that it printed")

    def _check_origin(self, headers: dict[str, str], scope: Scope) -> None:
        """Pages of other sites may not ask."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise Refused(403, "requests from pages of other sites are refused")
        site = headers.get("sec-fetch-site", "none")
        is_opening = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
        if site not in ("same-origin", "none") and not is_opening:
            raise Refused(403, "requests from pages of other sites are refused")

    def _check_token(self, headers: dict[str, str], scope: Scope) -> str | None:
        """A cookie to set, where the token came in the address line.

        Raises:
            Refused: no token, or a wrong one.
        """
        if self.token is None:
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["path"] == "/" and scope["method"] == "GET" and "token" in query:
            if self._is_right(query["token"][0]):
                return f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            raise Refused(401, "wrong token; it was printed when the server started")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_right(given.strip()):
            return None
        if self._is_right(_cookie(headers.get("cookie", ""))):
            return None
        raise Refused(401, "a token is needed: open the address that the server printed, or send Authorization: Bearer")

    def _is_right(self, given: str) -> bool:
        """Whether a token is the right one, in a time that tells nothing of it."""
        ours = hashlib.sha256(self.token.encode()).digest()
        theirs = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        return hmac.compare_digest(ours, theirs)


class _Counted:
    """Receives a request's body, piece by piece, as long as it is not too long and does come.

    Args:
        most: bytes.
    """

    def __init__(self, receive: Receive, most: int) -> None:
        self.receive, self.most = receive, most
        self.bytes = 0
        self.is_whole = False

    async def __call__(self) -> Message:
        if self.is_whole:  # what comes now is the end of the connection, however late
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), PATIENCE)
        except asyncio.TimeoutError as error:
            raise HTTPException(408, "the request did not come to its end") from error
        if message["type"] == "http.request":
            self.bytes += len(message.get("body", b""))
            self.is_whole = not message.get("more_body", False)
            if self.bytes > self.most:
                raise HTTPException(413, f"at most {self.most} bytes are taken")
        return message


def _check_length(headers: dict[str, str], most: int) -> None:
    length = headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 15:
        raise Refused(400, "content-length is no number")
    if int(length) > most:
        raise Refused(413, f"at most {most} bytes are taken")


async def _refuse(send: Send, status: int, words: str) -> None:
    body = json.dumps({"error": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _hostname(host: str) -> str:
    """The name in a Host header, without port and brackets; empty where there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _cookie(header: str) -> str:
    try:
        cookies = SimpleCookie(header)
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""
