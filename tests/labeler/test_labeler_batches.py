"""Providers' batches, against the stand-in: no row is lost and none is paid for twice, whatever goes wrong.

The stand-in answers the rows of a batch in an order of its own. It counts what was asked and rightly answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import test_labeler_openai as other
from labeler_support import Silent, Worked, comparison, comparisons
from provider_settings import ROWS, WIRE
from running import Provider, provider
from test_labeler_anthropic import judged, labelled
from test_labeler_openai import KEY, LIMITS, TASK

from data.records import Comparison, Label
from labeler import attempts, batches, openai_batches, sdk
from labeler.backend import BackendError
from labeler.batches import Batched
from labeler.job import run
from labeler.journal import Journal
from labeler.ladder import climb
from labeler.opening import Reach, open_backend, open_desk
from labeler.options import Options, Rung
from labeler.preference import Labeler
from labeler.prices import Price, listed
from labeler.spending import BudgetError, Meter

as_new = other.it

MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4-5"}
CREATE = {"openai": "POST /v1/batches", "anthropic": "POST /v1/messages/batches"}
RESULTS = {"openai": "GET /v1/files/{id}/content", "anthropic": "GET /v1/messages/batches/{id}/results"}
BEFORE = {"openai": [None], "anthropic": []}
"""What `next` says of the requests before a batch is created: OpenAI's file goes up first."""

COUNTS = itertools.count(8)
"""Rows of Anthropic's jobs: as its batches are found again by their size, no two tests have the same."""

QUICK = replace(LIMITS, timeout=0.4)
REFUSED = ("rate_limit", "rate_limit_bare", "rate_limit_ms", "rate_limit_absurd", "http_500", "http_503", "http_529")
CONTENT = {
    "openai": ("no_logprobs", "nan", "no_top", "minus_9999", "outside", "fewer", "refusal", "null_content"),
    "anthropic": ("null_content",),
}
"""What is asked for again where the model said it."""


class KilledError(Exception):
    """Ends a run as kill -9 does: nothing is tidied up."""


@pytest.fixture(scope="class")
def stand_in() -> Iterator[Provider]:
    with provider() as it:
        yield it


