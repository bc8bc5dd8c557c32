"""Whole conversations over the loopback: the frameworks' own loops of asking and trying again (replaying.py), a process
that serves, a model behind it, and everything between them that fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import running
from replaying import (
    FAILED,
    FAULTS,
    FRAMEWORKS,
    QUICK,
    Ask,
    Framework,
    Gym,
    Hurry,
    Row,
    Wire,
    by_requests,
    openrlhf_rollout,
    verl_post,
    wired,
)
from rewarding import PATIENCE, Process, process

import rlaif
from labeler.server.options import Listening

TOKEN = "replay-7f3a"
KEY = "sk-stand-in"

TURNS = ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"})
PROMPTS: tuple[Any, ...] = (
    "How do I boil an egg?",
    "Zwei Zeilen,\nbitte: „ü“ 🦊?",
    "{{ braces }} and <b>tags</b>, and a 'quote' or \"two\"\t?",
    (*TURNS, {"role": "user", "content": "And what is a soft egg?"}),
    ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Why is the sky blue?"}),
)
SAID = ("Eight minutes, number {}.", "Eins.\n\n  Zwei — {} „drei“ <b>vier</b> {{{{ fünf }}}}", "{}")
POOL = [Row(str(at), PROMPTS[at % len(PROMPTS)], SAID[at % len(SAID)].format(at)) for at in range(600)]
_next = iter(POOL)


def fresh(count: int) -> list[Row]:
    """Rollouts that nobody has asked about yet."""
    return list(itertools.islice(_next, count))


@dataclass(frozen=True)
class House:
    """Two servers of one model: `url` with the policy `error`, `skipping` with `skip`. Both want a token, which stands
    in their addresses."""

    model: running.Provider
    serving: Process
    url: str
    skipping: str
    scores: dict[str, float]

    def wanted(self, rows: Sequence[Row]) -> Any:
        """What `rlaif score` wrote."""
        return pytest.approx([self.scores[row.id] for row in rows], abs=1e-9)

    @property
    def asked(self) -> int:
        """Questions that came to the model since the test began."""
        return self.model.seen(answers=False)["asked"]

    def metric(self, sample: str) -> float:
        lines = self.serving.ask("GET", f"/k/{TOKEN}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{sample} "))


def scored(rows: Sequence[Row], folder: Path, *words: str) -> dict[str, float]:
    source, out = folder / "rows.jsonl", folder / "scores.jsonl"
    lines = [json.dumps({"id": row.id, "prompt": row.prompt, "response": row.response}) for row in rows]
    source.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        rlaif.main(["score", str(source), "--out", str(out), "--task", "helpfulness", *words])
    assert ended.value.code == 0
    return {each["id"]: each["reward"] for each in map(json.loads, out.read_text(encoding="utf-8").splitlines())}


def ready(it: Process) -> str:
    """The address with the token in it, once the model was warmed up."""
    end = time.monotonic() + PATIENCE
    while it.ask("GET", "/ready").status != 200:
        assert time.monotonic() < end
        time.sleep(0.01)
    return f"{it.url}/k/{TOKEN}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("replay")
    with running.provider() as model, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("RLAIF_CACHE", str(folder / "cache"))
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setenv("RLAIF_TOKEN", TOKEN)
        named = ("--model", "openai:gpt-4o", "--base-url", f"{model.url}/v1")
        # the server itself tries once: here the clients do
        words = ("--task", "helpfulness", *named, "--attempts", "1", "--longest-wait", "0.05")
        with (
            process(*words, cache=folder / "one") as serving,
            process(*words, "--on-failure", "skip", cache=folder / "two") as skipping,
        ):
            yield House(model, serving, ready(serving), ready(skipping), scored(POOL, folder, *named))


@pytest.fixture
def house(built: House) -> House:
    built.model.control(reset=True, faults={}, next=[], latency=0.0)
    return built


def run(work: Any) -> Any:
    async def within() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work

    return asyncio.run(within())


async def through(
    url: str,
    it: Framework,
    rows: Sequence[Row],
    faults: Sequence[str] = (),
    *,
    ask: Ask | None = None,
    hurry: Hurry = QUICK,
) -> tuple[Any, Wire]:
    """What a framework makes of these rows, over a wire with faults; what it raises is given back."""
    async with wired(url, it.path, faults) as (address, wire):
        try:
            return await (ask or it.ask)(address, rows, hurry), wire
        except aiohttp.ClientResponseError as error:
            return error.status, wire
        except KeyError as error:
            return error, wire


everyone = pytest.mark.parametrize("name", FRAMEWORKS)


# What every framework gets


@everyone
def test_the_reward_is_that_of_rlaif_score(house, name):
    rows, it = fresh(5), FRAMEWORKS[name]
    found, wire = run(through(house.url, it, rows))
    assert found == house.wanted(rows)
    assert [*wire.sent.values()] == [1] * (1 if it.batch else 5)
    assert house.asked == 5


@everyone
@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_lost_twice_on_its_way_is_right_at_the_third_try_and_was_asked_once(house, name, fault):
    rows, it = fresh(3), FRAMEWORKS[name]
    found, wire = run(through(house.url, it, rows, [fault] * 2, ask=it.stubborn))
    assert found == house.wanted(rows)
    assert [*wire.sent.values()] == [3] * (1 if it.batch else 3), "three times the very same body"
    assert house.asked == 3


@everyone
def test_a_model_that_fails_twice_is_right_at_the_third_try_and_answered_once(house, name):
    rows, it = fresh(1), FRAMEWORKS[name]
    house.model.control(next=["http_500", "disconnect"])
    found, wire = run(through(house.url, it, rows, ask=it.stubborn))
    assert found == house.wanted(rows)
    assert [*wire.sent.values()] == [3]
    assert {status: len(each) for status, each in wire.told.items()} == {503: 2, 200: 1}
    seen = house.model.seen()
    assert (seen["asked"], seen["asked_again"]) == (3, 0)
    assert [*seen["answered"].values()] == [1]


def test_a_buffer_that_failed_in_parts_is_asked_about_those_alone(house):
    """LLaMA-Factory's whole buffer is one request; what was answered is known when the run begins again."""
    rows, it = fresh(40), FRAMEWORKS["LLaMA-Factory"]
    house.model.control(next=[None, "http_500", None, "nan", "disconnect", None, "http_500"])
    found, wire = run(through(house.url, it, rows, ask=it.stubborn))
    assert found == house.wanted(rows)
    assert sum(wire.sent.values()) == 2
    seen = house.model.seen()
    assert (seen["answered_total"], seen["answered_distinct"], seen["asked_again"]) == (40, 40, 0)


