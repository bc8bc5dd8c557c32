"""Who takes part in a run that learns from its own samples: the policy, its critic, its reference, its method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lm import adapt, hydra
from lm.branches import Actor, Values, without_adapters
from lm.load import load_trainable
from trainer import parallel
from trainer.advantages import whitened
from trainer.build import Built, suits
from trainer.config import Config, Grpo, Hir, Judged, Ppo, Reinforce, Rejection, Rest, TrainingError
from trainer.experience import Method, Players
from trainer.grpo import grpo
from trainer.hir import hir
from trainer.loop import Beside, Passes
from trainer.pairs import laid_out
from trainer.ppo import Order, ppo
from trainer.reinforce import reinforce
from trainer.rejection import rejection
from trainer.rest import rest
from trainer.rewards import REWARD
from trainer.rows import Row
from trainer.sft import sft

Asking = Callable[[Sequence[Row]], Tensor]


def gather(built: Built, config: Config, cache: Path) -> tuple[Players, nn.Module]:
    """The players, and one module of all that is trained. Raises ModelError, TrainingError."""
    assert isinstance(built.module, Actor)
    critic = _critic(built, config, cache)
    reference = _reference(built, built.module, config, cache)
    trained = nn.ModuleDict({"actor": built.module} if critic is None else {"actor": built.module, "critic": critic})
    return Players(built.module, critic, reference, built.passes), trained


def method(
    players: Players, config: Config, order: Order, encode: Callable[[Any], Any], pretrain: Beside | None
) -> Method:
    """How the policy learns: a new algorithm is one new file and one `case` here."""
    assert config.rollout is not None
    assert config.reward is not None
    batch, rescale = config.optim.batch, _rescaling(config.reward)
    match config.algorithm:
        case Ppo() as chosen:
            made = ppo(players, chosen, batch, order, rescale)
            made.beside = pretrain
            return made
        case Reinforce() as chosen:
            return reinforce(players, chosen, batch, order, rescale)
        case Grpo() as chosen:
            return grpo(players, chosen, batch, order, rescale, config.rollout.max_tokens)
        case Rejection() as chosen:
            return rejection(players, chosen, batch, order)
        case Rest() as chosen:
            return rest(players, chosen, batch, order)
        case Hir() as chosen:
            return hir(players, chosen, batch, order, encode)
        case _:
            raise TrainingError("this algorithm does not learn from its own samples")


def pretraining(players: Players, config: Config, draw: Callable[[int, int], list[Row]]) -> Beside:
    """PPO-ptx: as many demonstrations as an update has prompts, beside it; `draw` gives those of an update's number."""
    assert isinstance(config.algorithm, Ppo)
    return Beside("ptx", sft(players.actor), lambda number: draw(number, config.optim.batch), config.algorithm.ptx)


def _rescaling(config: Judged) -> Callable[[Tensor], Tensor]:
    """Llama 2 whitens what its rule gives."""
    return whitened if config.rule == "safety-first" else lambda rewards: rewards


def _critic(built: Built, config: Config, cache: Path) -> Values | None:
    chosen = config.algorithm
    if not isinstance(chosen, Ppo | Reinforce) or chosen.critic == "trunk":
        return None
    assert config.reward is not None
    if chosen.critic == "model":
        loaded = load_trainable(config.model.name, cache=cache, device=str(built.passes.device), head="new-score")
        nn.init.zeros_(loaded.model.score.weight)
    else:
        name = next((each for each in config.reward.of if each.startswith(REWARD)), None)
        if name is None:
            raise TrainingError("algorithm.critic reward: the critic begins as a reward model; reward.of names none")
        loaded = load_trainable(name.removeprefix(REWARD), cache=cache, device=str(built.passes.device), head="score")
        suits(built.loaded, loaded, "algorithm.critic reward with", name)
    model: Any = loaded.model
    if config.model.freeze:
        adapt.freeze(model, config.model.freeze)
    return parallel.shard(Values(model), adapt.layers(model), built.passes.device)


def _reference(built: Built, policy: Actor, config: Config, cache: Path) -> Asking | None:
    """The model that the policy stays close to: another, the policy without its adapters, or itself as it is before;
    none where nothing holds it.
    """
    chosen = config.algorithm
    if not isinstance(chosen, Ppo | Reinforce | Grpo):
        return None
    assert config.rollout is not None
    own = chosen.reference
    adapted = isinstance(chosen, Ppo) and chosen.target is not None
    if own is None and not chosen.beta and not adapted:
        return None
    if own is None and config.model.lora:
        return _unadapted(built, policy)
    temperature = config.rollout.temperature
    if own is None and config.model.freeze and parallel.world() == 1:
        shared: Any = hydra.reference(built.loaded.model, config.model.freeze)
        return _asking(Actor(shared, temperature=temperature).eval(), built.passes)
    device = str(built.passes.device)
    loaded = load_trainable(own or config.model.name, cache=cache, device=device, head="language")
    suits(built.loaded, loaded, "algorithm.reference", own or config.model.name)
    model: Any = loaded.model.requires_grad_(requires_grad=False)
    frozen = parallel.shard(Actor(model, temperature=temperature), adapt.layers(model), built.passes.device)
    return _asking(frozen.eval(), built.passes)


def _asking(actor: Actor, passes: Passes) -> Asking:
    @torch.no_grad()
    def ask(rows: Sequence[Row]) -> Tensor:
        with passes.room(rows), passes.precision():
            return actor(laid_out(rows)).likelihoods

    return ask


def _unadapted(built: Built, policy: Actor) -> Asking:
    ask = _asking(policy, built.passes)

    def unadapted(rows: Sequence[Row]) -> Tensor:
        was = policy.training
        policy.eval()
        with without_adapters(built.loaded.model):
            found = ask(rows)
        policy.train(was)
        return found

    return unadapted
