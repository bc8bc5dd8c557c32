"""What every backend must do; and that transformers, vLLM in process and vLLM's server give SmolLM2 the same labels."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from running import provider

import data
from data.reading import comparisons
from labeler.backend import Backend, Choose, Failed, Likelihoods, Text, Write
from labeler.ladder import climb
from labeler.opening import Reach, open_backend
from labeler.options import Options
from labeler.preference import Labeler
from prompts.render import Prompt
from prompts.task import load

WITH_VLLM = [pytest.mark.vllm, pytest.mark.slow]
SAMPLES = Path(data.__file__).parent / "samples"


SERVED = {"openai": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet", "litellm": "litellm:openai/gpt-4o"}
"""Models of the stand-in provider."""


def _need(package: str, target: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed here: make test-{target}")


def ask(text: str, system: str = "You rate answers.") -> Prompt:
    return Prompt(system, "", text, "\n\nResponse 1 - Yes.\n\nResponse 2 - No.", "Preferred Response=")


def served(cache: Path, dtype: str):
    """vLLM's own server with SmolLM2, in a process of its own."""
    from lm import embedded

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(embedded.folder(cache)), "--served-model-name", "smollm2", "--port", str(port)]
    words += ["--host", "127.0.0.1", "--max-model-len", "2048", "--enforce-eager", "--dtype", dtype]
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2"},
    )
    url = f"http://127.0.0.1:{port}/v1"
    for _ in range(240):
        assert process.poll() is None, "vLLM's server ended"
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=1):
                return process, url
        except OSError:
            time.sleep(0.5)
    process.kill()
    pytest.fail("vLLM's server was not ready within two minutes")


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        pytest.param("local", marks=pytest.mark.slow),
        "openai",
        "anthropic",
        pytest.param("litellm", marks=pytest.mark.clients),
        pytest.param("vllm", marks=WITH_VLLM),
        pytest.param("vllm-http", marks=WITH_VLLM),
    ],
)
def opened(request, cache) -> Iterator[Callable[[], Backend]]:
    """Opens the backend, on the best rung that it has; each test opens its own event loop, so it opens its own backend
    where that is cheap."""

    def at(name: str, dtype: str = "auto", **reach: Any) -> Backend:
        return climb(open_backend(name, cache=cache, dtype=dtype, device="cpu", reach=Reach(**reach)), None, 3)

    match request.param:
        case "fake":
            yield lambda: at("fake:noise")
        case "openai" | "anthropic" | "litellm" as kind:
            if kind == "litellm":
                _need("litellm", "clients")
            with provider() as it, pytest.MonkeyPatch.context() as patch:
                patch.setenv("OPENAI_API_KEY", "sk-test")  # LiteLLM looks there by itself
                patch.setenv("no_proxy", "127.0.0.1")
                yield lambda: at(SERVED[kind], base_url=f"{it.url}/v1", keys={kind: "sk-test"})
        case "vllm-http":
            _need("vllm", "vllm")
            process, url = served(cache, "float32")
            yield lambda: at("openai:smollm2", base_url=url)
            process.terminate()
            process.wait()
        case kind:
            if kind == "vllm":
                _need("vllm", "vllm")
            backend = at(f"{kind}:smollm2", "float32")
            yield lambda: _Kept(backend)
            asyncio.run(backend.close())


class _Kept:
    """A backend that other tests still need: closing it waits for the last of them."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def close(self):
        return None


def run(opened, use):
    backend = opened()

    async def all_of_it():
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(all_of_it())


def test_answers_come_in_order_and_in_number(opened):
    asked = [Choose(ask(f"Question {n}?"), ("1", "2")) for n in range(6)]
    there = run(opened, lambda backend: backend.likelihoods(asked))
    back = run(opened, lambda backend: backend.likelihoods(asked[::-1]))[::-1]
    assert len(there) == len(asked)
    assert all(isinstance(each, Likelihoods) for each in there), there
    assert len({each.values for each in there}) > 1
    for one, other in zip(there, back, strict=True):
        assert one.values == pytest.approx(other.values, abs=2e-3)


def test_nothing_asked_is_nothing_answered(opened):
    assert run(opened, lambda backend: backend.likelihoods([])) == []
    assert run(opened, lambda backend: backend.texts([])) == []


@pytest.mark.parametrize("options", [("1", "2"), tuple(str(n) for n in range(1, 11))])
def test_every_option_has_a_likelihood(opened, options):
    (answer,) = run(opened, lambda backend: backend.likelihoods([Choose(ask("How good, from 1 to 10?"), options)]))
    assert isinstance(answer, Likelihoods)
    assert len(answer.values) == len(options)
    assert all(value <= 1e-6 and not math.isnan(value) for value in answer.values)
    assert sum(map(math.exp, answer.values)) <= 1.2  # options outside of a server's list have their bounds
    assert answer.usage.tokens_in > 0


def test_texts_are_written(opened):
    asked = [Write(ask(f"Explain number {n}."), max_tokens=24, stop=("Preferred",)) for n in range(3)]
    found = run(opened, lambda backend: backend.texts(asked))
    assert [type(each) for each in found] == [Text] * 3
    assert all("Preferred" not in each.text for each in found)


def test_what_is_too_long_is_seen_or_fails_as_a_value(opened, request):
    if "fake" in request.node.name:
        pytest.skip("fake:noise has no end to its context")
    long = Choose(ask("much " * 150_000), ("1", "2"))

    async def use(backend):
        if backend.overflow(long) > 0:
            return None
        return await backend.likelihoods([long, Choose(ask("Short?"), ("1", "2"))])

    found = run(opened, use)
    if found is not None:
        assert isinstance(found[0], Failed)
        assert found[0].reason == "too_long"
        assert isinstance(found[1], Likelihoods)


def test_a_cancelled_call_ends_and_the_next_one_is_answered(opened):
    async def use(backend):
        many = [Choose(ask(f"Cancelled {n}?"), ("1", "2")) for n in range(8)]
        call = asyncio.ensure_future(backend.likelihoods(many))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return await backend.likelihoods(many[:1])

    (answer,) = run(opened, use)
    assert isinstance(answer, Likelihoods)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.02)])
def test_three_ways_to_one_model_give_the_same_labels(cache, dtype, tolerance):
    _need("vllm", "vllm")
    rows = [
        row
        for name in ("summarization", "helpfulness", "harmlessness")
        for row in list(comparisons(str(SAMPLES / f"{name}.jsonl")))[:8]
    ]
    process, url = served(cache, dtype)
    found = {}
    for name, reach in (("local:smollm2", None), ("vllm:smollm2", None), ("openai:smollm2", Reach(url))):
        backend = open_backend(name, cache=cache, dtype=dtype, device="cpu", reach=reach)
        labels = run(lambda backend=backend: backend, lambda it: Labeler(load("helpfulness"), it, Options())(rows))
        found[name] = [label.p for label in labels]
    process.terminate()
    process.wait()
    assert found["vllm:smollm2"] == pytest.approx(found["local:smollm2"], abs=tolerance)
    assert found["openai:smollm2"] == pytest.approx(found["local:smollm2"], abs=tolerance)
