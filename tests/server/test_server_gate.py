"""Who comes in, how much, how long; what is told to operators; and a process that is stopped, killed and started."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import socket
import sys
import threading
import time
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from rewarding import MEMORY, PATIENCE, ROOT, Noted, Process, Reply, Web, native, process, served, start, until
from running import provider

import rlaif
from labeler.backend import BackendError
from labeler.fake import RULES
from labeler.server import app as pages
from labeler.server import connections, gate, serving
from labeler.server.gate import Gate
from labeler.server.metrics import Metrics
from labeler.server.options import Listening

TOKEN = "t0ken-recognisable-5a1c"
BODY = native("x")
PATHS = (
    "/v1/rewards",
    "/v1/preferences",
    "/get_reward",
    "/rm",
    "/v1/score/evaluation",
    "/",
    "/verify",
    "/seed_session",
)
PATHS += ("/aggregate_metrics", "/classify", "/v1/classify", "/pooling", "/v1/embeddings", "/score", "/v1/score")


def running(work: Any, backend: Any = None, **options: Any) -> Any:
    async def run() -> Any:
        async with served(backend, **options) as web:
            return await work(web)

    return asyncio.run(run())


def asked(path: str, body: Any = BODY, *, method: str = "POST", headers: Any = None, **options: Any) -> Reply:
    return running(lambda web: web.ask(method, path, body, headers=headers), **options)


def problem(reply: Reply) -> str:
    """An error's message; its body has one shape."""
    assert list(reply.json) == ["error"]
    assert sorted(reply.json["error"]) == ["message", "type"]
    assert reply.headers["content-type"] == "application/json"
    return reply.json["error"]["message"]


async def soon(what: Any) -> None:
    """Until it is true, which is a matter of a few turns of the loop."""
    async with asyncio.timeout(PATIENCE):
        while not await what():
            await asyncio.sleep(0.001)


# Tokens


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/rewards", {"Authorization": f"Bearer {TOKEN}"}),
        ("/v1/rewards", {"X-API-Key": TOKEN}),
        (f"/v1/rewards?key={TOKEN}", {}),
        (f"/k/{TOKEN}/v1/rewards", {}),
    ],
)
def test_the_token_may_come_in_four_ways(path, headers):
    assert asked(path, headers=headers, token=TOKEN).status == 200


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/rewards", {}),
        ("/v1/rewards", {"Authorization": "Bearer wrong"}),
        ("/v1/rewards", {"Authorization": "Bearer"}),
        ("/v1/rewards", {"Authorization": f"Bearer {TOKEN}x"}),
        ("/v1/rewards", {"X-API-Key": TOKEN[:-1]}),
        ("/v1/rewards", {"X-API-Key": "ü\xff"}),
        ("/v1/rewards?key=wrong", {}),
        ("/v1/rewards?key=%ff%00", {}),
        ("/v1/rewards?key=", {}),
        ("/k/wrong/v1/rewards", {}),
        ("/k//v1/rewards", {}),
        ("/k", {}),
        ("/k/", {}),
        (f"/k/{TOKEN.upper()}/v1/rewards", {}),
    ],
)
def test_a_wrong_token_is_refused_in_every_way_and_nothing_is_asked(path, headers):
    backend = Noted()
    reply = asked(path, headers=headers, token=TOKEN, backend=backend)
    assert reply.status == 401
    assert TOKEN not in problem(reply)
    assert backend.about("RESPONSE: x") == 0


def test_every_path_and_every_page_wants_the_token():
    async def work(web: Web) -> Any:
        found = {("POST", path): await web.post(path, BODY) for path in (*PATHS, "/nothing-there")}
        pages = ("/metrics", "/v1/models", "/openapi.json", "/", "/reverify_mode", "/docs", "/nothing-there")
        return found | {("GET", path): await web.get(path) for path in pages}

    assert {where: reply.status for where, reply in running(work, token=TOKEN).items() if reply.status != 401} == {}


def test_probes_need_no_token_and_tell_nothing():
    async def work(web: Web) -> Any:
        return [await web.get(path) for path in ("/health", "/ready")]

    for reply in running(work, token=TOKEN):
        assert reply.status in {200, 503}
        assert not {"model", "task"} & set(reply.json)


def test_without_a_token_a_token_does_no_harm():
    assert asked("/k/anything/v1/rewards").status == 200
    assert asked("/v1/rewards", headers={"Authorization": "Bearer x"}).status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.3.4", "::", "example.org", "localhost.example.org"])
