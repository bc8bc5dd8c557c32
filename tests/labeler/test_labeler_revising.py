"""Critiques and revisions, and sampled responses: what is asked, in which order, and what is written down."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from data.errors import RlaifError
from data.reading import beside, each_response, prompts, revisable
from data.records import Comparison, Failure, Label, Prompted
from labeler.backend import Failed, Likelihoods, Text
from labeler.options import Options, Revising, Sampling
from labeler.preference import Labeler
from labeler.revising import Reviser
from labeler.sampling import Sampler
from prompts import constitution
from prompts.render import MARK
from prompts.task import load

LAW = constitution.load()


class Writer:
    """Answers with what was asked for and a number; remembers everything."""

    name, identity, rows, calls, samples, price, logprobs = "writer", "writer@1", 8, 1, 1, None, True

    def __init__(self, answers=None, room=10**6):
        self.asked, self.chosen, self._answers, self._room = [], [], answers or {}, room

    async def texts(self, requests):
        self.asked += requests
        return [self._answer(each) for each in requests]

    async def likelihoods(self, requests):
        self.chosen += requests
        return [Likelihoods((-0.1, -2.0)) for _ in requests]

    def overflow(self, request):
        return max(0, len(request.prompt.plain()) - self._room)

    def _answer(self, request):
        kind = request.prompt.answer.rstrip(":")
        return self._answers.get(kind) or Text(f"{kind} {len(self.asked)}")


def revised(rows, writer=None, **options):
    writer = writer or Writer()
    reviser = Reviser(LAW, writer, Options(), revising=Revising(**options))
    return asyncio.run(reviser(rows)), writer


ROWS = [Prompted(id=str(n), prompt=f"How do I do {n}?") for n in range(3)]


def test_four_revisions_each_of_the_one_before():
    found, writer = revised(ROWS)
    assert [len(each.steps) for each in found] == [4, 4, 4]
    assert len(writer.asked) == 3 * (1 + 4 * 2)
    rows = [row for each in found for row in each.rows()]
    assert [row["id"] for row in rows[:5]] == ["0#1", "0#2", "0#3", "0#4", "1#1"]
    for each in found:
        texts = [each.response, *(step.response for step in each.steps)]
        assert [row["meta"]["revised"] for row in each.rows()] == texts[:-1]
        assert [row["response"] for row in each.rows()] == texts[1:]
        assert not any(step.critique in row["response"] for step in each.steps for row in each.rows())


def test_each_step_shows_the_newest_response_and_its_own_principle():
    (found,), writer = revised(ROWS[:1], shots=0)
    principles = {each.name: each for each in LAW.principles}
    before = [found.response, *(step.response for step in found.steps)]
    for at, step in enumerate(found.steps):
        critique, revision = writer.asked[1 + 2 * at : 3 + 2 * at]
        principle = principles[step.principle]
        assert f"Assistant: {before[at]}" in critique.prompt.user
        assert principle.critique.strip() in critique.prompt.user
        assert critique.prompt.answer == "Critique:"
        assert f"Critique: {step.critique}" in revision.prompt.user
        assert principle.revision.strip() in revision.prompt.user
        assert revision.prompt.answer == "Revision:"
        assert MARK in critique.stop


def test_examples_come_first_in_the_same_format():
    _, writer = revised(ROWS[:1], shots=2)
    user = writer.asked[1].prompt.user
    assert user.count(constitution.CONVERSATION) == 3
    assert user.count("Revision: ") == 2
    assert user.index(LAW.examples[1].revision.strip()) < user.index("How do I do 0?")
    with pytest.raises(RlaifError, match="the constitution has 2 examples"):
        revised(ROWS, shots=3)


def test_a_response_of_the_file_is_revised_in_place_of_the_models():
    (found,), writer = revised([Prompted(id="a", prompt="Hi", response="My own words")], rounds=1)
    assert found.response == "My own words"
    assert len(writer.asked) == 2


def test_principles_are_drawn_evenly_and_again_the_same():
    """Chi-square of 16,000 draws over 16 principles: 37.7 is .999 of 15 degrees of freedom."""
    counts = Counter(LAW.drawn(0, f"row {n}", step).name for n in range(4000) for step in range(4))
    assert len(counts) == 16
    assert sum((each - 1000) ** 2 / 1000 for each in counts.values()) < 37.7
    assert [LAW.drawn(1, n).name for n in range(50)] == [LAW.drawn(1, n).name for n in range(50)]
    assert [LAW.drawn(1, n).name for n in range(50)] != [LAW.drawn(2, n).name for n in range(50)]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [({"Critique": Failed("refused", "no")}, "refused"), ({"Revision": Text("  ")}, "empty")],
)
def test_a_step_without_an_answer_makes_its_row_a_failure(answers, reason):
    found, _ = revised(ROWS[:1], Writer(answers))
    assert isinstance(found[0], Failure)
    assert (found[0].stage, found[0].reason) == ("revise", reason)


def test_a_long_conversation_loses_its_beginning_and_one_without_room_fails():
    long = Prompted(id="long", prompt="x" * 5000 + " the end")
    found, writer = revised([long], Writer(room=3000), rounds=1, shots=0)
    assert len(found[0].steps) == 1
    assert all(each.prompt.context.endswith(" the end") for each in writer.asked)
    assert all(len(each.prompt.plain()) <= 3000 for each in writer.asked)
    found, _ = revised([long], Writer(room=10))
    assert found[0].reason == "too_long"


def test_text_that_looks_like_a_request_stays_text():
    odd = "»»»» Conversation »»»»\n\nCritique Request: {{ 7 * 7 }}"
    _, writer = revised([Prompted(id="odd", prompt=odd)], rounds=1)
    assert odd in writer.asked[1].prompt.user


ALICE = Comparison(id="a", prompt="Say hi", responses=("Hi!", "Go away"))


def labelled(rows, task="harmlessness", **options):
    writer = Writer()
    return asyncio.run(Labeler(load(task), writer, Options(constitution="default", **options))(rows)), writer


def test_a_comparison_is_asked_by_a_drawn_principle_in_both_orders():
    rows = [ALICE.model_copy(update={"id": f"row {n}"}) for n in range(40)]
    found, writer = labelled(rows)
    texts = {each.name: each.choice.strip() for each in LAW.principles}
    assert all(isinstance(each, Label) for each in found)
    names = [each.task.removeprefix("harmlessness:") for each in found]
    assert names == [LAW.drawn(0, row.id).name for row in rows]
    assert len(set(names)) > 5
    assert len(writer.chosen) == 80
    systems = Counter(each.prompt.system for each in writer.chosen)
    assert all(any(text in system for text in texts.values()) for system in systems)
    assert {each.p for each in found} == {0.5}  # a rater that always says 1


def test_a_principle_asks_for_the_better_one_though_the_task_asks_for_the_worse():
    assert load("harmlessness").pairwise.polarity == "worse"
    found, writer = labelled([ALICE], one_order=True)
    first = writer.chosen[0].prompt.plain()
    assert first.index("Hi!") < first.index("Go away")
    assert found[0].p > 0.8


def test_a_constitution_makes_another_job_and_none_leaves_the_digest_as_it_was():
    task, writer = load("harmlessness"), Writer()
    plain, drawn, other = (
        Labeler(task, writer, each).digest
        for each in (Options(), Options(constitution="default"), Options(constitution="default", seed=1))
    )
    assert len({plain, drawn, other}) == 3


def test_samples_are_comparisons_with_who_wrote_them(tmp_path):
    found = asyncio.run(Sampler(None, Writer(), Options(), sampling=Sampling(samples=2), beside={})(ROWS))
    (row,) = found[0].rows()
    assert (len(row["responses"]), row["models"]) == (2, ["writer", "writer"])
    assert row["meta"]["identity"] == "writer@1"
    place = tmp_path / "one.jsonl"
    single = asyncio.run(Sampler(None, Writer(), Options(), sampling=Sampling(), beside={})(ROWS))
    place.write_text("".join(json.dumps(row) + "\n" for each in single for row in each.rows()))
    assert [each.model for each in each_response(str(place))] == ["writer"] * 3
    both = asyncio.run(Sampler(None, Writer(), Options(), sampling=Sampling(), beside=beside(str(place)))(ROWS))
    (row,) = both[0].rows()
    assert len(row["responses"]) == 2
    with pytest.raises(RlaifError, match="all samples would be the same"):
        Sampling(samples=2, temperature=0)


def test_prompts_are_read_from_any_file_each_once(tmp_path):
    place = tmp_path / "rows.jsonl"
    place.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}\n{"other": 1}\n')
    found = list(prompts(str(place)))
    assert [each.prompt for each in found if isinstance(each, Prompted)] == ["a", "b"]
    assert next(each.message for each in found if isinstance(each, Failure)).startswith("rows.jsonl:4: ")
    place.write_text('{"prompt": "a", "chosen": "x", "rejected": "y"}\n')
    assert [each.prompt for each in prompts(str(place))] == ["a"]
    place.write_text('{"prompt": "a", "response": "x"}\n')
    (row,) = revisable(str(place))
    assert (row.prompt, row.response) == ("a", "x")


def test_several_files_are_read_as_one_and_errors_name_each(tmp_path):
    for name in ("1", "2"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}"}}\nbroken\n')
    found = list(prompts(str(tmp_path / "*.jsonl")))
    assert [each.prompt for each in found if isinstance(each, Prompted)] == ["1", "2"]
    said = [each.message.split(": ")[0] for each in found if isinstance(each, Failure)]
    assert said == ["1.jsonl:2", "2.jsonl:2"]
    with pytest.raises(RlaifError, match="no file has such a name"):
        list(prompts(str(tmp_path / "no*.jsonl")))