def test_who_gave_up_waiting_and_asks_again_gets_the_answer_of_the_one_question(house):
    """Each by its own client, all at once; where a framework waits without an end, somebody stops and starts it."""
    rows = {name: fresh(1) for name in FRAMEWORKS}
    house.model.control(latency=0.6)

    async def work() -> Any:
        hurry = Hurry(pace=0.01, seconds=0.4)
        asking = (through(house.url, it, rows[name], ask=it.stubborn, hurry=hurry) for name, it in FRAMEWORKS.items())
        return dict(zip(FRAMEWORKS, await asyncio.gather(*asking), strict=True))

    found = run(work())
    assert {name: each for name, (each, _) in found.items()} == {name: house.wanted(rows[name]) for name in rows}
    for name, (_, wire) in found.items():
        assert len(wire.sent) == 1, name
        assert wire.sent.total() > 1, f"{name} was to give up at least once"
    assert house.asked == len(FRAMEWORKS)


NOTHING = {"OpenRLHF": [None], "slime": 503, "verl, vLLM": 503, "verl, SGLang": 503, "NeMo Gym": 503}
"""What the frameworks themselves make of a reward that never comes; the others miss a name in the answer."""


@everyone
@pytest.mark.parametrize("kind", ["http_500", "nan"])
def test_a_failure_that_lasts_is_a_number_nowhere(house, name, kind):
    rows, it = fresh(1), FRAMEWORKS[name]
    house.model.control(faults={kind: 1.0})
    found, wire = run(through(house.url, it, rows))
    if name in NOTHING:
        assert found == NOTHING[name]
    else:
        assert isinstance(found, KeyError)
    assert [*wire.sent.values()] == [it.tries]
    assert [*wire.told] == [503]
    errors = [json.loads(each) for each in wire.told[503]]
    assert [list(each) for each in errors] == [["error"]] * it.tries
    assert all(isinstance(each["error"]["message"], str) for each in errors)
    house.model.control(faults={})
    found, _ = run(through(house.url, it, rows))
    assert found == house.wanted(rows), "a failure is not kept"


