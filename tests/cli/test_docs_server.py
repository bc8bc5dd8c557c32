"""Every command of docs/server.md runs: servers are started as it says, and asked as it says. The examples are run."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from rewarding import ROOT, Noted, native, process, served

PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SERVERS = [command for command in COMMANDS if command.startswith("rlaif serve ")]
CALLS = [command for command in COMMANDS if command.startswith("curl ")]
TOKEN = "t0ken-of-the-page"


def serving(command: str, folder: Path) -> Any:
    """The server of a command, with what stands in for a real model, a port that may be taken, and other machines."""
    (folder / "token.txt").write_text(f"{TOKEN}\n")
    words = shlex.split(command.replace("local:smollm2", "fake:noise").replace("0.0.0.0", "127.0.0.1"))[2:]
    words = [str(folder / "token.txt") if word == "token.txt" else word for word in words]
    return process(*words, cache=folder / "cache")


def test_they_are_all_of_ours():
    assert sorted(COMMANDS) == sorted([*SERVERS, *CALLS])
    assert len(SERVERS) >= 5
    assert len(CALLS) >= 6


@pytest.mark.parametrize("command", SERVERS)
def test_a_server_of_the_page_serves(command, tmp_path):
    with serving(command, tmp_path) as it:
        reply = it.ask("POST", "/v1/rewards", native("x"), Authorization=f"Bearer {TOKEN}")
        assert reply.status == 200
        assert reply.json["items"][0]["status"] == "ok"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_call_of_the_page_is_answered(tmp_path):
    plain, guarded = (next(each for each in SERVERS if ("--token-file" in each) == wanted) for wanted in (False, True))
    for server in (plain, guarded):
        with serving(server, tmp_path) as it:
            for call in CALLS:
                if ("token.txt" in call) == (server is guarded):
                    line = call.replace("http://127.0.0.1:8300", it.url).replace("curl -s", "curl -sS --fail-with-body")
                    line = line.replace("--fail-with-body", "") if "/ready" in line else line
                    done = subprocess.run(
                        line,
                        shell=True,
                        cwd=tmp_path,
                        capture_output=True,
                        text=True,
                        env={**os.environ, "no_proxy": "*"},
                    )
                    assert done.returncode == 0, (line, done.stdout, done.stderr)
                    assert done.stdout
                    assert '"401"' not in done.stdout


def test_every_path_metric_and_option_that_the_page_names_is_there():
    async def run() -> tuple[set[str], str]:
        async with served(Noted()) as web:
            await web.post("/v1/rewards", native("a", "a"))
            return set((await web.get("/openapi.json")).json["paths"]), (await web.get("/metrics")).text

    paths, metrics = asyncio.run(run())
    for path in set(re.findall(r"`(/[a-z_0-9/]*)`", PAGE)) - {"/openapi.json"}:
        assert path in paths, path
    for metric in set(re.findall(r"`(rlaif_[a-z_]+)", PAGE)):
        assert f"# TYPE {metric}" in metrics, metric
    help_ = subprocess.run(
        [sys.executable, str(ROOT / "rlaif.py"), "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    theirs = {"--reward", "--remote_rm_url", "--rm-type", "--rm-url", "--reward-key"}
    for option in set(re.findall(r"--[a-z][a-z_-]+", PAGE)) - theirs:
        assert option in help_, option


# The examples


def test_the_examples_compile():
    for path in (ROOT / "examples").glob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


class Returned(NamedTuple):
    """NeMo-RL's EnvironmentReturn, as of 2026."""

    observations: Any
    metadata: Any
    next_stop_strings: Any
    rewards: Any
    terminateds: Any
    answers: Any = None


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of examples/nemo_rl_environment.py, with stand-ins for Ray and NeMo-RL."""
    interfaces = ModuleType("nemo_rl.environments.interfaces")
    vars(interfaces).update(EnvironmentInterface=object, EnvironmentReturn=Returned)
    for name in ("nemo_rl", "nemo_rl.environments"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interfaces.__name__, interfaces)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=lambda kind: kind))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "nemo_rl_environment", raising=False)
    import nemo_rl_environment

    return nemo_rl_environment.RewardServer


def test_nemo_rl_gets_the_rewards_of_its_templated_prompts(environment, tmp_path):
    import torch

    logs = [
        [
            {"role": "user", "content": f"<|im_start|>user\nQuestion {n}?<|im_end|>\n<|im_start|>assistant\n"},
            {"role": "assistant", "content": f"Answer {n}."},
        ]
        for n in range(3)
    ]
    with process("--task", "helpfulness", "--model", "fake:noise", cache=tmp_path) as it:
        found = environment({"url": it.url}).step(logs, [{"n": n} for n in range(3)])
        items = [{"prompt": f"Question {n}?", "response": f"Answer {n}."} for n in range(3)]
        wanted = [each["reward"] for each in it.ask("POST", "/v1/rewards", {"items": items}).json["items"]]
    assert found.rewards.tolist() == pytest.approx(wanted)
    assert found.rewards.dtype == torch.float32
    assert found.terminateds.tolist() == [True] * 3
    assert found.metadata == [{"n": n} for n in range(3)]
    assert len(found.observations) == len(found.next_stop_strings) == 3
    assert found.answers == ["Answer 0.", "Answer 1.", "Answer 2."]


def test_nemo_rl_hears_of_a_failure_and_gets_no_score(environment, tmp_path):
    log = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    words = ("--task", "helpfulness", "--model", "fake:nan")
    with process(*words, cache=tmp_path) as it, pytest.raises(OSError, match="503"):
        environment({"url": it.url, "patience": 0.6}).step([log], [None])
    with pytest.raises(ValueError, match="http://"):
        environment({"url": "file:///etc/passwd"})
