"""The core under load and under failure: turns, one question in flight, deadlines, policies, and closed forms."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rewarding import Noted, native, row, score, served, worth

from data.errors import RlaifError
from data.records import Failure, Response, Score
from labeler.backend import Choose
from labeler.fake import RULES, FakeBackend
from labeler.server import core
from labeler.server.core import Core, Item, Reward, expected
from labeler.server.grading import Grader
from labeler.server.metrics import Metrics
from labeler.server.options import Listening, Rewarding, Shaping
from labeler.server.queueing import FairQueue
from labeler.server.serving import Model, build
from labeler.server.shaping import reward, scored

# Turns


def at_once() -> bool:
    """Fewer than a call can have will do."""
    return True


@given(st.lists(st.one_of(st.sampled_from("abcde"), st.integers(1, 6)), max_size=80))
def test_nobody_starves_and_each_clients_items_come_in_their_order(steps):
    queue: FairQueue[tuple[str, int]] = FairQueue(1000)
    waiting: dict[str, list[int]] = defaultdict(list)
    served_since: dict[str, Counter[str]] = defaultdict(Counter)

    async def run() -> None:
        for number, step in enumerate([*steps, *[5] * len(steps)]):
            if isinstance(step, str):
                assert queue.put(step, (step, number))
                waiting[step].append(number)
                continue
            if not len(queue):
                continue
            for client, which in await queue.take(step, 0, at_once):
                assert which == waiting[client].pop(0)
                served_since[client].clear()
                for other, line in waiting.items():
                    if line and other != client:
                        served_since[other][client] += 1
                        assert served_since[other][client] <= 1, f"{other} waits while {client} is served twice"

    asyncio.run(run())
    assert len(queue) == sum(map(len, waiting.values()))


def test_who_brings_one_item_does_not_wait_for_who_brings_a_thousand():
    async def run() -> None:
        queue: FairQueue[str] = FairQueue(2000)
        for at in range(1000):
            queue.put("many", f"many {at}")
        queue.put("one", "one")
        assert "one" in await queue.take(2, 0, at_once)

    asyncio.run(run())


def test_what_two_brought_is_taken_once_at_the_first_of_their_turns():
    async def run() -> None:
        queue: FairQueue[str] = FairQueue(11)
        for at in range(9):
            queue.put("many", f"many {at}")
        queue.put("many", "both")
        assert queue.put("one", "both")
        assert len(queue) == 10
        assert await queue.take(2, 0, at_once) == ["many 0", "both"]
        assert len(queue) == 8
        assert await queue.take(99, 0, at_once) == [f"many {at}" for at in range(1, 9)]

    asyncio.run(run())


def test_what_two_brought_stays_until_both_have_given_up():
    async def run() -> None:
        queue: FairQueue[str] = FairQueue(9)
        for client in "ab":
            queue.put(client, "both")
        queue.give_up("a", "both")
        queue.give_up("a", "both")
        assert len(queue) == 1
        queue.give_up("b", "both")
        assert len(queue) == 0
        queue.put("b", "other")
        assert await queue.take(9, 0, at_once) == ["other"]

    asyncio.run(run())


def test_a_full_queue_takes_no_more_and_has_room_again_when_one_is_taken():
    async def run() -> None:
        queue: FairQueue[int] = FairQueue(2)
        assert [queue.put("a", 1), queue.put("a", 2), queue.put("b", 3)] == [True, True, False]
        assert await queue.take(1, 0, at_once) == [1]
        assert queue.put("b", 3)
        assert sorted(await queue.take(9, 0, at_once)) == [2, 3]

    asyncio.run(run())


def test_a_taker_that_is_cancelled_leaves_its_turn_to_another():
    async def run() -> None:
        queue: FairQueue[int] = FairQueue(9)
        first, second = (asyncio.create_task(queue.take(1, 0, at_once)) for _ in range(2))
        await asyncio.sleep(0)
        queue.put("a", 1)
        first.cancel()
        async with asyncio.timeout(5):
            assert await second == [1]
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(run())


def test_while_fewer_will_not_do_a_taker_waits_for_all_or_until_they_do():
    async def run() -> None:
        queue: FairQueue[int] = FairQueue(9)
        few = False
        taken = asyncio.create_task(queue.take(3, 0, lambda: few))
        queue.put("a", 1)
        queue.put("a", 2)
        await asyncio.sleep(0.01)
        assert not taken.done()
        queue.put("a", 3)
        async with asyncio.timeout(5):
            assert await taken == [1, 2, 3]
        taken = asyncio.create_task(queue.take(3, 0, lambda: few))
        queue.put("a", 4)
        await asyncio.sleep(0.01)
        assert not taken.done()
        few = True
        queue.wake()
        async with asyncio.timeout(5):
            assert await taken == [4]

    asyncio.run(run())


# One question at a time


def grader(ask: Any, *, rows: int = 8, calls: int = 1, bound: int = 100_000, least_mass: float = 0.0) -> Any:
    return Grader[Response, Score](ask, rows, calls, bound, Metrics(), least_mass)


def running(ask: Any, work: Any, **options: Any) -> Any:
    """What `work(grader)` returns while the grader runs."""

    async def run() -> Any:
        it = grader(ask, **options)
        it.start()
        try:
            async with asyncio.timeout(30):
                return await work(it)
        finally:
            await it.stop()

    return asyncio.run(run())


class Asked:
    """A scorer that notes its rows, and waits for `let`."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[Response]] = []
        self.begun, self.let = asyncio.Event(), asyncio.Event()
        if not held:
            self.let.set()

    @property
    def texts(self) -> list[str]:
        return [each.response for batch in self.batches for each in batch]

    async def __call__(self, rows: Sequence[Response]) -> list[Score | Failure]:
        self.batches.append(list(rows))
        self.begun.set()
        await self.let.wait()
        return [score(worth(1 + len(each.response) % 10), about=each) for each in rows]


