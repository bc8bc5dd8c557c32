"""Votes of people: blind, one's own, kept through every restart, and turned back into the order of the file."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from data.errors import FileError, RlaifError
from data.reading import comparisons, merged_votes, responses
from data.records import Comparison, Response
from evaluator.annotate import guard, options, order, pages, results, serving
from evaluator.annotate.app import app
from evaluator.annotate.history import History
from evaluator.annotate.items import Items
from evaluator.annotate.options import Options
from evaluator.annotate.poll import Poll
from evaluator.annotate.verdicts import Standing, Verdict, verdict

ORIGIN = "http://localhost:8000"
SCRIPT = "<script>window.hacked=1</script>"
HALF = "\ud83d"


def pair(number: int, **more: Any) -> Comparison:
    fields: dict[str, Any] = {"prompt": f"Question {number}?", "responses": (f"left {number}", f"right {number}")}
    votes = ({"rater": "crowd", "choice": 0},)
    return Comparison(**{"id": f"row {number}", "models": ("gpt-x", "claude-y"), "votes": votes, **fields, **more})


PAIRS = [pair(number) for number in range(12)]


@contextmanager
def polling(folder: Path, rows: Any = PAIRS, **said: Any) -> Iterator[Poll]:
    """A poll as a process has it: opened again with the same words, it is another run of the same command."""
    with closing(History(folder / "votes.jsonl.journal")) as history, closing(Items(iter(rows), "in.jsonl")) as items:
        yield Poll(items, history, Options(**said))


def say(poll: Poll, rater: str, choice: str, **more: str) -> str:
    """Vote on what is shown; the ballot's id."""
    now = poll.ballot(rater)
    assert now is not None
    assert poll.judge(rater, now.id, {"choice": choice, **more})
    return now.id


def rows(poll: Poll) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in results.rows(poll.items, poll.votes())}


class TestOrder:
    @given(st.integers(), st.text(), st.text(), st.integers(1, 9))
    def test_the_shown_order_is_a_permutation_and_stays_the_same(self, seed, rater, key, count):
        shown = order.shown(seed, rater, key, count)
        assert sorted(shown) == list(range(count))
        assert shown == order.shown(seed, rater, key, count)

    @given(st.integers(), st.text(), st.lists(st.text(), unique=True, min_size=1))
    def test_a_rater_sees_each_item_once_and_an_added_one_moves_no_other(self, seed, rater, keys):
        first = [keys[number] for number in order.queue(seed, rater, keys)]
        more = [*keys, "another" + "".join(keys)]
        assert sorted(first) == sorted(keys)
        assert [more[number] for number in order.queue(seed, rater, more) if number < len(keys)] == first

    def test_each_response_stands_first_about_half_the_time(self):
        first = [order.shown(0, "ann", str(number), 2)[0] for number in range(2000)]
        assert 900 < sum(first) < 1100

    def test_raters_and_seeds_have_orders_of_their_own(self):
        keys = [str(number) for number in range(50)]
        orders = {tuple(order.queue(seed, rater, keys)) for seed in (0, 1) for rater in ("ann", "bob")}
        assert len(orders) == 4


class TestVerdict:
    @given(st.permutations(range(4)), st.integers(0, 3))
    def test_a_place_is_turned_back_into_the_response_that_stood_there(self, shown, place):
        found = verdict({"choice": str(place), "strength": "slightly"}, tuple(shown))
        assert (found.choice, found.strength, found.shown) == (shown[place], "slightly", tuple(shown))

    def test_a_tie_has_no_strength(self):
        assert verdict({"choice": "tie", "strength": "better"}, (1, 0)).strength is None

    @pytest.mark.parametrize("choice", ["", "2", "-1", "x", "harmful", "1 ", "٠"])
    def test_anything_else_is_refused(self, choice):
        with pytest.raises(RlaifError, match="expected"):
            verdict({"choice": choice}, (0, 1))

    def test_an_unknown_strength_is_refused(self):
        with pytest.raises(RlaifError, match="strength"):
            verdict({"choice": "0", "strength": "hugely"}, (0, 1))

    @pytest.mark.parametrize("choice", ["tie", "0"])
    def test_a_single_response_is_harmful_or_not(self, choice):
        assert verdict({"choice": "harmful"}, (0,)).choice == "harmful"
        with pytest.raises(RlaifError, match="harmless"):
            verdict({"choice": choice}, (0,))


