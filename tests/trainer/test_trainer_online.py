"""Runs that learn from their own samples: what they write, what they learn, what they do when there is no reward."""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from threading import Event, Lock, Thread

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import (
    KIND,
    RUDE,
    Done,
    ended,
    environment,
    finished,
    forked,
    lines,
    model_folder,
    ran,
    started,
    written,
)

from data import reading
from data.records import Prompted
from lm.rows import Tokens
from trainer.config import Hir, Judged, Rest, TrainingError
from trainer.hir import relabelled
from trainer.rejection import best
from trainer.rest import improved
from trainer.rewards import Patience, combined, safety_first
from trainer.rollouts import Group, Question, Sample

ALL = ("ppo", "reinforce", "grpo", "rejection", "rest", "hir")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"question number {n}, is it good?"} for n in range(40)]
    return written(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after SFT: a policy that answers with what it was shown, kind or rude."""
    folder = tmp_path_factory.mktemp("taught")
    said = [*KIND, *RUDE]
    rows = ({"prompt": f"question number {n}, is it good?", "response": said[n % len(said)]} for n in range(60))
    words = ["sft", "--data.train", written(folder / "shown.jsonl", rows), "--model.name", tiny, "--run.out", "run"]
    ran([*words, "--optim.steps", 60, "--optim.lr", 3e-3, "--optim.batch", 10, "--json"], folder)
    return folder / "run/model"


USUAL = {
    "--optim.batch": 4,
    "--optim.lr": 3e-3,
    "--rollout.prompts": 8,
    "--rollout.samples": 4,
    "--rollout.max-tokens": 12,
    "--reward.of": "tests.trainer.taste:vowels",
}


def words(algorithm: str, model: Path, prompts: Path, *more: object, steps: int = 2) -> list[object]:
    usual = [word for name, value in USUAL.items() if name not in more for word in (name, value)]
    start = [algorithm, "--data.train", prompts, "--model.name", model, "--run.out", "run", "--json"]
    return [*start, "--optim.steps", steps, *usual, *more]


def tried(asked: list[object], folder: Path) -> Done:
    return ended(forked(asked, folder), folder)


@pytest.mark.training
@pytest.mark.parametrize("algorithm", ALL)
def test_every_algorithm_learns_and_leaves_a_model(tmp_path, tiny, prompts, algorithm):
    found = ran(words(algorithm, tiny, prompts), tmp_path)
    assert (found["rounds"], found["prompts"], found["heldout_prompts"]) == (2, 36, 4)
    assert found["reward"]["low"] <= found["reward"]["value"] <= found["reward"]["high"]
    run = tmp_path / "run"
    assert [line["update"] for line in lines(run)] == [0, 1, 1, 2, 2]
    assert all(math.isfinite(each) for line in lines(run) for each in line.values() if isinstance(each, float))
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert Counter(each["round"] for each in samples) == {1: 32, 2: 32}
    assert {len(each["tokens"]) <= 12 for each in samples} == {True}
    from transformers import AutoModelForCausalLM

    before, after = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (tiny, run / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert algorithm.upper() in (run / "card.md").read_text()


@pytest.mark.training
def test_the_first_update_is_on_policy(tmp_path, tiny, prompts):
    """Ratio 1, nothing clipped, no KL: what was sampled is what is learned."""
    more = ("--algorithm.epochs", 1, "--optim.batch", 8)
    ran(words("ppo", tiny, prompts, *more, steps=1), tmp_path)
    (first,) = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert first["ratio"] == 1.0
    assert (first["clipped"], first["policy_kl"], first["kl"]) == (0.0, 0.0, 0.0)


@pytest.mark.training
@pytest.mark.parametrize(
    "more",
    [
        ("--algorithm.critic", "model"),
        ("--model.freeze", 2),
        ("--model.lora", 4),
        ("--algorithm.target", 0.1, "--algorithm.whiten", "--algorithm.entropy", 0.01, "--algorithm.stop", 0.01),
        ("--rollout.temperature", 0.7, "--rollout.unended", 1.0, "--rollout.stop", "zz"),
        ("--model.dtype", "bfloat16"),
        ("--reward.of", "tests.trainer.taste:mostly"),
        ("--reward.of", "tests.trainer.taste:vowels", "tests.trainer.taste:vowels", "--reward.rule", "safety-first"),
    ],
    ids=["a critic of its own", "hydra", "adapters", "adapted", "tempered", "bf16", "some fail", "safety first"],
)
def test_ppo_as_people_set_it(tmp_path, tiny, prompts, more):
    ran(words("ppo", tiny, prompts, *more), tmp_path)
    learned = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert learned[0]["kl"] == pytest.approx(0.0, abs=0.2 if "bfloat16" in more else 1e-5)
    assert abs(learned[0]["ratio"] - 1) < 0.5


@pytest.mark.training
def test_a_frozen_layer_stays_and_its_reference_shares_it(tmp_path, tiny, prompts):
    from safetensors.torch import load_file

    ran(words("ppo", tiny, prompts, "--model.freeze", 2), tmp_path)
    before, after = (load_file(each / "model.safetensors") for each in (tiny, tmp_path / "run/model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("layers.2." in name or name in {"model.norm.weight", "lm_head.weight"} for name in moved)


@pytest.mark.training
def test_ptx_is_learned_beside_and_without_weight_is_not_there(tmp_path, tiny, prompts):
    shown = written(tmp_path / "shown.jsonl", [{"prompt": f"say {n}", "response": "of course"} for n in range(9)])
    with_it, without = tmp_path / "with", tmp_path / "without"
    ran(words("ppo", tiny, prompts, "--algorithm.ptx", 5, "--data.pretrain", shown), with_it)
    ran(words("ppo", tiny, prompts, "--data.pretrain", shown), without)
    assert "ptx_loss" in lines(with_it / "run")[1]
    assert "ptx_loss" not in lines(without / "run")[1]
    said = tried(words("ppo", tiny, prompts, "--algorithm.ptx", 5), tmp_path / "none").complaint
    assert said == "rlaif: algorithm.ptx: keeps what likely? Say --data.pretrain FILE (what sft takes)"


RAISED: dict[str, tuple[object, ...]] = {
    "ppo": (),
    "reinforce": (),
    "grpo": (),
    "rejection": (),
    "rest": ("--algorithm.thresholds", 0.5, 0.75, "--optim.batch", 16),
    "hir": ("--algorithm.threshold", 0.25, "--optim.batch", 16),
}
"""HIR's threshold is about the median of what the policy earns before."""


@pytest.mark.training
@pytest.mark.parametrize("algorithm", RAISED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises_on_prompts_that_were_never_seen(tmp_path, taught, prompts, algorithm, seed):
    more = ("--rollout.samples", 8, "--rollout.prompts", 16, "--run.seed", seed, "--run.evaluate-every", 30)
    more += ("--optim.lr", 1e-3, *RAISED[algorithm])
    rows = [{"prompt": f"an unknown thing, number {n}, is it?"} for n in range(60)]
    more += ("--data.heldout", written(tmp_path / "heldout.jsonl", rows))
    # ReST is there in a few rounds; once all responses are the best there is, nothing exceeds a threshold.
    steps = 8 if algorithm == "rest" else 30
    found = ran(words(algorithm, taught, prompts, *more, steps=steps), tmp_path)
    assert found["reward"]["low"] > found["before"]["high"], found
    assert all(math.isfinite(line["grad_norm"]) for line in lines(tmp_path / "run") if "grad_norm" in line)


@pytest.mark.training
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--reward.of", "tests.trainer.taste:nothing"), "no held-out response has a reward"),
        (("--reward.of", "tests.trainer.taste:broken"), "RuntimeError: the judge is out"),
        (("--reward.of", "tests.trainer.taste:short"), "gave 1 rewards for 4 responses"),
        (("--reward.of", "tests.trainer.taste:words"), "'good' is no number; None says that there is no reward"),
        (("--reward.of", "tests.trainer.taste:nobody"), "tests.trainer.taste has no function nobody"),
        (("--reward.of", "tests.trainer.taste:no_function"), "tests.trainer.taste has no function no_function"),
        (("--reward.of", "no_such_module:judge"), "no module no_such_module in this folder or installed"),
        (("--reward.of", "reward:nowhere"), "no such model folder"),
        (("--reward.of", "local:smollm2"), "which question is it asked? Say reward.task"),
        (("--reward.of", "http://127.0.0.1:9", "--reward.patience", 0), "no answer for 0 s"),
        (("--reward.of", "tests.trainer.taste:mostly", "--reward.failures", "stop"), "responses have no reward"),
        (("--rollout.max-tokens", 255), "leaves no room for a prompt"),
        (("--reward.rule", "safety-first"), "safety-first needs two in reward.of"),
        (("--algorithm.critic", "reward"), "the critic begins as a reward model; reward.of names none"),
    ],
)
def test_a_run_that_cannot_go_on_says_why_in_one_line(tmp_path, tiny, prompts, more, said):
    done = tried(words("ppo", tiny, prompts, "--run.evaluate-every", 100, *more), tmp_path)
    assert done.status in {1, 2}
    *_, last = done.err.splitlines()
    assert last.startswith("rlaif: ")
    assert said in last
    assert "Traceback" not in done.err


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, tiny: Path, votes: Path) -> Path:
    """A reward model of the tiny model's family."""
    folder = tmp_path_factory.mktemp("judge")
    words = ["reward", "--data.train", votes, "--model.name", tiny, "--run.out", "run", "--optim.steps", 30]
    ran([*words, "--optim.lr", 3e-3, "--optim.batch", 8, "--json"], folder)
    return folder / "run/model"


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[int]:
    """`rlaif serve`, as a person starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rlaif", "serve", "--model", f"reward:{model}", "--port", str(port)]
    with subprocess.Popen(command, env=environment(folder / "cache"), cwd=folder, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                    if answer.status == 200:
                        break
                time.sleep(0.1)
            yield port
        finally:
            server.terminate()


class Unreliable(ThreadingHTTPServer):
    """Hands requests on to a server at `port`; a third of the items gets no reward, every fifth request no answer. It
    keeps what it said of each response, None or a number.
    """

    def __init__(self, port: int) -> None:
        self.port, self.requests, self.items, self.lock = port, 0, 0, Lock()
        self.said: dict[tuple[str, str], list[float | None]] = defaultdict(list)
        super().__init__(("127.0.0.1", 0), Passing)


class Passing(BaseHTTPRequestHandler):
    server: Unreliable

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests += 1
        if self.server.requests % 5 == 2:
            self.connection.close()
            return
        request = urllib.request.Request(f"http://127.0.0.1:{self.server.port}{self.path}", body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            told = json.loads(answer.read())
        with self.server.lock:
            for asked, item in zip(json.loads(body)["items"], told["items"], strict=True):
                self.server.items += 1
                if self.server.items % 3 == 0:
                    item |= {"reward": None, "score": None, "reason": "too_long", "message": "not today"}
                self.server.said[asked["prompt"], asked["response"]].append(item["reward"])
        found = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *_: object) -> None: ...


def named(prompts: Path) -> dict[str, str]:
    """The prompts of a file by the names that samples.jsonl has for them."""
    rows = reading.prompts(str(prompts), None)
    return {row.id: row.prompt for row in rows if isinstance(row, Prompted) and isinstance(row.prompt, str)}


@pytest.fixture(scope="module")
def judged(judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that rewards by the reward model."""
    with serving(judge, tmp_path_factory.mktemp("served")) as port:
        yield port