def test_ten_thousand_retries_of_one_question_ask_the_model_once():
    asked = Asked(held=True)

    async def work(it: Any) -> Any:
        tasks = [asyncio.create_task(it.grade(row("same"), f"client {n % 7}", 20)) for n in range(10_000)]
        await asked.begun.wait()
        asked.let.set()
        return await asyncio.gather(*tasks), await it.grade(row("same"), "later", 20)

    found, later = running(asked, work)
    assert asked.texts == ["same"]
    assert {answer.score for answer, _ in found} == {5.0}
    assert later[0].score == 5.0
    assert (found[0][1], later[1]) == (False, True)


def test_who_joins_a_long_line_is_answered_at_a_turn_of_its_own():
    asked = Asked(held=True)

    async def work(it: Any) -> Any:
        many = [asyncio.create_task(it.grade(row(f"{'x' * n}"), "many", 20)) for n in range(100)]
        await asked.begun.wait()
        joined = asyncio.create_task(it.grade(row("x" * 99), "one", 20))
        await asyncio.sleep(0)
        asked.let.set()
        return await asyncio.gather(joined, *many)

    found = running(asked, work, rows=1)
    assert asked.texts.index("x" * 99) <= 3
    assert (len(found), len(asked.texts)) == (101, 100)


def test_batches_are_as_large_as_the_model_takes_and_keep_the_order():
    asked = Asked()

    async def work(it: Any) -> Any:
        texts = [f"{'x' * n}" for n in range(20)]
        return texts, await asyncio.gather(*(it.grade(row(each), "a", 20) for each in texts))

    texts, found = running(asked, work, rows=8)
    assert [len(batch) for batch in asked.batches] == [8, 8, 4]
    assert asked.texts == texts
    assert [answer.score for answer, _ in found] == [1 + len(each) % 10 for each in texts]