@given(st.lists(st.sampled_from(["0", "1", "tie", "skip", "undo", "unskip"]), max_size=40))
def test_whatever_is_pressed_a_standing_is_its_history_replayed(presses):
    live, facts = Standing(iter(range(5))), []

    def take(number: int, said: Verdict | None) -> None:
        facts.append((number, said))
        live.take(number, said)

    for press in presses:
        current, last = live.current(), live.last()
        if press == "undo":
            if last is not None:
                take(last[0], None)
                assert live.current() == last[0], "what was taken back comes next"
        elif press == "unskip":
            for number in reversed(live.skipped()):
                take(number, None)
            assert not live.skipped()
        elif current is not None:
            take(current, verdict({"choice": press}, (1, 0)))
    again = Standing(iter(range(5)))
    for number, said in facts:
        again.take(number, said)
    assert (again.done, again.current()) == (live.done, live.current())
    assert len(live.done) == 5 or live.current() not in live.done


class TestPoll:
    def test_choices_are_those_of_the_file_whatever_was_shown(self, tmp_path):
        with polling(tmp_path) as poll:
            for _ in PAIRS:
                now = poll.ballot("ann")
                assert now is not None
                say(poll, "ann", str(next(place for place, text in enumerate(now.texts) if "left" in text)))
            assert poll.ballot("ann") is None
            found = rows(poll)
        assert list(found) == [row.id for row in PAIRS], "in the order of the file"
        assert {vote["choice"] for row in found.values() for vote in row["votes"]} == {0}
        assert {tuple(row["meta"]["shown"]["ann"]) for row in found.values()} == {(0, 1), (1, 0)}
        assert all(row["responses"] == pair.responses for row, pair in zip(found.values(), PAIRS, strict=True))

    def test_the_votes_a_file_came_with_stay_out(self, tmp_path):
        with polling(tmp_path) as poll:
            say(poll, "ann", "tie")
            (row,) = rows(poll).values()
        assert row["votes"] == ({"rater": "ann", "choice": "tie", "strength": None, "p": None},)
        assert row["models"] == ("gpt-x", "claude-y")

    def test_a_restart_changes_nothing_and_undo_still_works(self, tmp_path):
        with polling(tmp_path) as poll:
            for choice in ("0", "skip", "1", "tie"):
                say(poll, "ann", choice)
            said, now, links = rows(poll), poll.ballot("ann"), poll.enter("ann")
        with polling(tmp_path) as poll:
            assert (rows(poll), poll.ballot("ann"), poll.enter("ann")) == (said, now, links)
            last = poll.last("ann")
            assert last is not None
            assert poll.undo("ann", last[0])
            again = poll.ballot("ann")
            assert again is not None
            assert again.id == last[0]
        with polling(tmp_path) as poll:
            assert poll.ballot("ann") == again
            assert len(rows(poll)) == 2

    def test_undo_is_about_one_ballot_and_not_about_whatever_is_last(self, tmp_path):
        with polling(tmp_path) as poll:
            first, second = say(poll, "ann", "0"), say(poll, "ann", "0")
            assert not poll.undo("ann", first)
            assert poll.undo("ann", second)
            assert not poll.undo("ann", second)
            assert poll.progress("ann").judged == 1

    def test_a_ballot_counts_once(self, tmp_path):
        with polling(tmp_path) as poll:
            ballot = say(poll, "ann", "0")
            before = rows(poll)
            assert not poll.judge("ann", ballot, {"choice": "1"})
            assert rows(poll) == before

    def test_a_page_of_another_order_does_not_count(self, tmp_path):
        with polling(tmp_path) as poll:
            shown = {row: poll.ballot(row) for row in "abcdefgh"}
        with polling(tmp_path, shuffle_seed=1) as poll:
            taken = {rater for rater, now in shown.items() if now and poll.judge(rater, now.id, {"choice": "0"})}
            for rater in taken:
                now, last = shown[rater], poll.last(rater)
                assert now is not None
                assert last is not None
                assert last[1].shown == now.shown

    def test_raters_neither_see_nor_change_one_another(self, tmp_path):
        with polling(tmp_path, rows=[pair(0)]) as poll:
            say(poll, "ann", "0", strength="slightly")
            assert poll.progress("bob").done == 0
            assert poll.last("bob") is None
            assert poll.ballot("bob") is not None
            say(poll, "bob", "tie")
            (row,) = rows(poll).values()
            assert [vote["rater"] for vote in row["votes"]] == ["ann", "bob"]
            last = poll.last("bob")
            assert last is not None
            assert not poll.undo("ann", last[0] + "x")
            assert poll.undo("bob", last[0])
            (row,) = rows(poll).values()
            assert [(vote["rater"], vote["strength"]) for vote in row["votes"]] == [("ann", "slightly")]

    def test_the_skipped_can_be_judged_after_all(self, tmp_path):
        with polling(tmp_path, rows=PAIRS[:3], file_order=True) as poll:
            say(poll, "ann", "skip")
            say(poll, "ann", "0")
            say(poll, "ann", "skip")
            assert poll.ballot("ann") is None
            assert len(rows(poll)) == 1
            poll.unskip("ann")
            assert [now.number for _ in range(2) if (now := poll.ballot("ann")) and say(poll, "ann", "1")] == [0, 2]

    def test_a_changed_text_is_another_item(self, tmp_path):
        with polling(tmp_path, rows=PAIRS[:2], file_order=True) as poll:
            say(poll, "ann", "0")
            say(poll, "ann", "0")
        with polling(tmp_path, rows=[pair(0, responses=("changed", "right 0")), pair(1)]) as poll:
            assert list(rows(poll)) == ["row 1"]
            assert poll.elsewhere == 1
            now = poll.ballot("ann")
            assert now is not None
            assert "changed" in now.texts
        with polling(tmp_path, rows=PAIRS[:2]) as poll:
            assert list(rows(poll)) == ["row 0", "row 1"], "the history has it still"

    def test_the_first_row_of_an_id_counts(self, tmp_path):
        with polling(tmp_path, rows=[pair(0), pair(0), pair(0, prompt="Another?")]) as poll:
            assert (len(poll.items), poll.items.clashing) == (1, 1)

    def test_the_best_of_several(self, tmp_path):
        with polling(tmp_path, rows=[pair(0, responses=tuple("vwxyz"), models=None)]) as poll:
            now = poll.ballot("ann")
            assert now is not None
            say(poll, "ann", str(now.texts.index("y")))
            assert rows(poll)["row 0"]["votes"][0]["choice"] == 3

    def test_single_responses(self, tmp_path):
        row = Response(id="r", prompt="P", response="R", ratings=({"rater": "x", "score": 3},))
        with polling(tmp_path, rows=[row], harmful=True) as poll:
            say(poll, "ann", "harmful")
            say(poll, "bob", "harmless")
            ratings = rows(poll)["r"]["ratings"]
        assert [(each["rater"], each["harmful"]) for each in ratings] == [("ann", True), ("bob", False)]

    def test_links_are_for_those_who_were_named(self, tmp_path):
        with polling(tmp_path, raters="ann, bob") as poll:
            links = poll.links()
            assert list(links) == ["ann", "bob"]
            with pytest.raises(RlaifError, match="link"):
                poll.enter("cleo")
        with polling(tmp_path, raters="bob") as poll:
            assert poll.links() == {"bob": links["bob"]}
            assert poll.rater(links["ann"]) is None

    def test_the_same_name_is_the_same_rater(self, tmp_path):
        with polling(tmp_path) as poll:
            assert poll.enter("Ann ") == poll.enter(" ann") != poll.enter("Bob")

    def test_what_cannot_be_stored_did_not_happen(self, tmp_path, monkeypatch):
        def full(*_: object) -> None:
            raise FileError("the disk is full")

        with polling(tmp_path) as poll:
            before = poll.ballot("ann")
            assert before is not None
            monkeypatch.setattr(History, "add", full)
            with pytest.raises(FileError):
                poll.judge("ann", before.id, {"choice": "0"})
            assert (poll.ballot("ann"), poll.last("ann")) == (before, None)