def test_beyond_this_machine_a_token_is_needed(host, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RLAIF_TOKEN", raising=False)
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        rlaif.main(["serve", "--task", "helpfulness", "--model", "fake:noise", "--host", host])
    assert ended.value.code == 1
    assert "--token-file" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_on_this_machine_no_token_is_needed(host):
    serving._check(Listening(host=host), None)


def test_who_wants_to_may_do_without_a_token_beyond_this_machine():
    serving._check(Listening(host="0.0.0.0", no_token=True), None)
    serving._check(Listening(host="0.0.0.0"), TOKEN)


@pytest.mark.parametrize("content", ["two words", "a/b", "a\tb", "a\x07b"])
def test_a_bad_token_in_the_environment_is_refused_by_its_name(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path))
    monkeypatch.setenv("RLAIF_TOKEN", content)
    with pytest.raises(SystemExit) as ended:
        rlaif.main(["serve", "--task", "helpfulness", "--model", "fake:noise"])
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert "RLAIF_TOKEN: expected one token" in told
    assert content not in told


@pytest.mark.parametrize("content", ["", "   \n", "two words", "a/b", "a\tb"])
def test_a_file_without_a_good_token_is_refused(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path))
    (tmp_path / "token").write_text(content)
    with pytest.raises(SystemExit) as ended:
        rlaif.main(["serve", "--task", "helpfulness", "--model", "fake:noise", "--token-file", str(tmp_path / "token")])
    assert ended.value.code == 1
    assert "--token-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "fake:nothing"], "unknown rule"),
        (["--task", "helpfulness", "--model", "fake:noise"], "each task once"),
        (["--model", "fake:noise", "--weights", "1", "--weights", "2"], "--weights"),
        (["--model", "fake:noise", "--rule", "safety-first"], "two tasks"),
        (["--model", "fake:noise", "--unsafe", "0.3"], "--unsafe belongs to"),
        (["--model", "fake:noise", "--rule", "safety-first", "--unsafe", "15"], "--unsafe 15: expected 0 to 1"),
        (["--model", "fake:noise", "--rule", "safety-first", "--weights", "1"], "--weights belongs to"),
        (["--model", "fake:noise", "--sharpness", "0"], "--sharpness 0"),
        (["--model", "fake:noise", "--base-url", "http://127.0.0.1:1/v1"], "runs in this process"),
        (["--model", "fake:noise", "--on-failure", "fallback"], "--fallback"),
    ],
)
def test_a_server_that_makes_no_sense_does_not_begin(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        rlaif.main(["serve", "--task", "helpfulness", *words])
    assert ended.value.code == 1
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(RuntimeError, match=f"^rlaif: cannot listen on 127.0.0.1, port {port}: .*--port"):
            start("--task", "helpfulness", "--model", "fake:noise", "--port", port, cache=tmp_path)


# Sizes and times


LARGEST = 1 << 20
SMALL = Listening(largest_body=1)


def body_of(size: int) -> bytes:
    made = json.dumps(native("x", padding="")).encode()
    return made.replace(b'"padding": ""', b'"padding": "' + b"p" * (size - len(made)) + b'"')


def test_a_body_of_the_largest_size_is_taken_and_one_byte_more_is_not():
    fits, larger = body_of(LARGEST), body_of(LARGEST + 1)
    assert (len(fits), len(larger)) == (LARGEST, LARGEST + 1)
    assert asked("/v1/rewards", fits, listening=SMALL).status == 200
    reply = asked("/v1/rewards", larger, listening=SMALL)
    assert reply.status == 413
    assert "--largest-body" in problem(reply)


@pytest.mark.parametrize("told", ["9" * 30, "-1", "1e3", "", "abc"])
def test_a_length_that_is_too_large_or_none_is_refused_before_the_body(told):
    reply = asked("/v1/rewards", headers={"content-length": told}, listening=SMALL)
    assert reply.status == 413


def test_a_chunked_body_is_counted_as_it_comes():
    async def work(web: Web) -> Any:
        whole = body_of(LARGEST)
        fits = [whole[at : at + 100_000] for at in range(0, len(whole), 100_000)]
        larger = iter([b"x" * (LARGEST // 4)] * 100)
        replies = [await web.post("/v1/rewards", parts=each) for each in (fits, larger)]
        return [each.status for each in replies], sum(1 for _ in larger)

    assert running(work, listening=SMALL) == ([200, 413], 94), (
        "the fifth part was one too many, the sixth was on its way"
    )


@pytest.mark.parametrize(("more", "left"), [(gate.DISCARDED, 0), (gate.DISCARDED + 1, 4)])
def test_of_a_body_that_is_a_little_too_large_the_rest_is_thrown_away_so_that_the_answer_is_heard(more, left):
    async def work(web: Web) -> Any:
        parts = iter([b"x" * LARGEST] * 5)
        told = {"content-length": str(LARGEST + more)}
        status = (await web.post("/v1/rewards", parts=parts, headers=told)).status
        return status, len(list(parts))

    assert running(work, listening=SMALL) == (413, left)  # the harness takes one part in advance


def test_a_body_that_never_comes_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(gate, "DISCARDING", 0.05)
    told = {"content-length": str(LARGEST + 1)}
    reply = running(lambda web: web.post("/v1/rewards", headers=told, unended=True), listening=SMALL)
    assert reply.status == 413


def test_a_body_that_does_not_end_is_cut():
    async def work(web: Web) -> Any:
        return await web.post("/v1/rewards", b'{"items": [', unended=True)

    reply = running(work, patience=0.05)
    assert reply.status == 408
    assert "0.05" in problem(reply)


@pytest.mark.parametrize("sent", [b"x" * (3 << 20), b'{"items": ['], ids=["too large", "without an end"])
def test_the_connection_of_a_body_that_was_not_read_is_closed(sent, tmp_path, monkeypatch):
    """Whatever dribbles in afterwards keeps nothing open."""
    program = (
        sys.executable,
        "-c",
        "from labeler.server import serving; serving.BODY = 0.3; import rlaif; rlaif.main()",
    )
    it = start(*WORDS, "--largest-body", "1", cache=tmp_path, program=program, PYTHONPATH=str(ROOT))
    try:
        with socket.create_connection(("127.0.0.1", it.port), PATIENCE) as wire:
            wire.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(OSError):
                wire.sendall(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")
            heard = b""
            with contextlib.suppress(ConnectionResetError):
                while part := wire.recv(65_536):
                    heard += part
        assert b"connection: close" in heard
        assert heard.split()[1] in {b"413", b"408"}
    finally:
        it.kill()


def connected(it: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", it.port), PATIENCE)


def test_a_length_that_is_too_large_is_refused_before_a_caller_who_asks_first_sends_anything(tmp_path):
    """curl asks with Expect: 100-continue before it sends a large body."""
    head = b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\nExpect: 100-continue\r\n\r\n"
    with process(*WORDS, "--largest-body", "1", cache=tmp_path) as it, connected(it) as wire:
        wire.sendall(head)
        assert wire.recv(65_536).split()[1] == b"413"


def test_who_sends_slowly_hears_at_once_that_it_is_too_much(tmp_path):
    head = b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n"
    with process(*WORDS, "--largest-body", "1", cache=tmp_path) as it, connected(it) as wire:
        wire.sendall(head + b"x" * 1000)
        wire.settimeout(gate.DISCARDING / 2)
        assert wire.recv(65_536).split()[1] == b"413"


def test_connections_take_turns_also_from_one_address():
    """4,096 responses of one request do not stand before a single one of another."""

    async def run() -> None:
        backend = Noted(let=asyncio.Event(), rows=1)
        assert backend.let is not None
        async with served(backend) as web:
            busy = await occupied(web)
            many = asyncio.create_task(web.post("/v1/rewards", native(*map(str, range(300))), port=1))
            await soon(lambda: _is(web, "rlaif_queue_items", 300))
            one = asyncio.create_task(web.post("/v1/rewards", native("single"), port=2))
            await soon(lambda: _is(web, "rlaif_queue_items", 301))
            backend.let.set()
            assert (await one).status == 200
            assert not many.done()
            assert [(await each).status for each in (busy, many)] == [200, 200]

    asyncio.run(run())


def test_a_caller_who_hangs_up_while_sending_costs_nothing():
    async def work(web: Web) -> Any:
        gone = asyncio.Event()
        gone.set()
        backend_asked = await web.metric("rlaif_batch_items_count")
        await web.post("/v1/rewards", b'{"items": [', unended=True, gone=gone)
        return backend_asked, await web.metric("rlaif_requests_in_flight")

    assert running(work)[1] == 1, "the request for metrics itself"


def test_who_hangs_up_is_not_waited_for_and_what_was_to_be_asked_is_not():
    async def run() -> None:
        backend = Noted(let=asyncio.Event(), rows=1)
        assert backend.let is not None
        async with served(backend) as web:
            busy = await occupied(web)
            gone = asyncio.Event()
            left = asyncio.create_task(web.post("/v1/rewards", native("abandoned"), gone=gone))
            stays = asyncio.create_task(web.post("/v1/rewards", native("kept")))
            await soon(lambda: _is(web, "rlaif_queue_items", 2))
            gone.set()
            assert (await left).status == 0, "there is nobody to answer"
            assert await web.metric("rlaif_requests_in_flight") == 3, "two that stay, and this one"
            backend.let.set()
            assert [(await each).status for each in (busy, stays)] == [200, 200]
            assert await web.metric('rlaif_request_seconds_count{path="/v1/rewards",status="499"}') == 1
        assert (backend.about("abandoned"), backend.about("kept")) == (0, 1)

    asyncio.run(run())


async def occupied(web: Web) -> asyncio.Task[Any]:
    """A request that the model has begun to answer."""
    asking = asyncio.create_task(web.post("/v1/rewards", native("busy")))
    await soon(lambda: _is(web, "rlaif_batch_items_count", 1))
    return asking


async def _is(web: Web, sample: str, value: float) -> bool:
    return await web.metric(sample) == value


def test_a_full_server_refuses_and_says_when_to_come_again():
    async def run() -> None:
        backend = Noted(let=asyncio.Event(), rows=1)
        assert backend.let is not None
        async with served(backend, listening=Listening(waiting=1)) as web:
            busy = await occupied(web)
            waits = asyncio.create_task(web.post("/rm", {"prompt": "p", "response": "waits"}))
            await soon(lambda: _is(web, "rlaif_queue_items", 1))
            full = await web.post("/rm", {"prompt": "p", "response": "one more"})
            assert (full.status, full.headers["retry-after"]) == (503, "1")
            assert problem(full).startswith("overloaded")
            backend.let.set()
            assert [(await each).status for each in (busy, waits)] == [200, 200]

    asyncio.run(run())


# What is told


def test_every_answer_has_an_id_of_its_own():
    async def work(web: Web) -> Any:
        replies = [await web.post("/v1/rewards", body) for body in (BODY, BODY, b"no json")]
        return [*replies, await web.get("/health"), await web.get("/nothing")]

    ids = [each.headers["x-request-id"] for each in running(work, token=None)]
    assert len(set(ids)) == 5
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids)


def test_a_defect_is_an_error_with_the_requests_id_and_without_its_text(caplog):
    async def boom(body: bytes, client: str) -> tuple[int, bytes]:
        raise ValueError(body.decode())

    async def nothing(*_: Any) -> None: ...

    gate = Gate({("POST", "/x"): boom}, nothing, None, 1000, 1, Metrics())
    reply = asyncio.run(Web(gate).post("/x", b"a secret text"))
    assert reply.status == 500
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] in problem(reply)
    assert reply.headers["x-request-id"] in caplog.text
    assert "in boom" in caplog.text
    assert "secret" not in caplog.text


def test_what_is_wrong_with_a_body_is_said_without_repeating_it():
    async def work(web: Web) -> Any:
        bodies = (b'{"secret-7f": ', b'["secret-7f"]', b"secret-7f", b'{"items": "secret-7f", "query": "secret-7f"}')
        return [await web.post(path, body) for path in PATHS for body in bodies]

    refused = [reply for reply in running(work) if reply.status != 200]
    assert len(refused) > 3 * len(PATHS)
    for reply in refused:
        assert reply.status == 422
        assert "secret-7f" not in problem(reply)


def test_the_process_is_healthy_at_once_and_ready_when_the_model_has_answered():
    async def run() -> None:
        backend = Noted(let=asyncio.Event())
        assert backend.let is not None
        async with served(backend) as web:
            await backend.begun.wait()
            assert (await web.get("/health")).status == 200
            before = await web.get("/ready")
            assert (before.status, before.json) == (503, {"ready": False, "why": "warming up"})
            backend.let.set()
            await soon(lambda: _ready(web))
            assert (await web.get("/ready")).json == {"ready": True, "why": None}
            assert len(backend.asked) == 1

    asyncio.run(run())


async def _ready(web: Web) -> bool:
    return (await web.get("/ready")).status == 200


def test_a_model_that_fails_is_not_ready_says_why_and_is_tried_again(monkeypatch):
    monkeypatch.setattr(pages, "AGAIN", 0.01)
    works = False

    def rule(request: Any) -> Any:
        return RULES["noise" if works else "nan"](request)

    async def run() -> None:
        nonlocal works
        async with served(Noted(rule=rule)) as web:
            await soon(lambda: _says(web, "nan"))
            works = True
            await soon(lambda: _ready(web))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "told"), [(BackendError("status 404: check --model"), "check --model"), (KeyError("secret"), "KeyError")]
)
def test_a_model_that_cannot_be_asked_is_not_ready_and_is_tried_again(error, told, monkeypatch):
    monkeypatch.setattr(pages, "AGAIN", 0.01)
    errors = [error]

    def rule(request: Any) -> Any:
        if errors:
            raise errors[0]
        return RULES["noise"](request)

    async def run() -> None:
        async with served(Noted(rule=rule)) as web:
            await soon(lambda: _says(web, told))
            assert not await _says(web, "secret")
            errors.clear()
            await soon(lambda: _ready(web))

    asyncio.run(run())


async def _says(web: Web, word: str) -> bool:
    return word in ((await web.get("/ready")).json["why"] or "")


def test_every_task_is_warmed_up():
    async def run() -> None:
        backend = Noted()
        async with served(backend, tasks=("helpfulness", "harmlessness")) as web:
            await soon(lambda: _ready(web))
            assert len(backend.asked) == 2

    asyncio.run(run())


def test_metrics_are_prometheus_and_count_what_happened():
    def rule(request: Any) -> Any:
        return RULES["nan" if "BAD" in request.prompt.plain() else "noise"](request)

    async def work(web: Web) -> Any:
        await soon(lambda: _ready(web))
        await web.post("/v1/rewards", native("a", "b", "BAD"))
        await web.post("/v1/rewards", native("a"))
        await web.post("/v1/rewards", b"no json")
        await web.get("/a-path-that-somebody-made-up")
        return await web.get("/metrics")

    reply = running(work, Noted(rule=rule))
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {each.name: each for each in text_string_to_metric_families(reply.text)}
    found = {(s.name, *sorted(s.labels.values())): s.value for each in families.values() for s in each.samples}
    assert found["rlaif_items_total", "model"] == 3
    assert found["rlaif_items_total", "nan"] == 1
    assert found["rlaif_cache_hits_total",] == 1
    assert found["rlaif_reward_count",] == 3
    assert found["rlaif_batch_items_sum",] == 3, "a, b and BAD"
    assert found["rlaif_request_seconds_count", "/v1/rewards", "200"] == 2
    assert found["rlaif_request_seconds_count", "/v1/rewards", "422"] == 1
    assert found["rlaif_request_seconds_count", "404", "other"] == 1
    assert "made-up" not in reply.text
    assert {"rlaif_queue_items", "rlaif_requests_in_flight", "rlaif_joined"} <= set(families)
    assert all(each.documentation for each in families.values())


def shape(value: Any) -> Any:
    """Names and kinds, whatever the numbers."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return type(value).__name__.replace("int", "float")


def test_the_document_is_openapi_and_its_examples_are_answered():
    validate = pytest.importorskip("openapi_spec_validator").validate

    async def work(web: Web) -> Any:
        document = (await web.get("/openapi.json")).json
        validate(document)
        assert document["openapi"].startswith("3.1")
        assert set(PATHS) | {"/health", "/ready", "/metrics", "/v1/models"} <= set(document["paths"])
        operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        assert len({each["operationId"] for _, _, each in operations}) == len(operations)
        for method, path, operation in operations:
            content = operation.get("requestBody", {}).get("content", {})
            body = content["application/json"]["example"] if content else b""
            found = await web.ask(method, path, body)
            assert found.status == (200 if path != "/ready" else 503), (method, path)
            told = operation["responses"]["200"]["content"].get("application/json", {})
            assert ("example" in told) == (method == "POST" or path == "/reverify_mode"), path
            if "example" in told:
                assert shape(told["example"]) == shape(found.json), path

    running(work, Noted(let=None))


def test_what_is_served_is_listed():
    found = asked("/v1/models", b"", method="GET").json
    assert (found["object"], found["data"][0]["id"], found["data"][0]["task"]) == ("list", "fake:noise", "helpfulness")


def test_the_page_shows_the_rewards_and_runs_no_script():
    async def work(web: Web) -> Any:
        await web.post("/v1/rewards", native("a", "b"))
        return await web.get("/")

    reply = running(work)
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "model 2" in reply.text
    assert "<script" not in reply.text


# A process


WORDS = ("--task", "helpfulness", "--model", "fake:noise")
SECRETS = ("prompt-3c5f", "response-9a1b", "label-77d2", "bad-0c4e")


def test_no_text_and_no_token_is_ever_logged(tmp_path):
    prompt, response, label, bad = SECRETS
    with process(*WORDS, "--verbose", cache=tmp_path, RLAIF_TOKEN=TOKEN) as it:
        assert TOKEN in it.running.args or all(TOKEN not in str(word) for word in it.running.args)
        for path, body in {
            "/v1/rewards": {"items": [{"id": label, "prompt": prompt, "response": response}]},
            f"/k/{TOKEN}/get_reward": {"query": [prompt + response], "prompts": [prompt], "labels": [label]},
            f"/rm?key={TOKEN}": {"prompt": prompt, "response": response, "label": label},
            "/score": {"text_1": [prompt], "text_2": [response, response, response, 7]},
            "/verify": {"responses_create_params": {"input": prompt}, "response": {"output": response}},
            "/classify": bad.encode(),
            f"/made-up/{bad}": {"messages": [prompt]},
        }.items():
            reply = it.ask("POST", path, body, Authorization=f"Bearer {TOKEN}")
            assert reply.status in {200, 404, 422}, reply
        it.ask("POST", "/rm", {"prompt": prompt}, Authorization=f"Bearer {bad}")
        assert it.stop() is not None
    lines = [json.loads(line) for line in it.said if line.startswith("{")]
    assert [each["status"] for each in lines if each["path"] == "/rm"] == [200, 401]
    assert set(lines[0]) == {"request", "path", "status", "seconds", "client"}
    logged = "\n".join(line for line in it.said if "made-up" not in line)
    assert not [each for each in (*SECRETS, TOKEN) if each in logged]
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert kept
    assert not [each for each in (*SECRETS, TOKEN) if each.encode() in kept], "answers are kept under a hash"


def test_it_says_little_without_verbose_and_nothing_about_requests(tmp_path):
    with process(*WORDS, cache=tmp_path) as it:
        for body in (native("x"), b"no json"):
            it.ask("POST", "/v1/rewards", body)
        it.stop()
    assert len(it.said) == 1


def test_a_body_is_bounded_on_the_wire_too(tmp_path):
    with process(*WORDS, "--largest-body", "1", cache=tmp_path) as it:
        assert it.ask("POST", "/v1/rewards", body_of(LARGEST)).status == 200
        assert it.ask("POST", "/v1/rewards", body_of(LARGEST + 1)).status == 413
        connection = HTTPConnection("127.0.0.1", it.port, timeout=PATIENCE)
        chunked = (b"x" * 65_536 for _ in range(17))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may come before the body's end
            connection.request("POST", "/v1/rewards", chunked, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert it.ask("POST", "/v1/rewards", BODY).status == 200


def wait_ready(it: Process) -> None:
    end = time.monotonic() + PATIENCE
    while it.ask("GET", "/ready").status != 200:
        assert time.monotonic() < end
        time.sleep(0.02)


def metric(it: Process, sample: str) -> float:
    lines = it.ask("GET", "/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{sample} ")), 0.0)


def remote(it: Any) -> tuple[str, ...]:
    return ("--task", "helpfulness", "--model", "openai:gpt-4o", "--base-url", f"{it.url}/v1", "--price", "1,1")


KEY = {"OPENAI_API_KEY": "sk-stand-in", "no_proxy": "127.0.0.1"}


def test_a_stopping_server_finishes_what_it_accepted_and_takes_no_more(tmp_path):
    with provider() as model, process(*remote(model), cache=tmp_path, **KEY) as it:
        wait_ready(it)
        model.control(latency=1.0)
        found: list[Reply] = []
        asking = threading.Thread(target=lambda: found.append(it.ask("POST", "/v1/rewards", native("accepted"))))
        asking.start()
        until(lambda: metric(it, "rlaif_batch_items_count") == 1)
        it.running.terminate()
        until(lambda: not open_to_all(it.port))
        assert not found, "it was still under way when the door was shut"
        asking.join(PATIENCE)
        assert found[0].status == 200
        assert found[0].json["items"][0]["status"] == "ok"
        it.ended()
    assert not [line for line in it.said if "Traceback" in line]


def open_to_all(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_killed_and_started_again_it_asks_nothing_twice(tmp_path):
    def questions() -> int:
        return model.seen(answers=False)["answered_total"]

    with provider() as model:
        with process(*remote(model), "--kept", "disk", cache=tmp_path, **KEY) as it:
            wait_ready(it)
            first = it.ask("POST", "/v1/rewards", native("a", "b", "c")).json["items"]
            before = questions()
            it.kill()
        with process(*remote(model), "--kept", "disk", cache=tmp_path, **KEY) as it:
            wait_ready(it)
            again = it.ask("POST", "/v1/rewards", native("a", "b", "c")).json["items"]
            assert questions() == before + before // 4, (
                "four questions before; now the warm-up's, which is always asked"
            )
            it.ask("POST", "/v1/rewards", native("d"))
            assert questions() == before + before // 2
    assert [each["reward"] for each in again] == [each["reward"] for each in first]


def test_two_ways_to_ask_the_wire_at_once_are_answered_in_their_order(tmp_path):
    """A client that sends its next request before it has read the answer to the first."""
    with process(*WORDS, cache=tmp_path) as it, socket.create_connection(("127.0.0.1", it.port), PATIENCE) as wire:
        bodies = [json.dumps(native(each)).encode() for each in ("one", "two")]
        sent = [b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(b), b) for b in bodies]
        wire.sendall(b"".join(sent))
        wire.settimeout(PATIENCE)
        heard = io.BytesIO()
        while heard.getvalue().count(b'"items":[') < 2:
            part = wire.recv(65_536)
            assert part
            heard.write(part)
        told = re.findall(rb'"reward":(-?[\d.]+)', heard.getvalue())
        alone = [it.ask("POST", "/v1/rewards", native(each)).json["items"][0]["reward"] for each in ("one", "two")]
        assert list(map(float, told)) == alone


def test_the_memory_option_keeps_nothing_on_disk(tmp_path):
    with process(*WORDS, "--kept", MEMORY.kept, cache=tmp_path) as it:
        it.ask("POST", "/v1/rewards", BODY)
        it.stop()
    assert not list(tmp_path.rglob("*.journal"))


def test_a_head_that_does_not_end_is_cut_off_before_anybody_is_asked_for_a_token(tmp_path):
    with process(*WORDS, cache=tmp_path, RLAIF_TOKEN=TOKEN) as it:
        wire = socket.create_connection(("127.0.0.1", it.port), PATIENCE)
        wire.sendall(b"POST /v1/rewards HTTP/1.1\r\n")
        line, sent = b"X: " + b"a" * 9000 + b"\r\n", 0
        with wire, contextlib.suppress(ConnectionError):
            while sent < 50 << 20:
                wire.sendall(line)
                sent += len(line)
        assert sent < 50 << 20
        assert it.ask("GET", "/health").status == 200


def test_a_head_must_come_in_time_and_a_quiet_connection_may_live(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEAD_WITHIN", 0.2)

    async def run() -> None:
        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

        config = uvicorn.Config(app, lifespan="off", log_level="error")
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        web = await loop.create_server(lambda: connections.Connection(config, state, {}), "127.0.0.1", 0)
        port = web.sockets[0].getsockname()[1]
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        async with web, asyncio.timeout(PATIENCE):
            for begun in (b"", b"GET / HTT", request + b"GET / "):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(begun)
                with contextlib.suppress(ConnectionResetError):
                    assert (await reader.read()).count(b"200 OK") == begun.count(b"Host")
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(request)
                assert b"200 OK" in await reader.readuntil(b"ok")
                await asyncio.sleep(0.4)  # longer than a head may take: between two requests nothing is due
            writer.close()

    asyncio.run(run())


def test_a_length_of_a_thousand_digits_is_too_large():
    assert asked("/v1/rewards", headers={"content-length": "9" * 5000}).status == 413
