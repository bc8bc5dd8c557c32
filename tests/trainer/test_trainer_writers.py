"""How weights are handed over and what comes back, without vLLM: an engine that notes, a server that answers oddly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lm.sample import Draw, Written
from trainer import vllm_server
from trainer.config import Rollout, TrainingError
from trainer.vllm_server import Server
from trainer.writers import Handed

DRAW = Draw((5, 6), 4, 0.7, 0, 2**40 + 3, ("\n",))
GOOD: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "a model"}]},
    "/collective_rpc": {"results": [None]},
    "/reset_prefix_cache": {"success": True},
    "/v1/completions": {
        "choices": [
            {"text": "ab", "token_ids": [7, 8], "logprobs": {"token_logprobs": [-0.5, -1.5]}, "finish_reason": "stop"}
        ]
    },
}


class Noting:
    """An engine that looks at what it is handed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.seen = error, list[tuple[Path, dict[str, torch.Tensor]]]()

    def write(self, draws: Any) -> list[Written]:
        raise self.error or AssertionError("not asked")

    def follow(self, weights: Path) -> None:
        self.seen.append((weights, load_file(weights / "model.safetensors")))
        if self.error:
            raise self.error

    def close(self) -> None:
        return None


def test_each_policy_is_handed_over_in_a_folder_of_its_own_that_goes(tmp_path, tiny_llama):
    engine = Noting()
    handed = Handed(tiny_llama, torch.bfloat16, engine, tmp_path, 0)
    (tmp_path / ".handed-of-another-run").mkdir()
    handed.follow()
    handed.follow()
    (first, tensors), (second, _) = engine.seen
    assert first != second
    assert tensors.keys() == dict(tiny_llama.named_parameters()).keys()
    assert all(torch.equal(tensors[name], each.bfloat16()) for name, each in tiny_llama.named_parameters())
    assert [each.name for each in tmp_path.iterdir()] == [".handed-of-another-run"]
    assert handed.rows == 512


def test_an_engine_that_fails_is_a_line_and_leaves_nothing(tmp_path, tiny_llama):
    handed = Handed(tiny_llama, torch.float32, Noting(Exception("call to newer failed")), tmp_path, 9)
    with pytest.raises(TrainingError, match=r"has not taken the policy's weights.*rollout\.handed.*newer failed"):
        handed.follow()
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingError, match=r"rollout\.engine: it cannot write; --resume goes on"):
        handed.write([DRAW])
    blocked = tmp_path / "a file"
    blocked.touch()
    with pytest.raises(TrainingError, match=r"has not taken the policy's weights"):
        Handed(tiny_llama, torch.float32, Noting(), blocked, 9).follow()


@contextmanager
def answering(answers: Mapping[str, Any], asked: list[tuple[str, Any, str | None]] | None = None) -> Iterator[str]:
    """A server that says what it is told to; a number is a status, a text no JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if asked is not None:
                asked.append((self.path, json.loads(body) if body else None, self.headers.get("authorization")))
            said = answers.get(self.path, 404)
            status, text = (said, "why") if isinstance(said, int) else (200, said)
            sent = (text if isinstance(text, str) else json.dumps(text)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_GET  # noqa: N815  the name that http.server calls

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_is_asked_for_the_plain_distribution_and_believed():
    asked: list[tuple[str, Any, str | None]] = []
    with answering(GOOD, asked) as url:
        server = Server(f"{url}/v1/", "a key")
        assert server.write([DRAW]) == [Written("ab", (7, 8), (-0.5, -1.5), ended=True)]
        server.follow(Path("/shared/7"))
    assert {key for _, _, key in asked} == {"Bearer a key"}
    body = asked[1][1]
    assert {name: body[name] for name in ("model", "prompt", "max_tokens", "temperature", "stop")} == {
        "model": "a model",
        "prompt": [5, 6],
        "max_tokens": 4,
        "temperature": 0.7,
        "stop": ["\n"],
    }
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert 0 <= body["seed"] < 2**31
    assert asked[2][1] == {"method": "reload_weights", "kwargs": {"weights_path": "/shared/7"}}
    assert asked[3][0] == "/reset_prefix_cache"


@pytest.mark.parametrize(
    ("path", "said", "line"),
    [
        ("/v1/models", 401, "wants a key: set VLLM_API_KEY"),
        ("/v1/models", {"data": []}, "lists no model"),
        ("/v1/models", "<html>", "Expecting value"),
        ("/v1/completions", {"choices": []}, "an answer without its tokens"),
        ("/v1/completions", "", "an answer without its tokens"),
        ("/v1/completions", {"choices": [{"text": "a", "token_ids": [1], "logprobs": None}]}, "without its tokens"),
        ("/v1/completions", 503, "503: why"),
        ("/collective_rpc", 404, "takes no weights: start it with VLLM_SERVER_DEV_MODE=1"),
        ("/collective_rpc", 500, "has not taken the weights; does it see /shared/7"),
        ("/reset_prefix_cache", {"success": False}, "somebody else is using it"),
    ],
)
def test_what_a_server_answers_otherwise_is_a_line(monkeypatch, path, said, line):
    monkeypatch.setattr(vllm_server, "TRIES", 2)
    monkeypatch.setattr(vllm_server.time, "sleep", lambda _: None)

    def all_of_it() -> None:
        server = Server(url, None)
        server.write([DRAW])
        server.follow(Path("/shared/7"))

    with answering({**GOOD, path: said}) as url, pytest.raises(TrainingError) as caught:
        all_of_it()
    assert line in str(caught.value)
    assert str(caught.value).startswith(f"rollout.engine {url}")


def test_an_engine_that_is_none_is_said():
    with pytest.raises(TrainingError, match=r"rollout\.engine vllm2: expected here, vllm or http://HOST:PORT"):
        Rollout(engine="vllm2")
    with pytest.raises(TrainingError, match=r"rollout\.engine http://127\.0\.0\.1:9/v1/models: Cannot connect"):
        Server("http://127.0.0.1:9", None)
