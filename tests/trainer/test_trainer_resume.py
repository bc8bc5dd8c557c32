"""A run that is killed, wherever, and goes on ends as the one that was left alone: bit by bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
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
from torch import nn

from trainer import checkpoint
from trainer.config import TrainingError

pytestmark = pytest.mark.training
LORA = ("--model.lora", 4, "--model.lora-dropout", 0.3)
RUNS: dict[str, tuple[object, ...]] = {
    "sft": ("sft",),
    "reward": ("reward",),
    "dpo": ("dpo",),
    "dpo, asked at each update": ("dpo", "--algorithm.cached=false"),
    "dpo with adapters": ("dpo", *LORA),
    "cpl": ("cpl",),
}
OFTEN = ("--run.evaluate-every", 4, "--run.save-every", 3)


def words(run: Sequence[object], model: Path, rows: Path, often: Sequence[object] = OFTEN) -> list[object]:
    """Twelve updates; it looks and saves at different ones."""
    return [
        *run, "--data.train", rows, "--model.name", model, "--run.out", "run", "--json",
        "--optim.steps", 12, "--optim.batch", 5, "--optim.lr", 3e-3, *often,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Path, votes: Path) -> Callable[[str], Path]:
    """The folder of a run that nobody killed."""

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        ran(words(RUNS[name], tiny, votes), folder)
        return folder

    return run


KILLS = {
    "sft": (Fuse(1, "config.toml", middle=True), Fuse(4, "metrics.jsonl", middle=True)),
    "reward": (Fuse(2, "state.json", middle=True), Fuse(1, "metrics.jsonl", middle=True), Fuse(1, "card.md")),
    "dpo": (Fuse(1, "reference"), Fuse(9, "metrics.jsonl")),
    "dpo, asked at each update": (Fuse(3, "00000003"), Fuse(5, "00000003")),
    "dpo with adapters": (Fuse(8, "metrics.jsonl"), Fuse(1, "adapter")),
    "cpl": (Fuse(3, "metrics.jsonl"), Fuse(3, "model", middle=True)),
}
"""In the middle of a file, of a checkpoint, of what removes one, of the model; before any checkpoint, between two."""


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_goes_on_to_the_same_end(tmp_path, tiny, votes, whole, name):
    found = survived(words(RUNS[name], tiny, votes), tmp_path, KILLS[name])
    assert (found["updates"], found["stopped"]) == (12, False)
    assert_same(whole(name) / "run", tmp_path / "run")
    assert [line["update"] for line in lines(tmp_path / "run") if "loss" in line] == list(range(1, 13))
    assert [line["update"] for line in lines(tmp_path / "run") if "heldout" in line] == [0, 4, 8, 12]


def test_a_run_that_was_killed_from_outside_goes_on_to_the_same_end(tmp_path, tiny, votes, whole):
    asked, measured = words(RUNS["dpo with adapters"], tiny, votes), tmp_path / "run/metrics.jsonl"
    for least, going in ((2, []), (10, ["--resume"])):
        process = forked([*asked, *going], tmp_path)
        deadline = time.monotonic() + 60
        while not measured.is_file() or measured.read_text().count("\n") < least:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert ended(process, tmp_path).status == -signal.SIGKILL
    ran([*asked, "--resume"], tmp_path)
    assert_same(whole("dpo with adapters") / "run", tmp_path / "run")


@pytest.fixture
def stopping(tmp_path: Path, tiny: Path, votes: Path) -> list[object]:
    """A reward model that learns the opposite of what its held-out rows say: each look is worse than the one before."""
    against = [
        {
            **row,
            "prompt": f"Again {row['prompt']}",
            "votes": [{**vote, "choice": 1 - vote["choice"]} for vote in row["votes"]],
        }
        for row in compared(40)
    ]
    apart = written(tmp_path / "against.jsonl", against)
    return words(("reward", "--data.heldout", apart, "--run.patience", 3), tiny, votes, ("--run.evaluate-every", 1))


@pytest.mark.parametrize("fuse", [Fuse(7, "metrics.jsonl"), Fuse(1, "model")], ids=["while waiting", "having stopped"])
def test_what_early_stopping_knows_survives(tmp_path, stopping, fuse):
    found = ran(stopping, tmp_path / "whole")
    assert found["stopped"]
    assert found["updates"] == found["best"] + 3 < 12
    again = survived(stopping, tmp_path / "killed", [fuse])
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    assert_same(tmp_path / "whole/run", tmp_path / "killed/run")


def test_nothing_in_a_checkpoint_can_run(whole):
    """Tensors are in safetensors files, the rest is JSON: no pickle, whatever it is called."""
    for name in RUNS:
        files = [file for file in (whole(name) / "run/checkpoints").rglob("*") if file.is_file()]
        assert {file.name for file in files} == {
            "weights.safetensors",
            "optimizer.safetensors",
            "random.safetensors",
            "state.json",
        }
        for file in files:
            if file.suffix == ".json":
                json.loads(file.read_text())
            else:
                assert load_file(file)


def test_a_run_that_has_ended_ends_again(tmp_path, tiny, votes, whole):
    shutil.copytree(whole("reward") / "run", tmp_path / "run")
    assert ran([*words(RUNS["reward"], tiny, votes), "--resume"], tmp_path)["updates"] == 12
    assert_same(whole("reward") / "run", tmp_path / "run")


def complaint(asked: Sequence[object], folder: Path) -> str:
    return ended(forked(asked, folder), folder).complaint


def test_a_run_is_never_started_over(tiny, votes, whole):
    before = {file: file.stat().st_mtime_ns for file in (whole("sft") / "run").rglob("*")}
    said = complaint(words(RUNS["sft"], tiny, votes), whole("sft"))
    assert said == "rlaif: run: holds a run already: go on with it (--resume), or choose another --run.out"
    assert before == {file: file.stat().st_mtime_ns for file in (whole("sft") / "run").rglob("*")}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--optim.clip", 0.5), "optim.clip is 1.0 there, 0.5 here"),
        (("--run.seed", 1), "run.seed is 0 there, 1 here"),
        (("--model.freeze", 1), "model.freeze is 0 there, 1 here"),
        (("--run.patience", 2), "run.patience is not set there, 2 here"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(tiny, votes, whole, changed, named):
    said = complaint([*words(RUNS["sft"], tiny, votes), *changed, "--resume"], whole("sft"))
    end = "say those, or choose another --run.out"
    assert said == f"rlaif: run/config.toml: another run's settings: {named}; {end}"


def labelled(row: dict[str, Any], sure: float = 0.9, digest: str = "a job") -> dict[str, Any]:
    """What `rlaif label` would write, of a rater that is so sure of what the votes say."""
    p = sure if row["votes"][0]["choice"] == 0 else 1 - sure
    return {
        "id": row["id"], "p": p, "choice": int(p < 0.5), "orders": [{"p_first": p, "mass": 1.0}], "mass": 1.0,
        "same_position": None, "model": "fake:noise", "task": "helpfulness", "digest": digest, "tokens_in": 1,
        "tokens_out": 1, "usd": None, "seconds": 0.1, "method": "logprobs",
    }  # fmt: skip


PLAIN = [{**row, "responses": row["responses"][:2]} for row in compared(40)]
LABELS = [labelled(row) for row in PLAIN]


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, list[object]]:
    """The folder of a run on labels that was killed after some updates, and how it was started."""
    folder = tmp_path_factory.mktemp("labels")
    written(folder / "plain.jsonl", PLAIN)
    written(folder / "labels.jsonl", LABELS)
    asked = [*words(("reward", "--data.labels", "labels.jsonl"), tiny, Path("plain.jsonl")), "--run.patience", 9]
    assert ended(forked(asked, folder, fuse=Fuse(9, "metrics.jsonl")), folder).status == -signal.SIGKILL
    assert checkpoint.latest(folder / "run/checkpoints") is not None
    return folder, asked


OTHERS = {
    "all p": [labelled(row, 0.8) for row in PLAIN],
    "one p": [*LABELS[:7], labelled(PLAIN[7], 0.89), *LABELS[8:]],
    "the other response": [labelled(row, 0.1) for row in PLAIN],
    "another digest": [labelled(row, digest="another job") for row in PLAIN],
    "another model": [{**each, "model": "fake:longer"} for each in LABELS],
    "a label less": LABELS[1:],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_does_not_go_on_with_other_labels_of_the_same_texts(tmp_path, broken_off, name):
    folder, asked = broken_off
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = lines(tmp_path / "run")
    written(tmp_path / "labels.jsonl", OTHERS[name])
    done = ended(forked([*asked, "--resume"], tmp_path), tmp_path)
    assert (done.status, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("rlaif: run/checkpoints/00000004: was made from data ")
    assert last.endswith("with other data, or another model, a run cannot go on; begin another --run.out")
    assert lines(tmp_path / "run") == before


def test_a_run_goes_on_with_the_same_labels_in_another_order(tmp_path, broken_off):
    folder, asked = broken_off
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    written(tmp_path / "labels.jsonl", reversed(LABELS))
    assert ran([*asked, "--resume"], tmp_path)["updates"] == 12


def test_a_run_does_not_go_on_with_other_votes_on_the_same_texts(tmp_path, tiny):
    """All rows are the same but for one voter less."""
    rows, asked = compared(40), words(RUNS["dpo"], tiny, Path("votes.jsonl"))
    place = written(tmp_path / "votes.jsonl", rows)
    fuse = Fuse(9, "metrics.jsonl")
    assert ended(forked(asked, tmp_path, fuse=fuse), tmp_path).status == -signal.SIGKILL
    assert len(rows[3]["votes"]) == 3
    written(place, [*rows[:3], {**rows[3], "votes": rows[3]["votes"][:2]}, *rows[4:]])
    assert "00000003: was made from data " in ended(forked([*asked, "--resume"], tmp_path), tmp_path).err
    written(place, rows)
    assert ran([*asked, "--resume"], tmp_path)["updates"] == 12


def test_a_run_goes_on_with_less_memory(tmp_path, tiny, votes, whole):
    """What is to be done where memory was too small changes no number but in its last digits."""
    asked = words(RUNS["reward"], tiny, votes)
    assert ended(forked(asked, tmp_path, fuse=Fuse(9, "metrics.jsonl")), tmp_path).status == -signal.SIGKILL
    ran([*asked, "--resume", "--run.tokens", 64, "--model.checkpointing"], tmp_path)
    assert "tokens = 64" in (tmp_path / "run/config.toml").read_text()
    for one, other in zip(lines(whole("reward") / "run"), lines(tmp_path / "run"), strict=True):
        measured = [each.get("heldout", each) for each in (one, other)]
        assert measured[0] == pytest.approx(measured[1], abs=1e-5)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, tiny, votes, whole):
    shutil.copytree(whole("sft") / "run", tmp_path / "run")
    damaged = tmp_path / "run/checkpoints/00000012"
    file = damaged / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    asked = [*words(RUNS["sft"], tiny, votes), "--resume"]
    said = complaint(asked, tmp_path)
    assert said.startswith("rlaif: run/checkpoints/00000012: cannot be read as a checkpoint of this run (")
    assert said.endswith("): remove it to go on from the one before")
    shutil.rmtree(damaged)
    ran(asked, tmp_path)
    assert_same(whole("sft") / "run", tmp_path / "run")


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize(
    "left", [0, 7, 40, -3, None], ids=["nothing", "7 bytes", "40 bytes", "all but 3 bytes", "gone"]
)
def test_a_damaged_file_of_a_checkpoint_is_one_clear_line(tmp_path, name, left):
    torch.manual_seed(1)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    place = checkpoint.save(tmp_path, 5, module, optimizer, {"best": None})
    assert checkpoint.load(place, module, optimizer) == {"best": None, "update": 5}
    if left is None:
        (place / name).unlink()
    else:
        (place / name).write_bytes((place / name).read_bytes()[:left])
    with pytest.raises(
        TrainingError, match=r"00000005: cannot be read as a checkpoint .*: remove it to go on"
    ) as raised:
        checkpoint.load(place, module, optimizer)
    assert len(str(raised.value)) < 300


@pytest.mark.kills
@pytest.mark.parametrize("name", RUNS)
def test_wherever_a_run_is_killed_it_goes_on_to_the_same_end(tmp_path, tiny, votes, whole, name):
    dice, first = random.Random(name), 1 + list(RUNS).index(name) % 3
    for at in range(first, changes(whole(name)) + 1, 3):
        folder = tmp_path / str(at)
        fuses = [Fuse(at, middle=dice.random() < 0.5), Fuse(dice.randint(1, 6), middle=dice.random() < 0.5)]
        survived(words(RUNS[name], tiny, votes), folder, fuses)
        assert_same(whole(name) / "run", folder / "run")
        shutil.rmtree(folder)


@pytest.mark.kills
@pytest.mark.parametrize("name", RUNS)
def test_whenever_a_run_is_killed_it_goes_on_to_the_same_end(tmp_path, tiny, votes, name):
    """The real command line, at moments that chance chooses: most of them between imports and the last file."""
    dice, asked = random.Random(name), words(RUNS[name], tiny, votes)
    assert finished(started(asked, tmp_path / "whole")).status == 0
    killed = 0
    for trial in range(2):
        folder, going = tmp_path / str(trial), []
        for _ in range(3):
            process = started([*asked, *going], folder)
            deadline = time.monotonic() + 60
            while not (folder / "run/metrics.jsonl").is_file() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 6) if going else dice.uniform(0, 2))
            process.kill()
            killed += finished(process).status == -signal.SIGKILL
            going = ["--resume"]
        done = finished(started([*asked, "--resume"], folder))
        assert done.status == 0, done.err
        assert_same(tmp_path / "whole/run", folder / "run")
    assert killed > 2


ONLINE: dict[str, tuple[object, ...]] = {
    "ppo": ("ppo", "--algorithm.target", 0.1, "--algorithm.critic", "model"),
    "reinforce": ("reinforce",),
    "grpo": ("grpo", "--model.lora", 4, "--model.lora-dropout", 0.2),
    "rejection": ("rejection",),
    "rest": ("rest",),
    "hir": ("hir",),
}
"""What learns from its own samples."""


def sampling(run: Sequence[object], model: Path, rows: Path) -> list[object]:
    return [
        *run, "--data.train", rows, "--model.name", model, "--run.out", "run", "--json", "--optim.steps", 5,
        "--optim.batch", 3, "--optim.lr", 3e-3, "--run.evaluate-every", 2, "--run.save-every", 2,
        "--rollout.prompts", 6, "--rollout.samples", 3, "--rollout.max-tokens", 8, "--rollout.rows", 6,
        "--reward.of", "tests.trainer.taste:counted",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny: Path, votes: Path) -> Callable[[str], Path]:
    """The folder of such a run that nobody killed."""

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp("unbroken")
        ran(sampling(ONLINE[name], tiny, votes), folder, RLAIF_COUNTED=str(folder / "counted"))
        return folder

    return run


SAMPLED = {
    "ppo": (Fuse(20, "samples.jsonl"), Fuse(30, "samples.jsonl", middle=True), Fuse(2, "00000004")),
    "reinforce": (Fuse(2, "metrics.jsonl", middle=True), Fuse(60, "samples.jsonl")),
    "grpo": (Fuse(3, "00000002"), Fuse(40, "samples.jsonl", middle=True)),
    "rejection": (Fuse(30, "samples.jsonl", middle=True), Fuse(5, "metrics.jsonl"), Fuse(10, "samples.jsonl")),
    "rest": (Fuse(1, "00000002"), Fuse(50, "samples.jsonl")),
    "hir": (Fuse(1, "config.toml", middle=True), Fuse(50, "samples.jsonl")),
}


@pytest.mark.parametrize("name", ONLINE)
def test_a_run_on_samples_that_was_killed_goes_on_to_the_same_end(tmp_path, tiny, votes, unbroken, name):
    asked = sampling(ONLINE[name], tiny, votes)
    survived(asked, tmp_path, SAMPLED[name], RLAIF_COUNTED=str(tmp_path / "counted"))
    assert_same(unbroken(name) / "run", tmp_path / "run")
    assert [line["update"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5]


def test_no_reward_is_asked_for_twice_but_those_of_the_piece_that_was_cut_off(tmp_path, tiny, votes, unbroken):
    """Looks at held-out prompts are no part of it: they ask again."""
    kept = [(unbroken("ppo") / "counted").read_text().count("\n")]
    asked = sampling(ONLINE["ppo"], tiny, votes)
    survived(asked, tmp_path, [Fuse(30, "samples.jsonl")], RLAIF_COUNTED=str(tmp_path / "counted"))
    again = (tmp_path / "counted").read_text().count("\n") - kept[0]
    assert again <= 2 * 6 + 4  # at most two pieces of six, and the look that was asked again