class TestFiles:
    def test_the_votes_can_be_read_back(self, tmp_path):
        from data import tables

        talk = (
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": HALF},
            {"role": "user", "content": "?"},
        )
        with polling(tmp_path, rows=[pair(0), pair(1, prompt=talk, meta={"kind": "x"})]) as poll:
            say(poll, "ann", "0")
            say(poll, "ann", "tie")
            say(poll, "bob", "1", strength="better")
            tables.write(tmp_path / "votes.jsonl", results.rows(poll.items, poll.votes()))
            said = rows(poll)
        back = merged_votes(comparisons(str(tmp_path / "votes.jsonl")))
        assert {name: [each.model_dump() for each in row.votes] for name, row in back.items()} == {
            name: list(row["votes"]) for name, row in said.items()
        }
        assert back["row 1"].meta["kind"] == "x"
        assert all(back[row.id].content == row.content for row in (pair(0), pair(1, prompt=talk)))

    def test_ratings_can_be_read_back(self, tmp_path):
        from data import tables

        with polling(tmp_path, rows=[Response(id="r", prompt="P", response="R")], harmful=True) as poll:
            say(poll, "ann", "harmful")
            tables.write(tmp_path / "votes.jsonl", results.rows(poll.items, poll.votes()))
        (back,) = responses(str(tmp_path / "votes.jsonl"))
        assert isinstance(back, Response)
        assert back.ratings[0].harmful is True

    def test_a_file_of_somebody_else_is_not_overwritten(self, tmp_path):
        out = tmp_path / "votes.jsonl"
        out.write_text("{}\n")
        with pytest.raises(FileError, match="not made by this command"):
            serving._journal("in.jsonl", out)
        with pytest.raises(FileError, match="jsonl"):
            serving._journal("in.jsonl", tmp_path / "votes.parquet")

    def test_a_votes_file_that_cannot_be_written_now_is_written_later(self, tmp_path, monkeypatch):
        monkeypatch.setattr(serving, "PAUSE", 0.01)
        monkeypatch.setattr(serving, "PATIENCE", 0.01)
        folder, said = tmp_path / "full", list[str]()

        async def run(poll: Poll) -> None:
            stop = asyncio.Event()
            task = asyncio.create_task(serving._keep_writing(poll, folder / "votes.jsonl", said.append, stop))
            say(poll, "ann", "0")
            while not said:
                await asyncio.sleep(0.01)
            folder.mkdir()
            while not (folder / "votes.jsonl").exists():
                await asyncio.sleep(0.01)
            stop.set()
            await task

        with polling(tmp_path) as poll:
            asyncio.run(asyncio.wait_for(run(poll), 20))
        assert "the votes are safe in the journal" in said[0]

    def test_two_at_once_are_refused(self, tmp_path):
        with polling(tmp_path), pytest.raises(FileError, match="in use"), polling(tmp_path):
            pass

    def test_no_usable_row_is_one_line(self, tmp_path):
        with pytest.raises(RlaifError, match="no usable row"), polling(tmp_path, rows=[]):
            pass


