"""PPO-ptx: demonstrations beside the samples. Each as often as the others, their gradient added; none without weight.

Ouyang et al. 2022, eq. 2: E[r - beta log(pi / ref)] + gamma E[log pi] on demonstrations.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import assert_same, lines, ran, written
from transformers import LlamaConfig, LlamaForCausalLM

from lm.branches import Actor
from trainer import curves, online
from trainer.config import Config, Data, Judged, Model, Optim, Ppo, Rollout, Run
from trainer.experience import Experience, Players, with_fields
from trainer.loop import Beside, Passes, fit
from trainer.pairs import laid_out
from trainer.ppo import algorithm
from trainer.rows import Row
from trainer.running import Around
from trainer.sft import sft

PASSES = Passes(torch.device("cpu"), 10**6)
GAMMA = 2.5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    written(folder / "prompts.jsonl", [{"prompt": f"question number {n}, is it good?"} for n in range(20)])
    written(folder / "shown.jsonl", [{"prompt": f"say it, {n}", "response": f"thanks {n}"} for n in range(16)])
    return folder


# How often


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The demonstrations of each update of a run in this process, by name."""
    found: list[list[str]] = []
    made = online.pretraining

    def noting(players, config, draw):
        def told(number, size):
            rows = draw(number, size)
            assert number == len(found) + 1
            found.append([row.id for row in rows])
            return rows

        return made(players, config, told)

    monkeypatch.setattr(online, "pretraining", noting)
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    return found


def course(tiny: Path, files: Path, out: Path, *, rounds: int, batch: int, prompts: int, chosen: Ppo) -> Config:
    return Config(
        algorithm=chosen,
        data=Data(train=str(files / "prompts.jsonl"), pretrain=str(files / "shown.jsonl")),
        run=Run(out=out, evaluate_every=100, save_every=100),
        model=Model(name=str(tiny), device="cpu"),
        optim=Optim(steps=rounds, batch=batch, lr=1e-3),
        rollout=Rollout(prompts=prompts, samples=2, max_tokens=4),
        reward=Judged(of=("tests.trainer.taste:vowels",)),
    )


def learned(config: Config, cache: Path) -> None:
    mean = lambda values, _topics: {"value": fmean(values), "n": len(values)}  # noqa: E731
    online.train(config, Around(cache, mean, print, "test"), lambda _name: None, resume=False)


@pytest.mark.parametrize(
    ("batch", "prompts", "each"), [(4, 4, 6), (6, 6, 9), (2, 4, 6)], ids=["4", "6, in which 16 do not go", "2 batches"]
)
def test_each_demonstration_is_drawn_equally_often(tmp_path, tiny, files, drawn, batch, prompts, each):
    """Six rounds of four epochs: 24 updates of one batch an epoch, or 48 of two."""
    learned(
        course(tiny, files, tmp_path / "run", rounds=6, batch=batch, prompts=prompts, chosen=Ppo(ptx=1.0)), tmp_path
    )
    assert len(drawn) == 24 * prompts // batch
    assert {len(some) for some in drawn} == {batch}
    counts = Counter(name for some in drawn for name in some)
    assert len(counts) == 16
    assert set(counts.values()) == {each}


def test_rounds_that_end_early_leave_no_demonstration_out(tmp_path, tiny, files, drawn):
    """A round is stopped when it has left the policy that sampled: after its second update, of four."""
    chosen = Ppo(ptx=1.0, stop=1e-12, epochs=4)
    learned(course(tiny, files, tmp_path / "run", rounds=8, batch=2, prompts=2, chosen=chosen), tmp_path)
    assert len(drawn) == 2 * 8
    whole = [name for some in drawn for name in some]
    for start in range(0, len(whole) - 15, 16):
        assert len(set(whole[start : start + 16])) == 16
    assert max(Counter(whole).values()) - min(Counter(whole).values()) <= 1


# How much


