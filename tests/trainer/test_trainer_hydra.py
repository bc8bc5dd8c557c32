"""A reference that shares the frozen layers of the policy says what one of its own says, whatever the policy learned.

It is the model as it was before: a whole copy that nobody trains is the other way to have it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import lines, ran, written
from torch import Tensor
from transformers import AutoModelForCausalLM

from lm import adapt, hydra, tree
from lm.branches import Actor
from lm.rows import branches
from trainer.config import Optim
from trainer.loop import Passes, adamw, fit
from trainer.pairs import laid_out
from trainer.rows import Row
from trainer.sft import sft

PASSES = Passes(torch.device("cpu"), 10**6)


def rows(seed: int) -> list[Row]:
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 260, (count,), generator=draw).tolist())

    return [Row(f"{at}", tokens(2 + at), (tokens(3), tokens(1 + at))) for at in range(4)]


@torch.no_grad()
def logits(actor: Actor, asked: list[Row]) -> Tensor:
    """Of the whole vocabulary, at every place that is learned from."""
    found = branches((row.prompt, row.answers) for row in asked)
    laid = tree.lay(found.pack, torch.device("cpu"))
    out = actor.model(
        input_ids=laid.input_ids,
        position_ids=laid.position_ids,
        tree=laid.tree,
        use_cache=False,
        logits_to_keep=torch.tensor(found.places),
    )
    return out.logits[0]


@pytest.mark.parametrize("lowest", [1, 2])
def test_a_shared_reference_has_the_logits_of_a_separate_one_after_updates(tiny, lowest):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    adapt.freeze(model, lowest)
    policy, separate = Actor(model), Actor(copy.deepcopy(model)).eval()
    before = copy.deepcopy(model.state_dict())
    shared = Actor(hydra.reference(model, lowest)).eval()
    optimizer = adamw(policy, Optim())
    for number in range(4):
        own, (one, other) = logits(policy, rows(9)), (logits(each, rows(9)) for each in (shared, separate))
        assert torch.equal(one, other), number
        assert torch.equal(own, one) == (number == 0)  # the policy moves away from both
        list(fit(sft(policy), [(1, rows(number))], optimizer, PASSES, lambda _: 0.01, 1.0))
        policy.eval()
    moved = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert moved
    assert not any(f"layers.{at}." in name or "embed_tokens" in name for name in moved for at in range(lowest))
    learned = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert learned == {id(each) for each in policy.parameters() if each.requires_grad}
    assert set(optimizer.state) == {each for each in policy.parameters() if each.requires_grad}
    assert not any(each.requires_grad for each in shared.parameters())


@torch.no_grad()
def test_what_a_shared_reference_says_is_of_the_rows_that_the_policy_was_asked_last(tiny):
    """Both are asked about one pack after another, as a round asks them."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    adapt.freeze(model, 2)
    policy, separate = Actor(model), Actor(copy.deepcopy(model)).eval()
    shared = Actor(hydra.reference(model, 2)).eval()
    for seed in range(3):
        laid = laid_out(rows(seed))
        policy(laid)
        assert torch.equal(shared(laid).likelihoods, separate(laid).likelihoods)


@pytest.mark.training
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce", "grpo"])
def test_a_run_with_a_shared_reference_is_the_run_with_a_separate_one(tmp_path, tiny, algorithm):
    """`algorithm.reference` names the same model, which is then loaded and asked by itself."""
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": f"question number {n}, is it good?"} for n in range(20)])
    found = {}
    for name, more in {"shared": (), "separate": ("--algorithm.reference", tiny)}.items():
        start = [algorithm, "--data.train", prompts, "--model.name", tiny, "--model.freeze", 2, "--run.out", "run"]
        sizes = ("--rollout.prompts", 4, "--rollout.samples", 3, "--rollout.max-tokens", 8, "--optim.batch", 2)
        often = ("--optim.steps", 3, "--optim.lr", 1e-2, "--reward.of", "tests.trainer.taste:vowels", "--json")
        ran([*start, *sizes, *often, "--algorithm.beta", 0.5, *more], tmp_path / name)
        found[name] = tmp_path / name / "run"
    assert lines(found["shared"]) == lines(found["separate"])
    last = [line for line in lines(found["shared"]) if "loss" in line][-1]
    assert abs(last["kl"]) > 1e-3
    one, other = (load_file(each / "model/model.safetensors") for each in found.values())
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
