"""How do texts become tokens? Through the model's own chat template, with data that can never become a special token.

The template's own text is found by rendering it around marks; only that text may hold special tokens. What comes from
data is encoded apart, so `<|im_end|>` in a response stays the characters it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import pairwise
from threading import Lock
from typing import Any

from lm.rows import Tokens, common_prefix

_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
_DAY = datetime(2024, 7, 26)
"""Which Llama 3's template falls back on where it is told no date."""
LONG = 32
"""Tokens of an answer, e.g. of a rationale, from which on it stands apart from its question."""
_MARKS = ("\ue000system\ue000", "\ue000user\ue000", "\ue000answer\ue000")


@dataclass(frozen=True)
class Frame:
    """What a template writes around the contents of a conversation: `own` before each and before the answer, `end`
    after the answer, up to the token that ends it.
    """

    own: tuple[Tokens, ...]
    end: Tokens


class Encoder:
    """Turns texts into tokens: a rater's question (`encode`), or a conversation (`prompt`) and its `answer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._one = Lock()  # what becomes a special token is a setting of the tokenizer, which all threads share
        self._pieces = _template(tokenizer)
        self._text = lru_cache(maxsize=64)(self._fresh)
        self._frame = lru_cache(maxsize=256)(self._framed)
        self._continuations = lru_cache(maxsize=64)(self._variants)
        added = sorted({str(each) for each in getattr(tokenizer, "added_tokens_decoder", {}).values()}, key=len)
        long = [re.escape(each) for each in reversed(added) if len(each) > 1]
        self._added = re.compile("|".join(long)) if long else None
        self._start: Tokens = () if self._pieces else tuple(tokenizer("").input_ids[:1])
        if self._start and self._start[0] != tokenizer.bos_token_id:
            self._start = ()

    @cached_property
    def longest(self) -> int:
        """Characters that one token can stand for, at most: a text has at least its length / this tokens."""
        return max(map(len, self._tokenizer.get_vocab()))

    @property
    def templated(self) -> bool:
        """Whether the model has a chat template."""
        return self._pieces is not None

    def encode(self, system: str, user: str, answer: str) -> Tokens:
        """The whole prompt, ready for the model to continue `answer`."""
        if self._pieces is None:
            return self._start + self._fresh(f"{system}\n\n{user}\n\n{answer}")
        head, between, before = self._pieces
        if between is None:
            return head + self._fresh(f"{system}\n\n{user}") + before + self._text(answer)
        return head + self._text(system) + between + self._fresh(user) + before + self._text(answer)

    def cuts(self, whole: Tokens, system: str, beginnings: Sequence[str], answer: str) -> tuple[int, ...]:
        """Where in what `encode` made other prompts may part from it: at the end of each of these beginnings of the
        user's turn, rising, and where a long answer begins that a template sets apart. A token that may differ with
        what follows is left out.
        """
        ends = [min(common_prefix(begun, whole), len(begun) - 1) for begun in self._begun(system, beginnings)]
        if self._pieces is not None and (own := len(self._text(answer))) >= LONG:
            ends.append(len(whole) - own)
        return tuple(sorted({each for each in ends if 0 <= each < len(whole)}))

    def _begun(self, system: str, beginnings: Sequence[str]) -> Iterator[Tokens]:
        """A prompt up to the end of each beginning of its user's turn, which others have too."""
        for user in beginnings:
            if self._pieces is None:
                yield self._start + self._text(f"{system}\n\n{user}")
            elif self._pieces[1] is None:
                yield self._pieces[0] + self._text(f"{system}\n\n{user}")
            else:
                yield self._pieces[0] + self._text(system) + self._pieces[1] + self._text(user)

    def prompt(self, turns: Sequence[tuple[str, str]], limit: int) -> Tokens:
        """A conversation of (role, content) up to where the answer begins, as `fitted` has it."""
        return self.fitted(turns, limit)[0]

    def fitted(self, turns: Sequence[tuple[str, str]], limit: int) -> tuple[Tokens, bool]:
        """A conversation in at most `limit` tokens, and whether it was cut: the oldest contents lose their beginning
        first, a system turn only before the last turn does; what the template writes stays. Raises ValueError where it
        does not fit, or where the template refuses the order of turns.
        """
        frame = self._frame(tuple(role for role, _ in turns))
        contents = [self._fresh(content) for _, content in turns]
        excess = sum(map(len, (*frame.own, *contents))) - limit
        cut, last = excess > 0, len(turns) - 1
        for at in sorted(range(len(turns)), key=lambda at: (at == last, turns[at][0] == "system", at)):
            if excess > 0:
                content = contents[at]
                contents[at] = content[min(excess, len(content)) :]
                excess -= len(content) - len(contents[at])
        if excess > 0:
            raise ValueError("no room is left for the prompt")
        parts = [own + content for own, content in zip(frame.own, [*contents, ()], strict=True)]
        return tuple(token for part in parts for token in part), cut

    def answer(self, text: str, roles: Sequence[str] = ("user",)) -> Tokens:
        """An answer's tokens, with the one that ends it."""
        return self._fresh(text) + self._frame(tuple(roles)).end

    def _framed(self, roles: tuple[str, ...]) -> Frame:
        ends = self._tokenizer.eos_token_id
        end: Tokens = () if ends is None else (ends,)
        if self._pieces is None:
            gap = self._fresh("\n\n")
            if roles == ("user",):
                return Frame((self._start, gap), end)
            names = [self._fresh(f"{_NAMES.get(role, role)}: ") for role in (*roles, "assistant")]
            return Frame((self._start + names[0], *(gap + name for name in names[1:])), end)
        marks = [f"\ue000{at}\ue000" for at in range(len(roles) + 1)]
        turns = [{"role": role, "content": mark} for role, mark in zip((*roles, "assistant"), marks, strict=True)]
        try:
            text = _rendered(self._tokenizer, turns)
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the model's chat template refuses turns of {', '.join(roles)}: {error}") from error
        pieces: list[Tokens] = []
        for mark in marks:
            piece, found, text = text.partition(mark)
            if not found:
                raise ValueError(f"the model's chat template leaves a turn out of {', '.join(roles)}")
            pieces.append(self._tokens([piece], special=True))
        after = self._tokens([text], special=True)
        return Frame(tuple(pieces), after[: after.index(ends) + 1] if ends in after else end or after)

    def continuations(self, answer: str, options: Sequence[str]) -> tuple[tuple[Tokens, ...], ...]:
        """For each option the token strings that write it after `answer`, bare and after a blank ("1" and " 1")."""
        return self._continuations(answer[-12:], tuple(options))

    def _variants(self, tail: str, options: tuple[str, ...]) -> tuple[tuple[Tokens, ...], ...]:
        return tuple(tuple(dict.fromkeys(self._after(tail, f"{gap}{each}") for gap in ("", " "))) for each in options)

    def _after(self, tail: str, option: str) -> Tokens:
        """The option's tokens in context: sentencepiece writes "1" differently at the start of a text."""
        alone, both = self._fresh(tail), self._fresh(tail + option)
        return both[len(alone) :] if both[: len(alone)] == alone else self._fresh(option)

    def _fresh(self, text: str) -> Tokens:
        # A lone surrogate (broken JSON escapes) has no UTF-8 form; a question mark stands for it.
        clean = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
        return self._tokens(self._broken(clean), special=False)

    def _tokens(self, pieces: Sequence[str], *, special: bool) -> Tokens:
        """One after another; `special` says whether special tokens may be among them."""
        with self._one:
            encoded = self._tokenizer(pieces, add_special_tokens=False, split_special_tokens=not special).input_ids
        return tuple(token for piece in encoded for token in piece)

    def _broken(self, text: str) -> list[str]:
        """The text, cut inside of whatever an added token would swallow whole (`<think>` is one and not "special")."""
        cuts = [match.start() + 1 for match in self._added.finditer(text)] if self._added else []
        return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


