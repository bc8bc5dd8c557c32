"""The client in a trainer's process: over real connections, with patience, without ever making a failure a number."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from rewarding import PATIENCE, Process, native, process, start, until

import rlaif
from labeler import client as clients
from labeler.client import RewardClient, RewardError, trl_reward, verl_score

WORDS = ("--task", "helpfulness", "--model", "fake:noise", "--kept", "memory")
PROMPTS, RESPONSES = ["How are you?"] * 3, ["Fine.", "Well.", "So so."]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(*WORDS, cache=tmp_path_factory.mktemp("client")) as it:
        yield it


@pytest.fixture(scope="module")
def wanted(server: Process) -> list[float]:
    return [each["reward"] for each in server.ask("POST", "/v1/rewards", native(*RESPONSES)).json["items"]]


def loop(work: Callable[[], Any]) -> Any:
    """In an event loop of its own."""
    return asyncio.run(work())


async def closing(client: RewardClient, work: Any) -> Any:
    try:
        return await work
    finally:
        await client.aclose()


@dataclass
class Scripted:
    """An HTTP server that answers by a script: statuses, bodies, or nothing at all (None)."""

    url: str
    script: list[tuple[int, Any] | None]
    requests: list[Any] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    ended: set[Any] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def scripted(*script: tuple[int, Any] | None) -> Iterator[Scripted]:
    """The last answer is repeated. None closes the connection without one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            it.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            it.connections.add(self.client_address)
            it.paths.append(self.path)
            it.headers.append({name.lower(): value for name, value in self.headers.items()})
            told = it.script.pop(0) if len(it.script) > 1 else it.script[0]
            if told is None:
                self.close_connection = True
                return
            status, body = told
            sent = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def finish(self) -> None:
            super().finish()
            it.ended.add(self.client_address)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads = True
        it = Scripted(f"http://127.0.0.1:{web.server_port}", list(script))
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield it
        finally:
            web.shutdown()
            thread.join()


def answers(*rewards: float | None) -> tuple[int, Any]:
    return 200, {
        "items": [
            {"reward": each, "score": None, "reason": None if each else "nan", "message": None, "cached": False}
            for each in rewards
        ]
    }


def ask(kind: str, client: RewardClient, responses: list[str]) -> list[float | None]:
    """By the synchronous or by the asynchronous half: they must not differ."""
    prompts = ["How are you?"] * len(responses)
    if kind == "sync":
        with contextlib.closing(client):
            return client.rewards(prompts, responses)
    return loop(lambda: closing(client, client.arewards(prompts, responses)))