class TestOptions:
    def test_others_are_let_in_by_link_only(self):
        for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
            Options(host=host)
        for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
            with pytest.raises(RlaifError, match="--raters"):
                Options(host=host)
            Options(host=host, raters="ann")

    @pytest.mark.parametrize("raters", ["", "ann,,bob", "a" * 65, "a\x00b"])
    def test_names_are_names(self, raters):
        with pytest.raises(RlaifError, match="name"):
            Options(raters=raters)

    def test_each_name_once(self):
        assert options.names("bob, ann  lee,bob") == ("bob", "ann lee")

    def test_a_port_is_a_port(self):
        with pytest.raises(RlaifError, match="--port"):
            Options(port=70_000)


FORM = {"host": "localhost:8000", "origin": ORIGIN, "content-length": "9"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"host": "127.0.0.1:8000"}, None),
        ("GET", {"host": "[::1]:8000"}, None),
        ("GET", {"host": "LOCALHOST"}, None),
        ("GET", {"host": "evil.example:8000"}, 421),
        ("GET", {"host": "localhost.evil.example"}, 421),
        ("GET", {"host": "[::1"}, 421),
        ("GET", {}, 421),
        ("POST", FORM, None),
        ("POST", {**FORM, "origin": "", "referer": f"{ORIGIN}/r/x"}, None),
        ("POST", {**FORM, "origin": ""}, 403),
        ("POST", {**FORM, "origin": "null"}, 403),
        ("POST", {**FORM, "origin": "http://evil.example"}, 403),
        ("POST", {**FORM, "origin": "http://localhost:9"}, 403),
        ("POST", {**FORM, "content-length": "4097"}, 413),
        ("POST", {**FORM, "content-length": ""}, 413),
    ],
)
def test_who_may_talk_to_the_page(method, headers, status):
    refused = guard.refusal(method, headers, {"localhost"})
    assert (refused and refused[0]) == status