def _rendered(tokenizer: Any, turns: Sequence[Mapping[str, str]], **how: Any) -> str:
    """What the template makes of a conversation, always on the same day: some write the date, and a job or a run that
    goes on tomorrow has to ask what it asked today. transformers hands over no functions, so a macro stands in.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        written = "".join(f"|replace('%{each}', '{_DAY.strftime(f'%{each}')}')" for each in "aAbBcdfHIjmMpSUwWxXyYZ")
        template = f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
    return tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template, **how)


def _template(tokenizer: Any) -> tuple[Tokens, Tokens | None, Tokens] | None:
    """The chat template's own tokens around system, user and answer; None without a template.

    The middle piece is None where the template takes no system turn: the system text then opens the user's turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    system, user, answer = _MARKS
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    try:
        text = _rendered(tokenizer, [{"role": "system", "content": system}, *turns], continue_final_message=True)
        head, rest = text.split(system)
        between, rest = rest.split(user)
    except Exception:  # templates raise what they like when they take no system turn
        text = _rendered(tokenizer, turns, continue_final_message=True)
        head, rest = text.split(user)
        between = None
    before = rest.split(answer)[0]

    def own(piece: str) -> Tokens:
        return tuple(tokenizer(piece, add_special_tokens=False).input_ids)

    return own(head), None if between is None else own(between), own(before)