both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other without waiting."""
    monkeypatch.setattr(clients, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(clients.random, "random", lambda: -0.49)


# What it says


@both
def test_rewards_are_the_servers_in_the_order_of_the_responses(server, wanted, kind):
    assert ask(kind, RewardClient(server.url), RESPONSES) == wanted


@both
def test_no_responses_are_no_rewards_and_no_request(kind):
    assert ask(kind, RewardClient("http://127.0.0.1:1", timeout=0.1), []) == []


@both
def test_a_slash_at_the_end_or_a_path_in_the_address_is_no_matter(server, wanted, kind):
    assert ask(kind, RewardClient(server.url + "/"), RESPONSES) == wanted
    assert ask(kind, RewardClient(f"{server.url}/k/any-token"), RESPONSES) == wanted


def test_conversations_are_prompts_too(server):
    turns = [{"role": "user", "content": "How are you?"}]
    with contextlib.closing(RewardClient(server.url)) as client:
        assert client.rewards([turns], ["Fine."]) == client.rewards(["How are you?"], ["Fine."])


def test_answers_tell_more_than_the_reward(server):
    with contextlib.closing(RewardClient(server.url)) as client:
        first, second = (client.ask(clients.items(["p"], ["never asked before"]))[0] for _ in range(2))
    assert first.reward is not None
    assert first.score == pytest.approx((9 * first.reward + 11) / 2)
    assert (first.cached, second.cached) == (False, True)


def test_as_many_responses_as_prompts_are_expected():
    with pytest.raises(ValueError, match="2 prompts for 1 responses"):
        RewardClient("http://127.0.0.1:1").rewards(["a", "b"], ["c"])


@both
def test_the_token_is_sent(kind, tmp_path):
    with process(*WORDS, cache=tmp_path, RLAIF_TOKEN="t0ken-8c1f") as it:
        assert None not in ask(kind, RewardClient(it.url, "t0ken-8c1f"), RESPONSES)
        assert ask(kind, RewardClient(it.url, "wrong"), RESPONSES) == [None] * 3
        assert ask(kind, RewardClient(f"{it.url}/k/t0ken-8c1f"), RESPONSES)[0] is not None


@both
def test_more_than_a_request_may_have_goes_as_several(kind):
    """All at once: the slowest of them is not waited for by the next."""
    count = clients.MOST + 3
    with scripted((422, b"")) as it:
        assert ask(kind, RewardClient(it.url), ["x"] * count) == [None] * count
        assert {len(each["items"]) for each in it.requests} == {clients.MOST, 3}


@both
def test_many_come_back_in_their_order(kind, server):
    texts = [f"text {at}" for at in range(2 * clients.MOST + 5)]
    found = ask(kind, RewardClient(server.url), texts)
    for at in (0, clients.MOST - 1, clients.MOST, len(texts) - 1):
        assert found[at] == ask(kind, RewardClient(server.url), [texts[at]])[0]
    assert len(set(found)) == len(texts)


@both
def test_a_lone_surrogate_costs_no_other_item_its_reward(kind, server):
    assert None not in ask(kind, RewardClient(server.url), ["\ud800", "ok", "🦊"])


@pytest.mark.parametrize("url", ["127.0.0.1:8300", "localhost:8300", "htp://127.0.0.1:8300", "", "http://"])
def test_what_is_no_address_is_refused_at_once(url):
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        RewardClient(url)


@both
def test_a_server_that_takes_less_at_once_is_sent_less(kind, tmp_path):
    responses = [f"response {at}" for at in range(40)]
    with process(*WORDS, "--most-items", "7", cache=tmp_path) as small:
        found = ask(kind, RewardClient(small.url), responses)
    assert len(found) == 40
    assert None not in found


@both
def test_a_response_that_is_larger_than_a_request_may_be_is_refused_at_once(kind, tmp_path):
    with process(*WORDS, "--largest-body", "1", cache=tmp_path) as small:
        started = time.monotonic()
        found = ask(kind, RewardClient(small.url, timeout=20), ["fine", "x" * (5 << 20), "well"])
        assert time.monotonic() - started < 10
    assert [each is None for each in found] == [False, True, False]


def test_connections_end_with_their_event_loop():
    with scripted(answers(0.5)) as it:
        client = RewardClient(it.url)
        for _ in range(10):
            assert loop(lambda: client.arewards(["Q"], ["A"])) == [0.5]
            assert loop(lambda: verl_score("", "A", extra_info={"question": "Q"}, url=it.url))["score"] == 0.5
        assert len(it.connections) == 20
        # Their other end shows it: the server reads from what the client has left open.
        until(lambda: it.ended == it.connections)


@both
def test_a_server_that_drips_its_answer_is_not_waited_for_longer_than_said(kind):
    def drip(web: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, _ = web.accept()
                with wire, contextlib.suppress(OSError):
                    wire.recv(65_536)
                    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
                    while True:
                        wire.sendall(b" ")
                        time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as web:
        threading.Thread(target=drip, args=[web], daemon=True).start()
        started = time.monotonic()
        assert ask(kind, RewardClient(f"http://127.0.0.1:{web.getsockname()[1]}", timeout=0.5), ["A"]) == [None]
        assert time.monotonic() - started < 2


def test_of_a_conversation_with_tools_the_assistants_words_are_rewarded(server, wanted):
    said = [{"role": "assistant", "content": "Fi"}, {"role": "tool", "content": "OUTPUT"}]
    said += [{"role": "assistant", "content": [{"type": "text", "text": "ne."}]}]
    picture = [{"role": "assistant", "content": [{"type": "image", "image": "..."}]}]
    metrics: dict[str, float] = {}
    reward = trl_reward(server.url)
    asked = [[{"role": "user", "content": "How are you?"}]] * 3
    found = loop(lambda: reward(asked, [said, picture, [{"role": "tool", "content": "x"}]], metrics.__setitem__))
    assert found == [wanted[0], None, None]
    assert metrics["rlaif/failed"] == pytest.approx(2 / 3)


def test_a_single_text_is_not_taken_for_a_list_of_letters():
    with pytest.raises(TypeError, match="list"):
        RewardClient("http://127.0.0.1:1").rewards("abc", "xyz")


@both
def test_a_server_that_never_answers_is_told_once_in_the_log(kind, caplog):
    url = f"http://127.0.0.1:{free_port()}"
    for _ in range(3):
        ask(kind, RewardClient(url, timeout=0.1), ["r"])
    assert caplog.text.count("no rewards: ") == 1


@both
def test_large_texts_go_as_several_requests_that_the_server_takes(kind, server):
    """Together they are more than --largest-body, 16 MiB."""
    texts = [f"{at}" + "ü" * 150_000 for at in range(20)]
    assert None not in ask(kind, RewardClient(server.url), texts)


def test_a_forked_process_has_a_connection_of_its_own(server):
    """Two processes on one connection would read each other's answers."""
    client = RewardClient(server.url)
    texts = [f"fork {at}" for at in range(40)]
    with contextlib.closing(client):
        wanted = client.rewards(["p"] * 40, texts)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()

        def child() -> None:
            queue.put([client.rewards(["p"], [each])[0] for each in texts])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            children = [context.Process(target=child) for _ in range(2)]
            for each in children:
                each.start()
        mine = [client.rewards(["p"], [each])[0] for each in texts]
        found = [queue.get() for _ in children]
        for each in children:
            each.join()
    assert [mine, *found] == [wanted] * 3


