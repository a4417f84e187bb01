"""Where all meets: takes, queue, uploads, reports, and the news of them."""

import asyncio
from typing import Any

from serve.events import Events
from serve.jobs import Jobs
from serve.reports import Reports
from serve.request import parse_request
from serve.studio import Studio
from serve.takes import FAILED, Take
from utils.errors import UserError


class Desk:
    """What the HTTP interface talks to."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.takes, self.uploads = studio.takes, studio.uploads
        self.events = Events(studio.serve.readers)
        self.jobs = Jobs(studio, self.tell, self.finished)
        self.reports = Reports(studio.takes.folder / ".reports", lambda: self.events.tell("reports"))
        self.uploading = asyncio.Lock()
        self.choices = studio.choices()
        for take in self.takes.all():
            self.tell(take.number)

    def tell(self, number: int) -> None:
        self.events.tell(str(number))

    def finished(self, takes: list[Take]) -> None:
        """A report of two that were made side by side."""
        if len(takes) == 2 and all(take.is_finished for take in takes):
            self.reports.make(*takes)
            self.events.tell("reports")

    def submit(self, content: dict[str, Any]) -> list[Take]:
        """Queue a take, or two that are made side by side.

        Args:
            content: a request in JSON; `against` holds what differs in the second take.

        Raises:
            UserError: names what is wrong.
        """
        content = {"method": self.studio.method} | content
        against = content.pop("against", None)
        request = parse_request(content)
        contents = [content]
        if against is not None:
            if not isinstance(against, dict):
                raise UserError("against must be an object of the fields that differ")
            contents.append(content | against)
        requests = [parse_request(one) for one in contents]
        configs = [self.studio.check(one) for one in requests]
        self.jobs.require_room()
        takes: list[Take] = []
        for request, config in zip(requests, configs, strict=True):
            if takes:
                request = parse_request(request.to_json() | {"pair": takes[0].number})
            start = self.studio.start(request)
            takes.append(self.takes.add(request, config.num_output_frames, config.fps, start))
        self.jobs.submit(takes)
        return takes

    def delete(self, take: Take) -> None:
        """
        Raises:
            UserError: it is in use.
        """
        if take.number in self.jobs.present:
            raise UserError(f"take {take.number} is in the making; stop it first")
        self.takes.delete(take.number)
        self.tell(take.number)

    def describe(self, take: Take) -> dict[str, Any]:
        """A take in plain values; no path of this machine is among them."""
        request = take.request
        entries = take.blocks.found
        last = entries[max(entries)] if entries else None
        found = {
            "number": take.number,
            "title": take.title,
            "state": take.state,
            "error": take.error if take.state == FAILED else "",
            "created": take.created,
            "request": request.to_json(),
            "segments": [segment._asdict() for segment in take.segments],
            "frames": take.frames,
            "fps": take.fps,
            "blocks": len(entries),
            "there": last["first"] + last["frames"] if last else 0,
            "files": [kind for kind in ("video", "record", "latents", "plot") if take.file(kind).exists()],
        }
        return found | self.jobs.status(take)

    def news(self, keys: list[str], is_first: bool) -> dict[str, Any]:
        """What to send to a reader for keys that changed; `all` says that there are no other takes."""
        takes = []
        gone = []
        for key in keys:
            if not key.isdigit():
                continue
            take = self.takes.found.get(int(key))
            if take is None:
                gone.append(int(key))
            else:
                takes.append(self.describe(take))
        return {"takes": takes, "gone": gone, "reports": "reports" in keys, "all": is_first}

    def close(self) -> None:
        self.events.close()
        self.jobs.close()