@pytest.mark.parametrize("kind", ["http_500", "nan"])
def test_with_skip_gym_gets_its_mark_at_the_first_try_and_all_others_hear_503(house, kind):
    rows = {name: fresh(1) for name in FRAMEWORKS}
    house.model.control(faults={kind: 1.0})

    async def work() -> Any:
        asking = (through(house.skipping, it, rows[name]) for name, it in FRAMEWORKS.items())
        return dict(zip(FRAMEWORKS, await asyncio.gather(*asking), strict=True))

    for name, (found, wire) in run(work()).items():
        if name == "NeMo Gym":
            assert (found, wire.sent.total(), [*wire.told]) == ([None], 1, [200])
        else:
            assert [*wire.told] == [503], name
            assert found == NOTHING[name] if name in NOTHING else isinstance(found, KeyError), name


@pytest.mark.parametrize("name", [name for name, it in FRAMEWORKS.items() if it.batch])
def test_one_failure_in_a_batch_is_no_answer_at_all(house, name):
    """These wires have no place for a single failure, and a list that is shorter would shift the rewards."""
    house.model.control(next=[None, "nan"])
    found, wire = run(through(house.url, FRAMEWORKS[name], fresh(3)))
    assert isinstance(found, KeyError)
    assert [*wire.told] == [503]


@pytest.mark.parametrize("name", [name for name, it in FRAMEWORKS.items() if it.batch])
def test_an_empty_batch_is_answered(house, name):
    found, wire = run(through(house.url, FRAMEWORKS[name], []))
    assert found == []
    assert [*wire.told] == [200]


# OpenRLHF


def test_openrlhf_sends_no_header_of_its_own_and_a_connection_for_each_try(house):
    (row,) = fresh(1)

    async def work() -> Any:
        async with wired(house.url, "/get_reward", ["503"] * 2) as (url, wire):
            return await openrlhf_rollout([f"{url}/get_reward"], row), wire

    found, wire = run(work())
    names = {line.split(b":")[0].lower() for head in wire.heads for line in head.split(b"\r\n")[1:-2]}
    assert names == {b"host", b"accept", b"accept-encoding", b"user-agent", b"content-length", b"content-type"}
    assert wire.connections == 3
    assert found["reward"] == house.wanted([row])
    assert found["scores"] == pytest.approx([(found["reward"][0] + 1) / 2])


