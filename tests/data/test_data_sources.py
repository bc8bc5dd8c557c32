import datetime
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import reading, tables
from data.errors import FileError, RlaifError
from data.reading import comparisons, open_comparisons, open_responses, responses
from data.records import Failure, Message, Rating, Vote, content_id
from data.sources import chosen_rejected, columns

TURNS = [{"role": "user", "content": "q"}]
HH = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
LISTS = {
    "chosen": [*TURNS, {"role": "assistant", "content": "good"}],
    "rejected": [*TURNS, {"role": "assistant", "content": "bad"}],
}
TLDR = {"info": {"post": "q"}, "summaries": [{"text": "good"}, {"text": "bad"}], "choice": 0}
AB = {"prompt": "q", "response_a": "good", "response_b": "bad", "human": "a"}
ALPACA = {"instruction": "q", "output_1": "good", "output_2": "bad"}
NATIVE = {"prompt": "q", "responses": ["good", "bad"], "votes": [{"choice": 0}]}
MESSAGE = (Message(role="user", content="q"),)

SHAPES = {
    "native": (NATIVE, "q"),
    "native-messages": ({**NATIVE, "prompt": TURNS}, MESSAGE),
    "tldr": (TLDR, "q"),
    "transcripts": (HH, MESSAGE),
    "message-lists": (LISTS, MESSAGE),
    "message-lists-and-prompt": ({**LISTS, "prompt": TURNS}, MESSAGE),
    "last-messages-and-prompt": (
        {"prompt": TURNS, "chosen": LISTS["chosen"][1:], "rejected": LISTS["rejected"][1:]},
        MESSAGE,
    ),
    "last-messages-and-text": ({"prompt": "q", "chosen": LISTS["chosen"][1:], "rejected": LISTS["rejected"][1:]}, "q"),
    "replies-and-prompt": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "q"),
    "replies-and-messages": ({"prompt": TURNS, "chosen": "good", "rejected": "bad"}, MESSAGE),
    "response-a-b": (AB, "q"),
    "response-a-b-messages": ({**AB, "prompt": TURNS}, MESSAGE),
    "label": ({**ALPACA, "label": 1}, "q"),
    "preference": ({**ALPACA, "preference": 1.25}, "q"),
    "annotators": ({**ALPACA, "annotators": [1]}, "q"),
    "input-alone": ({"input": "q", "output_1": "good", "output_2": "bad", "label": 1}, "q"),
    "null-input": ({**ALPACA, "input": None, "label": 1}, "q"),
}
EACH_SHAPE = pytest.mark.parametrize(("row", "prompt"), SHAPES.values(), ids=SHAPES)


def choices(comparison):
    return [vote.choice for vote in comparison.votes]


@EACH_SHAPE
def test_each_shape_is_recognised_and_read(one, row, prompt):
    found = one(row)
    assert found.prompt == prompt
    assert set(found.responses) == {"good", "bad"}
    assert [found.responses[choice] for choice in choices(found)] == ["good"]


@EACH_SHAPE
def test_columns_that_a_shape_does_not_know_are_kept_in_meta(one, row, prompt):
    found = one({**row, "source": "web", "n": {"k": [1]}, "meta": {"own": 1}})
    assert found.meta == {"source": "web", "n": {"k": [1]}, "own": 1}


@EACH_SHAPE
def test_what_a_shape_takes_is_not_kept_twice(one, row, prompt):
    assert one(row).meta == {}


@EACH_SHAPE
def test_a_meta_that_is_no_object_is_refused(refusal, row, prompt):
    assert refusal({**row, "meta": [1]}) == "rows.jsonl:1: meta: expected an object, got list"


@EACH_SHAPE
@pytest.mark.parametrize(("given_id", "expected"), [("own", "own"), (7, "7"), (0, "0")], ids=str)
def test_a_row_keeps_its_own_id_as_text(one, row, prompt, given_id, expected):
    assert one({**row, "id": given_id}).id == expected


@EACH_SHAPE
@pytest.mark.parametrize("given_id", [None, ""], ids=["null", "empty"])
def test_a_row_without_id_gets_one_from_its_content(one, row, prompt, given_id):
    texts = ["good", "bad"]
    assert one({**row, "id": given_id}).id == content_id(row.get("prompt", prompt) if prompt == "q" else TURNS, texts)


@EACH_SHAPE
def test_the_same_content_has_the_same_id_whatever_else_a_row_says(one, row, prompt):
    assert one({**row, "source": "x"}).id == one(row).id


