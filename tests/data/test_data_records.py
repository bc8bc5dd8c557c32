import hashlib
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.errors import RowError
from data.records import (
    Comparison,
    Label,
    Message,
    Order,
    Rating,
    Response,
    Score,
    Vote,
    canonical,
    content_id,
    fingerprint,
    make,
)

COMPARISON = {"id": "c", "prompt": "p", "responses": ["a", "b"]}
RESPONSE = {"id": "r", "prompt": "p", "response": "a"}
ASKED = {"model": "m", "task": "t", "digest": "d", "tokens_in": 1, "tokens_out": 1, "usd": None, "seconds": 0.1}
LABEL = {
    **ASKED,
    "id": "l",
    "p": 0.75,
    "choice": 0,
    "orders": [{"p_first": 0.75, "mass": 1}],
    "mass": 1,
    "same_position": None,
    "method": "logprobs",
}
SCORE = {**ASKED, "id": "s", "score": 10, "reward": 1, "distribution": [0.1] * 10, "mass": 1, "method": "votes"}
RECORDS = [
    pytest.param(Comparison, COMPARISON, id="comparison"),
    pytest.param(Response, RESPONSE, id="response"),
    pytest.param(Label, LABEL, id="label"),
    pytest.param(Score, SCORE, id="score"),
]
TEXTS = st.text(st.characters(exclude_categories=[]))


@pytest.mark.parametrize(("kind", "fields"), RECORDS)
def test_a_record_survives_json(kind, fields):
    record = make(kind, fields)
    assert make(kind, json.loads(record.model_dump_json())) == record


@pytest.mark.parametrize(("kind", "fields"), RECORDS)
def test_records_are_frozen(kind, fields):
    with pytest.raises(ValidationError, match="frozen"):
        make(kind, fields).id = "other"


@pytest.mark.parametrize(("kind", "fields"), RECORDS)
def test_unknown_fields_are_refused_by_name(kind, fields):
    with pytest.raises(RowError, match="surprise: extra inputs are not permitted"):
        make(kind, {**fields, "surprise": 1})


@pytest.mark.parametrize(("kind", "fields"), RECORDS)
def test_missing_fields_are_named(kind, fields):
    with pytest.raises(RowError, match=r"^id: missing; expected a value$"):
        make(kind, {name: value for name, value in fields.items() if name != "id"})


def test_records_do_not_share_their_meta():
    first, second = make(Comparison, COMPARISON), make(Comparison, COMPARISON)
    first.meta["seen"] = True
    assert second.meta == {}


@pytest.mark.parametrize("count", [2, 9])
def test_two_to_nine_responses_are_a_comparison(count):
    assert len(make(Comparison, {**COMPARISON, "responses": ["x"] * count}).responses) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"responses": []}, "^responses: expected 2 to 9 responses, got 0$"),
        ({"responses": ["a"]}, "^responses: expected 2 to 9 responses, got 1$"),
        ({"responses": ["a"] * 10}, "^responses: expected 2 to 9 responses, got 10$"),
        ({"responses": ["a", 5]}, r"^responses\.1: .*valid string, got 5$"),
        ({"responses": "ab"}, "^responses: .*tuple, got 'ab'$"),
        ({"votes": [{"choice": 2}]}, "^votes: choice 2 names no response; expected 0 to 1 or 'tie'$"),
        ({"votes": [{"choice": 0}, {"choice": -1}]}, r"^votes\.1\.choice: expected a 0-based index or 'tie', got -1$"),
        ({"votes": [{"choice": True}]}, r"^votes\.0\.choice: expected a 0-based index or 'tie', got True$"),
        ({"votes": [{"choice": False}]}, r"^votes\.0\.choice: expected a 0-based index or 'tie', got False$"),
        ({"votes": [{"choice": "left"}]}, r"^votes\.0\.choice.*got 'left'$"),
        ({"votes": [{"choice": 0.5}]}, r"^votes\.0\.choice: expected a 0-based index or 'tie', got 0\.5$"),
        ({"votes": [{"choice": None}]}, r"^votes\.0\.choice.*got None$"),
        ({"votes": [{"choice": 0, "strength": "much"}]}, r"^votes\.0\.strength: .*'significantly'.*got 'much'$"),
        ({"votes": [{"rater": "r"}]}, r"^votes\.0\.choice: missing; expected a value$"),
        ({"models": ["m"]}, "^models: expected 2 names, one a response; got 1$"),
        ({"models": ["m"] * 3}, "^models: expected 2 names, one a response; got 3$"),
        ({"models": ["m", None]}, r"^models\.1: .*got None$"),
        ({"prompt": 5}, "^prompt: .*got 5$"),
        ({"id": 5}, "^id: .*valid string, got 5$"),
        ({"meta": "x"}, "^meta: .*got 'x'$"),
        ({"prompt": list("long" * 99)}, r"^prompt\.0: .*got 'l'$"),
        ({"id": list("long" * 99)}, r"\.\.\.$"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:48],
)
def test_a_comparison_that_cannot_be_names_the_field_and_what_was_expected(fields, message):
    with pytest.raises(RowError, match=message) as error:
        make(Comparison, {**COMPARISON, **fields})
    assert len(str(error.value)) < 200


