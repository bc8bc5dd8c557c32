"""What training asks of a model: how likely are answers, or how good, with gradients; a shared prompt is computed once.

Both are modules around a model of transformers (with or without adapters), so that sharding and autocast wrap what is
computed as a whole.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lm import head, tree
from lm.errors import ModelError
from lm.rows import Branches


def bare(model: Any) -> Any:
    """The model of transformers inside of its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class LogProbabilities(nn.Module):
    """A causal language model: log P of each token of each answer, answer by answer, (sum of lengths,) in fp32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        tree.use(bare(model))
        self.model = model

    def forward(self, found: Branches) -> Tensor:
        model = bare(self.model)
        device = next(model.parameters()).device
        places, tokens = (torch.tensor(each, device=device) for each in (found.places, found.tokens))
        laid = tree.lay(found.pack, device)
        if not head.is_plain(model):
            out = model(
                input_ids=laid.input_ids,
                position_ids=laid.position_ids,
                tree=laid.tree,
                use_cache=False,
                logits_to_keep=places,
            )
            return out.logits[0].float().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        hidden = _hidden(model, laid)[places]
        return head.token_log_probabilities(hidden, model.get_output_embeddings(), tokens)


class Told(NamedTuple):
    """Of each token of each answer, answer by answer, (sum of lengths,) in fp32: log P of it, the entropy of the
    distribution that it was taken from; the value of the state before it and the mean log P of the whole vocabulary,
    where they were asked for.
    """

    likelihoods: Tensor
    entropies: Tensor
    values: Tensor | None
    means: Tensor | None


class Actor(nn.Module):
    """A causal language model as a policy that samples at `temperature`; `valued` gives it a value head on its trunk,
    which begins at 0, and `meaned` has it tell the vocabulary's mean, for label smoothing.
    """

    def __init__(self, model: Any, *, temperature: float = 1.0, valued: bool = False, meaned: bool = False) -> None:
        super().__init__()
        tree.use(bare(model))
        self.model, self._temperature, self._meaned = model, temperature, meaned
        self.value: nn.Linear | None = None
        if valued:
            own = bare(model).get_output_embeddings().weight
            self.value = nn.Linear(bare(model).config.hidden_size, 1, device=own.device, dtype=torch.float32)
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)

    def forward(self, found: Branches, *, plain: bool = False) -> Told:
        """`plain` tells of the model itself, at temperature 1: for texts that it did not sample."""
        model, temperature = bare(self.model), 1.0 if plain else self._temperature
        device = next(model.parameters()).device
        places, tokens = (torch.tensor(each, device=device) for each in (found.places, found.tokens))
        laid = tree.lay(found.pack, device)
        biased = getattr(model.get_output_embeddings(), "bias", None) is not None  # which a temperature divides too
        if head.is_plain(model) and (temperature == 1 or not biased):
            hidden = _hidden(model, laid)[places]
            own, scaled = model.get_output_embeddings(), hidden / temperature
            likelihoods, entropies = head.foretold(scaled, own, tokens)
            means = head.mean_log_probability(scaled, own, tokens, likelihoods) if self._meaned else None
        else:
            out = model(
                input_ids=laid.input_ids,
                position_ids=laid.position_ids,
                tree=laid.tree,
                use_cache=False,
                logits_to_keep=places,
                output_hidden_states=True,
            )
            hidden = out.hidden_states[-1][0][places]
            every = (out.logits[0].float() / temperature).log_softmax(-1)
            likelihoods, entropies = every.gather(1, tokens[:, None]).squeeze(1), -(every.exp() * every).sum(-1)
            means = every.mean(-1) if self._meaned else None
        if self.value is None:
            return Told(likelihoods, entropies, None, means)
        with torch.autocast(device.type, enabled=False):
            return Told(likelihoods, entropies, self.value(hidden.float()).sum(-1), means)


class Scores(nn.Module):
    """A sequence classifier with one label: the score of each answer, read at its last token, (answers,) in fp32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not hasattr(bare(model), "score"):
            raise ModelError(
                f"{bare(model).config.model_type}: its reward head is not called `score`; take another model"
            )
        tree.use(bare(model))
        self.model = model

    def forward(self, found: Branches) -> Tensor:
        model = bare(self.model)
        laid = tree.lay(found.pack, next(model.parameters()).device)
        places = torch.tensor(self._read_at(found), device=laid.input_ids.device)
        hidden = _hidden(model, laid)[places]
        # Differences of scores are small: the head is computed in the precision of its weights, whatever the layers'.
        with torch.autocast(hidden.device.type, enabled=False):
            scores = model.score(hidden.to(next(model.score.parameters()).dtype))
        return scores.float().sum(-1)  # of one label; FSDP warns of views

    def _read_at(self, found: Branches) -> Sequence[int]:
        return found.ends


class Values(Scores):
    """A sequence classifier as a critic: the value of the state before each token, (sum of lengths,) in fp32."""

    def _read_at(self, found: Branches) -> Sequence[int]:
        return found.places


def totals(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sums over each answer's tokens, (answers,)."""
    return torch.stack([each.sum() for each in values.split(list(lengths))])


@contextmanager
def without_adapters(model: Any) -> Generator[None]:
    """The model as it was before its adapters: their reference."""
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        yield


def _hidden(model: Any, laid: tree.Laid) -> Tensor:
    """The decoder's last hidden states, (N, C)."""
    out = model.base_model(input_ids=laid.input_ids, position_ids=laid.position_ids, tree=laid.tree, use_cache=False)
    return out.last_hidden_state[0]
