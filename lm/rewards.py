"""How good are answers, says a trained reward model? The one that `rlaif train reward` writes, or any classifier with
one label whose head is called `score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lm.branches import Scores
from lm.chat import Encoder
from lm.errors import ModelError
from lm.load import load_trainable
from lm.rows import Tokens, branches

Turns = Sequence[tuple[str, str]]
"""A conversation as (role, content)."""

PASS = 4096
"""Tokens of one forward pass."""


@dataclass(frozen=True)
class Encoded:
    """A prompt and an answer to it as tokens; `cut` says that the prompt lost its beginning."""

    prompt: Tokens
    answer: Tokens
    cut: bool

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.answer)


class RewardModel:
    """A folder, loaded. `identity` changes with its weights. Raises ModelError."""

    def __init__(self, folder: str, *, dtype: str, device: str) -> None:
        if not (Path(folder).expanduser() / "config.json").is_file():
            raise ModelError(f"reward:{folder}: no such model folder; `rlaif train reward` writes one (RUN/model)")
        # In bf16 a score depends on its neighbours in a pass by a tenth of its size: that has to be asked for.
        kind = "float32" if dtype == "auto" else dtype
        loaded = load_trainable(folder, cache=Path(), device=device, head="score", dtype=kind)
        self.identity = loaded.identity.replace("local:", "reward:", 1)
        loaded.model.score.float()
        self._scores, self._encoder = Scores(loaded.model).eval(), Encoder(loaded.tokenizer)
        self._context, self._bias = loaded.context, float(getattr(loaded.model.config, "reward_bias", 0.0))

    def encode(self, turns: Turns, answer: str) -> Encoded:
        """Raises ValueError where the answer alone is too long, or the template refuses the turns."""
        found = self._encoder.answer(answer, [role for role, _ in turns])
        room = self._context - len(found)
        prompt = self._encoder.prompt(turns, room)
        return Encoded(prompt, found, cut=len(prompt) == room)

    @torch.no_grad()
    def rewards(self, asked: Sequence[Encoded]) -> list[float]:
        """One reward each, in order; those of one prompt share its computation."""
        order = sorted(range(len(asked)), key=lambda at: asked[at].prompt)
        found: dict[int, float] = {}
        while order:
            piece = [order.pop()]
            while order and sum(asked[at].size for at in (*piece, order[-1])) <= PASS:
                piece.append(order.pop())
            values = self._scores(branches((asked[at].prompt, (asked[at].answer,)) for at in piece))
            found.update(zip(piece, (values + self._bias).tolist(), strict=True))
        return [found[at] for at in range(len(asked))]
