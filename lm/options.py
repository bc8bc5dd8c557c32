"""How likely is each of a few answers after each of many prompts? Prompts that begin alike are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from data.tables import batched
from lm import decoder, head, plain, strings
from lm.rows import Tokens, common_prefix, packs
from lm.strings import Variants

Read = Callable[[Sequence[tuple[int, int]]], list[float]]
"""Log-probabilities of (sequence's number, token) pairs."""

PLAIN = 8
"""Sequences of one plain forward pass, for models whose layers are not written out in decoder.py."""

CPU_PACK = 2048
"""Tokens of one forward pass on a CPU: enough for fast products, few enough for the caches."""


class Options:
    """Scores options after prompts, keeping the keys and values of what all prompts so far began with.

    Not for several threads at once: the kept prefix is replaced as prompts change.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._prefix: decoder.Prefix | None = None
        self._before: Tokens | None = None
        self._limit = _pack_limit(model)

    def log_probabilities(self, asks: Sequence[tuple[Tokens, Variants]]) -> list[list[float]]:
        """For each (prompt, options): each option's log-probability as a complete string.

        Where one option's tokens begin another's ("1" and "10" in two tokens), the probability of going on is taken
        from the shorter one. Several variants of an option add up. NaN comes back as NaN.
        """
        known = self._look_up(strings.places(asks)) if asks else {}
        return [strings.complete(prompt, variants, known) for prompt, variants in asks]

    def _look_up(self, nodes: dict[Tokens, set[int]]) -> dict[tuple[Tokens, int], float]:
        known: dict[tuple[Tokens, int], float] = {}
        passes = self._shared if decoder.supports(self._model) else self._plain
        for sequences, read in passes(list(nodes)):
            wanted = [(row, token) for row, sequence in enumerate(sequences) for token in nodes[sequence]]
            values = read(wanted)
            known.update({(sequences[row], token): value for (row, token), value in zip(wanted, values, strict=True)})
        return known

    def _plain(self, sequences: list[Tokens]) -> Iterator[tuple[list[Tokens], Read]]:
        for group in batched(sorted(sequences, key=len), PLAIN):
            table = plain.log_probabilities(self._model, group)
            yield list(group), lambda wanted, table=table: [float(table[place]) for place in wanted]

    def _shared(self, sequences: list[Tokens]) -> Iterator[tuple[list[Tokens], Read]]:
        prefix = self._share(sequences)
        for pack in packs(sequences, skip=len(prefix.tokens) if prefix else 0, limit=self._limit):
            hidden = decoder.forward(self._model, pack, prefix, list(pack.ends.values()))
            yield list(pack.ends), partial(head.log_probabilities, self._model, hidden)

    def _share(self, sequences: list[Tokens]) -> decoder.Prefix | None:
        """What all these sequences and those of the last call begin with: kept, cut shorter (free), or encoded anew.

        The first call has only itself to go by. A call of one row shares more with itself than with the next one, so
        the call before decides what a job's fixed part is.
        """
        first, last = min(sequences), max(sequences)
        shared = min(common_prefix(first, last), min(map(len, sequences)) - 1)
        if self._before is not None:
            shared = min(shared, common_prefix(self._before, first)) or shared
        self._before = first
        kept = 0 if self._prefix is None else min(common_prefix(self._prefix.tokens, first), shared)
        if self._prefix is None or kept * 2 < shared:
            self._prefix = decoder.encode_prefix(self._model, first[:shared]) if shared else None
        elif kept < len(self._prefix.tokens):
            self._prefix = self._prefix.cut(kept)
        return self._prefix


def _pack_limit(model: Any) -> int:
    """Tokens of one pass: on a GPU what a quarter of its free memory holds of activations and scores."""
    if model.device.type != "cuda":
        return CPU_PACK
    config = model.config
    bytes_a_token = 2 * (8 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size))
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(CPU_PACK, min(65536, free // 4 // bytes_a_token))