def test_as_many_calls_as_the_model_takes_are_under_way():
    async def run() -> None:
        under_way, all_three, let = 0, asyncio.Event(), asyncio.Event()

        async def ask(rows: Sequence[Response]) -> list[Score]:
            nonlocal under_way
            under_way += 1
            if under_way == 3:
                all_three.set()
            await let.wait()
            return [score(about=each) for each in rows]

        it = grader(ask, rows=1, calls=3)
        it.start()
        tasks = [asyncio.create_task(it.grade(row(f"{n}"), "a", 20)) for n in range(9)]
        async with asyncio.timeout(5):
            await all_three.wait()
        assert (under_way, len(it.queue)) == (3, 6)
        let.set()
        await asyncio.gather(*tasks)
        await it.stop()

    asyncio.run(run())


def test_one_client_with_much_does_not_hold_up_another():
    asked = Asked(held=True)

    async def work(it: Any) -> None:
        tasks = [asyncio.create_task(it.grade(row(f"many {n}"), "many", 20)) for n in range(100)]
        await asked.begun.wait()
        tasks.append(asyncio.create_task(it.grade(row("single"), "single", 20)))
        await asyncio.sleep(0)
        asked.let.set()
        await asyncio.gather(*tasks)

    running(asked, work, rows=2)
    assert "single" in asked.texts[:6]  # one call was running, and the next one was ready


def test_while_the_model_computes_a_full_call_is_made_ready_and_no_smaller_one():
    asked = Asked(held=True)

    async def work(it: Any) -> list[int]:
        tasks = [asyncio.create_task(it.grade(row("first"), "a", 20))]
        await asked.begun.wait()
        seen: list[int] = []
        for text in "abcde":
            tasks.append(asyncio.create_task(it.grade(row(text), "a", 20)))
            await asyncio.sleep(0.01)
            seen.append(len(asked.batches))
        asked.let.set()
        await asyncio.gather(*tasks)
        return seen

    assert running(asked, work, rows=4) == [1, 1, 1, 2, 2]
    assert [len(each) for each in asked.batches] == [1, 4, 1]


def test_after_its_patience_a_question_is_a_failure_and_its_answer_is_kept_for_the_retry():
    asked = Asked(held=True)

    async def work(it: Any) -> Any:
        first = await it.grade(row("slow"), "a", 0.05)
        asked.let.set()
        return first, await it.grade(row("slow"), "a", 20)

    (failed, _), (answer, _) = running(asked, work)
    assert isinstance(failed, Failure)
    assert failed.reason == "timeout"
    assert isinstance(answer, Score)
    assert asked.texts == ["slow"]


def test_what_nobody_waits_for_any_more_is_not_asked():
    asked = Asked(held=True)

    async def work(it: Any) -> None:
        first = asyncio.create_task(it.grade(row("first"), "a", 20))
        await asked.begun.wait()
        left = asyncio.create_task(it.grade(row("abandoned"), "a", 20))
        kept = [asyncio.create_task(it.grade(row("kept"), "a", 20)) for _ in range(2)]
        await asyncio.sleep(0)
        left.cancel()
        kept[0].cancel()  # the other one still waits
        await asyncio.wait([left, kept[0]])
        asked.let.set()
        assert isinstance((await kept[1])[0], Score)
        await first

    running(asked, work)
    assert asked.texts == ["first", "kept"]


def test_a_question_that_was_abandoned_can_be_asked_again():
    asked = Asked(held=True)

    async def work(it: Any) -> Any:
        first = asyncio.create_task(it.grade(row("first"), "a", 20))
        await asked.begun.wait()
        left = asyncio.create_task(it.grade(row("again"), "a", 20))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        again = asyncio.create_task(it.grade(row("again"), "a", 20))
        await asyncio.sleep(0)
        asked.let.set()
        await first
        return (await again)[0]

    assert isinstance(running(asked, work), Score)
    assert asked.texts == ["first", "again"]


def test_more_than_may_wait_is_refused_at_once():
    asked = Asked(held=True)

    async def work(it: Any) -> Any:
        tasks = [asyncio.create_task(it.grade(row("under way"), "a", 20))]
        await asked.begun.wait()
        tasks += [asyncio.create_task(it.grade(row(f"waits {n}"), "a", 20)) for n in range(2)]
        await asyncio.sleep(0)
        refused = await it.grade(row("one too many"), "b", 20)
        asked.let.set()
        await asyncio.gather(*tasks)
        return refused[0], (await it.grade(row("one too many"), "b", 20))[0]

    refused, later = running(asked, work, bound=2)
    assert refused.reason == "overloaded"
    assert isinstance(later, Score)


