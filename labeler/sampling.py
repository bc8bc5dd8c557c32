"""What do models answer? Responses to prompts, to be compared, rated, or trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from data.records import Failure, Prompted, Sampled, fingerprint
from labeler.asking import failure, shortened
from labeler.backend import Backend, Failed, Text, Usage, Write
from labeler.options import Options, Sampling
from prompts import constitution

SAYS = "Write the assistant's next turn, and nothing else."


class Sampler:
    """A backend and options, compiled: writes `samples` responses to each prompt. `beside` are other models' responses
    to the same prompts, by their content: they come first.
    """

    def __init__(
        self,
        _task: None,
        backend: Backend,
        _options: Options,
        *,
        sampling: Sampling,
        beside: Mapping[str, Sequence[tuple[str, str]]],
    ) -> None:
        known = fingerprint(sorted([content, list(others)] for content, others in beside.items())) if beside else ""
        self.digest = fingerprint(["sample", backend.identity, asdict(sampling), known])
        self._backend, self._sampling, self._beside = backend, sampling, beside

    async def __call__(self, rows: Sequence[Prompted]) -> list[Sampled | Failure]:
        """The responses to each row, or why there are none, in order."""
        count = self._sampling.samples
        requests = [self._fitted(row, number) for row in rows for number in range(count)]
        asked = [each for each in requests if isinstance(each, Write)]
        found = iter(await self._backend.texts(asked))
        texts = [next(found) if isinstance(each, Write) else each for each in requests]
        return [self._sampled(row, texts[at * count : (at + 1) * count]) for at, row in enumerate(rows)]

    def _fitted(self, row: Prompted, number: int) -> Write | Failed:
        """The request; a conversation that is too long loses its beginning."""
        how, prompt = self._sampling, constitution.response(row.prompt)
        seed = int(fingerprint([how.seed, row.id, number, prompt.plain()], 12), 16)
        request = Write(prompt, how.max_tokens, how.temperature, 0, seed, constitution.STOPS, SAYS)
        return shortened(self._backend, request, "no room is left for a prompt: {} tokens too many")

    def _sampled(self, row: Prompted, found: Sequence[Text | Failed]) -> Sampled | Failure:
        good = [each for each in found if isinstance(each, Text)]
        if len(good) < len(found):
            return failure(row.id, next(each for each in found if isinstance(each, Failed)), "sample")
        others = self._beside.get(row.content, ())
        usage = sum((each.usage for each in good), Usage())
        return Sampled(
            id=row.id,
            prompt=row.prompt,
            responses=(*(text for text, _ in others), *(each.text.strip() for each in good)),
            models=(*(name for _, name in others), *(self._backend.name for _ in good)),
            identity=self._backend.identity,
            digest=self.digest,
            content=row.content,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            usd=usage.usd,
            seconds=usage.seconds,
        )