# native


def test_nine_responses_models_votes_and_strengths_are_read(one):
    votes = [{"rater": "r", "choice": 8, "strength": "slightly"}, {"choice": "tie"}]
    row = {"prompt": "q", "responses": list("abcdefghi"), "models": list("ABCDEFGHI"), "votes": votes}
    found = one(row)
    assert (found.responses, found.models) == (tuple("abcdefghi"), tuple("ABCDEFGHI"))
    assert found.votes == (Vote(rater="r", choice=8, strength="slightly"), Vote(choice="tie"))


@pytest.mark.parametrize("votes", [None, []], ids=["null", "empty"])
def test_nobody_needs_to_have_voted(one, votes):
    assert one({**NATIVE, "votes": votes}).votes == ()


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_our_own_shape_is_read_back_with_its_ties(tmp_path, name):
    votes = [{"rater": "a", "choice": 1, "strength": None}, {"rater": "b", "choice": "tie", "strength": "better"}]
    tables.write(tmp_path / name, [{"id": "1", "prompt": "q", "responses": ["x", "y"], "votes": votes}])
    [found] = comparisons(str(tmp_path / name))
    assert getattr(found, "votes", found) == (
        Vote(rater="a", choice=1),
        Vote(rater="b", choice="tie", strength="better"),
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**NATIVE, "responses": "good"}, "responses: expected a list of texts, got str"),
        ({**NATIVE, "responses": ["one"]}, "responses: expected 2 to 9 responses, got 1"),
        ({**NATIVE, "responses": ["one", None]}, "responses.1: "),
        ({**NATIVE, "prompt": None}, "prompt: expected a text or a list of messages, got nothing"),
        ({**NATIVE, "prompt": []}, "prompt: expected a text or a list of messages, got nothing"),
        ({**NATIVE, "prompt": 5}, "prompt: expected a text or a list of messages, got int"),
        ({**NATIVE, "votes": [{"choice": 2}]}, "votes: choice 2 names no response"),
        ({**NATIVE, "models": ["m"]}, "models: expected 2 names"),
    ],
    ids=["responses", "one", "null", "no-prompt", "no-messages", "number", "vote", "models"],
)
def test_a_native_row_that_cannot_be_read_says_why(refusal, row, expected):
    assert refusal(row).startswith(f"rows.jsonl:1: {expected}")


# chosen, rejected


def test_the_last_assistant_marker_ends_the_prompt(one):
    talk = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    found = one({"chosen": f"{talk} good\n", "rejected": f"{talk} bad"})
    assert [(turn.role, turn.content) for turn in found.prompt] == [
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
    assert set(found.responses) == {"good", "bad"}


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        ("q\n\nAssistant:", [("user", "q")]),
        ("Context.\n\nHuman: q\n\nAssistant:", [("user", "Context."), ("user", "q")]),
        ("\n\nHuman: Human: and Assistant: are words\n\nAssistant:", [("user", "Human: and Assistant: are words")]),
        ("\n\nHuman: two\n\nparts\n\nAssistant:", [("user", "two\n\nparts")]),
        ("\n\nHuman:\n\nHuman: q\n\nAssistant:", [("user", "q")]),
    ],
    ids=["no-marker", "text-before", "words", "paragraphs", "empty-turn"],
)
def test_a_transcript_becomes_turns(one, talk, expected):
    found = one({"chosen": f"{talk} good", "rejected": f"{talk} bad"})
    assert [(turn.role, turn.content) for turn in found.prompt] == expected


