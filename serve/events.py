"""News for any number of readers, none of whom can keep the maker waiting.

Nothing is queued for a reader: it is told what changed since it last listened, as it is now. A reader that is slow
gets fewer, fresher news.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

PATIENCE = 20.0  # seconds a reader may leave what it was sent unread; then it is let go
HEARTBEAT = 10.0  # seconds after which a reader is sent a sign of life
CHECK = 0.5  # seconds between looks whether the server ends
PACE = 0.05  # seconds between news


class Events:
    """What changed, by key; any thread may tell.

    Args:
        most: readers at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.version = 0
        self.changed: dict[str, int] = {}  # key -> version of its last change
        self.lock = threading.Lock()
        self.readers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self.is_closed = False

    def tell(self, key: str) -> None:
        """Something that `key` stands for is not as it was."""
        with self.lock:
            self.version += 1
            self.changed[key] = self.version
            readers = list(self.readers.items())
        for reader, loop in readers:
            try:
                loop.call_soon_threadsafe(reader.set)
            except RuntimeError:  # its loop has ended
                continue

    def since(self, version: int) -> tuple[int, list[str]]:
        """The present version, and the keys that changed after `version`."""
        with self.lock:
            found = [key for key, changed in self.changed.items() if changed > version]
            return self.version, found

    def close(self) -> None:
        """Let all readers go."""
        self.is_closed = True
        self.tell("closed")


class EventStream:
    """A response that follows events, as `text/event-stream`.

    Args:
        describe: keys that changed, and whether these are the reader's first news -> what to send.
    """

    def __init__(self, events: Events, describe: Callable[[list[str], bool], dict[str, Any]]) -> None:
        self.events, self.describe = events, describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = self.events
        if len(events.readers) >= events.most:
            body = json.dumps({"error": f"{events.most} pages follow already; close one"}).encode()
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        woken = asyncio.Event()
        events.readers[woken] = asyncio.get_running_loop()
        gone = asyncio.ensure_future(_gone(receive))
        try:
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._follow(send, woken, gone)
        except (asyncio.TimeoutError, OSError):  # it reads no more, or is gone
            pass
        finally:
            gone.cancel()
            events.readers.pop(woken, None)

    async def _follow(self, send: Send, woken: asyncio.Event, gone: asyncio.Future) -> None:
        version = -1
        spoke = 0.0
        while not gone.done() and not self.events.is_closed:
            woken.clear()
            now, keys = self.events.since(version)
            text = ""
            if keys or version < 0:
                content = await asyncio.to_thread(self.describe, keys, version < 0)
                text = f"id: {now}\ndata: {json.dumps(content)}\n\n"
                version = now
            elif time.monotonic() - spoke > HEARTBEAT:
                text = ": still here\n\n"
            if text:
                message = {"type": "http.response.body", "body": text.encode(), "more_body": True}
                await asyncio.wait_for(send(message), PATIENCE)
                spoke = time.monotonic()
                await asyncio.sleep(PACE)
            waiting = asyncio.ensure_future(woken.wait())
            await asyncio.wait({waiting, gone}, timeout=CHECK, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    """Until the reader closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