# Connections


def test_a_thread_keeps_its_connection(server):
    with scripted(answers(0.5)) as it:
        client = RewardClient(it.url)

        def work() -> None:
            with contextlib.closing(client):
                for _ in range(5):
                    assert client.rewards(["p"], ["r"]) == [0.5]

        work()
        assert len(it.connections) == 1
        other = threading.Thread(target=work)
        other.start()
        other.join()
        assert (len(it.requests), len(it.connections)) == (10, 2)


def test_an_event_loop_keeps_its_connections_and_another_has_its_own():
    with scripted(answers(0.5)) as it:
        client = RewardClient(it.url)

        async def work() -> None:
            for _ in range(5):
                assert await client.arewards(["p"], ["r"]) == [0.5]

        loop(lambda: closing(client, work()))
        assert len(it.connections) == 1
        loop(lambda: closing(client, work()))
        assert len(it.connections) == 2


def test_a_loop_in_a_thread_and_one_in_another_ask_at_the_same_time(server, wanted):
    client = RewardClient(server.url)
    found: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(loop(lambda: closing(client, client.arewards(PROMPTS, RESPONSES))))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8


@both
def test_a_connection_that_the_server_closed_is_opened_again(kind, quick):
    with scripted(answers(0.5), None, answers(0.25)) as it:
        client = RewardClient(it.url)
        if kind == "sync":
            with contextlib.closing(client):
                assert [client.rewards(["p"], ["r"]) for _ in range(2)] == [[0.5], [0.25]]
        else:

            async def work() -> Any:
                return [await client.arewards(["p"], ["r"]) for _ in range(2)]

            assert loop(lambda: closing(client, work())) == [[0.5], [0.25]]
        assert len(it.requests) == 3


# Tries


@both
@pytest.mark.parametrize("status", sorted(clients.AGAIN))
def test_what_may_succeed_later_is_tried_again(kind, status, quick):
    with scripted((status, b"not now"), (status, b""), answers(0.5)) as it:
        assert ask(kind, RewardClient(it.url), ["r"]) == [0.5]
        assert len(it.requests) == 3
        assert it.requests[0]["items"] == it.requests[2]["items"]


@both
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_will_not_succeed_is_not_tried_again(kind, status):
    with scripted((status, b"no"), answers(0.5)) as it:
        assert ask(kind, RewardClient(it.url), ["r"]) == [None]
        assert len(it.requests) == 1


@both
@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b"{}", b'{"items": 7}', b'{"items": [{}]}', answers(0.5, 0.5)[1], {"items": []}],
    ids=str,
)
def test_an_answer_that_cannot_be_read_is_no_reward(kind, body):
    with scripted((200, body)) as it:
        assert ask(kind, RewardClient(it.url, timeout=0.5), ["r"]) == [None]


@both
def test_a_failed_item_is_none_among_the_others(kind):
    with scripted(answers(0.5, None, -1.0)) as it:
        assert ask(kind, RewardClient(it.url), ["a", "b", "c"]) == [0.5, None, -1.0]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@both