def test_an_empty_last_reply_is_a_reply(one):
    found = one({"chosen": HH["chosen"], "rejected": "\n\nHuman: q\n\nAssistant:"})
    assert found.responses[choices(found)[0]] == "good"
    assert set(found.responses) == {"good", ""}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**HH, "rejected": "\n\nHuman: other\n\nAssistant: bad"}, "the two transcripts do not share the prompt"),
        ({**HH, "rejected": "\n\nHuman: q"}, 'rejected: expected a transcript with "\\n\\nAssistant:" or a prompt'),
        ({"chosen": "good", "rejected": "bad"}, 'chosen: expected a transcript with "\\n\\nAssistant:" or a prompt'),
        ({"chosen": "\n\nAssistant: good", "rejected": "\n\nAssistant: bad"}, "expected a prompt before the last"),
        ({**LISTS, "chosen": LISTS["chosen"][1:]}, "the two conversations do not share the prompt"),
        ({**LISTS, "chosen": []}, "expected at least one message in each"),
        ({**LISTS, "chosen": ["good"], "rejected": ["bad"]}, "expected messages of role and content, got str"),
        ({"chosen": LISTS["chosen"][1:], "rejected": LISTS["rejected"][1:]}, "prompt: expected a text or a list"),
        ({**LISTS, "chosen": [*TURNS, {"role": "assistant", "content": None}]}, "chosen: expected a text"),
        ({**LISTS, "rejected": "bad"}, "expected two texts or two lists of messages"),
        ({"chosen": None, "rejected": "bad"}, "expected two texts or two lists of messages"),
        ({"prompt": 5, "chosen": "good", "rejected": "bad"}, "prompt: expected a text or a list of messages, got int"),
        ({**LISTS, **{s: [{"role": "robot", "content": "q"}, LISTS[s][1]] for s in LISTS}}, "prompt"),
    ],
    ids=[
        "other-prompt",
        "no-reply",
        "no-prompt",
        "empty-prompt",
        "other-messages",
        "no-messages",
        "texts",
        "no-prompt-messages",
        "no-content",
        "mixed",
        "null",
        "number",
        "role",
    ],
)
def test_a_chosen_row_that_cannot_be_read_says_why(refusal, row, expected):
    message = refusal(row)
    assert message.startswith("rows.jsonl:1: ")
    assert expected in message


def test_a_prompt_without_canonical_form_is_a_failure(tmp_path):
    at = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    row = {"prompt": [{**TURNS[0], "at": at}], "chosen": "good", "rejected": "bad"}
    tables.write(tmp_path / "t.parquet", [row])
    [found] = comparisons(str(tmp_path / "t.parquet"))
    assert isinstance(found, Failure)


def test_chosen_stands_first_in_half_of_the_rows():
    count = 10_000
    first = sum(chosen_rejected.place(str(number)) == 0 for number in range(count))
    assert abs(first - count / 2) < 4 * (count / 4) ** 0.5


def test_the_length_and_the_parity_of_an_id_do_not_place_chosen():
    even = sum(chosen_rejected.place("x" * number) == 0 for number in range(0, 2000, 2))
    assert abs(even - 500) < 4 * 250**0.5


@given(st.text(st.characters(exclude_categories=[])))
def test_any_id_places_chosen(identity):
    assert chosen_rejected.place(identity) in {0, 1}


def test_chosen_is_placed_as_it_always_was():
    assert [chosen_rejected.place(name) for name in "abcdefgh"] == [0, 1, 0, 0, 0, 0, 0, 1]


def test_the_place_of_chosen_does_not_depend_on_the_other_rows(lines):
    rows = [{"prompt": f"q{number}", "chosen": "good", "rejected": "bad"} for number in range(200)]
    shuffled = random.Random(0).sample(rows, len(rows))
    found = {each.id: each for each in comparisons(lines(*rows))}
    assert {each.id: each for each in comparisons(lines(*shuffled))} == found
    assert {row.responses for row in found.values()} == {("good", "bad"), ("bad", "good")}
    assert all(row.responses[choices(row)[0]] == "good" for row in found.values())


# prompt, response_a, response_b


@pytest.mark.parametrize(
    ("human", "expected"),
    [
        ("a", [0]),
        ("B", [1]),
        (" response_a ", [0]),
        ("response_b", [1]),
        ("model_a", [0]),
        ("model_b", [1]),
        ("tie", ["tie"]),
        ("Equally Good", ["tie"]),
        ("both", ["tie"]),
        ("neither", ["tie"]),
        (None, []),
        ("", []),
    ],
    ids=repr,
)
def test_a_verdict_in_words_is_a_vote(one, human, expected):
    assert choices(one({**AB, "human": human})) == expected


@pytest.mark.parametrize("human", [0, 1, 2, "1", True, "left", ["a"]], ids=repr)
def test_a_verdict_that_would_have_to_be_guessed_is_refused(refusal, human):
    assert refusal({**AB, "human": human}).startswith("rows.jsonl:1: human: expected a, b, ")


def test_a_pair_without_verdict_column_has_no_votes(one):
    assert one({name: value for name, value in AB.items() if name != "human"}).votes == ()


