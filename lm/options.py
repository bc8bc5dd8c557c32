"""How likely is each of a few answers after each of many prompts? Prompts that begin alike are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from data.tables import batched
from lm import decoder, head, plain, strings
from lm.rows import Bundle, Tokens, packs
from lm.strings import Ask

Read = Callable[[Sequence[tuple[int, int]]], list[float]]
"""Log-probabilities of (sequence's number, token) pairs."""

PLAIN = 8
"""Sequences of one plain forward pass, for models whose layers are not written out in decoder.py."""

KEPT = 16384
"""Tokens of prefixes that are kept, those that were used last: several tasks, or principles, may be asked in turn."""

CPU_PACK = 2048
"""Tokens of one forward pass on a CPU: enough for fast products, few enough for the caches."""


class Options:
    """Scores options after prompts, and keeps what prompts began with.

    A prompt's numbers do not depend on the prompts beside it, as long as it has cuts and is asked once: it is added up
    from its own parts. Not for several threads at once: the kept prefixes change.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._prefixes: dict[Tokens, decoder.Prefix] = {}
        self._limit = _pack_limit(model)

    def log_probabilities(self, asks: Sequence[Ask]) -> list[list[float]]:
        """For each prompt each option's log-probability as a complete string.

        Where one option's tokens begin another's ("1" and "10" in two tokens), the probability of going on is taken
        from the shorter one. Several variants of an option add up. NaN comes back as NaN.
        """
        wanted = strings.places(asks)
        known: dict[tuple[Tokens, int], float] = {}
        passes = self._shared(asks) if decoder.supports(self._model) else self._plain(list(wanted))
        for sequences, read in passes:
            places = [(row, token) for row, sequence in enumerate(sequences) for token in wanted[sequence]]
            values = read(places)
            known.update({(sequences[row], token): value for (row, token), value in zip(places, values, strict=True)})
        return [strings.complete(ask, known) for ask in asks]

    def _plain(self, sequences: list[Tokens]) -> Iterator[tuple[list[Tokens], Read]]:
        for group in batched(sorted(sequences, key=len), PLAIN):
            table = plain.log_probabilities(self._model, group)
            yield list(group), lambda wanted, table=table: [float(table[place]) for place in wanted]

    def _shared(self, asks: Sequence[Ask]) -> Iterator[tuple[list[Tokens], Read]]:
        for first, bundles in _bundles(asks).items():
            prefix = self._prefix(first) if first else None
            for pack in packs(bundles, skip=len(first), limit=self._limit):
                hidden = decoder.forward(self._model, pack, prefix, list(pack.ends.values()))
                yield list(pack.ends), partial(head.log_probabilities, self._model, hidden)

    def _prefix(self, tokens: Tokens) -> decoder.Prefix:
        """Keys and values of what prompts begin with; those that were used last are kept."""
        known = self._prefixes.pop(tokens, None) or decoder.encode_prefix(self._model, tokens)
        self._prefixes[tokens] = known
        while len(self._prefixes) > 1 and sum(map(len, self._prefixes)) > KEPT:
            del self._prefixes[next(iter(self._prefixes))]
        return known


def _bundles(asks: Sequence[Ask]) -> dict[Tokens, list[Bundle]]:
    """By what prompts begin with: each prompt once, with the places where its options go on."""
    known: dict[Tokens, dict[Tokens, Bundle]] = {}
    for ask in asks:
        first, *parts = ask.parts or ((),)
        same = known.setdefault(first, {})
        before = same[ask.prompt].sequences if ask.prompt in same else ()
        same[ask.prompt] = Bundle(tuple(parts), (*before, *strings.places([ask])))
    return {first: [each for each in same.values() if each.sequences] for first, same in known.items()}


def _pack_limit(model: Any) -> int:
    """Tokens of one pass: on a GPU what a quarter of its free memory holds of activations and scores."""
    if model.device.type != "cuda":
        return CPU_PACK
    config = model.config
    bytes_a_token = 2 * (8 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size))
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(CPU_PACK, min(65536, free // 4 // bytes_a_token))
