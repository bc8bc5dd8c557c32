"""From a configuration to what is trained: the model, its head, adapters and frozen layers, and the algorithm on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lm import adapt
from lm.branches import Actor, LogProbabilities, Scores, bare, without_adapters
from lm.load import Head, LanguageModel, load_trainable
from trainer import parallel, reference
from trainer.config import Config, Cpl, Dpo, Hir, Ppo, Reinforce, Reward, Sft, TrainingError
from trainer.cpl import cpl
from trainer.dpo import dpo, objective
from trainer.loop import Algorithm, Passes
from trainer.reward import reward
from trainer.rows import Row
from trainer.sft import sft

CPU_TOKENS, GPU_TOKENS = 4096, 16384
"""Tokens that go through a model at once: enough for fast products; on a GPU what 80 GiB hold of a 1B model."""


@dataclass(frozen=True)
class Built:
    """A model that is ready to be trained, and its tokenizer."""

    loaded: LanguageModel
    module: Scores | LogProbabilities | Actor
    passes: Passes


def build(config: Config, cache: Path, *, alone: bool = False) -> Built:
    """Load the model as the run wants it, sharded unless it is for this process `alone`. Raises ModelError; the same
    seed makes the same new head and adapters.
    """
    torch.manual_seed(config.run.seed)
    own = config.model
    scored = isinstance(config.algorithm, Reward)
    device = torch.device("cpu") if alone else parallel.begin(own.device)
    head: Head = "new-score" if scored else "language"
    loaded = load_trainable(own.name, cache=cache, device="cpu" if parallel.world() > 1 else str(device), head=head)
    model: Any = loaded.model.to(device)
    if own.freeze:
        adapt.freeze(model, own.freeze)
    if own.lora:
        alpha = 2.0 * own.lora if own.lora_alpha is None else own.lora_alpha
        model = adapt.with_lora(
            model,
            rank=own.lora,
            alpha=alpha,
            dropout=own.lora_dropout,
            targets=own.lora_targets,
            lowest=own.freeze,
            scored=scored,
        )
    if own.checkpointing:
        inner = bare(model)  # older releases of transformers know the older name alone
        enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if own.lora:
            bare(model).enable_input_require_grads()
    module = Scores(model) if scored else _policy(model, config)
    layers = adapt.layers(model)
    if own.compile:
        for layer in layers:
            layer.compile(dynamic=True)
    if not alone:
        parallel.shard(module, layers, device)
    if parallel.rank():  # now that all have the same model: dropout of their own
        torch.manual_seed(config.run.seed + 1_000_003 * parallel.rank())
    tokens = config.run.tokens or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    return Built(replace(loaded, model=model), module, Passes(device, tokens, own.dtype == "bfloat16"))


def _policy(model: Any, config: Config) -> LogProbabilities | Actor:
    if config.rollout is None:
        return LogProbabilities(model)
    chosen = config.algorithm
    valued = isinstance(chosen, Ppo | Reinforce) and chosen.critic == "trunk"
    return Actor(model, temperature=config.rollout.temperature, valued=valued, meaned=isinstance(chosen, Hir))


def algorithm(
    built: Built, config: Config, rows: Sequence[Row], cache: Path, done: Callable[[int], object]
) -> Algorithm[Row]:
    """What the run minimises. `rows` are all that it will see: a cached reference is asked about them now."""
    match config.algorithm, built.module:
        case Reward() as chosen, Scores() as scores:
            return reward(scores, chosen)
        case Sft(), LogProbabilities() as policy:
            return sft(policy)
        case Cpl() as chosen, LogProbabilities() as policy:
            return cpl(policy, chosen)
        case Dpo() as chosen, LogProbabilities() as policy:
            return dpo(policy, _reference(built, policy, config, chosen, rows, cache, done), chosen)
        case _:
            raise TrainingError("this algorithm cannot train this model")


def _reference(
    built: Built,
    policy: LogProbabilities,
    config: Config,
    chosen: Dpo,
    rows: Sequence[Row],
    cache: Path,
    done: Callable[[int], object],
) -> reference.Reference | None:
    """The model that the policy stays close to: another one, the policy without its adapters, or as it is before."""
    if not objective(chosen).referenced:
        return None
    kind = "bf16" if built.passes.bfloat16 else "fp32"
    if chosen.reference is not None:
        other = load_trainable(chosen.reference, cache=cache, device=config.model.device, head="language")
        suits(built.loaded, other, "algorithm.reference", chosen.reference)
        model, identity = (
            LogProbabilities(other.model.to(built.passes.device).requires_grad_(requires_grad=False)),
            other.identity,
        )
    else:
        model, identity = policy, built.loaded.identity
    with without_adapters(built.loaded.model):
        if chosen.cached:
            name = identity.replace("/", "-").replace(":", "-")[-120:]  # its end tells the weights; paths may be long
            place = cache / "reference" / f"{name}-{kind}.parquet"
            return reference.cached(model, rows, built.passes, place, done)
    if chosen.reference is None and config.model.lora:
        return _unadapted(built, policy)
    if chosen.reference is None:
        if parallel.world() > 1:
            raise TrainingError(
                "algorithm.cached = false with several processes needs algorithm.reference, or model.lora"
            )
        model = copy.deepcopy(policy).requires_grad_(requires_grad=False)
    return reference.online(model, built.passes)


def suits(policy: LanguageModel, other: LanguageModel, field: str, name: str) -> None:
    """See that another model reads the policy's tokens as the policy does. Raises TrainingError."""
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise TrainingError(
            f"{field} {name}: has another tokenizer than the model: the same text is other tokens to it"
        )
    if other.context < policy.context:
        raise TrainingError(f"{field} {name}: reads {other.context} tokens at once, the model {policy.context}")


def _unadapted(built: Built, policy: LogProbabilities) -> reference.Reference:
    def ask(rows: Sequence[Row]) -> torch.Tensor:
        was = policy.training
        policy.eval()
        with without_adapters(built.loaded.model):
            found = reference.ask(policy, rows, built.passes)
        policy.train(was)
        return found

    return ask