def test_rater_strength_and_models_of_a_pair_are_read(one):
    found = one({**AB, "rater": 3, "strength": "significantly", "model_a": "A", "model_b": "B"})
    assert found.votes == (Vote(rater="3", choice=0, strength="significantly"),)
    assert found.models == ("A", "B")


@pytest.mark.parametrize("names", [{"model_a": "A"}, {"model_a": "A", "model_b": None}], ids=["one", "null"])
def test_models_are_read_only_where_both_are_named(one, names):
    assert one({**AB, **names}).models is None


@pytest.mark.parametrize("rater", [None, ""], ids=["null", "empty"])
def test_a_nameless_rater_is_human(one, rater):
    assert one({**AB, "rater": rater}).votes == (Vote(rater="human", choice=0),)


@pytest.mark.parametrize("extra", [{"strength": "much"}, {"rater": ["r"]}, {"rater": {"name": "r"}}], ids=str)
def test_an_odd_strength_or_rater_makes_a_failure_and_no_crash(lines, extra):
    odd, good = comparisons(lines({**AB, **extra}, AB))
    assert isinstance(odd, Failure) or odd.votes[0].choice == 0
    assert choices(good) == [0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**AB, "response_a": None}, "response 1: expected a text, got "),
        ({**AB, "response_b": 5}, "response 2: expected a text, got int"),
        ({**AB, "response_b": [1, 2]}, "response 2: expected a text, got list"),
        ({**AB, "prompt": None}, "prompt: expected a text or a list of messages, got nothing"),
    ],
    ids=["null", "number", "list", "prompt"],
)
def test_a_pair_that_cannot_be_read_says_why(refusal, row, expected):
    assert refusal(row).startswith(f"rows.jsonl:1: {expected}")


def test_a_reply_may_be_a_message_or_a_list_of_one(one):
    reply = {"role": "assistant", "content": "good"}
    assert one({**AB, "response_a": reply, "response_b": [{"content": "bad"}]}).responses == ("good", "bad")


# instruction, output_1, output_2


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ({"label": 1}, [0]),
        ({"label": 2}, [1]),
        ({"label": "2"}, [1]),
        ({"preference": 1}, [0]),
        ({"preference": 1.0000001827}, [0]),
        ({"preference": 1.4999}, [0]),
        ({"preference": 1.5}, ["tie"]),
        ({"preference": 1.5001}, [1]),
        ({"preference": 2.0}, [1]),
        ({"preference": " Tie"}, ["tie"]),
        ({"preference": None}, []),
        ({"preference": ""}, []),
        ({"label": None, "preference": 2}, [1]),
        ({}, []),
        ({"annotators": None, "label": 2}, [1]),
        ({"annotators": [1, 2, 1.5, None]}, [0, 1, "tie"]),
    ],
    ids=str,
)
def test_verdicts_from_1_to_2_are_votes_counted_from_0(one, verdict, expected):
    assert choices(one({**ALPACA, **verdict})) == expected


@pytest.mark.parametrize("value", [0, 3, 0.99, 2.01, -1, "a", "nan", float("nan"), [1], True, False], ids=repr)
@pytest.mark.parametrize("column", ["label", "preference", "annotators"])
def test_verdicts_outside_1_to_2_are_refused(refusal, column, value):
    message = refusal({**ALPACA, column: [value] if column == "annotators" else value})
    assert message.startswith(f"rows.jsonl:1: {column}: expected 1 (output_1 better) to 2 (output_2 better), got ")


@pytest.mark.parametrize(
    ("annotators", "expected"),
    [
        ([1, 2], [("1", 0), ("2", 1)]),
        ([{"annotator": "x", "preference": 2}, {"rater": "y", "label": 1}], [("x", 1), ("y", 0)]),
        ([{"preference": 2}, {"preference": None}, {"preference": 1.5}], [("1", 1), ("3", "tie")]),
        ({"x": 1, "y": 2, "z": None}, [("x", 0), ("y", 1)]),
        ([], []),
    ],
    ids=["plain", "named", "numbered", "object", "none"],
)
def test_annotators_are_raters(one, annotators, expected):
    found = one({**ALPACA, "annotators": annotators})
    assert [(vote.rater, vote.choice) for vote in found.votes] == expected


def test_annotators_of_another_kind_are_refused(refusal):
    expected = "rows.jsonl:1: annotators: expected a list or an object, got str"
    assert refusal({**ALPACA, "annotators": "1, 2"}) == expected


