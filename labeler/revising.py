"""How would a response read that keeps to the constitution? Critique and revision (Bai et al. 2022, section 3.1).

The model writes a response, says what in it goes against a principle, and writes it again; then by another principle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from data.errors import RlaifError
from data.records import Failure, Prompted, Revised, Revisions, fingerprint
from labeler.asking import failure, shortened
from labeler.backend import Backend, Failed, Text, Usage, Write
from labeler.options import Options, Revising
from labeler.sampling import SAYS
from prompts import constitution
from prompts.constitution import Constitution, Principle
from prompts.render import Prompt

FINDS = "Write the critique that is requested, and nothing else."
REVISES = "Write the revised turn of the assistant, and nothing else."


@dataclass
class _Revising:
    """A row on its way: what it says by now, and what it cost."""

    row: Prompted
    first: str = ""
    steps: list[Revised] = field(default_factory=list[Revised])
    usage: Usage = field(default_factory=Usage)
    failed: Failed | None = None

    @property
    def text(self) -> str:
        return self.steps[-1].response if self.steps else self.first


class Reviser:
    """A constitution, a backend and options, compiled: revises batches of prompts. Raises RlaifError when made."""

    def __init__(self, law: Constitution, backend: Backend, _options: Options, *, revising: Revising) -> None:
        if revising.shots > len(law.examples):
            raise RlaifError(f"--shots {revising.shots}: the constitution has {len(law.examples)} examples")
        self.digest = fingerprint(["revise", law.digest, backend.identity, asdict(revising)])
        self._law, self._backend, self._revising = law, backend, revising

    async def __call__(self, rows: Sequence[Prompted]) -> list[Revisions | Failure]:
        """The revisions of each row, or why there are none, in order."""
        under_way = [_Revising(row, row.response or "") for row in rows]
        unanswered = [each for each in under_way if each.row.response is None]
        said = await self._written(unanswered, lambda each: constitution.response(each.row.prompt), SAYS, "response")
        for each, text in zip(unanswered, said, strict=True):
            each.first = text
        for number in range(1, self._revising.rounds + 1):
            await self._revise([each for each in under_way if each.failed is None], number)
        return [self._result(each) for each in under_way]

    async def _revise(self, rows: Sequence[_Revising], number: int) -> None:
        law, shots = self._law, self._revising.shots
        drawn = {id(each): law.drawn(self._revising.seed, each.row.id, number) for each in rows}

        def finds(each: _Revising) -> Prompt:
            return constitution.critique(law, shots, each.row.prompt, each.text, drawn[id(each)])

        found = await self._written(rows, finds, FINDS, f"critique {number}")
        critiques = {id(each): text for each, text in zip(rows, found, strict=True)}
        left = [each for each in rows if each.failed is None]

        def revises(each: _Revising) -> Prompt:
            principle: Principle = drawn[id(each)]
            return constitution.revision(law, shots, each.row.prompt, each.text, principle, critiques[id(each)])

        for each, text in zip(left, await self._written(left, revises, REVISES, f"revision {number}"), strict=True):
            if each.failed is None:
                each.steps.append(Revised(principle=drawn[id(each)].name, critique=critiques[id(each)], response=text))

    async def _written(
        self, rows: Sequence[_Revising], prompt: Callable[[_Revising], Prompt], instruction: str, what: str
    ) -> list[str]:
        """A text for each row; a row without one has failed."""
        requests: list[Write] = []
        asked: list[_Revising] = []
        for each in rows:
            request = self._fitted(each, prompt(each), instruction, what)
            if isinstance(request, Failed):
                each.failed = request
            else:
                asked.append(each)
                requests.append(request)
        texts: dict[int, str] = {}
        for each, found in zip(asked, await self._backend.texts(requests), strict=True):
            if isinstance(found, Text):
                each.usage = each.usage + found.usage
                texts[id(each)] = found.text.strip()
                if not texts[id(each)]:
                    each.failed = Failed("empty", f"the model wrote no {what}")
            else:
                each.failed = found
        return [texts.get(id(each), "") for each in rows]

    def _fitted(self, each: _Revising, prompt: Prompt, instruction: str, what: str) -> Write | Failed:
        """The request; a conversation that is too long loses its beginning."""
        how = self._revising
        seed = int(fingerprint([how.seed, each.row.id, what, prompt.plain()], 12), 16)
        request = Write(prompt, how.max_tokens, how.temperature, 0, seed, constitution.STOPS, instruction)
        return shortened(
            self._backend, request, f"the {what} is {{}} tokens too long for the model even without the prompt"
        )

    def _result(self, each: _Revising) -> Revisions | Failure:
        if each.failed is not None:
            return failure(each.row.id, each.failed, "revise")
        return Revisions(
            id=each.row.id,
            prompt=each.row.prompt,
            response=each.first,
            steps=tuple(each.steps),
            model=self._backend.name,
            task="revise",
            digest=self.digest,
            content=each.row.content,
            tokens_in=each.usage.tokens_in,
            tokens_out=each.usage.tokens_out,
            usd=each.usage.usd,
            seconds=each.usage.seconds,
        )