@pytest.mark.training
def test_without_weight_demonstrations_leave_no_trace(tmp_path, tiny, files):
    """Nor does their file, of which not even the numbers are drawn."""
    found = {}
    for name, more in {
        "ppo": (),
        "no weight": ("--data.pretrain", files / "shown.jsonl", "--algorithm.ptx", 0),
        "weight": ("--data.pretrain", files / "shown.jsonl", "--algorithm.ptx", 1e-3),
    }.items():
        start = ["ppo", "--data.train", files / "prompts.jsonl", "--model.name", tiny, "--run.out", "run", "--json"]
        sizes = ("--rollout.prompts", 4, "--rollout.samples", 3, "--rollout.max-tokens", 8, "--optim.batch", 2)
        often = ("--optim.steps", 3, "--optim.lr", 3e-3, "--reward.of", "tests.trainer.taste:vowels")
        lora = ("--model.lora", 4, "--model.lora-dropout", 0.3)  # draws random numbers in every update
        ran([*start, *sizes, *often, *lora, *more], tmp_path / name)
        run = found[name] = tmp_path / name / "run"
        (run / "config.toml").unlink()
        (run / "card.md").unlink()
    assert_same(found["ppo"], found["no weight"])
    assert not any("ptx_loss" in line for line in lines(found["no weight"]))
    one, other = (load_file(found[name] / "model/model.safetensors") for name in ("ppo", "weight"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def actor(seed: int = 0) -> Actor:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3, "pad_token_id": 0}
    made = Actor(LlamaForCausalLM(LlamaConfig(**sizes, **heads)), valued=True)
    torch.nn.init.normal_(made.value.weight)
    return made


def numbers(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def samples(policy: Actor, moved: float) -> list[Experience]:
    """Three prompts with two samples each; the policy is `moved` nats a token from the one that sampled them."""
    answers = [((3, 4, 5), (6, 7)), ((8,), (9, 10, 11, 12)), ((13, 14), (15, 16))]
    rows = [Experience(f"{at}", (1, 20 + at), each) for at, each in enumerate(answers)]
    with torch.no_grad():
        said = policy(laid_out(rows))
    assert said.values is not None
    count = len(said.likelihoods)
    told = {
        "advantages": numbers(1, count),
        "returns": numbers(2, count),
        "values": said.values + numbers(3, count) / 9,
    }
    return with_fields(rows, old=said.likelihoods - moved, **told)


DEMONSTRATIONS = [Row(f"shown {at}", (2, 30 + at), ((5 + at, 6, 7 + at),)) for at in range(4)]


def slopes(policy: Actor, chosen, rows, beside=None) -> dict[str, torch.Tensor]:
    """The gradient of one update of the loop: what plain descent at rate 1 takes off."""
    own = copy.deepcopy(policy)
    made = {"ppo": lambda: algorithm(Players(own, None, None, PASSES), chosen), "sft": lambda: sft(own)}
    also = None if beside is None else Beside("ptx", sft(own), lambda _number: DEMONSTRATIONS, beside)
    kind = "sft" if chosen is None else "ppo"
    descent = torch.optim.SGD(own.parameters(), lr=1.0)
    (update,) = fit(made[kind](), [(1, rows)], descent, PASSES, lambda _: 1.0, 0.0, also)
    assert ("ptx_loss" in update.metrics) == (beside is not None)
    before = dict(policy.named_parameters())
    return {name: (before[name] - each).detach() for name, each in own.named_parameters()}


CHOSEN = Ppo(value_weight=0.3, entropy=0.02)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=1e-5, atol=2e-6) for name in one)


@pytest.mark.parametrize("moved", [0.0, 0.1, -2.0], ids=["on policy", "a little off", "far off"])
def test_the_gradient_is_that_of_ppo_and_gamma_times_that_of_the_demonstrations(moved):
    policy = actor()
    rows = samples(policy, moved)
    alone, shown = slopes(policy, CHOSEN, rows), slopes(policy, None, DEMONSTRATIONS)
    assert all(float(each["model.lm_head.weight"].abs().max()) > 1e-3 for each in (alone, shown))
    both = slopes(policy, CHOSEN, rows, GAMMA)
    assert close(both, {name: alone[name] + GAMMA * shown[name] for name in both})
    assert not close(both, alone)


def test_the_demonstrations_do_not_go_through_the_clip():
    """Where every ratio is beyond it, on the side that it holds, what is left is gamma times their likelihood's."""
    policy = actor()
    rows = [replace(row, advantages=row.advantages.abs()) for row in samples(policy, 3.0)]
    bare = replace(CHOSEN, value_weight=0.0, entropy=0.0)
    assert all(float(each.abs().max()) == 0 for each in slopes(policy, bare, rows).values())
    shown = slopes(policy, None, DEMONSTRATIONS)
    assert close(slopes(policy, bare, rows, GAMMA), {name: GAMMA * each for name, each in shown.items()})