@pytest.mark.parametrize("count", [2, 3])
def test_of_several_urls_openrlhfs_others_are_asked_about_nothing_and_cost_nothing(house, count):
    (row,) = fresh(1)

    async def work() -> Any:
        async with contextlib.AsyncExitStack() as all_of_them:
            ways = [await all_of_them.enter_async_context(wired(house.url, "/get_reward")) for _ in range(count)]
            return await openrlhf_rollout([f"{url}/get_reward" for url, _ in ways], row), [wire for _, wire in ways]

    found, (first, *others) = run(work())
    assert found["reward"] == house.wanted([row])
    told = json.loads(first.told[200][0])
    for wire in others:
        assert [json.loads(body) for body in wire.sent] == [{"query": [], "prompts": [], "labels": []}]
        empty = json.loads(wire.told[200][0])
        assert (empty["rewards"], empty["scores"]) == ([], [])
        assert list(empty) == list(told)
        assert empty["extra_logs"] == {name: [] for name in told["extra_logs"]}
    assert house.asked == 1


def test_openrlhfs_logs_are_numbers_under_the_same_names_each_time(house):
    """They go into torch.tensor([value]); names are the first sample's."""
    rows = fresh(6)

    async def work() -> Any:
        return [await openrlhf_rollout([f"{house.url}/get_reward"], row) for row in (*rows, *rows)]

    found = [each["extra_logs"] for each in run(work())]
    assert len({tuple(each) for each in found}) == 1
    assert {type(value) for each in found for values in each.values() for value in values} == {float}
    assert {len(values) for each in found for values in each.values()} == {1}


@pytest.mark.parametrize(("name", "tries"), [("OpenRLHF", 5), ("slime", 10), ("verl, vLLM", 1), ("NeMo Gym", 2)])
def test_a_wrong_token_is_a_refusal_however_often_it_is_tried(house, name, tries):
    it = FRAMEWORKS[name]
    first = replace(it, path="/seed_session" if name == "NeMo Gym" else it.path)
    found, wire = run(through(house.url.replace(TOKEN, "wrong"), first, fresh(1)))
    assert found == ([None] if name == "OpenRLHF" else 401)
    assert {status: len(each) for status, each in wire.told.items()} == {401: tries}
    assert house.asked == 0


# verl, vLLM and SGLang


@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings", "/pooling"])
def test_tokens_cannot_be_judged_and_verl_asks_but_once(house, path):
    """vLLM takes token ids; nobody here knows whose they are."""

    async def work() -> Any:
        async with wired(house.url, path) as (url, wire):
            with pytest.raises(aiohttp.ClientResponseError) as refused:
                await verl_post(f"{url}{path}", {"model": "rm", "input": [1, 2, 3]})
            return refused.value.status, wire

    status, wire = run(work())
    assert status == 422
    assert wire.sent.total() == 1
    assert house.asked == 0


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_one_prompt_is_scored_with_many_responses(house, path):
    some = fresh(40)
    one = next(row.prompt for row in some if isinstance(row.prompt, str))  # whoever took rows before
    rows = [row for row in some if row.prompt == one]
    assert len(rows) > 1
    named = {"text_1": rows[0].prompt, "text_2": [row.response for row in rows]}
    newer = {"queries": rows[0].prompt, "documents": [row.response for row in rows]}
    for body in (named, newer):
        told = run(by_requests(f"{house.url}{path}", {"model": "rm", **body}))
        assert [each["score"] for each in told["data"]] == house.wanted(rows)
        assert [each["index"] for each in told["data"]] == list(range(len(rows)))
    assert house.asked == len(rows)


# NeMo Gym


