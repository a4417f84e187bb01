"""The server's parts: the door, news for slow readers, turns, the bounds of what comes in."""

import asyncio
import json
import threading

import numpy as np
import pytest

from serve import events as news
from serve.events import Events, EventStream
from serve.preview import pack, unpack
from serve.request import parse_request
from serve.safety import Safety
from serve.server import parse
from serve.settings import ServeSettings, split_settings
from serve.steering import PAUSE, STOP, SetAside, Steering, Turns
from serve.studio import changeable, quoted
from utils.errors import UserError

TOKEN = "a-token"


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def answer(settings: ServeSettings, token: str | None, path: str = "/", method: str = "GET", **headers: str):
    """Status and headers of what the door answers."""
    path, _, query = path.partition("?")
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    given = {"host": "127.0.0.1:1234"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    scope["headers"] = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
    asyncio.run(Safety(hello, settings, token, 1000)(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


OPEN = ServeSettings(host="0.0.0.0")
LOCAL = ServeSettings()


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer \xff"}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"cookie": f"longlive_token={TOKEN}"}, 200),
        ({"cookie": "longlive_token=wrong; ="}, 401),
        ({"authorization": f"Bearer {TOKEN}", "host": "192.168.1.7:1234"}, 200),
        ({"authorization": f"Bearer {TOKEN}", "host": "evil.example"}, 403),
        ({"authorization": f"Bearer {TOKEN}", "origin": "http://evil.example"}, 403),
        ({"authorization": f"Bearer {TOKEN}", "origin": "null"}, 403),
        ({"authorization": f"Bearer {TOKEN}", "sec_fetch_site": "cross-site"}, 403),
        ({"authorization": f"Bearer {TOKEN}", "origin": "http://127.0.0.1:1234"}, 200),
        ({"authorization": f"Bearer {TOKEN}", "content_length": "1" * 30}, 400),
    ],
)
def test_a_server_for_others_demands_its_token_and_its_own_pages(headers, status):
    found, sent = answer(OPEN, TOKEN, "/api/takes", **headers)
    assert found == status
    assert "script-src 'self'" in sent["content-security-policy"] and sent["x-content-type-options"] == "nosniff"


def test_the_token_leaves_the_address_for_a_cookie():
    status, headers = answer(OPEN, TOKEN, f"/?token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    assert answer(OPEN, TOKEN, "/?token=wrong")[0] == 401
    assert answer(OPEN, TOKEN, f"/api/takes?token={TOKEN}")[0] == 401


def test_a_server_for_this_machine_answers_to_its_names_alone():
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert answer(LOCAL, None, host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.1.7", "", "[", "localhost@evil.example"):
        assert answer(LOCAL, None, host=host)[0] == 403
    assert answer(LOCAL, None, "/api/uploads", "POST", content_length="1001")[0] == 413


def test_addresses_of_this_machine_alone_need_no_token():
    closed = ["127.0.0.1", "127.8.8.8", "::1", "localhost"]
    assert [ServeSettings(host=host).is_open for host in closed] == [False] * 4
    assert [ServeSettings(host=host).is_open for host in ("0.0.0.0", "::", "10.0.0.1", "studio")] == [True] * 4


def test_a_slow_reader_gets_the_newest_and_a_stuck_one_is_let_go(monkeypatch):
    """A thousand pieces of news while a reader reads its first: one more message, of the last."""
    monkeypatch.setattr(news, "PATIENCE", 0.2)
    monkeypatch.setattr(news, "PACE", 0.0)
    events, latest, sent = Events(4), {"value": 0}, []
    stream = EventStream(events, lambda keys, is_first: {"keys": keys, "value": latest["value"]})

    async def read() -> None:
        async def send(message):
            sent.append(message)
            if len(sent) == 2:  # the first news: meanwhile much happens
                for value in range(1000):
                    latest["value"] = value
                    events.tell("1")
            if len(sent) == 3:
                await asyncio.sleep(60)  # reads no more

        async def receive():
            await asyncio.sleep(60)

        await stream({"type": "http"}, receive, send)

    asyncio.run(read())
    texts = [json.loads(message["body"].decode().partition("data: ")[2]) for message in sent[1:]]
    assert texts == [{"keys": [], "value": 0}, {"keys": ["1"], "value": 999}]
    assert not events.readers


def test_two_takes_are_made_in_turn():
    turns, made = Turns(), []
    for who in "ab":
        turns.join(who)

    def make(who: str) -> None:
        for _ in range(5):
            with turns.turn(who):
                made.append(who)
        turns.leave(who)

    threads = [threading.Thread(target=make, args=(who,)) for who in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert made == list("ababababab")


def test_a_paused_take_waits_makes_room_and_ends_when_it_is_stopped():
    told, others = threading.Event(), []
    steering = Steering(told.set, lambda: bool(others))
    steering.ask(PAUSE)
    ended = []

    def wait() -> None:
        try:
            steering.wait(Turns(), "a")
        except SetAside:
            ended.append(steering.wish)

    thread = threading.Thread(target=wait)
    thread.start()
    assert told.wait(30) and not ended
    others.append("b")
    steering.nudge()
    thread.join(30)
    assert ended == [PAUSE]
    steering.ask(STOP)
    steering.ask(PAUSE)  # too late
    assert steering.wish == STOP
    with pytest.raises(SetAside):
        steering.wait(Turns(), "a")


def test_no_setting_that_names_a_file_or_a_place_can_be_changed_from_a_page():
    names = changeable()
    assert {"model_kwargs.memory_size", "model_kwargs.selection", "bank.storage"} <= names
    for name in ("model_kwargs.ae_ckpt", "output_folder", "generator_ckpt", "device", "data_path", "start", "parent"):
        assert name not in names
    assert not [name for name in names if "ckpt" in name or "folder" in name or "path" in name]


def test_a_request_is_read_strictly_and_comes_back_whole():
    content = {"prompt": "a", "method": "latentmem", "seed": 3, "settings": {"model_kwargs.memory_size": 4}}
    request = parse_request(content)
    assert request.settings == {"model_kwargs.memory_size": "4"}
    assert parse_request(request.to_json()) == request
    for wrong in ([], {"prompt": "a", "seed": True}, {"prompt": "a", "settings": [1]}, {"prompt": 3}, {3: "a"}):
        with pytest.raises(UserError):
            parse_request(wrong)


def test_pictures_are_packed_and_unpacked():
    pictures = [np.random.default_rng(0).bytes(size) for size in (3, 0, 70000)]
    assert unpack(pack(pictures)) == pictures and unpack(pack([])) == []


def test_a_command_line_is_split_between_server_and_runs():
    settings, others = split_settings(["port=8000", "seed=7", "waiting=2"])
    assert (settings.port, settings.waiting, others) == (8000, 2, ["seed=7"])
    assert parse(["tinyworld", "native", "seed=7"]) == ("tinyworld", "native", ["seed=7"])
    for words in (["tinyworld"], ["tinyworld", "nativ"], ["tinyworld", "native", "x"]):
        with pytest.raises(UserError):
            parse(words)
    assert quoted("prompt=it's a") == "prompt='it'\\''s a'" and quoted("seed=7") == "seed=7"
