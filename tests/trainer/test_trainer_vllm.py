"""vLLM writes what the policy in training would: in a process beside it and behind an address, after each update."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import ended, forked, lines, written

from lm import embedded
from lm.branches import Actor
from lm.rows import branches
from lm.sample import Draw, Written
from trainer.build import Built, build
from trainer.config import Config, Judged, Model, Ppo, Rollout, TrainingError
from trainer.config import Data as Read
from trainer.config import Run as Kept
from trainer.vllm_server import Server
from trainer.writers import opened

TEMPERATURE = 0.8
KEY = "a key"


@pytest.fixture(scope="module")
def untied(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with a head of its own: on a CPU `vllm serve` does not load a tied one again."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("untied")
    model = AutoModelForCausalLM.from_pretrained(embedded.folder(cache), dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded.folder(cache)).save_pretrained(folder)
    return folder


@contextmanager
def served(model: Path) -> Iterator[str]:
    """`vllm serve`, which takes weights, and wants a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(model), "--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    words += ["--max-model-len", "1024", "--dtype", "float32", "--logprobs-mode", "processed_logprobs"]
    words += ["--api-key", KEY]
    with subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    ) as process:
        try:
            for _ in range(240):
                assert process.poll() is None, "vLLM's server ended"
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail("vLLM's server was not ready within two minutes")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def configured(engine: str, out: Path, model: Path | str) -> Config:
    return Config(
        algorithm=Ppo(),
        data=Read(train=""),
        run=Kept(out=out),
        model=Model(name=str(model)),
        rollout=Rollout(engine=engine, temperature=TEMPERATURE, max_tokens=16),
        reward=Judged(),
    )


@torch.no_grad()
def likely(built: Built, draw: Draw, text: Written) -> torch.Tensor:
    """What the policy in training says of a text."""
    assert isinstance(built.module, Actor)
    return built.module.eval()(branches([(draw.prompt, [text.drawn])])).likelihoods


def moved(built: Built) -> None:
    """An update that can be seen: of adapters too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for each in built.module.parameters():
            if each.requires_grad:
                each += 0.1 * each.abs().mean().clamp(min=0.01) * torch.randn_like(each)


def agree(config: Config, folder: Path, cache: Path) -> None:
    built = build(config, cache)
    tokenizer = built.loaded.tokenizer
    prompts = ["The capital of France is", "Once upon a time there was a", "Water boils at"]
    draws = [
        Draw(tuple(tokenizer(text).input_ids), 16, TEMPERATURE, 0, 100 * n + at, (".",))
        for n, text in enumerate(prompts)
        for at in range(3)
    ]
    with closing(opened(built, config, cache, KEY)) as writer:
        writer.follow()
        before = writer.write(draws)
        moved(built)
        writer.follow()
        after = writer.write(draws)
    gone: list[torch.Tensor] = []
    for draw, old, new in zip(draws, before, after, strict=True):
        assert 1 <= len(new.drawn) <= 16
        assert len(new.likelihoods) == len(new.drawn)
        assert new.ended or len(new.drawn) == 16
        assert "." not in new.text
        torch.testing.assert_close(likely(built, draw, new), torch.tensor(new.likelihoods), atol=2e-3, rtol=0)
        gone.append(likely(built, draw, old) - torch.tensor(old.likelihoods))
    assert float(torch.cat(gone).abs().max()) > 0.1, "the weights had not moved: the test would see nothing"
    assert not list(folder.glob(".handed*"))
    assert len({each.text for each in after}) > len(prompts)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_beside_writes_as_the_newest_policy(tmp_path, cache):
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed here: make test-vllm")
    agree(configured("vllm", tmp_path, "smollm2"), tmp_path, cache)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_serve_writes_as_the_newest_policy(tmp_path, cache, untied):
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed here: make test-vllm")
    with served(untied) as url:
        with pytest.raises(TrainingError, match="wants a key: set VLLM_API_KEY"):
            Server(url, None)
        agree(configured(url, tmp_path, untied), tmp_path, cache)
        run(tmp_path, url, untied)


def run(folder: Path, engine: str, model: Path | str) -> None:
    """A whole run: what was written is what is learned, round after round."""
    prompts = written(folder / "prompts.jsonl", [{"prompt": f"Say something about {n} things."} for n in range(9)])
    words: list[Any] = ["ppo", "--data.train", prompts, "--model.name", model, "--run.out", folder / "run"]
    words += ["--json", "--optim.steps", 2, "--optim.batch", 4, "--optim.lr", 1e-4, "--rollout.prompts", 4]
    words += ["--rollout.samples", 2, "--rollout.max-tokens", 8, "--reward.of", "tests.trainer.taste:vowels"]
    words += ["--rollout.engine", engine]
    done = ended(forked(words, folder, VLLM_API_KEY=KEY), folder, seconds=300)
    assert done.status == 0, done.err
    learned = [line for line in lines(folder / "run") if "loss" in line]
    assert [line["drift"] < 2e-3 for line in learned] == [True, True], learned
    assert len({json.dumps(line["reward"]) for line in learned}) == 2
