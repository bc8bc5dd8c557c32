"""Who has judged what: the history replayed over the items, and what is added to it. Used by one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.errors import RlaifError
from data.records import Prompt, hashed
from evaluator.annotate import order, verdicts
from evaluator.annotate.history import History
from evaluator.annotate.items import Items, texts
from evaluator.annotate.options import Options, name, names
from evaluator.annotate.verdicts import Fact, Standing, Verdict


@dataclass(frozen=True)
class Ballot:
    """An item as one rater sees it, without models and votes. `id` stands for the texts and the order of them."""

    id: str
    number: int
    shown: tuple[int, ...]
    prompt: Prompt
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    judged: int
    skipped: int
    total: int

    @property
    def done(self) -> int:
        return self.judged + self.skipped


class Poll:
    def __init__(self, items: Items, history: History, options: Options) -> None:
        self.items, self.changes = items, 0
        self._history, self._seed, self._file_order = history, options.shuffle_seed, options.file_order
        self.open = options.raters is None
        admitted = map(history.admit, names(options.raters)) if options.raters else ()
        self._tokens = history.raters() if self.open else {token: known for known, token in admitted}
        self._standings: dict[str, Standing] = {}
        self.elsewhere = 0
        """Facts about texts that the file does not have, or not any more: they stay in the history."""
        for fact in history.facts():
            if fact.key in items.numbers:
                self._standing(fact.rater).take(items.numbers[fact.key], fact.verdict)
            else:
                self.elsewhere += 1

    def enter(self, said: str) -> str:
        """The token of whoever says this name. Raises RlaifError where names are not for the saying."""
        if not self.open:
            raise RlaifError("only the people who were given a link can vote here")
        known, token = self._history.admit(name(said))
        self._tokens[token] = known
        return token

    def links(self) -> dict[str, str]:
        """Tokens by name."""
        return {name: token for token, name in self._tokens.items()}

    def rater(self, token: str) -> str | None:
        return self._tokens.get(token)

    def ballot(self, rater: str) -> Ballot | None:
        """What to judge now; None when all is judged."""
        number = self._standing(rater).current()
        if number is None:
            return None
        row, key = self.items[number], self.items.keys[number]
        responses = texts(row)
        shown = order.shown(self._seed, rater, key, len(responses))
        return Ballot(_ballot_id(key, shown), number, shown, row.prompt, tuple(responses[each] for each in shown))

    def last(self, rater: str) -> tuple[str, Verdict] | None:
        """What an undo would take back: a ballot's id, and what was said of it."""
        last = self._standing(rater).last()
        return last and (_ballot_id(self.items.keys[last[0]], last[1].shown), last[1])

    def judge(self, rater: str, ballot: str, form: Mapping[str, str]) -> bool:
        """Store a verdict; False where this ballot is not the one to judge now. Raises RlaifError."""
        now = self.ballot(rater)
        if now is None or now.id != ballot:
            return False
        self._add(rater, [(now.number, verdicts.verdict(form, now.shown))])
        return True

    def undo(self, rater: str, ballot: str) -> bool:
        """Take the last verdict back; False where it is not about this ballot: a second click takes back no more."""
        last = self._standing(rater).last()
        if last is None or _ballot_id(self.items.keys[last[0]], last[1].shown) != ballot:
            return False
        self._add(rater, [(last[0], None)])
        return True

    def unskip(self, rater: str) -> None:
        """Have the skipped items judged after all, the first skipped first."""
        self._add(rater, [(number, None) for number in reversed(self._standing(rater).skipped())])

    def progress(self, rater: str) -> Progress:
        standing = self._standing(rater)
        skipped = len(standing.skipped())
        return Progress(len(standing.done) - skipped, skipped, len(self.items))

    def votes(self) -> dict[int, dict[str, Verdict]]:
        """What was said and not skipped, by item number and rater, in the order of the file."""
        found: dict[int, dict[str, Verdict]] = {}
        for rater, standing in self._standings.items():
            for number, each in standing.done.items():
                if each.choice != "skip":
                    found.setdefault(number, {})[rater] = each
        return dict(sorted(found.items()))

    def _add(self, rater: str, said: Sequence[tuple[int, Verdict | None]]) -> None:
        self._history.add(Fact(rater, self.items.keys[number], each) for number, each in said)
        for number, each in said:  # only now: what could not be stored did not happen
            self._standing(rater).take(number, each)
        self.changes += 1

    def _standing(self, rater: str) -> Standing:
        if rater not in self._standings:
            in_order = iter(range(len(self.items)))
            self._standings[rater] = Standing(
                in_order if self._file_order else order.queue(self._seed, rater, self.items.keys)
            )
        return self._standings[rater]


def _ballot_id(key: str, shown: tuple[int, ...]) -> str:
    return hashed([key, *map(str, shown)])
