"""The file that keeps what was answered."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from data.errors import FileError
from labeler.backend import Likelihoods, Text, Usage
from labeler.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet.journal"


def reopened(journal: Journal, digest: str = "job", *, fresh: bool = False) -> Journal:
    journal.close()
    return Journal(journal.path, digest, fresh=fresh)


def done(identity: str, content: str = "c", *, ok: bool = True) -> tuple[str, str, bool, str]:
    return identity, content, ok, f'{{"id": "{identity}"}}'


def test_answers_come_back_as_they_were_put(path: Path):
    answers = {
        "a": Likelihoods((-0.1, -math.inf), Usage(3, 1, None, 0.25), "votes"),
        "b": Text("reasons\n\x00 and ü 🙂", Usage(3, 7, 0.5)),
        "c": Likelihoods((0.1 + 0.2, -1e-300)),
    }
    journal = Journal(path, "job")
    journal.put(answers.items())
    journal = reopened(journal)
    assert journal.get(["a", "b", "c", "unknown"]) == answers
    journal.close()


def test_forgotten_answers_are_gone(path: Path):
    journal = Journal(path, "job")
    journal.put([("a", Text("x"))])
    journal.forget_answers()
    assert journal.get(["a"]) == {}
    journal.close()


def test_new_ids_repeats_and_clashes_are_told_apart(path: Path):
    journal = Journal(path, "job")
    assert journal.admit([(0, "a", "x"), (1, "a", "x"), (2, "a", "y"), (3, "b", "x")]) == [True, False, None, True]
    assert journal.admit([(4, "a", "x"), (5, "b", "z"), (6, "c", "x")]) == [False, None, True]
    journal.close()


def test_more_ids_than_one_statement_takes(path: Path):
    journal = Journal(path, "job")
    rows = [(n, f"id {n}", "c") for n in range(2500)]
    assert journal.admit(rows) == [True] * 2500
    assert journal.admit(rows) == [False] * 2500
    journal.keep([done(identity) for _, identity, _ in rows])
    assert len(journal.finished({identity: "c" for _, identity, _ in rows})) == 2500
    journal.close()


def test_only_good_results_for_the_same_content_are_finished(path: Path):
    journal = Journal(path, "job")
    journal.keep([done("good"), done("failed", ok=False), done("changed", "old")])
    assert journal.finished({"good": "c", "failed": "c", "changed": "new", "unknown": "c"}) == {"good"}
    journal.close()


def test_results_come_in_the_order_of_the_input_and_only_those_of_this_input(path: Path):
    journal = Journal(path, "job")
    journal.keep([done("gone"), done("c"), done("a"), done("b"), done("bad", ok=False)])
    journal = reopened(journal)
    journal.admit([(0, "b", "c"), (1, "bad", "c"), (2, "a", "c"), (3, "c", "c")])
    assert [json.loads(each)["id"] for each in journal.results(ok=True)] == ["b", "a", "c"]
    assert [json.loads(each)["id"] for each in journal.results(ok=False)] == ["bad"]
    journal.close()


def test_jobs_do_not_see_each_others_results(path: Path):
    journal = Journal(path, "one")
    journal.admit([(0, "a", "c")])
    journal.keep([done("a")])
    journal = reopened(journal, "two")
    assert journal.finished({"a": "c"}) == set()
    assert journal.admit([(0, "a", "other content")]) == [True]
    assert list(journal.results(ok=True)) == []
    assert (journal.left_out(), journal.other_jobs()) == (0, 1)
    journal.close()


def test_fresh_forgets_this_job_and_no_other(path: Path):
    journal = Journal(path, "one")
    journal.keep([done("a")])
    journal = reopened(journal, "two")
    journal.keep([done("a")])
    journal = reopened(journal, "two", fresh=True)
    assert journal.finished({"a": "c"}) == set()
    journal = reopened(journal, "one")
    assert journal.finished({"a": "c"}) == {"a"}
    journal.close()


def test_a_journal_has_one_user_at_a_time(path: Path):
    journal = Journal(path, "job")
    with pytest.raises(FileError, match="in use by another run"):
        Journal(path, "other")
    journal.close()
    Journal(path, "other").close()


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 100, b"x" * 10])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(path: Path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(FileError, match="not a journal"):
        Journal(path, "job")
    assert path.read_bytes() == content


def test_a_journal_in_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(FileError, match="cannot be used"):
        Journal(tmp_path / "none" / "x.journal", "job")


def full(journal: Journal, *, room: bool = False) -> None:
    journal._db.execute(f"PRAGMA max_page_count = {1_000_000 if room else 1}")


LARGE = ("a", "c", True, "x" * 100_000)


def test_a_full_disk_keeps_nothing_by_halves_and_all_of_it_when_there_is_room(path: Path):
    journal = Journal(path, "job")
    full(journal)
    with pytest.raises(FileError, match="disk is full"):
        journal.keep([done("b"), LARGE])
    assert journal.finished({"a": "c", "b": "c"}) == set()
    full(journal, room=True)
    journal.keep([done("d")])
    assert journal.finished({"a": "c", "b": "c", "d": "c"}) == {"a", "b", "d"}
    journal.close()


def test_in_an_event_loop_a_turn_is_stored_at_its_end_and_an_error_is_told_to_the_next(path: Path):
    journal = Journal(path, "job")

    async def turns() -> None:
        journal.keep([done("a")])
        journal.keep([done("b")])
        assert journal.finished({"a": "c", "b": "c"}) == set()
        await asyncio.sleep(0)
        assert journal.finished({"a": "c", "b": "c"}) == {"a", "b"}
        full(journal)
        journal.keep([LARGE])
        await asyncio.sleep(0)
        with pytest.raises(FileError, match="disk is full"):
            journal.keep([done("d")])

    asyncio.run(turns())
    full(journal, room=True)
    journal.close()