# Failures are failures


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda rows: [score(mass=0.2)], "low_mass"),
        (lambda rows: [score().model_copy(update={"reward": math.nan})], "nan"),
        (lambda rows: [Failure(id="-", stage="score", reason="odd", message="")], "odd"),
        (lambda rows: 1 / 0, "internal"),
        (lambda rows: [], "internal"),
    ],
)
def test_a_model_without_a_good_answer_fails_and_the_next_question_goes_on(ask, reason):
    good = False

    async def asked(rows: Sequence[Response]) -> Any:
        return [score(about=each) for each in rows] if good else ask(rows)

    async def work(it: Any) -> Any:
        nonlocal good
        failed = await it.grade(row("x"), "a", 5)
        good = True
        return failed[0], (await it.grade(row("x"), "a", 5))[0]

    failed, later = running(asked, work, least_mass=0.5)
    assert isinstance(failed, Failure)
    assert failed.reason == reason
    assert isinstance(later, Score), "failures are not kept"


def test_an_error_that_stops_jobs_fails_questions_and_not_the_server():
    async def ask(rows: Sequence[Response]) -> Any:
        raise RlaifError("the account has no money")

    async def work(it: Any) -> Any:
        return [(await it.grade(row(each), "a", 5))[0] for each in "ab"]

    for failed in running(ask, work):
        assert (failed.reason, failed.message) == ("stopped", "the account has no money")


def test_one_bad_row_does_not_fail_the_rows_that_were_asked_with_it():
    """An error that a row brings is that row's, and its message, which may quote it, is nobody's."""

    async def ask(rows: Sequence[Response]) -> Any:
        if any(each.response == "bad" for each in rows):
            raise ValueError("cannot encode 'bad'")
        return [score(about=each) for each in rows]

    async def work(it: Any) -> Any:
        return await asyncio.gather(*(it.grade(row(each), each, 5) for each in ("good", "bad", "well")))

    (good, _), (bad, _), (well, _) = running(ask, work)
    assert isinstance(good, Score)
    assert isinstance(well, Score)
    assert bad.reason == "internal"
    assert "cannot encode" not in bad.message


def test_a_mean_of_a_reward_models_rewards_has_no_bounds_either():
    rewarded = [Reward(0.5, {}, bounded=False), Reward(0.5, {}, source="group-mean", bounded=False)]
    assert {each.unit for each in rewarded} == {1 / (1 + math.exp(-0.5))}


# Policies, over the whole server


def broken_for(word: str) -> Any:
    """The noise, but NaN for whatever has this word in it."""
    return lambda request: RULES["nan" if word in request.prompt.plain() else "noise"](request)


def items_of(reply: Any) -> list[dict[str, Any]]:
    assert reply.status == 200, reply.text
    return reply.json["items"]


def replies(rewarding: Rewarding, *bodies: Any, backend: Any = None, path: str = "/v1/rewards", **more: Any) -> Any:
    async def run() -> Any:
        async with served(backend or Noted(rule=broken_for("BAD")), rewarding=rewarding, **more) as web:
            return [await web.post(path, body) for body in bodies]

    return asyncio.run(run())


@pytest.mark.parametrize("policy", ["error", "skip", "group-mean"])
def test_one_failed_item_does_not_fail_the_others(policy):
    (reply,) = replies(Rewarding(on_failure=policy, kept="memory"), native("a", "BAD", "b"))
    first, bad, last = items_of(reply)
    assert (first["status"], last["status"]) == ("ok", "ok")
    if policy == "group-mean":
        assert (bad["status"], bad["source"]) == ("ok", "group-mean")
        assert math.isclose(bad["reward"], (first["reward"] + last["reward"]) / 2)
        assert bad["score"] is None
        assert bad["distribution"] is None
    else:
        assert (bad["status"], bad["reward"], bad["score"], bad["mass"]) == ("failed", None, None, None)
        assert bad["reason"] == "nan"