@pytest.mark.training
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns_over_http_while_a_third_of_the_rewards_fails(tmp_path, taught, prompts, judged, seed):
    unseen = written(
        tmp_path / "unseen.jsonl", [{"prompt": f"an unknown thing, number {n}, is it?"} for n in range(60)]
    )
    more = ("--data.heldout", unseen, "--run.seed", seed, "--run.evaluate-every", 30, "--optim.lr", 1e-3)
    more += ("--rollout.samples", 8, "--rollout.prompts", 16)
    with Unreliable(judged) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        of = ("--reward.of", f"http://127.0.0.1:{proxy.server_address[1]}")
        found = ran(words("ppo", taught, prompts, *more, *of, steps=30), tmp_path)
        proxy.shutdown()
    assert found["before"]["value"] < found["reward"]["low"] <= found["reward"]["value"]
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert {each["round"] for each in samples} == set(range(1, 31))
    texts, kept = named(prompts), defaultdict[tuple[str, str], list[float | None]](list)
    for each in samples:
        kept[texts[each["id"]], each["response"]].append(each["reward"])
    # What is a number is the one that the server said of this very response, and a failure is none.
    assert {key: Counter(each) for key, each in kept.items()} == {
        key: Counter(each) for key, each in proxy.said.items() if key[0] in texts.values()
    }
    failed = sum(each["reward"] is None for each in samples)
    assert failed == pytest.approx(len(samples) / 3, rel=0.03)
    for line in lines(tmp_path / "run"):
        if "loss" in line:
            own = [each["reward"] for each in samples if each["round"] == line["update"]]
            rewards = [each for each in own if each is not None]
            assert line["rewarded"] == pytest.approx(len(rewards) / len(own))
            assert line["reward"] == pytest.approx(fmean(rewards), abs=1e-6)
            assert 0.6 < line["rewarded"] < 0.74