@pytest.fixture
def it(as_new: Provider, monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setattr(sdk, "BACKOFF", attempts.BACKOFF)  # the short one
    monkeypatch.setattr(batches, "SEARCHES", (0.01,))
    as_new.control(batch_seconds=0.05, fault_on=["batch"], fault_seconds=1)
    return as_new


@pytest.fixture(params=MODELS)
def job(it: Provider, request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return Job(it, request.param, tmp_path / "journal", comparisons(12 if request.param == "openai" else next(COUNTS)))


@pytest.fixture
def openai(it: Provider, tmp_path: Path) -> Job:
    return Job(it, "openai", tmp_path / "journal", comparisons(12))


@dataclass
class Job:
    """One job on its journal, run by run. `told` is what all runs said, `meter` what the last one spent."""

    it: Provider
    kind: str
    journal: Path
    rows: Sequence[Comparison]
    told: list[str] = field(default_factory=list[str])
    hear: Callable[[str], object] = lambda _: None
    meter: Meter = field(default_factory=Meter)

    @property
    def needed(self) -> int:
        return 2 * len(self.rows)

    def reach(self, **options: Any) -> tuple[str, Reach]:
        given = {"keys": {self.kind: KEY}, "limits": LIMITS, **options}
        return f"{self.kind}:{MODELS[self.kind]}", Reach(f"{self.it.url}/v1", **given)

    def desk(self, *, requests: int | None = None, size: int | None = None, **options: Any) -> Any:
        desk = open_desk(*self.reach(**options))
        desk.requests, desk.size = requests or desk.requests, size or desk.size
        return desk

    def online(self, *, needs: Rung | None = None, votes: int = 1, **options: Any) -> Any:
        """The same labels, asked for one by one; that is not counted."""
        name, reach = self.reach()
        backend = open_backend(name, cache=self.journal, dtype="auto", device="auto", reach=reach)
        found = judged(labelled(backend, self.rows, needs, votes, **options))
        self.it.control(reset=True)
        return found

    def run(self, desk: Any = None, **options: Any) -> Worked:
        desk = desk or self.desk()
        return asyncio.run(asyncio.wait_for(self.work(desk, **options), 10))

    async def work(
        self,
        desk: Any,
        *,
        needs: Rung | None = None,
        votes: int = 1,
        budget: float | None = None,
        fresh: bool = False,
        piece: int = 5_000,
        **options: Any,
    ) -> Worked:
        self.meter = Meter()

        def labeler(journal: Journal | None) -> Labeler:
            backend = Batched(desk, self.meter, budget, journal, self.tell)
            return Labeler(TASK, climb(backend, needs, votes), Options(**options))

        journal = Journal(self.journal, labeler(None).digest, fresh=fresh)
        try:
            outcome = await run(self.rows, labeler(journal), journal, Silent(), batch=piece, calls=8, leave=True)
            return Worked(
                outcome,
                self.meter.asked,
                list(map(json.loads, journal.results(ok=True))),
                list(map(json.loads, journal.results(ok=False))),
            )
        finally:
            await desk.close()
            journal.close()

    def tell(self, line: str) -> None:
        self.told.append(line)
        self.hear(line)

    def killed(self, method: str, *, done: bool, times: int = 1, **options: Any) -> None:
        """A run that ends when it has called this method of its desk so often, after or before that did its work."""
        desk, called = self.desk(), []
        real = getattr(desk, method)

        async def last(*args: Any) -> None:
            if done:
                await real(*args)
            called.append(args)
            while len(called) < times:
                await asyncio.sleep(0)
            raise KilledError

        setattr(desk, method, last)
        with pytest.raises(KilledError):
            self.run(desk, **options)

    def ends(self) -> bool:
        """Another run, which labels every row; whether each request was asked once then, and is answered."""
        assert len(self.run().good) == len(self.rows)
        return self.once()

    def once(self) -> bool:
        """Whether each request was asked once and is answered."""
        seen = self.it.seen(answers=False)
        return seen["asked"] == seen["answered_total"] == self.needed

    def next(self, *faults: str | None) -> None:
        """What goes wrong from the creation of a batch on."""
        self.it.control(next=[*BEFORE[self.kind], *faults])

    def answered(self, route: str) -> int:
        return self.it.seen(answers=False)["requests"].get(route, {}).get("200", 0)

    def created(self) -> int:
        return self.answered(CREATE[self.kind])

    def sizes(self) -> list[int]:
        """Of the batches, as they were told."""
        return [int(line.split()[2]) for line in self.told if line.endswith("handed in")]

    def left(self) -> list[int]:
        """Rows in the journal's tables of what is under way."""
        with contextlib.closing(sqlite3.connect(self.journal)) as db:
            return [db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("answers", "batches")]


def labels(worked: Worked) -> Any:
    """What they say, without what they cost."""
    assert not worked.bad, worked.bad[0]
    return judged([Label(**record) for record in worked.good])


class TestLabels:
    def test_are_those_of_one_by_one(self, job):
        expected = job.online()
        assert labels(job.run()) == expected
        assert job.sizes() == [job.needed]
        assert job.once()

    @pytest.mark.parametrize("needs", ["votes", "stated"])
    def test_also_as_votes_and_in_its_own_words(self, job, needs):
        expected = job.online(needs=needs)
        worked = job.run(needs=needs)
        assert labels(worked) == expected
        assert {record["method"] for record in worked.good} == {needs}
        assert job.created() == 1

    def test_each_vote_is_a_request(self, job):
        worked = job.run(needs="votes", votes=3)
        assert {order["votes"] for record in worked.good for order in record["orders"]} == {3}
        assert (job.sizes(), worked.asked) == ([3 * job.needed], 3 * job.needed)

    def test_after_rationales_are_a_second_batch_after_the_first(self, job):
        expected = job.online(cot=True)
        worked = job.run(cot=True)
        assert labels(worked) == expected
        assert all(order["rationale"] for record in worked.good for order in record["orders"])
        assert [line.split()[-1] for line in job.told] == ["in", "answered"] * 2
        assert job.sizes() == [job.needed] * 2

    def test_cost_what_the_provider_takes_for_batches(self, job):
        price, full = (listed(job.kind, MODELS[job.kind], batch=batch) for batch in (True, False))
        worked = job.run(job.desk(price=price))
        usage = job.meter.usage
        assert usage.usd == pytest.approx(price.usd(usage.tokens_in, usage.tokens_out))
        assert usage.usd == pytest.approx(full.usd(usage.tokens_in, usage.tokens_out) / 2)
        assert sum(record["usd"] for record in worked.good) == pytest.approx(usage.usd)

    def test_nothing_of_a_job_that_ended_stays(self, job):
        job.run()
        assert job.left() == [0, 0]
        assert job.run().outcome.resumed == len(job.rows)
        assert job.created() == 1

    def test_questions_that_several_rows_ask_are_asked_once(self, job):
        job.rows = [comparison(identity=f"row {n}") for n in range(4)]
        assert len(job.run(piece=1).good) == 4
        assert job.sizes() == [2]


class TestLimits:
    def test_as_many_batches_as_the_number_of_requests_makes(self, job):
        expected = job.online()
        job.it.control(max_batch_requests=10)
        assert labels(job.run(job.desk(requests=10))) == expected
        assert len(job.sizes()) == -(-job.needed // 10)
        assert job.once()

    @pytest.mark.parametrize("text", ["word ", "字词"])
    def test_as_many_as_the_number_of_bytes_makes(self, job, text):
        job.rows = [comparison(text * 200, text * 300, identity=row.id, prompt=row.prompt) for row in job.rows]
        expected = job.online()
        job.it.control(max_batch_bytes=20_000)
        assert labels(job.run(job.desk(size=20_000))) == expected
        assert 2 < len(job.sizes()) < job.needed / 2
        assert job.once()

    def test_a_batch_that_the_queue_has_no_room_for_waits_and_that_is_no_round(self, openai, monkeypatch):
        monkeypatch.setattr(openai_batches, "FULL", 0.05)
        monkeypatch.setattr(batches, "ROUNDS", 2)
        expected = openai.online()
        openai.it.control(max_enqueued_tokens=1000, batch_seconds=0.4)
        assert labels(openai.run(openai.desk(requests=8))) == expected
        assert len(openai.sizes()) > 3
        assert openai.once()

    def test_a_batch_that_an_empty_queue_has_no_room_for_is_made_smaller(self, openai, monkeypatch):
        monkeypatch.setattr(openai_batches, "FULL", 0.05)
        openai.it.control(max_enqueued_tokens=1000)
        assert openai.ends()

    def test_a_batch_that_failed_is_one_line_and_is_handed_in_anew_when_that_was_mended(self, openai):
        openai.it.control(max_batch_requests=5)
        with pytest.raises(BackendError, match=r"^batch batch_\w+ failed: The batch has 24 requests; the limit is 5.$"):
            openai.run()
        openai.it.control(max_batch_requests=0)
        assert openai.ends()


class TestRows:
    @pytest.mark.parametrize("fault", [*ROWS, "content", "all of them"])
    def test_that_go_wrong_are_handed_in_again_and_no_others(self, job, fault):
        expected = job.online()
        sorts = {"content": CONTENT[job.kind], "all of them": (*ROWS, *CONTENT[job.kind])}
        names = sorts.get(fault, (fault,))
        job.it.control(faults=dict.fromkeys(names, 0.5 / len(names)), fault_attempts=4)
        assert labels(job.run()) == expected
        seen = job.it.seen(answers=False)
        assert sum(seen["faults"].values()) > 3
        assert (seen["asked_again"], seen["answered_distinct"]) == (0, job.needed)
        assert job.sizes() == [job.needed] if fault == "row_duplicated" else job.sizes()[1] < job.needed

    @pytest.mark.parametrize(
        ("fault", "reasons"),
        [
            ("row_missing", {"missing"}),
            ("row_unknown_id", {"missing"}),
            ("row_errored", {"server_error"}),
            ("row_expired", {"batch_expired", "expired"}),
            ("null_content", {"unparsable"}),
        ],
    )
    def test_that_always_go_wrong_fail_with_the_number_of_times(self, job, monkeypatch, fault, reasons):
        monkeypatch.setattr(batches, "ROUNDS", 3)
        job.it.control(faults={fault: 1})
        worked = job.run()
        assert len(worked.bad) == len(job.rows)
        assert {record["attempts"] for record in worked.bad} == {job.created()} == {3}
        assert {record["reason"] for record in worked.bad} <= reasons

    def test_that_failed_are_handed_in_by_the_next_run_alone(self, job, monkeypatch):
        monkeypatch.setattr(batches, "ROUNDS", 1)
        job.it.control(faults={"row_errored": 0.3}, fault_attempts=1)
        bad = len(job.run().bad)
        assert 0 < bad < len(job.rows)
        worked = job.run()
        assert (len(worked.good), worked.outcome.answered) == (len(job.rows), bad)
        assert job.it.seen(answers=False)["asked_again"] == 0

    @pytest.mark.xfail(strict=True, reason="texts that name no option are kept as answers: only --fresh asks again")
    def test_whose_votes_named_no_option_are_asked_again_by_the_next_run(self, job):
        job.it.control(faults={"outside": 0.3}, fault_attempts=1)
        assert job.run(needs="votes").bad
        assert len(job.run(needs="votes").good) == len(job.rows)

    def test_that_are_too_long_fail_and_are_not_handed_in_again(self, job):
        job.it.control(context=1000)
        job.rows = [*job.rows, comparison(identity="long", prompt="word " * 2000)]
        worked = job.run()
        (bad,) = worked.bad
        assert (bad["id"], bad["reason"], bad["attempts"]) == ("long", "too_long", 1)
        assert len(worked.good) == len(job.rows) - 1
        assert job.sizes() == [job.needed]

    def test_that_were_answered_before_their_batch_expired_are_kept(self, job):
        expected = job.online()
        job.it.control(faults={"batch_expired": 1})
        assert labels(job.run()) == expected
        assert job.sizes()[1] == job.needed // 2
        assert job.once()

    def test_before_a_cut_in_the_results_are_kept(self, job):
        expected = job.online()
        job.it.control(faults={"batch_truncated": 1})
        job.hear = lambda line: line.endswith("answered") and job.it.control(faults={})
        assert labels(job.run()) == expected
        assert job.sizes() == [job.needed, job.needed // 2]
        assert job.answered(RESULTS[job.kind]) == 4  # what is cut is fetched again
        assert job.it.seen(answers=False)["asked_again"] == 0


class TestWire:
    @pytest.mark.parametrize("fault", [*REFUSED, *WIRE])
    def test_a_batch_whose_creation_was_answered_badly_is_not_handed_in_twice(self, job, fault):
        """The provider has it where the fault is one of `WIRE`."""
        desk = job.desk(limits=QUICK)
        job.next(fault)
        assert len(job.run(desk).good) == len(job.rows)
        assert job.once()

    @pytest.mark.parametrize("fault", ["http_500", "disconnect_body", "truncated", "empty"])
    def test_a_batch_that_cannot_be_seen_is_still_waited_for(self, job, fault):
        desk = job.desk(limits=replace(QUICK, attempts=1))
        job.next(None, *[fault] * 3)
        assert len(job.run(desk).good) == len(job.rows)
        assert sum("cannot be seen just now, still looking" in line for line in job.told) == 1
        assert job.created() == 1

    @pytest.mark.parametrize("fault", ["http_500", "disconnect_body", "truncated", "empty"])
    def test_results_are_fetched_until_they_come(self, job, fault):
        job.killed("results", done=False)
        time.sleep(0.2)  # the batch has ended
        desk = job.desk(limits=QUICK)
        job.it.control(next=[None, *[fault] * 2])
        worked = job.run(desk)
        assert (len(worked.good), worked.asked) == (len(job.rows), job.needed)
        assert job.once()

    def test_all_faults_everywhere(self, job):
        desk = job.desk(requests=8, limits=QUICK)
        job.it.control(faults=dict.fromkeys((*REFUSED, *WIRE), 0.3 / 13))
        assert len(job.run(desk).good) == len(job.rows)
        assert job.once()


class TestStopped:
    def test_where_no_batch_can_be_handed_in(self, job, monkeypatch):
        monkeypatch.setattr(batches, "TRIES", 2)
        job.next("http_500", None, *BEFORE[job.kind], "http_500")
        with pytest.raises(BackendError, match=r"^no batch could be handed in: .*status 500"):
            job.run()
        assert job.ends()

    def test_where_it_is_not_known_whether_one_was(self, job):
        desk = job.desk(limits=replace(LIMITS, attempts=2))
        job.next("disconnect", *["http_500"] * 2)
        with pytest.raises(BackendError, match=r"cannot see whether a batch was handed in: .*; run again later"):
            job.run(desk)
        assert job.ends()

    @pytest.mark.parametrize("under_way", [False, True])
    def test_by_a_refused_key_which_is_not_told(self, job, under_way):
        desk = job.desk()
        job.hear = lambda line: job.it.control(keys=["sk-another"])
        if not under_way:
            job.hear("")
        with pytest.raises(BackendError, match="key was refused") as caught:
            job.run(desk)
        assert "\n" not in str(caught.value)
        assert KEY[:10] not in str(caught.value)
        job.hear = lambda line: None
        job.it.control(keys=[])
        assert job.ends()

    def test_by_having_no_money(self, job):
        job.next("quota")
        with pytest.raises(BackendError, match="nothing more can be asked"):
            job.run()
        assert job.ends()

    def test_by_ctrl_c_it_ends_at_once(self, job):
        job.it.control(batch_seconds=0.8)
        desk = job.desk()

        async def stopped() -> float:
            working = asyncio.create_task(job.work(desk))
            while not job.told:
                await asyncio.sleep(0.01)
            started = time.monotonic()
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            return time.monotonic() - started

        assert asyncio.run(stopped()) < 0.3
        assert job.ends()


class TestKilled:
    def test_while_a_batch_is_under_way_it_is_waited_for(self, job):
        job.killed("results", done=False)
        assert job.left() == [0, 1]
        assert job.ends()
        assert job.left() == [0, 0]

    def test_before_a_batch_was_handed_in_it_is_handed_in_anew(self, job):
        job.killed("submit", done=False)
        assert job.left() == [0, 1]
        assert job.ends()

    def test_before_its_name_was_known_it_is_found(self, job):
        job.killed("submit", done=True)
        assert job.ends()

    def test_it_is_found_among_others(self, job):
        job.killed("submit", done=True)
        Job(job.it, job.kind, job.journal.with_name("another"), job.rows[1:]).run()
        assert len(job.run().good) == len(job.rows)
        assert job.created() == 2

    def test_it_is_found_among_others_of_its_size(self, job):
        job.killed("submit", done=True)
        Job(job.it, job.kind, job.journal.with_name("another"), comparisons(job.needed)[len(job.rows) :]).run()
        assert len(job.run().good) == len(job.rows)
        assert job.created() == 2

    @pytest.mark.parametrize("order", ["ab", "ba"])
    def test_several_of_one_size_are_found_whichever_is_looked_for_first(self, job, monkeypatch, order):
        tags = itertools.chain(order, "cdef")
        monkeypatch.setattr(batches.secrets, "token_hex", lambda _: next(tags))
        job.rows = job.rows[: len(job.rows) // 2 * 2]
        job.killed("submit", done=True, times=2, piece=len(job.rows) // 2)
        assert job.left() == [0, 2]
        assert job.ends()

    def test_pieces_that_wait_for_the_same_batch_collect_it_once(self, job):
        job.killed("results", done=False)
        worked = job.run(piece=2)
        assert (len(worked.good), worked.asked) == (len(job.rows), job.needed)
        assert job.created() == job.answered(RESULTS[job.kind]) == 1

    def test_a_fresh_start_forgets_it(self, job):
        job.killed("results", done=False)
        assert len(job.run(fresh=True).good) == len(job.rows)
        assert job.created() == 2
        assert job.left() == [0, 0]


class TestBudget:
    def test_it_is_spent_in_smaller_and_smaller_batches_and_no_more_is_handed_in(self, job):
        desk = job.desk(price=Price(1000, 1000))
        with pytest.raises(
            BudgetError, match=r"^--budget 0.6: this run has spent \$0\.\d+, and the next .* would go beyond"
        ):
            job.run(desk, budget=0.6)
        spent, sizes = job.meter.usage.usd, job.sizes()
        assert 0.3 < spent <= 0.6
        assert sizes == sorted(sizes, reverse=True)
        assert job.run().asked == job.needed - sum(sizes)
        assert job.once()

    def test_it_pays_for_no_single_request(self, job):
        desk = job.desk(price=Price(1000, 1000))
        with pytest.raises(BudgetError, match=r"this run has spent \$0\.0000"):
            job.run(desk, budget=0.01)
        assert job.created() == 0

    def test_batches_under_way_are_paid_for(self, job):
        desk = job.desk(price=Price(1000, 1000), requests=3)
        with pytest.raises(BudgetError):
            job.run(desk, budget=0.6)
        assert job.meter.usage.usd <= 0.6
        assert len(job.sizes()) > 1
        assert job.ends()