def test_a_mean_is_of_the_same_prompts_rewards_before_it_and_of_no_other():
    bodies = [native("a", prompt="P"), native("b", prompt="Q"), native("BAD", prompt="P"), native("BAD", prompt="R")]
    first, other, mean, none = replies(Rewarding(on_failure="group-mean", kept="memory"), *bodies)
    assert items_of(mean)[0]["reward"] == items_of(first)[0]["reward"] != items_of(other)[0]["reward"]
    assert items_of(none)[0]["status"] == "failed", "the mean of nothing is no reward"


def test_a_mean_that_was_given_counts_in_no_later_mean():
    bodies = [native("a"), native("BAD"), native("b"), native("BAD 2")]
    policy = Rewarding(on_failure="group-mean", kept="memory")
    a, _, b, last = (items_of(each)[0]["reward"] for each in replies(policy, *bodies))
    assert math.isclose(last, (a + b) / 2)


def test_a_mean_is_of_fresh_rewards_alone(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(core.time, "monotonic", lambda: now[0])
    memory, kept = core._Memory(), []
    for content, value, at in (("a", 0.9, 0.0), ("b", -0.1, core.FRESH), ("c", 0.1, core.FRESH + 1)):
        memory.add(content, Reward(value, {}), 1000.0 + at)
        kept.append(memory.mean(1000.0 + at))
    assert [each.reward for each in kept if each] == pytest.approx([0.9, 0.4, 0.0])
    assert memory.mean(1000.0 + 3 * core.FRESH) is None


def test_a_group_is_what_the_client_names_under_a_prompt_and_never_another_prompts():
    body = {
        "items": [
            {"prompt": "P", "response": "a", "group": "1"},
            {"prompt": "P", "response": "b", "group": "2"},
            {"prompt": "P", "response": "BAD", "group": "1"},
            {"prompt": "Q", "response": "BAD", "group": "1"},
        ]
    }
    (reply,) = replies(Rewarding(on_failure="group-mean", kept="memory"), body)
    a, _, bad, other = items_of(reply)
    assert bad["reward"] == a["reward"]
    assert (other["status"], other["reward"]) == ("failed", None)


def test_the_fallback_is_asked_only_for_what_failed_and_says_so():
    policy = Rewarding(on_failure="fallback", fallback="fake:uniform", kept="memory")
    (reply,) = replies(policy, native("a", "BAD"))
    good, bad = items_of(reply)
    assert (good["source"], bad["source"]) == ("model", "fallback")
    assert bad["score"] == pytest.approx(5.5)
    assert good["score"] != pytest.approx(5.5)


def test_where_the_fallback_fails_too_the_first_failure_is_told():
    policy = Rewarding(on_failure="fallback", fallback="fake:nan", kept="memory")
    (reply,) = replies(policy, native("BAD"))
    assert items_of(reply)[0]["status"] == "failed"


def test_no_dialect_makes_a_number_of_a_failure():
    async def run() -> None:
        async with served(Noted(rule=RULES["nan"])) as web:
            for path, body in {
                "/get_reward": {"query": ["x"], "prompts": ["x"]},
                "/rm": {"prompt": "p", "response": "r"},
                "/v1/score/evaluation": {"messages": ["x"]},
                "/": {"messages": ["x"]},
                "/classify": {"input": "x"},
                "/v1/embeddings": {"input": "x"},
                "/pooling": {"input": "x"},
                "/score": {"text_1": "p", "text_2": "r"},
                "/verify": {
                    "responses_create_params": {"input": "p"},
                    "response": {"output": [{"type": "message", "role": "assistant", "content": "r"}]},
                },
            }.items():
                reply = await web.post(path, body)
                assert reply.status == 503, path
                assert "nan" in reply.json["error"]["message"]
                assert reply.headers["retry-after"] == "1"

    asyncio.run(run())


def test_too_many_items_are_refused():
    few = Listening(most_items=2)
    two, three, pairs = replies(
        Rewarding(kept="memory"),
        native("a", "b"),
        native("a", "b", "c"),
        native("a", "b", "c"),
        listening=few,
    )
    assert (two.status, three.status, pairs.status) == (200, 413, 413)
    assert "--most-items" in three.json["error"]["message"]


def test_answers_survive_a_restart_on_disk_and_not_in_memory(tmp_path):
    async def ask(kept: Any) -> tuple[Any, int]:
        backend = Noted()
        async with served(backend, rewarding=Rewarding(kept=kept), cache=tmp_path) as web:
            found = items_of(await web.post("/v1/rewards", native("a", "b")))
            return [each["reward"] for each in found], backend.about("RESPONSE: a") + backend.about("RESPONSE: b")

    async def run() -> None:
        first, asked = await ask("disk")
        again, asked_again = await ask("disk")
        _, without = await ask("memory")
        assert (asked, asked_again, without) == (2, 0, 2)
        assert first == again

    asyncio.run(run())


def test_a_deadline_of_the_caller_goes_before_the_servers():
    async def run() -> None:
        backend = Noted(let=asyncio.Event())
        async with served(backend) as web:
            (item,) = items_of(await web.post("/v1/rewards", native("slow", timeout_s=0.05)))
            assert (item["status"], item["reason"]) == ("failed", "timeout")
            backend.let.set()

    asyncio.run(run())


# Closed forms


def shaped(scores: Sequence[Score], **options: Any) -> float:
    return reward({str(at): each for at, each in enumerate(scores)}, Shaping(**options))


def test_one_score_is_the_line_from_1_and_10_to_minus_1_and_1():
    for value, wanted in ((1, -1), (5.5, 0), (10, 1), (3, -5 / 9)):
        assert shaped([score(worth(value))]) == pytest.approx(wanted)


def test_weights_are_shares():
    two = [score(worth(10)), score(worth(1))]
    assert shaped(two) == pytest.approx(0)
    assert shaped(two, weights=(3, 1)) == pytest.approx(0.5)
    assert shaped(two, weights=(30, 10)) == pytest.approx(0.5)
    assert shaped(two, weights=(0, 2)) == pytest.approx(-1)


@pytest.mark.parametrize(("safety", "wanted"), [(1.0, -1.0), (2.3, -0.7111111), (2.36, 1.0), (10, 1.0)])
def test_safety_goes_first_below_fifteen_percent(safety, wanted):
    """(2.35 - 1) / 9 = .15, Llama 2's threshold."""
    assert shaped([score(worth(10)), score(worth(safety))], rule="safety-first") == pytest.approx(wanted, abs=1e-6)


def test_clip_bounds_the_sum():
    assert shaped([score(worth(10))], clip=(-0.5, 0.25)) == 0.25
    assert shaped([score(worth(1))], clip=(-0.5, 0.25)) == -0.5
    assert shaped([score(worth(5.5))], clip=(-0.5, 0.25)) == pytest.approx(0)


def test_a_temperature_raises_the_probabilities_to_its_inverse():
    two = [0.2, 0.8] + [0.0] * 8
    assert scored(score(two), 0.5) == pytest.approx(1 + 0.64 / 0.68)
    assert scored(score(two), 1.0) == pytest.approx(1.8)
    assert scored(score(two), 1e6) == pytest.approx(1.5, abs=1e-5)
    assert scored(score(two), 0.01) == pytest.approx(2.0)


@given(
    st.lists(st.floats(1e-9, 1), min_size=10, max_size=10).map(lambda p: [each / math.fsum(p) for each in p]),
    st.floats(1e-9, 1e9),
)
def test_a_shaped_score_lies_between_1_and_10_at_any_temperature(distribution, temperature):
    found = scored(score(distribution), temperature)
    assert 1 <= found <= 10


def test_the_server_mixes_as_the_closed_forms_say():
    policy = Rewarding(kept="memory", weights=(1, 3))
    (both,) = replies(policy, native("a"), backend=Noted(), tasks=("helpfulness", "harmlessness"))
    (item,) = items_of(both)
    alone = [
        items_of(replies(Rewarding(kept="memory"), native("a"), backend=Noted(), tasks=(task,))[0])[0]["reward"]
        for task in ("helpfulness", "harmlessness")
    ]
    assert item["reward"] == pytest.approx((alone[0] + 3 * alone[1]) / 4)
    assert sorted(item["scores"]) == ["harmlessness", "helpfulness"]
    assert (item["score"], item["distribution"]) == (None, None)


def test_one_task_of_two_that_fails_fails_the_reward():
    def rule(request: Choose) -> Sequence[float]:
        return RULES["nan" if "harm" in request.prompt.plain() else "noise"](request)

    (reply,) = replies(
        Rewarding(kept="memory"), native("a"), backend=Noted(rule=rule), tasks=("helpfulness", "harmlessness")
    )
    assert items_of(reply)[0]["status"] == "failed"


def test_the_score_behind_a_reward_is_of_one_task_only():
    one = score(worth(7))
    assert expected(Reward(0.1, {"a": one}), 1.0) == pytest.approx(7)
    assert expected(Reward(0.1, {"a": one, "b": one}), 1.0) is None
    assert expected(Reward(0.1, {}, source="group-mean"), 1.0) is None


@pytest.mark.parametrize(("value", "unit"), [(-1, 0), (1, 1), (0, 0.5), (-3, 0), (3, 1)])
def test_for_those_who_filter_the_reward_lies_between_0_and_1(value, unit):
    assert Reward(value, {}).unit == unit


def test_a_reward_that_is_no_number_is_a_failure():
    bad = score().model_copy(update={"score": math.nan})

    async def run() -> Any:
        async def ask(rows: Sequence[Response]) -> Any:
            return [bad for _ in rows]

        core = Core({"t": grader(ask)}, None, {}, "error", Shaping(clip=(-1, 1)), Metrics())
        core.start()
        try:
            return await core.rewards([Item(row("a"))], "c", 5)
        finally:
            await core.stop()

    (found,) = asyncio.run(run())
    assert isinstance(found, Failure)


# Preferences


def test_preferences_name_the_better_response_and_fail_one_by_one():
    async def run() -> None:
        async with served(FakeBackend("fake:longer", RULES["longer"])) as web:
            items = [
                {"id": "x", "prompt": "P", "responses": ["short", "very much longer " * 30, "a bit longer " * 5]},
                {"id": "y", "messages": [{"role": "user", "content": "P"}], "responses": ["b", "b"]},
            ]
            found = items_of(await web.post("/v1/preferences", {"items": items}))
            assert [each["id"] for each in found] == ["x", "y"]
            assert found[0]["order"] == [1, 2, 0]
            assert found[1]["p"][0][1] == pytest.approx(0.5)
        async with served(Noted(rule=RULES["nan"])) as web:
            (bad,) = items_of(await web.post("/v1/preferences", {"items": items[:1]}))
            assert (bad["status"], bad["p"], bad["order"]) == ("failed", None, None)

    asyncio.run(run())


# What may not be said of a server


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Shaping(temperature=0),
        lambda: Shaping(temperature=math.nan),
        lambda: Shaping(clip=(1, -1)),
        lambda: Shaping(weights=(-1, 2)),
        lambda: Shaping(weights=(0, 0)),
        lambda: Listening(port=70_000),
        lambda: Listening(answer_within=0),
        lambda: Listening(waiting=0),
        lambda: Rewarding(on_failure="fallback"),
        lambda: Rewarding(fallback="fake:noise"),
        lambda: Rewarding(least_mass=1),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(RlaifError, match="--"):
        wrong()


def test_a_task_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RlaifError, match="nonsense"):
        build(Noted(), Model(("nonsense",), "fake:noise", tmp_path), Listening(), Rewarding(kept="memory"), None)