def test_no_server_is_none_within_the_timeout(kind):
    begun = time.monotonic()
    client = RewardClient(f"http://127.0.0.1:{free_port()}", timeout=0.4)
    assert ask(kind, client, ["r"]) == [None]
    assert time.monotonic() - begun < 2


@both
def test_a_server_that_says_nothing_is_none_within_the_timeout(kind):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        client = RewardClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.4)
        assert ask(kind, client, ["r"]) == [None]
        assert 0.3 < time.monotonic() - begun < 2


def test_the_timeout_is_for_all_of_a_call_however_many_requests_it_takes():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        client = RewardClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        with contextlib.closing(client):
            assert client.rewards(["p"] * 2000, ["r"] * 2000) == [None] * 2000
        assert time.monotonic() - begun < 1.5


def test_the_reason_of_a_failure_is_told():
    client = RewardClient(f"http://127.0.0.1:{free_port()}", timeout=0.1)
    (found,) = client.ask([{"prompt": "p", "response": "r"}])
    assert (found.reward, found.reason) == (None, "server")
    assert "ConnectionRefused" in str(found.message)
    with scripted((422, {"error": "odd"})) as it:
        with contextlib.closing(RewardClient(it.url)) as client:
            (found,) = client.ask([{"prompt": "p", "response": "r"}])
        assert found.reason == "refused"
        assert "status 422" in str(found.message)
        assert "odd" in str(found.message)


@both
def test_what_will_not_pass_is_told_once_in_the_log(kind, caplog):
    with scripted((401, {"error": f"no such token for {kind}"})) as it:
        for _ in range(3):
            ask(kind, RewardClient(it.url), ["r"])
    assert caplog.text.count(f"no such token for {kind}") == 1


def test_the_server_is_told_to_be_done_before_the_caller_gives_up():
    with scripted(answers(0.5)) as it:
        ask("sync", RewardClient(it.url, timeout=10), ["r"])
        assert 9 < it.requests[0]["timeout_s"] < 10


@both
def test_a_server_that_is_killed_and_started_again_is_found_again(kind, tmp_path):
    port = free_port()
    words = (*WORDS, "--port", str(port))
    it = start(*words, cache=tmp_path)
    client = RewardClient(it.url, timeout=PATIENCE)
    again: list[Process] = []

    def restart() -> None:
        it.kill()
        again.append(start(*words, cache=tmp_path))

    async def work() -> Any:
        before = await client.arewards(PROMPTS, RESPONSES)
        await asyncio.to_thread(it.kill)
        asking = asyncio.create_task(client.arewards(PROMPTS, RESPONSES))
        await asyncio.to_thread(restart)
        return before, await asking

    try:
        if kind == "sync":
            before = client.rewards(PROMPTS, RESPONSES)
            it.kill()
            starting = threading.Thread(target=restart)
            starting.start()
            after = client.rewards(PROMPTS, RESPONSES)
            starting.join()
            client.close()
        else:
            before, after = loop(lambda: closing(client, work()))
        assert before == after
        assert None not in after
    finally:
        for each in again:
            each.kill()


# TRL


def test_trl_finds_a_coroutine_function_with_a_name():
    for name in ("rlaif", "politeness"):
        found = trl_reward("http://127.0.0.1:1", name=name)
        assert inspect.iscoroutinefunction(found)
        assert found.__name__ == name


def called(reward: Any, **more: Any) -> Any:
    """As GRPOTrainer calls it: all by keyword, with the data set's other columns and more."""
    given = {"completion_ids": [[1, 2]], "trainer_state": object(), "log_extra": lambda *_: None, "source": ["x"]}
    return reward(**{**given, **more})


def close_all(reward: Any) -> Any:
    """The sessions of a reward function's client, which TRL's loop keeps for as long as it lives."""
    (client,) = (each.cell_contents for each in reward.__closure__ if isinstance(each.cell_contents, RewardClient))
    return client.aclose()


def test_trl_gets_rewards_for_texts_and_for_conversations(server, wanted):
    async def work() -> Any:
        reward = trl_reward(server.url)
        plain = await called(reward, prompts=PROMPTS, completions=RESPONSES)
        talk = await called(
            reward,
            prompts=[[{"role": "user", "content": each}] for each in PROMPTS],
            completions=[[{"role": "assistant", "content": each}] for each in RESPONSES],
        )
        await close_all(reward)
        return plain, talk

    assert loop(work) == (wanted, wanted)


