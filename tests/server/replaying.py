"""The clients of other people's frameworks, after ../shared/reference/reward_protocols.md: what each sends, when it
tries again, what it makes of an answer. And a wire between them and the server, on which both get lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

REQUESTS = {"User-Agent": "python-requests/2.32.5", "Accept": "*/*", "Connection": "keep-alive"}

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A rollout: what was asked, as a text or as turns, and the response."""

    id: str
    prompt: str | Messages
    response: str

    @property
    def turns(self) -> list[dict[str, str]]:
        single = ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt
        return [*single]

    @property
    def asked(self) -> str:
        """The prompt in its chat template (ChatML)."""
        turns = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in self.turns)
        return f"{turns}<|im_start|>assistant\n"

    @property
    def whole(self) -> str:
        """Prompt and response, decoded with all special tokens."""
        return f"{self.asked}{self.response}<|im_end|>\n"


@dataclass(frozen=True)
class Hurry:
    """`pace` multiplies the clients' pauses; `seconds` is the time of one try, in place of the client's own."""

    pace: float = 0.0
    seconds: float | None = None

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(self.pace * seconds)

    def timeout(self, own: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=self.seconds or own)


QUICK = Hurry()


# OpenRLHF (openrlhf/utils/agent.py, SingleTurnAgentExecutor)


async def openrlhf_rollout(urls: Sequence[str], row: Row, hurry: Hurry = QUICK) -> dict[str, Any]:
    """A rollout's reward: five tries of each URL, each by a client of its own, without a header of its own. What fails
    is logged there, and the reward stays None."""
    queries, prompts, labels = [row.whole], [row.asked], [None]
    size = math.ceil(len(queries) / len(urls))

    async def post(url: str, payload: dict[str, Any]) -> Any:
        for _ in range(5):
            with contextlib.suppress(Exception):
                async with (
                    aiohttp.ClientSession(timeout=hurry.timeout(180)) as session,
                    session.post(url, json=payload) as answer,
                ):
                    answer.raise_for_status()
                    return await answer.json()
            await hurry.pause(1)
        raise RuntimeError("Request error for 5 times, returning None. Please check the API server.")

    output: dict[str, Any] = {"reward": None, "scores": None, "extra_logs": {}}
    try:
        found = await asyncio.gather(
            *(
                post(url, {"query": queries[part], "prompts": prompts[part], "labels": labels[part]})
                for at, url in enumerate(urls)
                for part in [slice(at * size, (at + 1) * size)]
            )
        )
    except RuntimeError:
        return output
    first = found[0]
    return {
        "reward": first.get("rewards"),
        "scores": first.get("scores") or first.get("rewards"),
        "extra_logs": first.get("extra_logs") or {},
    }


async def openrlhf(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float | None]:
    """One POST for each finished rollout, all in flight together."""
    found = await asyncio.gather(*(openrlhf_rollout([f"{url}/get_reward"], row, hurry) for row in rows))
    return [each["reward"] and each["reward"][0] for each in found]


# slime (slime/rollout/rm_hub/__init__.py)