def test_gyms_rollouts_are_seeded_verified_and_counted_and_a_failure_is_put_aside(house):
    rows = fresh(6)
    bad, good = rows[2:3], [*rows[:2], *rows[3:]]

    async def work() -> Any:
        async with Gym(house.skipping) as gym:
            found = list(await asyncio.gather(*map(gym.rollout, good)))
            house.model.control(faults={"nan": 1.0})
            found.insert(2, await gym.rollout(bad[0]))
            put_aside = [each for each in found if FAILED not in each]
            told = [await gym.aggregate(some) for some in (found, put_aside, found[2:3], [])]
            house.model.control(faults={})
            again = await gym.rollout(bad[0])
            return found, told, again, await gym.request("/verify", found[2])

    found, (all_, kept, failed, none), again, verified = run(work())
    for row, each in zip(rows, found, strict=True):
        assert each["_ng_task_index"] == int(row.id), "the rollout comes back as it was"
        assert each["responses_create_params"]["input"] == row.turns
        assert each["response"]["output"][0]["content"][0]["text"] == row.response
    assert [each["reward"] for each in found if FAILED not in each] == house.wanted(good)
    assert (found[2]["reward"], found[2][FAILED]) == (0.0, "judge_failed")
    assert found[2]["_ng_failure_judge_error"]
    mean = sum(house.scores[row.id] for row in good) / len(good)
    assert all_ == {"mean/reward": pytest.approx(mean), "count": 5, "failed": 1}
    assert kept == {"mean/reward": pytest.approx(mean), "count": 5, "failed": 0}
    assert failed == {"mean/reward": None, "count": 0, "failed": 1}
    assert none == {"mean/reward": None, "count": 0, "failed": 0}
    assert [again["reward"]] == house.wanted(bad), "and can be tried again"
    assert FAILED not in again
    assert ([verified["reward"]], FAILED in verified) == (house.wanted(bad), False), "also with the marks still on it"


# OpenAI's own client


def test_openais_own_client_gets_a_reward_as_an_embedding(house):
    """It asks for base64, sends the token as a header, and tries again by itself."""
    openai = pytest.importorskip("openai")
    rows = fresh(2)
    with openai.OpenAI(base_url=f"{house.serving.url}/v1", api_key=TOKEN, max_retries=2) as client:
        house.model.control(next=["http_500"])
        told = client.embeddings.create(model="rm", input=[row.whole for row in rows])
    assert [each.embedding[0] for each in told.data] == house.wanted(rows)
    seen = house.model.seen(answers=False)
    assert (seen["asked"], seen["answered_total"]) == (3, 2)


# Many


TIMES, CONNECTIONS = 10_000, 64


def bodies(row: Row) -> list[tuple[str, bytes, Callable[[Any], float]]]:
    """The one question in every dialect, and where the answer stands."""
    message = {"type": "message", "role": "assistant", "content": row.response}
    told: tuple[tuple[str, Any, Callable[[Any], float]], ...] = (
        (
            "/v1/rewards",
            {"items": [{"prompt": row.turns, "response": row.response}]},
            lambda x: x["items"][0]["reward"],
        ),
        ("/get_reward", {"query": [row.whole], "prompts": [row.asked], "labels": [None]}, lambda x: x["rewards"][0]),
        ("/rm", {"prompt": row.asked, "response": row.response, "label": None}, lambda x: x),
        ("/v1/score/evaluation", {"model": "model", "messages": [row.whole]}, lambda x: x["scores"][0]),
        (
            "/verify",
            {"responses_create_params": {"input": row.turns}, "response": {"output": [message]}},
            lambda x: x["reward"],
        ),
        ("/classify", {"model": "rm", "input": row.whole}, lambda x: x["data"][0]["probs"][0]),
        ("/pooling", {"model": "rm", "input": [row.whole]}, lambda x: x["data"][0]["data"][0]),
        ("/v1/embeddings", {"model": "rm", "input": row.whole}, lambda x: x["data"][0]["embedding"][0]),
        ("/score", {"text_1": row.asked, "text_2": row.response}, lambda x: x["data"][0]["score"]),
    )
    return [(path, json.dumps(body).encode(), read) for path, body, read in told]