def test_a_refused_vote_says_that_a_tie_would_do():
    with pytest.raises(RowError, match=r"^votes\.0\.choice: .*tie.*got 'left'$"):
        make(Comparison, {**COMPARISON, "votes": [{"choice": "left"}]})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "robot", "content": "x"}, r"^prompt\.0\.role: .*'user'.*got 'robot'$"),
        ({"role": "user", "content": None}, r"^prompt\.0\.content: .*got None$"),
        ({"role": "user"}, r"^prompt\.0\.content: missing"),
    ],
    ids=["role", "content", "missing"],
)
def test_a_message_that_cannot_be_is_named_in_its_conversation(message, expected):
    with pytest.raises(RowError, match=expected):
        make(Comparison, {**COMPARISON, "prompt": [message]})


@pytest.mark.parametrize("choice", [0, 1, "tie"])
def test_a_vote_is_an_index_or_a_tie(choice):
    assert make(Comparison, {**COMPARISON, "votes": [{"choice": choice}]}).votes == (Vote(choice=choice),)


@pytest.mark.parametrize("rating", [{"harmful": True}, {"harmful": False}, {"score": 0}, {"score": -1.5}], ids=str)
def test_a_rating_says_harmful_or_a_score(rating):
    assert make(Response, {**RESPONSE, "ratings": [rating]}).ratings == (Rating(**rating),)


@pytest.mark.parametrize("rating", [{}, {"rater": "r"}, {"harmful": True, "score": 1}], ids=["none", "rater", "both"])
def test_a_rating_with_neither_or_both_is_refused(rating):
    with pytest.raises(
        RowError, match=r"^ratings\.0.*one of 'harmful' \(true or false\), 'score' \(a number\), 'label' \(a text\)$"
    ):
        make(Response, {**RESPONSE, "ratings": [rating]})


@pytest.mark.parametrize("score", ["high", float("nan"), float("inf")], ids=str)
def test_a_rating_score_is_a_number(score):
    with pytest.raises(RowError, match=r"^ratings\.0.*number"):
        make(Response, {**RESPONSE, "ratings": [{"score": score}]})


@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan"), "x", None], ids=str)
@pytest.mark.parametrize("field", ["p", "mass"])
def test_probabilities_of_a_label_lie_in_0_to_1(field, value):
    with pytest.raises(RowError, match=f"^{field}: "):
        make(Label, {**LABEL, field: value})


@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan")], ids=str)
@pytest.mark.parametrize("field", ["p_first", "mass"])
def test_probabilities_of_an_order_lie_in_0_to_1(field, value):
    with pytest.raises(RowError, match=f"^{field}: "):
        make(Order, {"p_first": 0.5, "mass": 1, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("score", 0.99), ("score", 10.01), ("score", float("nan")), ("reward", -1.01), ("reward", 1.01)],
)
def test_scores_and_rewards_stay_on_their_scale(field, value):
    with pytest.raises(RowError, match=f"^{field}: "):
        make(Score, {**SCORE, field: value})


def test_a_content_id_is_the_start_of_a_sha256_of_prompt_and_responses():
    digest = hashlib.sha256('["prömpt",["a","b"]]'.encode()).hexdigest()
    assert content_id("prömpt", ["a", "b"]) == digest[:16]


@given(TEXTS, TEXTS, TEXTS)
def test_a_content_id_does_not_depend_on_the_container(prompt, first, second):
    turns = [{"role": "user", "content": prompt}]
    assert content_id(turns, [first, second]) == content_id((Message(role="user", content=prompt),), (first, second))


@given(TEXTS)
def test_a_content_id_does_not_depend_on_how_the_json_was_escaped(prompt):
    again = json.loads(json.dumps(prompt, ensure_ascii=True))
    assert content_id(again, [prompt]) == content_id(prompt, [again])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("p", ["ab", "c"]), ("p", ["a", "bc"])),
        (("p", ["a", "b"]), ("p", ["b", "a"])),
        (("pa", ["b"]), ("p", ["ab"])),
        (("p", ["\ud83d", "b"]), ("p", ["\ud83e", "b"])),
        ((unicodedata.normalize("NFC", "é"), ["a"]), (unicodedata.normalize("NFD", "é"), ["a"])),
    ],
    ids=["border", "order", "prompt", "lone-surrogates", "normal-forms"],
)
def test_other_texts_have_another_content_id(first, second):
    assert content_id(*first) != content_id(*second)


@given(st.dictionaries(st.text(), st.integers()))
def test_canonical_text_does_not_depend_on_the_order_of_keys(value):
    assert canonical(dict(reversed(value.items()))) == canonical(value)


def test_what_has_no_canonical_form_is_a_type_error():
    with pytest.raises(TypeError, match="set has no canonical form"):
        fingerprint({1})


def test_a_fingerprint_has_the_length_asked_for():
    assert fingerprint("x", 8) == fingerprint("x", 64)[:8]
    assert len(fingerprint("x", 64)) == 64