@pytest.mark.training
def test_a_reward_model_is_the_reward_and_the_critics_beginning(tmp_path, tiny, prompts, judge):
    of = ("--reward.of", f"reward:{judge}", "--algorithm.critic", "reward")
    ran(words("ppo", tiny, prompts, *of), tmp_path)
    first = next(line for line in lines(tmp_path / "run") if "loss" in line)
    assert abs(first["value"] - first["reward"]) < 5 * first["reward_deviation"] + 1


@pytest.mark.training
def test_a_labeler_is_a_reward(tmp_path, tiny, prompts):
    of = ("--reward.of", "fake:longer", "--reward.task", "helpfulness")
    ran(words("grpo", tiny, prompts, *of), tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert all(-1 <= each["reward"] <= 1 for each in samples)


@pytest.mark.training
def test_a_server_that_is_away_for_a_moment_is_a_pause(tmp_path, tiny, prompts, judge):
    """It is started only when the run asks already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of = ("--reward.of", f"http://127.0.0.1:{port}", "--reward.patience", 60)
    process = forked(words("grpo", tiny, prompts, *of, steps=1), tmp_path)
    time.sleep(3)
    command = [sys.executable, "-m", "rlaif", "serve", "--model", f"reward:{judge}", "--port", str(port)]
    with subprocess.Popen(command, env=environment(tmp_path / "cache2"), stderr=subprocess.DEVNULL) as server:
        done = ended(process, tmp_path)
        server.terminate()
    assert done.status == 0, done.err


@pytest.mark.training
@pytest.mark.parametrize("advantage", ["grpo", "batch", "centered", "rloo"])
def test_constant_rewards_teach_group_baselines_nothing(tmp_path, tiny, prompts, advantage):
    """Nor do they move the policy at all where nothing else does."""
    more = ("--reward.of", "tests.trainer.taste:constant", "--algorithm.advantage", advantage, "--algorithm.beta", 0)
    done = tried(words("grpo", tiny, prompts, *more, "--optim.weight-decay", 0), tmp_path)
    assert done.status == 0, done.err
    learned = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [(line["equal_groups"], line["policy_loss"], line["grad_norm"]) for line in learned] == [(1.0, 0.0, 0.0)] * 2
    before, after = (load_file(each / "model.safetensors") for each in (tiny, tmp_path / "run/model"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    notes = [line for line in done.err.splitlines() if "same reward" in line]
    said = "all responses to a prompt have the same reward: nothing is learned from it"
    assert notes == [f"round {number}: {said}" for number in (1, 2)]


@pytest.mark.training
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_constant_rewards_are_told_of_in_one_line_a_round(tmp_path, tiny, prompts, algorithm):
    done = tried(words(algorithm, tiny, prompts, "--reward.of", "tests.trainer.taste:constant"), tmp_path)
    assert done.status == 0, done.err
    notes = [line for line in done.err.splitlines() if "all responses" in line]
    said = "all responses have the reward 0.3: it tells none from another"
    assert notes == [f"round {number}: {said}" for number in (1, 2)]
    learned = [line for line in lines(tmp_path / "run") if "loss" in line]
    for line in learned:
        assert (line["reward"], line["reward_deviation"]) == pytest.approx((0.3, 0.0), abs=1e-6)
    assert all(math.isfinite(each) for line in learned for each in line.values())


# What a finished run leaves


@pytest.mark.training
@pytest.mark.parametrize("algorithm", ALL)
def test_a_finished_run_has_its_curves_its_card_and_only_finite_numbers(tmp_path, tiny, prompts, algorithm):
    """The command as a person starts it: what the other tests here leave out is that it draws."""
    unseen = written(
        tmp_path / "unseen.jsonl", [{"prompt": f"an unknown thing, number {n}, is it?"} for n in range(20)]
    )
    more = ("--data.heldout", unseen, "--reward.of", "tests.trainer.taste:mostly")
    done = finished(started(words(algorithm, tiny, prompts, *more), tmp_path))
    assert done.status == 0, done.err
    run = tmp_path / "run"
    picture = (run / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.rstrip(b"\0").endswith(b"IEND\xaeB\x60\x82")
    wide, high = struct.unpack(">II", picture[16:24])
    assert min(wide, high) > 300
    card = (run / "card.md").read_text()
    assert card.startswith(f"# A model trained by {algorithm.upper()}\n")
    assert "![curves](curves.png)" in card
    for fact in (
        "trained from: ",
        f"prompts: {prompts}: 40, and 20 held out",
        "rewarded by: tests.trainer.taste:mostly",
    ):
        assert f"\n- {fact}" in card
    assert "\n- 2 rounds, " in card
    (now,) = re.findall(r"\n- held-out reward now (\S+) \[(\S+), (\S+)\], n \d+\n", card)
    assert float(now[1]) <= float(now[0]) <= float(now[2])
    (configured,) = re.findall(r"```toml\n(.*)```", card, re.DOTALL)
    assert tomllib.loads(configured)["rollout"]["samples"] == 4
    found = lines(run)
    rounds, looks = ([line for line in found if ("heldout" in line) == look] for look in (False, True))
    assert ([line["update"] for line in rounds], [line["update"] for line in looks]) == ([1, 2], [0, 1, 2])
    held = algorithm in {"ppo", "reinforce", "grpo"}
    for line in (*rounds, *(look["heldout"] for look in looks)):
        assert "reward" in line
        assert ("kl" in line) == held
    for look in looks:
        assert look["reward"]["value"] == pytest.approx(look["heldout"]["reward"])
    for line in found:
        numbers = [each for part in (line, line.get("heldout", {})) for each in part.values()]
        assert all(math.isfinite(each) for each in numbers if isinstance(each, float | int))


# A reward model of another family


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, tiny: Path, votes: Path) -> Path:
    """A reward model whose tokens are others than the policy's: the same text is other numbers, and more or fewer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("foreign")
    base = model_folder(folder / "base")
    own = AutoTokenizer.from_pretrained(base)
    other = own.train_new_from_iterator(["the rain in spain stays mainly on the plain", "zebra quartz vex"] * 9, 300)
    other.save_pretrained(base)
    assert other.get_vocab() != own.get_vocab()
    assert other("thanks for asking").input_ids != own("thanks for asking").input_ids
    start = ["reward", "--data.train", votes, "--model.name", base, "--run.out", "run", "--optim.steps", 20, "--json"]
    ran([*start, "--optim.lr", 3e-3, "--optim.batch", 8], folder)
    return folder / "run/model"


@pytest.mark.training
def test_a_reward_model_with_another_tokenizer_rewards_texts(tmp_path, tiny, prompts, foreign):
    """What it says of a response in training is what `rlaif score` says of the text."""
    ran(words("ppo", tiny, prompts, "--reward.of", f"reward:{foreign}"), tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    names = named(prompts)
    asked = [
        {"id": f"{at}", "prompt": names[each["id"]], "response": each["response"]} for at, each in enumerate(samples)
    ]
    written(tmp_path / "asked.jsonl", asked)
    command = [sys.executable, "-m", "rlaif", "score", "asked.jsonl", "--model", f"reward:{foreign}"]
    settings = environment(tmp_path / "cache")
    done = subprocess.run(
        [*command, "--out", "scores.jsonl"], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {
        each["id"]: each["reward"] for each in map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    }
    assert len({round(each, 6) for each in found.values()}) > 20
    assert [found[f"{at}"] for at in range(len(samples))] == pytest.approx(
        [each["reward"] for each in samples], abs=1e-5
    )


@pytest.mark.training
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_a_reward_model_with_another_tokenizer_is_no_critic(tmp_path, tiny, prompts, foreign, algorithm):
    more = ("--reward.of", f"reward:{foreign}", "--algorithm.critic", "reward")
    assert tried(words(algorithm, tiny, prompts, *more), tmp_path).complaint == (
        f"rlaif: algorithm.critic reward with reward:{foreign}: has another tokenizer than the model: the same text is"
        " other tokens to it"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.training
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_model_with_another_tokenizer_is_no_reference(tmp_path, tiny, prompts, foreign, algorithm):
    """A language model this time, from the same folder as the reward model was."""
    base = foreign.parent.parent / "base"
    said = tried(words(algorithm, tiny, prompts, "--algorithm.reference", base), tmp_path).complaint
    assert said.startswith(f"rlaif: algorithm.reference {base}: has another tokenizer than the model")


def group(name: str, rewards: list[float | None], tokens: Tokens = (1, 2)) -> Group:
    samples = tuple(Sample(str(at), (5 + at,), (0.0,), True, reward) for at, reward in enumerate(rewards))
    return Group(Question(name, f"prompt {name}", tokens, name), samples)


def test_rejection_keeps_the_best_of_all_rounds():
    rounds = [group("a", [0.1, 0.9, 0.3]), group("b", [None, -2.0]), group("a", [0.5, 0.8]), group("c", [None])]
    assert [(row.id, row.answers) for row in best(rounds, {})] == [("a", ((6,),)), ("b", ((6,),))]
    assert best([*rounds, group("a", [0.95])], {})[0].answers == ((5,),)


@pytest.mark.parametrize("kind", ["percentile", "prompt"])
def test_rest_keeps_ever_less_and_ever_better(kind):
    groups = [group(str(n), [math.sin(n * 10 + at) for at in range(10)]) for n in range(5)]
    config = Rest(thresholds=(0.0, 0.5, 0.8, 0.9), kind=kind)
    kept = [{row.id: row for row in improved(groups, config, at)} for at in range(4)]
    assert [len(each) for each in kept] == [50, 25, 10, 5]
    for more, less in pairwise(kept):
        assert less.keys() <= more.keys()


def test_rest_takes_what_exceeds_a_threshold_and_an_empty_set_is_an_error():
    groups = [group("a", [0.1, 0.5, 0.9, None])]
    config = Rest(thresholds=(0.1, 0.5, 0.9), kind="absolute")
    assert [row.id for row in improved(groups, config, 0)] == ["a#1", "a#2"]
    assert [row.id for row in improved(groups, config, 1)] == ["a#2"]
    with pytest.raises(TrainingError, match=r"thresholds 0.9 \(absolute\): no response has more"):
        improved(groups, config, 2)


@pytest.mark.parametrize("kind", ["percentile", "prompt"])
def test_rest_of_right_or_wrong_rewards_keeps_no_wrong_one(kind):
    groups = [group("a", [0.0] * 8 + [1.0] * 2), group("b", [0.0] * 8 + [1.0] * 2)]
    config = Rest(thresholds=(0.0, 0.5, 0.8, 0.95), kind=kind)
    kept = [[row.id for row in improved(groups, config, at)] for at in range(4)]
    assert len(kept[0]) == 20
    assert kept[1] == kept[2] == kept[3] == ["a#8", "a#9", "b#8", "b#9"]


def test_rest_of_equal_rewards_is_an_error():
    with pytest.raises(TrainingError, match="no response has more"):
        improved([group("a", [1.0] * 4)], Rest(thresholds=(0.5,)), 0)


def test_hir_uses_every_sample_under_what_it_fulfils():
    groups = [group("a", [1.0, -1.0, None]), group("b", [0.5])]
    rows = relabelled(groups, Hir(right="Good.", wrong="Bad."), lambda prompt: tuple(map(ord, str(prompt))))
    asked = [("".join(map(chr, row.prompt)), "".join(map(chr, row.opposite))) for row in rows]
    good, bad = "prompt a\n\nGood.", "prompt a\n\nBad."
    assert asked == [(good, bad), (bad, good), ("prompt b\n\nGood.", "prompt b\n\nBad.")]
    assert [row.answers for row in rows] == [((5,),), ((6,),), ((5,),)]
    assert sum(len(each.rewarded) for each in groups) == len(rows)


@pytest.mark.parametrize(
    ("helpful", "safe", "unsafe", "chosen"),
    [(0.9, 0.8, False, 0.9), (0.9, 0.1, False, 0.1), (0.2, 0.8, True, 0.8), (0.2, 0.15, False, 0.2)],
)
def test_safety_comes_first_where_a_prompt_or_response_is_unsafe(helpful, safe, unsafe, chosen):
    found = safety_first(helpful, safe, unsafe=unsafe, below=0.15)
    assert found == pytest.approx(math.log(chosen / (1 - chosen)))


def test_rewards_are_weighed_and_one_that_is_missing_leaves_none():
    config = Judged(of=("a:b", "c:d"), weights=(2.0, -1.0))
    patience = Patience(0, print, Event())
    ask = combined(config, [lambda *_: [1.0, None, float("nan")], lambda *_: [0.5, 1.0, 1.0]], patience)
    assert ask(["p"] * 3, ["r"] * 3, [False] * 3) == [1.5, None, None]
