"""Watch and steer videos in the browser: `python -m serve.server BACKBONE METHOD [key=value ...]`, by `serve.sh`.

A page at an address that is printed: videos as they are made, what their memory holds, prompts that change
on the way. docs/serve.md describes the page and its HTTP interface.
"""

import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.backbones import arguments, usage
from pipeline.config import RunConfig, load_config
from serve.settings import ServeSettings, split_settings
from utils.errors import UserError, run
from utils.settings import print_help

if TYPE_CHECKING:
    import uvicorn

    from serve.events import Events

TAKES = "videos/{backbone}/takes"  # where takes are kept, unless output_folder says another place
CONNECTIONS = 256  # at once
GRACE = 2  # seconds that answers have to end when the server does


def main() -> None:
    backbone, method, words = parse(sys.argv[1:])
    settings, words = split_settings(words)
    serve(backbone, method, settings, words)


def parse(words: Sequence[str]) -> tuple[str, str, list[str]]:
    """Backbone, method and settings of a command line."""
    if {"-h", "--help"} & set(words):
        print_help(ServeSettings)
        print_help(RunConfig)
        sys.exit(0)
    if len(words) < 2:
        raise UserError(f"name a backbone and a method\n{usage().replace('inference.sh', 'serve.sh')}")
    backbone, method, *others = words
    arguments(backbone, method)
    for word in others:
        if "=" not in word:
            raise UserError(f"'{word}' is no setting; write key=value")
    return backbone, method, others


def serve(backbone: str, method: str, settings: ServeSettings, words: Sequence[str]) -> None:
    """Answer until a stop."""
    path, *own = arguments(backbone, method)
    config = load_config(path, [*own, f"output_folder={TAKES.format(backbone=backbone)}", *words])
    words = [word for word in words if not word.startswith(("output_folder=", "prompt=", "data_path="))]

    try:
        import uvicorn  # slow to import, as what follows (torch): only after the arguments are right
    except ImportError as error:
        raise UserError("the server's packages are missing; pip install -r requirements.txt") from error

    from pipeline.preflight import preflight
    from serve.desk import Desk
    from serve.http import application
    from serve.safety import Safety, new_token
    from serve.studio import Studio
    from serve.takes import Takes
    from serve.uploads import Uploads
    from utils.claim import claim
    from utils.ffmpeg import require_encoder
    from utils.files import require_writable

    require_encoder()
    found = preflight(config)
    folder = require_writable(config.output_folder, need_bytes=1 << 24).resolve()
    listener = listen(settings)
    with claim(folder, {"server": backbone}) as held:
        if not held.take("server"):
            raise UserError(f"another server has its takes in {folder}; name another output_folder=")
        uploads = Uploads(folder / ".uploads", settings)
        desk = Desk(Studio(backbone, method, words, settings, Takes(folder), uploads, found.format))
        token = new_token() if settings.is_open else None
        door = Safety(application(desk), settings, token, uploads.most_bytes)
        desk.jobs.models.pipeline(found)
        desk.jobs.start()
        print(f"takes are in {folder}\nopen {address(settings, listener, token)}", flush=True)
        options = uvicorn.Config(
            door,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE,
            lifespan="off",
        )
        server = uvicorn.Server(options)
        server.handle_exit = ending(server, desk.events)
        try:
            server.run(sockets=[listener])
        finally:
            desk.close()


def ending(server: "uvicorn.Server", events: "Events") -> Callable[..., None]:
    """What to do at a signal: let the readers of events go, then end."""
    end = server.handle_exit

    def handle(number: int, frame: FrameType | None) -> None:
        events.is_closed = True
        end(number, frame)

    return handle


def listen(settings: ServeSettings) -> socket.socket:
    """A socket at the address of the settings.

    Raises:
        UserError: it is taken, or no address of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)
        listener.set_inheritable(False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen at {settings.host}:{settings.port}: {reason}; choose host= or port=") from error
    return listener


def address(settings: ServeSettings, listener: socket.socket, token: str | None) -> str:
    """The address to open in a browser."""
    host = settings.host
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    if ":" in host:
        host = f"[{host}]"
    query = f"?token={token}" if token else ""
    return f"http://{host}:{listener.getsockname()[1]}/{query}"


if __name__ == "__main__":
    run(main)
