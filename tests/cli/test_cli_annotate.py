"""`rlaif annotate` as a process: killed, stopped, started again, and refused."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import time
from http.client import HTTPException
from pathlib import Path
from threading import Timer

import pytest
from annotating import get, page, start, vote, votes, write

ROWS = [{"id": f"row {n}", "prompt": f"Question {n}?", "responses": [f"left {n}", f"right {n}"]} for n in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "in.jsonl", ROWS)
    return tmp_path


def test_killed_at_any_moment_everyone_goes_on_where_they_were(folder):
    words = ("in.jsonl", "--raters", "ann,bob")
    with page(folder, *words) as it:
        links = it.links
    for done in range(1, 5):
        with page(folder, *words, "--port", str(it.port)) as again:
            assert again.links == links, "the links that were sent are still good"
            assert f"{done} of 6" in vote(links["ann"], choice="0")
            assert "0 of 6" in get(links["bob"])
            again.kill()
    with page(folder, *words) as it:
        assert sum(map(len, votes(folder).values())) == 4, "written at the start, as the history has it"
        assert re.search(r"Undo: A", get(it.links["ann"]))


def test_every_vote_that_was_answered_is_there_whenever_it_is_killed(folder):
    rows = [{**ROWS[0], "id": f"row {n}", "prompt": f"Question {n}?"} for n in range(5000)]
    write(folder / "in.jsonl", rows)
    dice, answered, kills = random.Random(0), 0, 0
    while kills < 4 or answered <= 20:  # a busy machine takes few votes before each
        kills += 1
        with page(folder, "in.jsonl", "--raters", "ann") as it:
            found = int(re.findall(r"(\d+) of 5000", get(it.links["ann"]))[0])
            assert answered <= found <= answered + 1, "at most one was stored whose answer was lost"
            answered = found
            Timer(dice.uniform(0.05, 0.5), it.kill).start()
            with contextlib.suppress(OSError, HTTPException):
                while True:
                    vote(it.links["ann"], choice="1")
                    answered += 1


def test_the_votes_are_written_while_people_vote(folder):
    with page(folder, "in.jsonl", "--raters", "ann") as it:
        vote(it.links["ann"], choice="0")
        deadline = time.monotonic() + 20
        while not (folder / "votes.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert sum(map(len, votes(folder).values())) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_page_leaves_its_votes(folder, how):
    with page(folder, "in.jsonl", "--raters", "ann") as it:
        vote(it.links["ann"], choice="tie")
        assert it.stop(how) == "votes: 1, on 1 of 6 rows, in votes.jsonl"
        assert it.process.returncode == 0
    assert [each["choice"] for (each,) in votes(folder).values()] == ["tie"]


def test_the_votes_are_the_human_side_of_an_alignment(folder, cli, monkeypatch):
    with page(folder, "in.jsonl", "--raters", "ann") as it:
        for _ in ROWS:
            vote(it.links["ann"], choice="1", strength="slightly")
        it.stop()
    assert cli("label", "in.jsonl", "--task", "helpfulness", "--model", "fake:noise", "--out", "l.jsonl").status == 0
    said = cli("evaluate", "alignment", "l.jsonl", "--human", "votes.jsonl", "--json")
    assert said.json["alignment"]["n"] == len(ROWS)
    assert list(said.json["raters"]) == ["ann"]


def test_single_responses(folder):
    write(folder / "single.jsonl", [{"id": "r", "prompt": "P", "response": "R"}])
    with page(folder, "single.jsonl", "--harmful", "--raters", "ann") as it:
        assert "All judged" in vote(it.links["ann"], choice="harmful")
        it.stop()
    assert votes(folder)["r"][0]["harmful"] is True


def test_errors_are_one_line_each(folder, cli):
    (folder / "other.jsonl").write_text("{}\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, complaint in (
            (("none.jsonl",), "no such file"),
            (("in.jsonl", "--host", "0.0.0.0"), "--raters"),
            (("in.jsonl", "--port", port), f"port {port}: address already in use"),
            (("in.jsonl", "--raters", ","), "name"),
            (("in.jsonl", "--harmful"), "cannot be read as responses"),
        ):
            assert complaint in cli("annotate", *words, "--out", "votes.jsonl").complaint
        assert "not made by this command" in cli("annotate", "in.jsonl", "--out", "other.jsonl").complaint
        assert "is read by this command" in cli("annotate", "in.jsonl", "--out", "in.jsonl").complaint
    assert not list(folder.glob("votes*")), "a command that is refused leaves nothing behind"


def test_two_pages_of_one_file_are_refused(folder):
    with page(folder, "in.jsonl"), pytest.raises(RuntimeError, match=r"^rlaif: votes.jsonl.journal: in use"):
        start(folder, "in.jsonl")


def test_without_the_extra_it_is_named(folder, process):
    (folder / "broken").mkdir()
    (folder / "broken" / "fastapi.py").write_text("raise ModuleNotFoundError('no fastapi', name='fastapi')\n")
    path = f"{folder / 'broken'}:{Path(__file__).parents[2]}"
    said = process("-m", "rlaif", "annotate", "in.jsonl", "--out", "votes.jsonl", PYTHONPATH=path)
    assert "rlaif-service[serve]" in said.complaint