def test_trls_log_has_how_many_failed_and_how_many_were_known():
    logged: dict[str, float] = {}

    async def work() -> Any:
        reward = trl_reward(it.url, name="judge")
        found = await called(reward, prompts=["p"] * 2, completions=["a", "b"], log_metric=logged.__setitem__)
        await close_all(reward)
        return found

    with scripted(answers(0.5, None)) as it:
        assert loop(work) == [0.5, None]
    assert logged == {"judge/failed": 0.5, "judge/cached": 0.0}


def test_trl_goes_on_without_a_server():
    async def work() -> Any:
        reward = trl_reward(f"http://127.0.0.1:{free_port()}", timeout=0.2)
        found = await called(reward, prompts=PROMPTS, completions=RESPONSES)
        await close_all(reward)
        return found

    assert loop(work) == [None] * 3


# verl


def scores(url: str, solutions: list[str], **more: Any) -> Any:
    async def work() -> Any:
        try:
            return [
                await verl_score(
                    data_source="d",
                    solution_str=each,
                    ground_truth="g",
                    extra_info={"question": "How are you?", "num_turns": 2},
                    url=url,
                    reward_router_address=None,
                    **more,
                )
                for each in solutions
            ]
        finally:
            for client in clients._clients.values():
                await client.aclose()

    return loop(work)


def test_verl_gets_the_same_names_each_time(server, wanted):
    assert inspect.iscoroutinefunction(verl_score)
    found = scores(server.url, [*RESPONSES, RESPONSES[0]])
    assert [each["score"] for each in found] == [*wanted, wanted[0]]
    assert {tuple(each) for each in found} == {("score", "acc", "judge_cached")}
    assert all(0 <= each["acc"] <= 1 for each in found)
    assert all(isinstance(value, float) for each in found for value in each.values())


def test_verl_hears_of_a_failure_and_gets_no_score():
    with scripted(answers(None)) as it, pytest.raises(RewardError, match="nan"):
        scores(it.url, ["r"])
    with pytest.raises(RewardError, match="server"):
        scores(f"http://127.0.0.1:{free_port()}", ["r"], timeout=0.1)


def test_verls_data_must_have_the_prompt():
    with pytest.raises(KeyError, match="question"):
        asyncio.run(verl_score("d", "s", "g", {}, url="http://127.0.0.1:1"))
    with pytest.raises(KeyError, match="query"):
        asyncio.run(verl_score("d", "s", "g", {"question": "q"}, url="http://127.0.0.1:1", prompt_key="query"))


# The file


def test_the_file_needs_nothing_of_this_project(tmp_path, server):
    """Copied into a trainer's folder and run there; aiohttp is not imported where it is not needed."""
    (tmp_path / "reward.py").write_text(Path(clients.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    code = (
        "import sys; before = set(sys.modules); import reward\n"
        f"found = reward.RewardClient({server.url!r}).rewards(['p'], ['r'])\n"
        "print(found[0] is not None, sorted(n for n in set(sys.modules) - before"
        " if n.split('.')[0] in {'data', 'labeler', 'prompts', 'lm', 'evaluator', 'rlaif', 'aiohttp', 'pydantic'}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env={"PATH": ""})
    assert done.stdout.strip() == "True []"


def test_verl_executes_the_file_from_its_path():
    """Older versions make it a module first (`custom_module`), newer ones do not."""
    spec = spec_from_file_location("custom_module_1", clients.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert inspect.iscoroutinefunction(module.verl_score)
    assert module.RewardClient("http://127.0.0.1:1", timeout=0.1).rewards(["p"], ["r"]) == [None]


def test_importing_the_client_imports_nothing_of_the_project():
    ours = {"data", "prompts", "lm", "labeler", "evaluator", "rlaif"}
    code = f"import sys; import labeler.client; print(*sorted(n for n in sys.modules if n.split('.')[0] in {ours}))"
    root = Path(rlaif.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["labeler", "labeler.client"]


def test_it_is_to_be_had_from_rlaif():
    assert rlaif.RewardClient is RewardClient
    assert rlaif.trl_reward is trl_reward
    assert rlaif.verl_score is verl_score
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = rlaif.nothing_like_it