def test_ten_thousand_retries_of_one_item_in_every_dialect_ask_the_model_once(house):
    (row,) = fresh(1)
    ways, left, found = bodies(row), iter(range(TIMES)), []
    counted = ("rlaif_joined_total", "rlaif_cache_hits_total")
    before = [house.metric(each) for each in counted]
    house.model.control(latency=0.2)

    async def retrying(session: aiohttp.ClientSession) -> None:
        for at in left:
            path, body, read = ways[at % len(ways)]
            async with session.post(f"{house.url}{path}", data=body) as answer:
                assert answer.status == 200
                found.append(read(json.loads(await answer.read())))

    async def work() -> None:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(retrying(session) for _ in range(CONNECTIONS)))

    run(work())
    assert len(found) == TIMES
    assert len(set(found)) == 1
    assert found[:1] == house.wanted([row])
    seen = house.model.seen(answers=False)
    assert (seen["asked"], seen["answered_total"]) == (1, 1)
    joined, hits = (house.metric(each) - was for each, was in zip(counted, before, strict=True))
    assert joined >= CONNECTIONS - 1
    assert joined + hits == TIMES - 1


# Much


HUGE, LARGEST = 100 << 20, Listening().largest_body << 20
AT_ONCE = 4
SOON = 2.0
"""Seconds, on a busy machine; it takes some hundredths."""


def peak(it: Process) -> int:
    """MiB that a process ever had in memory."""
    told = Path(f"/proc/{it.running.pid}/status")
    if not told.exists():
        pytest.skip("no /proc here")
    found = re.search(r"VmHWM:\s+(\d+) kB", told.read_text())
    assert found is not None
    return int(found[1]) >> 10


def pushed(port: int, *, chunked: bool) -> tuple[bytes, int, float]:
    """What a server says to 100 MB of JSON that are sent as long as it takes them, how many bytes it took, and the
    seconds."""
    size = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % HUGE
    part = b'{"items": [' + b" " * ((1 << 20) - 11)
    sent, heard, started = 0, b"", time.monotonic()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
        wire.sendall(b"POST /k/%s/v1/rewards HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (TOKEN.encode(), size))
        with contextlib.suppress(ConnectionError):
            while sent < HUGE:
                wire.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
                sent += len(part)
        with contextlib.suppress(ConnectionError):
            while more := wire.recv(65_536):
                heard += more
    return heard, sent, time.monotonic() - started


@pytest.mark.parametrize("chunked", [False, True], ids=["a length that is told", "chunks"])
def test_a_hundred_megabytes_are_refused_soon_and_unread_and_others_are_answered_meanwhile(house, chunked):
    (row,) = fresh(1)
    before, found = peak(house.serving), []
    threads = [
        threading.Thread(target=lambda: found.append(pushed(house.serving.port, chunked=chunked)))
        for _ in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    others: list[float] = []
    while not others or any(thread.is_alive() for thread in threads):
        started = time.monotonic()
        reply = house.serving.ask("POST", f"/k/{TOKEN}/rm", {"prompt": row.asked, "response": row.response})
        others.append(time.monotonic() - started)
        assert [reply.json] == house.wanted([row])
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == AT_ONCE
    for heard, sent, seconds in found:
        assert heard.startswith(b"HTTP/1.1 413 "), heard
        assert b"connection: close" in heard
        assert sent < (HUGE / 2 if chunked else LARGEST), (
            "what the sockets' own buffers hold; of chunks, what is allowed"
        )
        assert seconds < SOON
    assert max(others) < SOON
    assert peak(house.serving) - before < ((AT_ONCE + 1) * LARGEST if chunked else LARGEST) >> 20
    assert house.asked == 1


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_framework_that_sends_a_hundred_megabytes_hears_why_they_are_refused(house):
    """They read the answer although they could not say all, and nothing of it reaches the model."""
    huge = b'{"query": ["' + b"x" * HUGE + b'"]}'

    async def work() -> Any:
        async with aiohttp.ClientSession() as session, session.post(f"{house.url}/get_reward", data=huge) as answer:
            return answer.status, await answer.json()

    started = time.monotonic()
    status, told = run(work())
    assert time.monotonic() - started < SOON
    assert (status, list(told)) == (413, ["error"])
    assert "--largest-body" in told["error"]["message"]
    assert house.asked == 0
