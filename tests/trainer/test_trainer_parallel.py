"""Several processes learn what one learns, and a checkpoint does not know how many wrote it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Done, Fuse, compared, ended, finished, forked, model_folder, poisoned, started, told, written

pytestmark = pytest.mark.training
RUNS: dict[str, tuple[object, ...]] = {
    "sft": ("sft",),
    "reward": ("reward",),
    "dpo": ("dpo",),
    "reward, half of it frozen": ("reward", "--model.freeze", 2, "--model.checkpointing"),
    "dpo with adapters": ("dpo", "--model.lora", 4, "--algorithm.cached=false"),
}
NEAR = 1e-5


def words(run: Sequence[object], model: Path, rows: Path, batch: int = 5) -> list[object]:
    """Passes of few tokens, so that every process has several, and sometimes one that is empty."""
    return [
        *run, "--data.train", rows, "--model.name", model, "--run.out", "run", "--json", "--run.tokens", 100,
        "--optim.steps", 6, "--optim.lr", 1e-3, "--run.evaluate-every", 3, "--run.save-every", 2,
        "--optim.batch", batch,
    ]  # fmt: skip


def port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def together(asked: Sequence[object], folder: Path, *, fuse: Fuse | None = None) -> list[Done]:
    """Two processes, each told who it is as torchrun tells it; `fuse` kills the first one, and then the other ends."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "WORLD_SIZE": "2"}
    both = [
        forked(asked, folder, fuse=fuse if rank == 0 else None, **where, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    if fuse is not None:
        both[0].join(60)
        both[1].kill()
    return [ended(process, folder, rank) for rank, process in enumerate(both)]


def alone(asked: Sequence[object], folder: Path, *, fuse: Fuse | None = None) -> list[Done]:
    return [ended(forked(asked, folder, fuse=fuse), folder)]


def ran(many: Any, asked: Sequence[object], folder: Path) -> Any:
    """The result, which the first process tells and no other."""
    first, *others = many(asked, folder)
    assert first.status == 0, first.err
    for other in others:
        assert (other.status, other.out, other.err) == (0, "", "")
    return first.json


def measured(run: Path) -> list[dict[str, Any]]:
    """What was measured, less the time that it took, and less who was right: a policy's first margins are rounding."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    flat = [{"update": line["update"], **line.get("heldout", line)} for line in found]
    return [
        {name: value for name, value in line.items() if name != "accuracy" and not name.endswith("seconds")}
        for line in flat
    ]


def assert_near(one: Path, other: Path) -> None:
    """The same numbers of every update and look, the same weights."""
    for first, second in zip(measured(one), measured(other), strict=True):
        assert first == pytest.approx(second, abs=NEAR)
    assert_weights_near(one, other)


def assert_weights_near(one: Path, other: Path) -> None:
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (one / file).is_file() == (other / file).is_file()
        if (one / file).is_file():
            tensors, others = load_file(one / file), load_file(other / file)
            assert tensors.keys() == others.keys()
            for name, each in tensors.items():
                torch.testing.assert_close(each, others[name], atol=NEAR, rtol=0, msg=name)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_learns(tmp_path, tiny, votes, name):
    asked = words(RUNS[name], tiny, votes)
    one = ran(alone, asked, tmp_path / "one")
    two = ran(together, asked, tmp_path / "two")
    assert two["heldout"] == pytest.approx(one["heldout"], abs=NEAR)
    assert_near(tmp_path / "one/run", tmp_path / "two/run")


@pytest.mark.parametrize(
    "algorithm",
    [
        ("ppo",),
        ("ppo", "--algorithm.critic", "model"),
        ("reinforce",),
        ("grpo", "--model.lora", 4),
        ("rejection",),
        ("rest",),
        ("hir",),
    ],
    ids=["ppo", "ppo with a critic", "reinforce", "grpo with adapters", "rejection", "rest", "hir"],
)
def test_two_processes_sample_and_learn_what_one_does(tmp_path, tiny, votes, algorithm):
    asked = sampling(algorithm, tiny, votes)
    one = ran(alone, asked, tmp_path / "one")
    two = ran(together, asked, tmp_path / "two")
    assert two["heldout"] == pytest.approx(one["heldout"], abs=NEAR)
    assert_near(tmp_path / "one/run", tmp_path / "two/run")


def sampling(algorithm: Sequence[object], model: Path, prompts: Path) -> list[object]:
    return [
        *algorithm, "--data.train", prompts, "--model.name", model, "--run.out", "run", "--json", "--run.tokens", 100,
        "--optim.steps", 3, "--optim.batch", 3, "--optim.lr", 1e-5, "--run.evaluate-every", 1, "--rollout.prompts", 5,
        "--rollout.samples", 2, "--rollout.max-tokens", 8, "--reward.of", "tests.trainer.taste:vowels",
    ]  # fmt: skip


@pytest.mark.parametrize("many", [(together, alone), (alone, together)], ids=["2, then 1", "1, then 2"])
def test_a_run_that_samples_goes_on_with_another_number_of_processes(tmp_path, tiny, votes, many):
    asked = sampling(("ppo", "--algorithm.critic", "model"), tiny, votes)
    ran(alone, asked, tmp_path / "whole")
    first, *_ = many[0](asked, tmp_path / "split", fuse=Fuse(6, "metrics.jsonl"))
    assert first.status == -signal.SIGKILL
    said = many[1]([*asked, "--resume"], tmp_path / "split")
    assert [each.status for each in said] == [0] * len(said), said[0].err
    assert "going on after round 1" in said[0].err
    assert_near(tmp_path / "whole/run", tmp_path / "split/run")


@pytest.mark.parametrize("many", [(together, alone), (alone, together)], ids=["2, then 1", "1, then 2"])
def test_a_checkpoint_does_not_know_how_many_processes_wrote_it(tmp_path, tiny, votes, many):
    asked = words(RUNS["dpo"], tiny, votes)
    ran(alone, asked, tmp_path / "whole")
    first, *_ = many[0](asked, tmp_path / "split", fuse=Fuse(9, "metrics.jsonl"))
    assert first.status == -signal.SIGKILL
    assert {each.name for each in (tmp_path / "split/run/checkpoints").iterdir()} == {"00000002", "00000004"}
    shutil.rmtree(tmp_path / "split/cache")  # the reference is asked again, before the checkpoint is read
    said = many[1]([*asked, "--resume"], tmp_path / "split")
    assert [(each.status, told(each.err)) for each in said] == [(0, ["going on after update 4"]), (0, [])][: len(said)]
    assert_near(tmp_path / "whole/run", tmp_path / "split/run")
    for name in ("weights", "optimizer"):
        tensors, others = (
            load_file(tmp_path / run / f"run/checkpoints/00000006/{name}.safetensors") for run in ("whole", "split")
        )
        assert {key: each.shape for key, each in tensors.items()} == {key: each.shape for key, each in others.items()}


def test_a_head_that_is_the_embedding_stays_so_in_two_processes(tmp_path, votes):
    asked = words(RUNS["sft"], model_folder(tmp_path / "tied", tied=True), votes)
    ran(alone, asked, tmp_path / "one")
    ran(together, asked, tmp_path / "two")
    assert "lm_head.weight" not in load_file(tmp_path / "two/run/model/model.safetensors")
    assert_near(tmp_path / "one/run", tmp_path / "two/run")


def test_torchrun_starts_it_and_one_process_speaks(tmp_path, tiny, votes):
    asked = words(RUNS["reward"], tiny, votes)
    ran(alone, asked, tmp_path / "one")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
    done = finished(started(asked, tmp_path / "two", *torchrun, "--master-port", port()))
    assert done.status == 0, done.err
    assert done.json["updates"] == 6
    assert "rlaif" not in done.err
    assert_near(tmp_path / "one/run", tmp_path / "two/run")
    assert sorted(each.name for each in (tmp_path / "two/run").iterdir()) == [
        "card.md", "checkpoints", "config.toml", "curves.png", "failures.jsonl", "metrics.jsonl", "model",
    ]  # fmt: skip


def test_what_goes_wrong_in_one_process_ends_all_and_is_told(tmp_path, tiny):
    """The row without a loss is in the share of one process."""
    rows = compared(40)
    rows[17]["prompt"] += " ~"
    asked = words(RUNS["reward"], poisoned(tiny, tmp_path / "poisoned"), written(tmp_path / "votes.jsonl", rows), 40)
    both = together(asked, tmp_path / "two")
    assert [(each.status, each.out) for each in both] == [(1, ""), (1, "")]
    assert ["rlaif: the loss is not a number; rows: row 17"] in [told(each.err) for each in both]