async def slime(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    """Ten tries on a pool of 64 connections; the answer's JSON is the reward."""

    async def remote_rm(session: aiohttp.ClientSession, row: Row) -> Any:
        payload = {"prompt": row.asked, "response": row.response, "label": None}
        for attempt in range(10):
            try:
                async with session.post(f"{url}/rm", json=payload) as answer:
                    answer.raise_for_status()
                    return await answer.json()
            except Exception:
                if attempt + 1 >= 10:
                    raise
                await hurry.pause(min(2**attempt, 30) + random.random())
        return None

    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(connector=connector, timeout=hurry.timeout(120)) as session:
        return await asyncio.gather(*(remote_rm(session, row) for row in rows))


# LLaMA-Factory (src/llamafactory/train/ppo/ppo_utils.py)


async def llama_factory(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    """The whole buffer at once by `requests`: no time-out, no second try, no look at the status."""
    payload = {"model": "model", "messages": [row.whole for row in rows]}
    return (await by_requests(f"{url}/v1/score/evaluation", payload, hurry))["scores"]


async def by_requests(url: str, payload: Any, hurry: Hurry = QUICK) -> Any:
    """`requests.post(url, json=payload).json()`: a connection of its own, whatever the status."""
    async with (
        aiohttp.ClientSession(timeout=hurry.timeout(None), headers=REQUESTS) as session,
        session.post(url, json=payload) as answer,
    ):
        return await answer.json(content_type=None)


# verl (verl/experimental/reward_loop/reward_loop.py)


async def verl_post(url: str, payload: dict[str, Any], hurry: Hurry = QUICK) -> Any:
    """Sixteen tries, each by a client of its own that waits without end; what is the caller's fault is tried once."""
    last: Exception | None = None
    for attempt in range(16):
        try:
            async with (
                aiohttp.ClientSession(timeout=hurry.timeout(None)) as session,
                session.post(url, json=payload) as answer,
            ):
                answer.raise_for_status()
                return await answer.json()
        except aiohttp.ClientResponseError as error:
            if 400 <= error.status < 500:
                raise
            last = error
        except Exception as error:
            last = error
        if attempt < 15:
            await hurry.pause(min(2**attempt, 30))
    assert last is not None
    raise last


async def verl_vllm(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    async def one(row: Row) -> float:
        payload = {"model": "rm", "input": row.whole, "use_activation": False, "activation": False}
        return (await verl_post(f"{url}/classify", payload, hurry))["data"][-1]["probs"][-1]

    return await asyncio.gather(*map(one, rows))


async def verl_sglang(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    async def one(row: Row) -> float:
        payload = {"model": "rm", "input": row.whole}
        return (await verl_post(f"{url}/v1/embeddings", payload, hurry))["data"][-1]["embedding"][-1]

    return await asyncio.gather(*map(one, rows))


# NeMo Gym (nemo_gym/server_utils.py, responses_api_agents/simple_agent)


class Gym:
    """An agent and the collector of its rollouts, on Gym's one client."""

    def __init__(self, url: str, hurry: Hurry = QUICK) -> None:
        self.url, self.hurry = url, hurry

    async def __aenter__(self) -> Gym:
        jar = aiohttp.DummyCookieJar()
        self._session = aiohttp.ClientSession(timeout=self.hurry.timeout(300), cookie_jar=jar)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def request(self, path: str, body: Any) -> Any:
        """A lost connection is tried again for ever, any other error three times in all, a status not at all."""
        tries = 0
        while True:
            try:
                answer = await self._session.post(f"{self.url}{path}", json=body)
                break
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                await self.hurry.pause(0.5)
            except Exception:
                tries += 1
                if tries >= 3:
                    raise
                await self.hurry.pause(0.5)
        async with answer:
            answer.raise_for_status()
            return await answer.json()

    async def rollout(self, row: Row) -> dict[str, Any]:
        """Its record with a reward, or with the marks of a failure. Five attempts where the server failed, two where
        it refused."""
        asked = {"responses_create_params": {"input": row.turns, "tools": []}, "_ng_task_index": int(row.id)}
        said = [{"type": "output_text", "text": row.response, "annotations": []}]
        message = {"id": "msg", "type": "message", "role": "assistant", "status": "completed", "content": said}
        response = {"id": "resp", "object": "response", "model": "policy", "output": [message], "usage": {"total": 3}}
        attempts = 0
        while True:
            try:
                await self.request("/seed_session", asked)
                return await self.request("/verify", asked | {"response": response})
            except aiohttp.ClientError as error:
                attempts += 1
                refused = isinstance(error, aiohttp.ClientResponseError) and error.status < 500
                if attempts >= (2 if refused else 5):
                    raise

    async def aggregate(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Failures are put aside before, and the heavy parts left out."""
        heavy = ("response", "responses_create_params")
        kept = [{name: value for name, value in each.items() if name not in heavy} for each in records]
        return (await self.request("/aggregate_metrics", {"verify_responses": kept}))["agent_metrics"]


FAILED = "_ng_failure_class"


async def nemo_gym(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float | None]:
    """None for a rollout with the mark of a failure: it is no number there."""
    async with Gym(url, hurry) as gym:
        found = await asyncio.gather(*map(gym.rollout, rows))
    return [None if FAILED in each else each["reward"] for each in found]


# vLLM and SGLang, as their documents ask them: one request, its JSON, no second try


async def pooling(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    """A conversation in a request."""

    async def one(row: Row) -> float:
        turns = [*row.turns, {"role": "assistant", "content": row.response}]
        return (await by_requests(f"{url}/pooling", {"model": "rm", "messages": turns}, hurry))["data"][0]["data"][0]

    return await asyncio.gather(*map(one, rows))


async def classify(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    """Texts in a batch."""
    payload = {"model": "rm", "input": [row.whole for row in rows], "use_activation": False}
    return _in_order((await by_requests(f"{url}/v1/classify", payload, hurry))["data"], lambda each: each["probs"][0])


async def embeddings(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    """SGLang's reward models, by a client of OpenAI's that would take base64 too."""
    payload = {"model": "rm", "input": [row.whole for row in rows], "encoding_format": "base64"}
    found = (await by_requests(f"{url}/v1/embeddings", payload, hurry))["data"]
    return _in_order(found, lambda each: each["embedding"][0])


async def score(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> list[float]:
    """N prompts with N responses."""
    payload = {"model": "rm", "text_1": [row.asked for row in rows], "text_2": [row.response for row in rows]}
    return _in_order((await by_requests(f"{url}/score", payload, hurry))["data"], lambda each: each["score"])


def _in_order(data: Sequence[Any], read: Callable[[Any], float]) -> list[float]:
    return [read(each) for each in sorted(data, key=lambda each: each["index"])]


Ask = Callable[[str, Sequence[Row], Hurry], Awaitable[Sequence[float | None]]]


def started_again(ask: Ask) -> Ask:
    """What never tries again ends its run; whoever starts it again asks the same."""

    async def again(url: str, rows: Sequence[Row], hurry: Hurry = QUICK) -> Sequence[float | None]:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, KeyError, ValueError):
                return await ask(url, rows, hurry)

    return again


@dataclass(frozen=True)
class Framework:
    """`tries` of one request; `stubborn` is the client with somebody who starts it again where it gives up at once.
    `batch`: all rows go in one request."""

    ask: Ask
    path: str
    tries: int
    batch: bool = False

    @property
    def stubborn(self) -> Ask:
        return self.ask if self.tries > 1 else started_again(self.ask)


FRAMEWORKS = {
    "OpenRLHF": Framework(openrlhf, "/get_reward", 5),
    "slime": Framework(slime, "/rm", 10),
    "LLaMA-Factory": Framework(llama_factory, "/v1/score/evaluation", 1, batch=True),
    "verl, vLLM": Framework(verl_vllm, "/classify", 16),
    "verl, SGLang": Framework(verl_sglang, "/v1/embeddings", 16),
    "NeMo Gym": Framework(nemo_gym, "/verify", 5),
    "pooling": Framework(pooling, "/pooling", 1),
    "classify": Framework(classify, "/v1/classify", 1, batch=True),
    "embeddings": Framework(embeddings, "/v1/embeddings", 1, batch=True),
    "score": Framework(score, "/score", 1, batch=True),
}


# The wire


FAULTS = ("503", "dropped", "lost", "half")
"""A proxy's 503; the connection closed before the server hears of it; the server's answer lost; half of it lost."""

BUSY = b"<html><body><h1>503 Service Unavailable</h1></body></html>"
BUSY_HEAD = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n"


@dataclass
class Wire:
    """Between clients and the server behind `url`. The n-th time that a request with the very same body comes to `path`
    it meets the n-th of `faults`; what was sent and what came back there is noted."""

    url: str
    path: str
    faults: Sequence[str] = ()
    sent: Counter[bytes] = field(default_factory=Counter[bytes])
    heads: list[bytes] = field(default_factory=list[bytes])
    told: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    """The server's answers, by status."""
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays."""
        head, body = await _message(reader)
        fault, noted = "", head.split()[1].decode().endswith(self.path)
        if noted:
            fault = dict(enumerate(self.faults)).get(self.sent[body], "")
            self.sent[body] += 1
            self.heads.append(head)
        if fault == "dropped":
            return False
        if fault == "503":
            writer.write(BUSY_HEAD % len(BUSY) + BUSY)
            return True
        upstream, downstream = await asyncio.open_connection(urlsplit(self.url).hostname, urlsplit(self.url).port)
        try:
            downstream.write(head + body)
            # the client may hang up meanwhile, and then the server must see it
            answering, gone = asyncio.ensure_future(_message(upstream)), asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                return False
            found = await answering
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        finally:
            downstream.close()
        head, body = found
        if noted:
            self.told[int(head.split()[1])].append(body)
        writer.write(head + body[: len(body) // 2] if fault == "half" else head + body if not fault else b"")
        await writer.drain()
        return not fault


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


@contextlib.asynccontextmanager
async def wired(url: str, path: str, faults: Sequence[str] = ()) -> AsyncIterator[tuple[str, Wire]]:
    """The address to ask in place of the server's, and the wire."""
    wire = Wire(url, path, faults)
    async with await asyncio.start_server(wire, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}{urlsplit(url).path}", wire
