"""The resumable job: nothing twice, nothing lost, nothing mixed."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from labeler_support import Scripted, Silent, comparison, comparisons, work, worth

from data.errors import FileError
from data.labels import labels
from data.records import Comparison, Failure, Label, Vote
from labeler.backend import Choose
from labeler.fake import RULES, FakeBackend, by
from labeler.job import StrictError, failures_path, journal_path, run, write
from labeler.journal import Journal
from labeler.preference import Labeler
from prompts.task import load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.journal"


def failing_on(*ids: str) -> Scripted:
    """NaN for the questions of these rows, which `comparisons` numbers."""
    questions = {f"Question {each.removeprefix('row ')}?" for each in ids}

    def rule(request: Choose) -> Sequence[float]:
        return RULES["nan" if request.prompt.context in questions else "noise"](request)

    return Scripted(rule=rule)


def breaking_after(count: int) -> Scripted:
    """A backend that raises when it is asked for more than `count` answers."""

    def rule(request: Choose) -> Sequence[float]:
        nonlocal count
        count -= 1
        if count < 0:
            raise FileError("the power went out")
        return RULES["noise"](request)

    return Scripted(rule=rule)


def bad_row(identity: str) -> Failure:
    return Failure(id=identity, stage="read", reason="bad_row", message=f"{identity}: broken JSON")


def test_a_second_run_asks_nothing_and_says_the_same(path: Path):
    rows = comparisons(23)
    first, second = work(rows, path, RULES["noise"]), work(rows, path, RULES["noise"])
    assert (first.asked, second.asked) == (46, 0)
    assert (second.outcome.answered, second.outcome.resumed, second.outcome.rows) == (0, 23, 23)
    assert second.good == first.good


def test_a_run_goes_on_where_an_error_stopped_it(path: Path):
    rows = comparisons(20)
    with pytest.raises(FileError, match="power"):
        work(rows, path, breaking_after(2 * 11))
    finished = work(rows, path, failing_on())
    assert finished.outcome.resumed == 8, "two batches of four were done when the third broke"
    assert finished.asked == 2 * 12
    assert finished.ids == [row.id for row in rows]


def test_texts_that_were_written_are_kept_when_the_choice_after_them_fails(path: Path):
    rows = comparisons(3)
    first = breaking_after(0)
    with pytest.raises(FileError):
        work(rows, path, first, cot=True)
    second = Scripted(rule=RULES["noise"])
    work(rows, path, second, cot=True)
    assert (len(first.written), len(second.written), len(second.chosen)) == (6, 0, 6)


def test_failures_are_asked_again_and_only_they(path: Path):
    rows = comparisons(10)
    first = work(rows, path, failing_on("row 3", "row 7"))
    assert (first.outcome.answered, first.outcome.failed) == (8, 2)
    assert [each["id"] for each in first.bad] == ["row 3", "row 7"]
    second = work(rows, path, failing_on("row 7"))
    assert (second.asked, second.outcome.answered, second.outcome.failed, second.outcome.resumed) == (4, 1, 1, 8)
    third = work(rows, path, failing_on())
    assert (third.outcome.failed, third.bad, third.ids) == (0, [], [row.id for row in rows])


@pytest.mark.parametrize(
    "changed",
    [{"one_order": True}, {"shots": 1}, {"cot": True}, {"task": "harmlessness"}, {"task": "helpfulness:detailed"}],
    ids=str,
)
def test_another_task_or_option_is_another_job_and_never_mixes(path: Path, changed: dict[str, Any]):
    rows = comparisons(6)
    first = work(rows, path, RULES["noise"])
    other = work(rows[:3], path, RULES["noise"], **changed)
    assert (other.outcome.resumed, other.outcome.other_jobs, len(other.good)) == (0, 1, 3)
    assert {each["digest"] for each in first.good}.isdisjoint(each["digest"] for each in other.good)
    again = work(rows, path, RULES["noise"])
    assert (again.asked, again.good) == (0, first.good)


def test_another_model_is_another_job(path: Path):
    rows = comparisons(6)
    work(rows, path, FakeBackend("fake:one", RULES["noise"]))
    other = work(rows, path, FakeBackend("fake:two", RULES["first"]))
    assert (other.asked, {each["model"] for each in other.good}) == (12, {"fake:two"})


def test_fresh_asks_all_again(path: Path):
    rows = comparisons(6)
    work(rows, path, RULES["noise"])
    again = work(rows, path, RULES["noise"], fresh=True)
    assert (again.asked, again.outcome.resumed, len(again.good)) == (12, 0, 6)


def test_changed_content_under_the_same_id_is_asked_again(path: Path):
    rows = comparisons(4)
    work(rows, path, by(worth))
    rows[2] = comparison("bad", "good", identity="row 2")
    again = work(rows, path, by(worth))
    assert (again.asked, again.outcome.resumed) == (2, 3)
    assert (again.good[2]["id"], again.good[2]["choice"]) == ("row 2", 1)


def test_changed_content_that_fails_leaves_no_old_label_behind(path: Path):
    work([comparison()], path, by(worth))
    again = work([comparison("bad", "good")], path, FakeBackend("fake:test", RULES["nan"]))
    assert (again.good, [each["id"] for each in again.bad]) == ([], ["a"])


def test_new_votes_on_the_same_texts_are_no_new_question(path: Path):
    row = comparison()
    work([row], path, by(worth))
    assert work([row.model_copy(update={"votes": (Vote(choice=1),)})], path, by(worth)).asked == 0


def test_one_id_for_two_contents_fails_and_the_first_is_kept(path: Path):
    rows = [comparison("good", "bad"), comparison("x", "y", identity="b"), comparison("bad", "good")]
    for _ in range(2):
        done = work(rows, path, by(worth))
        assert [(each["id"], each["choice"]) for each in done.good] == [("a", 0), ("b", None)]
        (clash,) = done.bad
        assert (clash["reason"], done.outcome.failed, done.outcome.rows) == ("duplicate_id", 1, 3)
        assert "row 3" in clash["message"]
        assert "'a'" in clash["message"]


def test_a_broken_row_cannot_take_the_place_of_a_row_with_its_name(path: Path):
    rows = [comparison(identity="file.jsonl:2"), bad_row("file.jsonl:2"), comparison("x", "y", identity="b")]
    first, second = work(rows, path, by(worth)), work(rows, path, by(worth))
    assert first.ids == second.ids == ["file.jsonl:2", "b"]
    assert (first.asked, second.asked) == (4, 0)
    assert (second.outcome.rows, second.outcome.failed) == (3, 1)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_repeated_rows_are_labelled_once_and_counted(path: Path, batch: int):
    rows = [comparison(identity="a"), comparison("x", "y", identity="b"), *[comparison(identity="a")] * 3]
    done = work(rows, path, by(worth), batch=batch)
    assert (done.ids, done.asked) == (["a", "b"], 4)
    assert (done.outcome.rows, done.outcome.repeats, done.outcome.answered) == (2, 3, 2)


def test_repeats_far_apart_are_found(path: Path):
    rows = comparisons(600)
    done = work([*rows, *rows], path, RULES["noise"], batch=64)
    assert (done.outcome.rows, done.outcome.repeats, done.asked) == (600, 600, 1200)


@dataclass(frozen=True)
class Uneven(FakeBackend):
    """The later a batch is asked, the sooner it answers; remembers how many were asked at a time."""

    name: str = "fake:uneven"
    rule: Any = RULES["noise"]
    delays: Iterator[float] = field(default_factory=lambda: iter([0.03, 0.0, 0.02, 0.01] * 100))
    inside: list[int] = field(default_factory=lambda: [0])
    most: list[int] = field(default_factory=list[int])
    sizes: list[int] = field(default_factory=list[int])

    async def likelihoods(self, requests: Sequence[Choose]) -> Any:
        self.inside[0] += 1
        self.most.append(self.inside[0])
        self.sizes.append(len(requests))
        await asyncio.sleep(next(self.delays))
        self.inside[0] -= 1
        return await super().likelihoods(requests)


def test_the_order_of_the_output_is_that_of_the_input_whatever_answers_first(path: Path):
    rows = comparisons(40)
    assert work(rows, path, Uneven(), batch=3, calls=4).ids == [row.id for row in rows]


def test_a_new_order_of_the_input_is_the_new_order_of_the_output(path: Path):
    rows = comparisons(10)
    work(rows, path, RULES["noise"])
    again = work(rows[::-1], path, RULES["noise"])
    assert (again.ids, again.asked) == ([row.id for row in rows[::-1]], 0)


def test_a_shorter_input_gives_a_shorter_output(path: Path):
    rows = comparisons(10)
    work(rows, path, failing_on("row 9"))
    again = work(rows[:4], path, failing_on("row 9"))
    assert (again.ids, again.bad, again.outcome.rows) == ([row.id for row in rows[:4]], [], 4)


def test_batches_and_calls_at_a_time_are_as_large_as_told(path: Path):
    backend = Uneven()
    work(comparisons(30), path, backend, batch=4, calls=3)
    assert max(backend.most) == 3
    assert backend.sizes == [8] * 7 + [4]


def test_bad_rows_go_to_the_failures_and_stop_nothing(path: Path):
    rows = [comparison(identity="a"), bad_row("file.jsonl:2"), comparison("x", "y", identity="c")]
    done = work(rows, path, by(worth))
    assert (done.ids, [each["id"] for each in done.bad]) == (["a", "c"], ["file.jsonl:2"])
    assert (done.outcome.rows, done.outcome.answered, done.outcome.failed) == (3, 2, 1)


def test_strict_stops_at_the_first_bad_row_and_names_it(path: Path):
    rows = [comparison(identity="a"), bad_row("file.jsonl:2"), comparison(identity="c")]
    with pytest.raises(StrictError, match=r"file\.jsonl:2: broken JSON"):
        work(rows, path, by(worth), strict=True)


def test_strict_refuses_one_id_for_two_contents(path: Path):
    with pytest.raises(StrictError, match="row 2: id 'a'"):
        work([comparison("x", "y"), comparison("y", "x")], path, by(worth), strict=True)


def test_strict_has_nothing_against_good_rows_and_repeats(path: Path):
    assert work([comparison(), comparison()], path, by(worth), strict=True).outcome.rows == 1


def test_what_was_answered_before_a_file_turned_out_broken_is_kept(path: Path):
    rows = comparisons(300)

    def half() -> Iterator[Comparison]:
        yield from rows[:280]
        raise FileError("file.jsonl.gz: cannot be read: it ends too soon")

    with pytest.raises(FileError, match="ends too soon"):
        work(half(), path, RULES["noise"], batch=8)
    assert work(rows, path, RULES["noise"]).outcome.resumed >= 240


def test_no_rows_are_no_error(path: Path):
    done = work([], path, RULES["noise"])
    assert (done.outcome.rows, done.good, done.bad) == (0, [], [])


@pytest.mark.parametrize("calls", [1, 3])
def test_an_error_stops_the_job_as_itself_and_leaves_nothing_unawaited(path: Path, calls: int):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(FileError, match="power"):
            work(comparisons(600), path, breaking_after(20), calls=calls)
        gc.collect()
    assert [str(each.message) for each in caught] == []


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.jsonl.gz"])
def test_labels_are_read_back_as_they_were_made(tmp_path: Path, name: str):
    out, rows = tmp_path / name, comparisons(5)
    done = work(rows, journal_path(out), failing_on("row 1"), cot=True)
    write_out(out, cot=True)
    assert [each.model_dump(mode="json") for each in labels(str(out))] == done.good
    (failure,) = [json.loads(line) for line in failures_path(out).read_text().splitlines()]
    assert (failure["id"], failure["reason"]) == ("row 1", "nan")


def write_out(out: Path, **options: Any) -> None:
    """Run the job of `comparisons(5)` once more, which asks nothing but what failed, and write its files."""
    from labeler.options import Options

    labeler = Labeler(load("helpfulness"), failing_on("row 1"), Options(**options))
    journal = Journal(journal_path(out), labeler.digest)
    asyncio.run(run(comparisons(5), labeler, journal, Silent(), batch=4, calls=1))
    write(journal, out, Label)
    journal.close()


def test_a_failures_file_goes_when_nothing_fails_any_more(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    failures_path(out).write_text("{}\n")
    journal = Journal(journal_path(out), "job")
    write(journal, out, Label)
    journal.close()
    assert not failures_path(out).exists()
    assert out.read_text() == ""