@pytest.fixture
def browse(tmp_path) -> Iterator[Callable[..., TestClient]]:
    """`browse(rows, raters="ann")`: a client of a fresh page, as a browser without JavaScript."""
    opened: list[Any] = []

    def client(rows: Any = PAIRS, **said: Any) -> TestClient:
        context = polling(tmp_path, rows, **said)
        opened.append(context)
        made = TestClient(app(context.__enter__(), {"localhost"}), base_url=ORIGIN, raise_server_exceptions=False)
        made.headers["origin"] = ORIGIN
        return made

    yield client
    for context in opened:
        context.__exit__(None, None, None)


def entered(client: TestClient, name: str = "ann") -> str:
    """The rater's own address."""
    answer = client.post("/", data={"name": name})
    assert answer.status_code == 200
    return answer.url.path


def ballot(page: str) -> str:
    return re.findall(r'name="ballot" value="(\w+)"', page)[0]


class TestPage:
    def test_nothing_but_the_texts_reaches_the_browser(self, browse):
        row = pair(7, id="secret-id", meta={"flaw": "untrue"})
        client = browse([row])
        page = client.get(entered(client)).text
        assert "left 7" in page
        for hidden in ("gpt-x", "claude-y", "crowd", "secret-id", "untrue", "flaw"):
            assert hidden not in page

    def test_texts_are_texts(self, browse):
        rows = [pair(0, prompt=f'{SCRIPT}"&\u202e', responses=(f"\n\n  {SCRIPT}", HALF + "\x00</div>{{ 7*7 }}"))]
        client = browse(rows)
        page = client.get(entered(client)).text
        assert "<script>window" not in page
        assert f'<div class="text" dir="auto">\n\n  {html.escape(SCRIPT)}</div>' in page
        assert "{{ 7*7 }}" in page
        assert page.count("<script") == 1

    def test_a_conversation_is_shown_as_turns(self, browse):
        talk = [{"role": role, "content": f"said by {role}"} for role in ("system", "user", "assistant", "user")]
        client = browse([pair(0, prompt=talk)])
        page = client.get(entered(client)).text
        assert re.findall(r'class="turn (\w+)"', page) == ["system", "user", "assistant", "user"]

    def test_votes_undo_and_the_end_without_javascript(self, browse):
        client = browse(PAIRS[:2])
        link = entered(client)
        page = client.get(link).text
        for done in (1, 2):
            answer = client.post(f"{link}/vote", data={"ballot": ballot(page), "choice": "0", "strength": "better"})
            page = answer.text
            assert [each.status_code for each in answer.history] == [303]
            assert f"{done} of 2" in page
        assert "All judged" in page
        page = client.post(f"{link}/undo", data={"last": re.findall(r'name="last" value="(\w+)"', page)[0]}).text
        assert "1 of 2" in page
        assert pages.NOTES["undone"] in page

    def test_a_vote_sent_twice_counts_once_and_says_so(self, browse):
        client = browse()
        link = entered(client)
        form = {"ballot": ballot(client.get(link).text), "choice": "0"}
        client.post(f"{link}/vote", data=form)
        page = client.post(f"{link}/vote", data={**form, "choice": "1"}).text
        assert "1 of 12" in page
        assert pages.NOTES["stale"] in page

    def test_a_wrong_form_is_a_page_with_one_line(self, browse):
        client = browse()
        link = entered(client)
        answer = client.post(f"{link}/vote", data={"ballot": ballot(client.get(link).text), "choice": SCRIPT})
        assert answer.status_code == 400
        assert "<script>window" not in answer.text
        assert client.post(f"{link}/vote", content=b"\xff=%ff").status_code == 400
        assert client.post(f"{link}/vote", content="a=1&" * 30).status_code == 400

    def test_a_vote_that_cannot_be_stored_is_not_answered_as_if_it_were(self, browse, monkeypatch):
        client = browse()
        link = entered(client)
        form = {"ballot": ballot(client.get(link).text), "choice": "0"}

        def full(*_: object) -> None:
            raise FileError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(History, "add", full)
            answer = client.post(f"{link}/vote", data=form)
        assert answer.status_code == 503
        assert "the disk is full" in answer.text
        assert "1 of 12" in client.post(f"{link}/vote", data=form).text

    def test_every_answer_is_closed_to_other_pages(self, browse):
        client = browse()
        for answer in (client.get("/"), client.get("/static/annotate.css"), client.get("/none"), client.get("/r/x")):
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert answer.headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in answer.headers
            assert "set-cookie" not in answer.headers
        assert client.get("/", headers={"host": "evil.example"}).status_code == 421
        assert client.post("/", data={"name": "x"}, headers={"origin": "http://evil.example"}).status_code == 403
        assert client.post("/", data={"name": "x" * 5000}).status_code == 413
        for path in ("/docs", "/openapi.json", "/r/", "/static/../app.py"):
            assert client.get(path).status_code == 404

    def test_only_links_lead_in_where_raters_are_named(self, browse):
        client = browse(raters="ann")
        assert "<form" not in client.get("/").text
        assert client.post("/", data={"name": "ann"}).status_code == 400
        assert client.get("/r/guessed").status_code == 404
        assert client.post("/r/guessed/vote", data={"ballot": "x"}).status_code == 404

    def test_a_bad_name_is_asked_for_again(self, browse):
        answer = browse().post("/", data={"name": "  "})
        assert answer.status_code == 400
        assert 'role="alert"' in answer.text

    @pytest.mark.parametrize(
        ("row", "keys"),
        [
            (pair(0), ["1 ArrowLeft", "t", "2 ArrowRight", "s"]),
            (pair(0, responses=tuple("abc"), models=None), ["1", "2", "3", "t", "s"]),
            (Response(id="r", prompt="P", response="R"), ["y", "n", "s"]),
        ],
        ids=["two", "three", "one"],
    )
    def test_every_vote_is_a_button_with_its_key(self, browse, row, keys):
        client = browse([row])
        page = client.get(entered(client)).text
        assert re.findall(r'name="choice" value="\w+" aria-keyshortcuts="([^"]+)"', page) == keys

    def test_the_stored_form_of_a_vote_is_json(self, browse, tmp_path):
        client = browse(PAIRS[:1])
        link = entered(client)
        client.post(f"{link}/vote", data={"ballot": ballot(client.get(link).text), "choice": "0"})
        import sqlite3

        copy = tmp_path / "copy"
        for end in ("", "-wal"):
            (tmp_path / f"copy{end}").write_bytes((tmp_path / f"votes.jsonl.journal{end}").read_bytes())
        with closing(sqlite3.connect(copy)) as db:
            ((said,),) = db.execute("SELECT verdict FROM facts").fetchall()
        assert set(json.loads(said)) == {"choice", "strength", "shown"}