def test_the_annotator_and_the_generators_of_a_row_are_read(one):
    found = one({**ALPACA, "preference": 2, "annotator": "judge", "generator_1": "A", "generator_2": "B"})
    assert found.votes == (Vote(rater="judge", choice=1),)
    assert found.models == ("A", "B")


def test_instruction_and_input_make_one_prompt(one):
    assert one({**ALPACA, "input": "text"}).prompt == "q\n\ntext"


@pytest.mark.parametrize("instruction", [None, "", 5, ["q"]], ids=repr)
def test_a_row_without_instruction_text_is_refused(refusal, instruction):
    message = refusal({**ALPACA, "instruction": instruction, "input": ""})
    assert message == "rows.jsonl:1: instruction, input: expected a text in at least one of them"


# TL;DR


def test_subreddit_title_and_post_make_one_prompt(one):
    info = {"id": "t3", "subreddit": "pets", "title": "A cat", "post": "It sleeps."}
    assert one({**TLDR, "info": info}).prompt == "SUBREDDIT: r/pets\nTITLE: A cat\nPOST: It sleeps."


def test_an_article_stands_in_for_a_post(one):
    assert one({**TLDR, "info": {"article": "news", "post": None, "title": None}}).prompt == "news"


@pytest.mark.parametrize(("choice", "expected"), [(0, [0]), (1, [1]), ("1", [1]), (None, [])], ids=repr)
def test_a_tldr_choice_is_an_index(one, choice, expected):
    assert choices(one({**TLDR, "choice": choice})) == expected


def test_policies_and_worker_are_read(one):
    summaries = [{"text": "x", "policy": "sup4"}, {"text": "y", "policy": "ref"}]
    found = one({**TLDR, "summaries": summaries, "choice": 1, "worker": "w"})
    assert found.models == ("sup4", "ref")
    assert found.votes == (Vote(rater="w", choice=1),)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**TLDR, "choice": 2}, "choice: expected 0 or 1"),
        ({**TLDR, "choice": True}, "choice: expected 0 or 1"),
        ({**TLDR, "choice": "a"}, "choice: expected 0 or 1"),
        ({**TLDR, "summaries": [{"text": "x"}]}, "summaries: expected a list of two objects"),
        ({**TLDR, "summaries": None}, "summaries: expected a list of two objects"),
        ({**TLDR, "summaries": [{"text": "x"}, {}]}, "response 2: expected a text, got "),
        ({**TLDR, "info": {"title": "x"}}, "info.post: expected a text"),
        ({**TLDR, "info": "x"}, "info: expected an object, got str"),
    ],
    ids=["two", "bool", "word", "one", "null", "no-text", "no-post", "no-info"],
)
def test_a_tldr_row_that_cannot_be_read_says_why(refusal, row, expected):
    assert refusal(row).startswith(f"rows.jsonl:1: {expected}")


# --columns

NAMES = "prompt=question, a=left, b=right, human=best, rater=who"
ROW = {"question": "q", "left": "good", "right": "bad", "who": 7, "topic": "x"}


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ("a", [0]),
        ("B", [1]),
        ("left", [0]),
        ("Right", [1]),
        (True, [0]),
        (False, [1]),
        ("True", [0]),
        ("Equally Good", ["tie"]),
        (None, []),
    ],
    ids=repr,
)
def test_named_columns_are_read(one, best, expected):
    found = one({**ROW, "best": best}, NAMES)
    assert (found.prompt, found.responses, found.meta) == ("q", ("good", "bad"), {"topic": "x"})
    assert [(vote.rater, vote.choice) for vote in found.votes] == [("7", each) for each in expected]


@pytest.mark.parametrize("best", [0, 1, "1", "left one"], ids=repr)
def test_a_verdict_of_named_columns_is_not_guessed(refusal, best):
    assert refusal({**ROW, "best": best}, NAMES).startswith("rows.jsonl:1: best: expected a, b, left, right, ")


def test_ids_and_models_may_be_named_columns(one):
    row = {**ROW, "best": "a", "key": 5, "m": "A", "n": "B"}
    found = one(row, f"{NAMES}, id=key, model_a=m, model_b=n")
    assert (found.id, found.models) == ("5", ("A", "B"))


def test_an_id_column_that_is_not_named_is_not_lost(one):
    found = one({**ROW, "best": "a", "id": "k"}, NAMES)
    assert "k" in {found.id, found.meta.get("id")}


def test_named_columns_go_before_recognised_ones(one):
    row = {**AB, "other": "else"}
    assert one(row, "prompt=prompt,a=other,b=response_b").responses == ("else", "bad")


