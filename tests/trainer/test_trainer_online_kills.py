"""A run on its own samples that is killed at a moment that chance chooses goes on to the same end: bit by bit."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tiny_runs import (
    Fuse,
    assert_same,
    changes,
    compared,
    ended,
    finished,
    forked,
    lines,
    ran,
    started,
    survived,
    written,
)

pytestmark = pytest.mark.training

RUNS: dict[str, tuple[object, ...]] = {
    "ppo, a critic on the trunk": ("ppo", "--algorithm.critic", "trunk", "--algorithm.target", 0.05),
    "ppo, demonstrations beside": ("ppo", "--algorithm.ptx", 0.5, "--data.pretrain", "shown.jsonl"),
    "ppo, frozen layers": ("ppo", "--model.freeze", 2),
    "ppo, ended early": ("ppo", "--algorithm.stop", 1e-4, "--algorithm.whiten"),
    "reinforce": ("reinforce", "--rollout.temperature", 0.8),
    "grpo": ("grpo", "--algorithm.epochs", 2),
}


def words(name: str, model: Path) -> list[object]:
    """Four rounds of four prompts; it looks and saves at different ones."""
    return [
        *RUNS[name], "--data.train", "prompts.jsonl", "--data.heldout", "unseen.jsonl", "--model.name", model,
        "--run.out", "run", "--json", "--optim.steps", 4, "--optim.batch", 2, "--optim.lr", 3e-3,
        "--run.evaluate-every", 3, "--run.save-every", 1, "--rollout.prompts", 4, "--rollout.samples", 2,
        "--rollout.max-tokens", 6, "--rollout.rows", 4, "--reward.of", "tests.trainer.taste:mostly",
    ]  # fmt: skip


def room(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    written(folder / "prompts.jsonl", [{"prompt": f"question number {n}, is it good?"} for n in range(12)])
    written(folder / "unseen.jsonl", [{"prompt": f"an unknown thing, number {n}"} for n in range(6)])
    written(folder / "shown.jsonl", [{"prompt": row["prompt"], "response": row["responses"][0]} for row in compared(7)])
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Callable[[str], Path]:
    """The folder of a run that nobody killed."""

    @cache
    def run(name: str) -> Path:
        folder = room(tmp_path_factory.mktemp("whole"))
        ran(words(name, tiny), folder)
        return folder

    return run


def fuses(dice: random.Random, most: int, count: int) -> list[Fuse]:
    """Some points of a run, each counted from where it was begun or went on."""
    return [Fuse(dice.randint(1, max(1, most // (at + 1))), middle=dice.random() < 0.5) for at in range(count)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_twice_goes_on_to_the_same_end(tmp_path, tiny, whole, name):
    dice = random.Random(f"twice {name}")
    survived(words(name, tiny), room(tmp_path), fuses(dice, changes(whole(name)) // 2, 2))
    assert_same(whole(name) / "run", tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [line["update"] for line in found if "loss" in line] == [1, 2, 3, 4]
    assert [line["update"] for line in found if "heldout" in line] == [0, 3, 4]


def test_a_run_that_is_killed_while_it_removes_an_old_checkpoint_leaves_nothing_of_it(tmp_path, tiny, whole):
    """The last thing that it does before its model is written: no later checkpoint comes that would clear up."""
    name = "ppo, a critic on the trunk"
    survived(words(name, tiny), room(tmp_path), [Fuse(2, "weights.safetensors")])
    assert_same(whole(name) / "run", tmp_path / "run")


@pytest.mark.kills
@pytest.mark.parametrize("name", RUNS)
def test_wherever_a_run_is_killed_it_goes_on_to_the_same_end(tmp_path, tiny, whole, name):
    """At places drawn anew from all of its changes: before the first round and while its model is written, too."""
    dice, most = random.Random(f"wherever {name}"), changes(whole(name))
    for at in dice.sample(range(1, most + 1), 4):
        folder = room(tmp_path / str(at))
        points = [Fuse(at, middle=dice.random() < 0.5), Fuse(dice.randint(1, 6), middle=dice.random() < 0.5)]
        survived(words(name, tiny), folder, points)
        assert_same(whole(name) / "run", folder / "run")
        shutil.rmtree(folder)


SAMPLES = 4 * 4 * 2


def at_some_sample(dice: random.Random, run: Path, going: Callable[[], bool]) -> None:
    """Wait until a number of samples, drawn from those that are still to come, has its rewards; then a moment more."""
    place = run / "samples.jsonl"
    known = place.read_bytes().count(b"\n") if place.is_file() else 0
    wanted = dice.randint(known, SAMPLES)
    deadline = time.monotonic() + 60
    while going() and (not place.is_file() or place.read_bytes().count(b"\n") < wanted):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.1))


@pytest.mark.kills
@pytest.mark.parametrize("name", RUNS)
def test_whenever_a_run_is_killed_from_outside_it_goes_on_to_the_same_end(tmp_path, tiny, whole, name):
    dice, asked, killed = random.Random(f"whenever {name}"), words(name, tiny), 0
    for trial in range(2):
        folder, going = room(tmp_path / str(trial)), list[object]()
        for _ in range(3):
            process = forked([*asked, *going], folder)
            at_some_sample(dice, folder / "run", process.is_alive)
            process.kill()
            killed += ended(process, folder).status == -signal.SIGKILL
            going = ["--resume"]
        ran([*asked, "--resume"], folder)
        assert_same(whole(name) / "run", folder / "run")
    assert killed > 2


@pytest.mark.kills
def test_whenever_the_command_is_killed_it_goes_on_to_the_same_end(tmp_path, tiny):
    """The real command line, which draws its curves too (with the seconds that it took, so no two are the same)."""
    name, dice = "ppo, demonstrations beside", random.Random("command")
    asked, killed = words(name, tiny), 0
    assert finished(started(asked, room(tmp_path / "whole"))).status == 0
    (tmp_path / "whole/run/curves.png").unlink()
    for trial in range(2):
        folder, going = room(tmp_path / str(trial)), list[object]()
        for _ in range(2):
            process = started([*asked, *going], folder)
            at_some_sample(dice, folder / "run", lambda process=process: process.poll() is None)
            process.kill()
            killed += finished(process).status == -signal.SIGKILL
            going = ["--resume"]
        done = finished(started([*asked, "--resume"], folder))
        assert done.status == 0, done.err
        (folder / "run/curves.png").unlink()
        assert_same(tmp_path / "whole/run", folder / "run")
    assert killed > 1