def test_named_columns_read_single_responses(one_response):
    found = one_response({"q": "q", "r": "text", "m": "M", "k": 3, "x": 1}, "prompt=q,response=r,model=m,id=k")
    assert (found.id, found.prompt, found.response, found.model, found.meta) == ("3", "q", "text", "M", {"x": 1})


@pytest.mark.parametrize("row", [{"q": None, "r": "x"}, {"q": "x", "r": None}], ids=["prompt", "response"])
def test_a_named_column_without_a_text_is_refused(refusal, row):
    assert refusal(row, "prompt=q,response=r", responses).startswith("rows.jsonl:1: ")


def test_a_named_column_that_is_not_there_is_refused_with_those_that_are(lines):
    with pytest.raises(FileError, match=r"it has the columns a, q; expected columns prompt=q, a=a, b=b"):
        open_comparisons(lines({"q": "x", "a": "y"}), "prompt=q,a=a,b=b")


@pytest.mark.parametrize("text", ["prompt", "prompt=", "=x", "colour=x", "prompt=q,,a=l", ""], ids=repr)
def test_columns_that_are_not_name_and_column_are_refused(text):
    with pytest.raises(RlaifError, match="--columns: expected NAME=COLUMN with NAME one of id, prompt"):
        columns.parse(text)


@pytest.mark.parametrize(
    ("opening", "text", "missing"),
    [
        (open_comparisons, "prompt=q", "a=COLUMN, b=COLUMN"),
        (open_comparisons, "a=l,b=r", "prompt=COLUMN"),
        (open_responses, "prompt=q", "response=COLUMN"),
        (open_responses, "response=r", "prompt=COLUMN"),
    ],
)
def test_columns_that_are_needed_too_are_named(lines, opening, text, missing):
    with pytest.raises(RlaifError, match=f"--columns: also needed: {missing}$"):
        opening(lines(ROW), text)


# single responses


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "text"},
        {"prompt": "q", "completion": "text"},
        {"instruction": "q", "output": "text"},
        {"question": "q", "answer": "text"},
        {"prompt": "q", "generation": "text"},
        {"prompt": None, "question": "q", "completion": None, "answer": "text"},
    ],
    ids=lambda row: "-".join(row),
)
def test_each_shape_of_single_responses_is_recognised(one_response, row):
    found = one_response({**row, "model": "M", "source": "web"})
    assert (found.prompt, found.response, found.model) == ("q", "text", "M")
    assert found.meta["source"] == "web"
    assert found.id == content_id("q", ["text"])


def test_ratings_are_read(one_response):
    row = {"prompt": "q", "response": "x", "ratings": [{"harmful": True}, {"rater": "r", "score": 7}]}
    assert one_response(row).ratings == (Rating(harmful=True), Rating(rater="r", score=7))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": None, "completion": "x"}, "expected a prompt (prompt, instruction, question) and a reply"),
        ({"prompt": "q", "completion": 5}, "completion: expected a text, got int"),
        ({"prompt": "q", "response": 5}, "response: "),
        ({"prompt": "q", "response": "x", "ratings": [{}]}, "ratings.0: "),
    ],
    ids=["no-prompt", "number", "native", "rating"],
)
def test_a_single_response_that_cannot_be_read_says_why(refusal, row, expected):
    assert refusal(row, reader=responses).startswith(f"rows.jsonl:1: {expected}")


def test_what_json_escapes_is_the_same_text_as_what_it_does_not(lines):
    row = {**NATIVE, "prompt": "ünï »"}
    plain, escaped = comparisons(lines(json.dumps(row, ensure_ascii=False), json.dumps(row, ensure_ascii=True)))
    assert plain == escaped


def test_a_conversation_that_ends_with_an_answer_is_a_response_else_a_prompt(tmp_path):
    told = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    place = tmp_path / "chats.jsonl"
    place.write_text(json.dumps({"messages": told}) + "\n" + json.dumps({"id": "open", "messages": told[:2]}) + "\n")
    answered, unanswered = reading.open_responses(str(place)).rows
    assert answered.response == "a"
    assert [turn.content for turn in answered.prompt] == ["s", "q"]
    assert unanswered.reason == "bad_row"
    assert "a prompt without a response" in unanswered.message
    assert [turn.content for each in reading.prompts(str(place)) for turn in each.prompt] == ["s", "q"]
