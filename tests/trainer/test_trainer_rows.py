"""Which rows does an update see, in which passes, and what do they say of their responses?"""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import Message
from trainer.config import TrainingError
from trainer.examples import Example, Learned, Pair, demonstrations, preferences, split
from trainer.rows import Row, batch, encode, pieces, updates

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def rows_of(sizes):
    return [Row(f"{at}", (1,) * (size - 1), ((2,),)) for at, size in enumerate(sizes)]


# Batches


def ids(rows):
    return [row.id for row in rows]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_holds_every_row_once(count, size, seed):
    rows = rows_of([2] * count)
    stream = [each for number in range(3 * count) for each in ids(batch(rows, size, number, seed))]
    for epoch in range(3 * size):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == sorted(ids(rows))


def test_epochs_and_seeds_have_orders_of_their_own():
    rows = rows_of([2] * 50)
    orders = [tuple(ids(batch(rows, 50, epoch, seed))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert ids(rows) != list(orders[0])


def test_an_updates_rows_follow_from_its_number_alone():
    rows = rows_of([2] * 7)
    straight = [ids(batch(rows, 3, number, 5)) for number in range(20)]
    for number in (19, 0, 7, 3):
        assert ids(batch(rows_of([2] * 7), 3, number, 5)) == straight[number]


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(ids(batch(rows_of([2, 2]), 5, 0, 0))) in (list("00011"), list("00111"))


@pytest.mark.parametrize(
    ("count", "size", "epochs", "expected"),
    [(10, 5, 1, 2), (11, 5, 1, 3), (10, 5, 0.1, 1), (10, 5, 2.5, 5), (3, 32, 1, 1), (3, 32, 20, 2), (100, 10, 1.1, 11)],
)
def test_updates_see_every_row_as_often_as_asked(count, size, epochs, expected):
    assert updates(count, size, epochs) == expected


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 9))
def test_the_last_update_is_begun_and_no_other(count, size, epochs):
    assert (updates(count, size, epochs) - 1) * size < count * epochs <= updates(count, size, epochs) * size


# Passes


@given(SIZES, st.integers(1, 80), st.integers(1, 4))
def test_passes_lose_no_row(sizes, tokens, multiple):
    rows = rows_of(sizes)
    found = pieces(rows, tokens, multiple)
    assert Counter(row.id for piece in found for row in piece) == Counter(ids(rows))


@given(SIZES, st.integers(1, 80), st.integers(1, 4))
def test_a_pass_is_larger_than_the_limit_only_where_a_row_is(sizes, tokens, multiple):
    for piece in pieces(rows_of(sizes), tokens, multiple):
        assert sum(row.size for row in piece) <= tokens or len(piece) == 1


@given(SIZES, st.integers(1, 80), st.integers(1, 4))
def test_every_process_gets_as_many_passes(sizes, tokens, multiple):
    assert len(pieces(rows_of(sizes), tokens, multiple)) % multiple == 0


@given(SIZES, st.integers(20, 80))
def test_passes_are_few(sizes, tokens):
    found = [piece for piece in pieces(rows_of(sizes), tokens) if piece]
    assert len(found) <= max(1, 2 * sum(sizes) // tokens + 1, sum(size > tokens // 2 for size in sizes) + 1)


def test_rows_that_fit_go_through_at_once():
    assert len(pieces(rows_of([10, 20, 30]), 60)) == 1
    assert len(pieces(rows_of([10, 20, 30]), 59)) == 2


def test_the_same_row_twice_stays_twice():
    row = Row("a", (1,), ((2,),))
    assert sum(map(len, pieces([row, row], 2))) == 2


# Texts as tokens


class Letters:
    """A token for each letter; the template writes 0 before each turn, 9 before the answer."""

    def answer(self, text, roles):
        return (*map(ord, text), 1)

    def fitted(self, turns, limit):
        text = [token for _, content in turns for token in (0, *map(ord, content))] + [9]
        if limit < len(turns) + 1:
            raise ValueError("no room is left for the prompt")
        return tuple(text[-limit:]), len(text) > limit


def encoded(*examples, most=20, response=None):
    failures = []
    return encode(examples, Letters(), most=most, response=response, failures=failures), failures


PAIRS = (Pair(0, 1),)


def test_only_prompts_are_cut_and_by_the_longest_answer():
    [row], failures = encoded(Example("a", "p" * 40, ("short", "a longer one"), PAIRS))
    assert row.answers == ((*map(ord, "short"), 1), (*map(ord, "a longer one"), 1))
    assert len(row.prompt) + len(row.answers[1]) == 20
    assert row.prompt[-1] == 9
    assert (row.id, row.pairs, failures) == ("a", PAIRS, [])


def test_a_prompt_that_fits_is_whole():
    [row], _ = encoded(Example("a", (Message(role="system", content="s"), Message(role="user", content="u")), ("r",)))
    assert row.prompt == (0, ord("s"), 0, ord("u"), 9)


@pytest.mark.parametrize(
    ("text", "limits", "reason"),
    [
        ("r" * 19, {}, "a response alone has 20 tokens or more (data.max_tokens)"),
        ("r" * 18, {}, "no room is left for the prompt (data.max_tokens)"),
        ("r" * 5, {"response": 5}, "a response has more than 5 tokens (data.max_response)"),
    ],
    ids=["no room", "no room for the template", "too long"],
)
def test_a_response_that_does_not_fit_is_a_failure_and_left_out(text, limits, reason):
    rows, failures = encoded(Example("a", "p", ("r", text), PAIRS), Example("b", "p", ("r", "s"), PAIRS), **limits)
    assert ids(rows) == ["b"]
    assert [(each.id, each.message) for each in failures] == [("a", reason)]


def test_of_a_ranking_only_the_response_that_does_not_fit_is_left_out():
    order = (Pair(0, 1), Pair(0, 2, margin=2.0), Pair(0, 3), Pair(1, 2), Pair(1, 3), Pair(2, 3))
    for size in (18, 19, 40):  # no room for the template, none at all, far too long
        [row], failures = encoded(Example("a", "p", ("one", "r" * size, "two", "last"), order))
        assert row.answers == tuple((*map(ord, each), 1) for each in ("one", "two", "last"))
        assert row.pairs == (Pair(0, 1, margin=2.0), Pair(0, 2), Pair(1, 2))
        assert (row.left_out, failures) == (1, [])


def test_a_response_without_a_pair_that_is_left_costs_nothing():
    [row], _ = encoded(Example("a", "p", ("one", "two", "r" * 19, "a longer one"), (Pair(0, 1), Pair(2, 3))))
    assert (len(row.answers), row.pairs) == (2, (Pair(0, 1),))


def test_a_ranking_without_a_pair_that_fits_is_left_out():
    rows, [failure] = encoded(Example("a", "p", ("one", "r" * 19, "two"), (Pair(0, 1), Pair(1, 2))))
    assert (rows, failure.message) == ([], "a response alone has 20 tokens or more (data.max_tokens)")


def test_keys_tell_rows_apart_by_what_is_asked_alone():
    one = Row("a", (1, 2), ((3,), (4,)), PAIRS)
    assert one.key == Row("b", (1, 2), ((3,), (4,))).key
    others = [Row("a", (1,), ((2, 3), (4,))), Row("a", (1, 2), ((4,), (3,))), Row("a", (1, 2), ((3, 4),))]
    assert len({one.key, *(each.key for each in others)}) == 4
    assert one.size == 4


# What a file teaches


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def comparison(identity, *votes, responses=("a", "b"), **more):
    votes = [vote if isinstance(vote, dict) else {"choice": vote, "rater": f"{at}"} for at, vote in enumerate(votes)]
    return {"id": identity, "prompt": f"prompt {identity}", "responses": responses, "votes": votes, **more}


def learned(source, labels=None, *, margins="none", limit=None):
    return preferences(source, labels, columns=None, limit=limit, margins=margins)


def pairs_of(found):
    return {each.id: each.pairs for each in found.examples}


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([0], Pair(0, 1, 1.0)),
        ([1], Pair(1, 0, 1.0)),
        ([0, 0, 1], Pair(0, 1, 2 / 3)),
        ([1, 1, "tie"], Pair(1, 0, 2.5 / 3)),
        ([{"choice": 0, "p": 0.7}], Pair(0, 1, 0.7)),
        ([{"choice": 1, "p": 0.2}, 0, 1], Pair(1, 0, 0.6)),
    ],
    ids=["one", "the other", "a share", "a tie is half", "as sure as it says", "both kinds"],
)
def test_votes_are_the_share_of_those_for_it(file, votes, expected):
    [(found,)] = pairs_of(learned(file(comparison("x", *votes)))).values()
    assert (found.first, found.second, found.p) == (expected.first, expected.second, pytest.approx(expected.p))


def test_votes_of_several_rows_of_one_id_are_put_together(file):
    found = learned(file(comparison("x", 0), comparison("x", 1), comparison("x", 0)))
    assert pairs_of(found) == {"x": (Pair(0, 1, pytest.approx(2 / 3)),)}


def test_ties_and_rows_without_a_vote_teach_nothing_and_are_counted(file):
    found = learned(file(comparison("x", 0), comparison("y", 0, 1), comparison("z", "tie"), comparison("w")))
    assert list(pairs_of(found)) == ["x"]
    assert found.unusable == {"an exact tie, or nobody said which is better": 3}


def test_a_file_that_teaches_nothing_says_why(file):
    with pytest.raises(TrainingError, match=r"no row to learn from: 2 x an exact tie"):
        learned(file(comparison("x", "tie"), comparison("y")))


def test_broken_rows_are_failures_with_their_place(file):
    found = learned(file(comparison("x", 0), {"id": "y", "prompt": "p", "responses": ["only one"]}))
    assert list(pairs_of(found)) == ["x"]
    (failure,) = found.failures
    assert failure.message.startswith("rows.jsonl:2:")


def test_votes_for_one_of_several_rank_it_above_the_others(file):
    [pairs] = pairs_of(learned(file(comparison("x", 2, responses=("a", "b", "c"))))).values()
    assert pairs == (Pair(2, 0, 1.0), Pair(2, 1, 1.0))


@pytest.mark.parametrize("p", [0.9, 0.3])
@pytest.mark.parametrize("identity", ["x", "y", "z", "w"])
def test_a_column_p_is_of_the_chosen_response_wherever_it_stands(file, identity, p):
    row = {"id": identity, "prompt": "q", "chosen": "good", "rejected": "bad", "p": p}
    [example] = learned(file(row)).examples
    (pair,) = example.pairs
    assert example.responses[pair.first] == ("good" if p > 0.5 else "bad")
    assert pair.p == pytest.approx(max(p, 1 - p))


@pytest.mark.parametrize("p", ["0.9", 0.9])
def test_a_column_p_may_be_a_text_as_a_csv_file_has_it(file, p):
    [[pair]] = pairs_of(learned(file({"id": "x", "prompt": "q", "chosen": "good", "rejected": "bad", "p": p}))).values()
    assert pair.p == pytest.approx(0.9)


@pytest.mark.parametrize("p", [1.7, -0.1, "sure", float("nan"), True])
def test_a_column_p_that_is_no_probability_is_a_failure(file, p):
    rows = [{"id": each, "prompt": "q", "chosen": "good", "rejected": "bad", "p": 0.9} for each in "xy"]
    found = learned(file(rows[0], {**rows[1], "p": p}))
    assert list(pairs_of(found)) == ["x"]
    assert "rows.jsonl:2: p: expected" in found.failures[0].message


def test_a_column_p_beside_responses_is_nobodys_vote(file):
    found = learned(file(comparison("x", 1, 1, 0, p=0.9), comparison("y", p=0.9)))
    assert pairs_of(found) == {"x": (Pair(1, 0, pytest.approx(2 / 3)),)}
    assert found.unusable == {"a column `p` without votes, which is read beside chosen and rejected only": 1}


def test_a_limit_is_of_rows(file):
    assert len(learned(file(*(comparison(f"{at}", 0) for at in range(9))), limit=4).examples) == 4


# Labels and rankings

JOB = {"mass": 1.0, "model": "m", "task": "helpfulness", "digest": "d1", "tokens_in": 1, "tokens_out": 1}
JOB |= {"usd": None, "seconds": 0.1, "method": "logprobs"}


def label(identity, p, **more):
    choice = None if p == 0.5 else int(p < 0.5)
    order = {"p_first": p, "mass": 1.0}
    return {"id": identity, "p": p, "choice": choice, "orders": [order], "same_position": None, **JOB, **more}


def ranking(identity, p, **more):
    count = len(p)
    order = sorted(range(count), key=lambda at: -sum(p[at]))
    return {"id": identity, "order": order, "strengths": [sum(each) for each in p], "p": p, **JOB, **more}


def content(file, row):
    from data.reading import comparisons

    [found] = comparisons(file(row, name="content.jsonl"))
    return found.content


def test_labels_are_joined_by_id_and_win_over_votes(file):
    source = file(comparison("x", 0), comparison("y", 0), comparison("z", 0))
    found = learned(source, file(label("y", 0.2), label("x", 0.9), label("z", 0.5), name="labels.jsonl"))
    assert pairs_of(found) == {"x": (Pair(0, 1, 0.9),), "y": (Pair(1, 0, 0.8),)}
    assert found.unusable == {"the label is an exact tie": 1}
    assert found.rater == "helpfulness by m (d1)"


def test_labels_about_other_texts_of_the_same_id_are_not_taken(file):
    rows = [comparison("x", 0), comparison("y", 0), comparison("z", 0)]
    mine = label("x", 0.9, content=content(file, rows[0]))
    other = label("y", 0.9, content=content(file, rows[2]))
    found = learned(file(*rows), file(mine, other, name="labels.jsonl"))
    assert list(pairs_of(found)) == ["x"]
    assert found.unusable == {"no label is about these texts": 2}


def test_labels_of_two_jobs_are_refused_with_both_named(file):
    labels = file(label("x", 0.9), label("y", 0.9, digest="d2", task="harmlessness"), name="labels.jsonl")
    with pytest.raises(TrainingError) as caught:
        learned(file(comparison("x"), comparison("y")), labels)
    assert "d1 (helpfulness by m)" in str(caught.value)
    assert "d2 (harmlessness by m)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_ranking_gives_every_pair_its_better_one_first(file):
    p = [[0.5, 0.2, 0.5], [0.8, 0.5, 0.9], [0.5, 0.1, 0.5]]
    row = comparison("x", responses=("a", "b", "c"))
    found = learned(file(row), file(ranking("x", p), name="ranks.jsonl"))
    assert pairs_of(found) == {"x": (Pair(1, 0, 0.8), Pair(1, 2, 0.9))}


def test_a_ranking_of_another_number_of_responses_is_not_taken(file):
    p = [[0.5, 0.9, 0.9], [0.1, 0.5, 0.9], [0.1, 0.1, 0.5]]
    rows = comparison("x", responses=("a", "b")), comparison("y", responses=("a", "b", "c"))
    found = learned(file(*rows), file(ranking("x", p), ranking("y", p), name="ranks.jsonl"))
    assert list(pairs_of(found)) == ["y"]


def test_rows_that_all_prefer_one_place_are_worth_a_word(file):
    same = [comparison(f"{at}", 1) for at in range(20)]
    assert any("every row prefers response 1" in note for note in learned(file(*same)).notes)
    assert not learned(file(*same[:19])).notes
    assert not learned(file(*same, comparison("other", 0))).notes


# Margins


def graded(identity, choice, strength):
    return comparison(identity, {"choice": choice, "strength": strength})


@pytest.mark.parametrize(
    ("margins", "expected"), [("small", [1, 2 / 3, 1 / 3, 0]), ("large", [3, 2, 1, 0]), ("none", [0, 0, 0, 0])]
)
def test_margins_are_llama_2s(file, margins, expected):
    grades = ("significantly", "better", "slightly", "negligibly")
    found = learned(file(*(graded(f"{at}", at % 2, each) for at, each in enumerate(grades))), margins=margins)
    assert [each.pairs[0].margin for each in found.examples] == pytest.approx(expected)


def test_a_margin_is_the_mean_of_those_who_preferred_it(file):
    votes = [("significantly", 0), ("slightly", 0), ("significantly", 1), (None, 0)]
    row = comparison("x", *({"choice": choice, "strength": strength} for strength, choice in votes))
    [(pair,)] = pairs_of(learned(file(row), margins="large")).values()
    assert pair == Pair(0, 1, 0.75, 2.0)


def test_a_margin_stands_on_the_side_that_a_label_prefers(file):
    rows = [graded("x", 0, "significantly"), graded("y", 1, "significantly")]
    found = learned(file(*rows), file(label("x", 0.2), label("y", 0.2), name="labels.jsonl"), margins="small")
    assert pairs_of(found) == {"x": (Pair(1, 0, 0.8, 0.0),), "y": (Pair(1, 0, 0.8, 1.0),)}


def test_margins_of_a_column(file):
    rows = [comparison("x", 0, margin=0.7), comparison("y", 1, margin=2), comparison("z", 1)]
    found = learned(file(*rows), margins="column")
    assert [each.pairs[0].margin for each in found.examples] == [0.7, 2, 0]


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(-2, "at least 0"), (float("nan"), "a number"), (float("inf"), "a number"), ("big", "a number")],
)
def test_margins_below_zero_or_no_number_are_refused_with_their_row(file, margin, expected):
    found = learned(file(comparison("x", 0, margin=0.7), comparison("y", 1, margin=margin)), margins="column")
    assert pairs_of(found) == {"x": (Pair(0, 1, 1.0, 0.7),)}
    assert f"rows.jsonl: y: margin: expected {expected}" in found.failures[0].message


def test_responses_that_are_the_same_text_teach_nothing(file):
    found = learned(file(comparison("x", 0, responses=("a", "a")), comparison("y", 1, responses=("a", "b", "a"))))
    assert pairs_of(found) == {"y": (Pair(1, 0), Pair(1, 2))}
    assert found.unusable == {"the responses are the same text": 1}


def test_a_margin_of_a_column_is_the_files_preferred_responses(file):
    rows = [{"id": each, "prompt": "q", "chosen": "good", "rejected": "bad", "margin": "2"} for each in "xyzw"]
    labels = []
    for row in rows:
        [example] = learned(file(row, name=f"{row['id']}.jsonl")).examples
        good = example.responses.index("good")
        likes_good = row["id"] in "xy"
        labels.append(label(row["id"], 0.9 if (good == 0) == likes_good else 0.1))
    found = learned(file(*rows), file(*labels, name="labels.jsonl"), margins="column")
    told = {each.id: (each.responses[each.pairs[0].first], each.pairs[0].margin) for each in found.examples}
    assert told == {"x": ("good", 2.0), "y": ("good", 2.0), "z": ("bad", 0.0), "w": ("bad", 0.0)}


@pytest.mark.parametrize(
    ("margins", "wanted"), [("small", "a `strength`"), ("large", "a `strength`"), ("column", "a column `margin`")]
)
def test_margins_that_no_row_has_are_an_error(file, margins, wanted):
    with pytest.raises(TrainingError, match=wanted):
        learned(file(comparison("x", 0)), margins=margins)


# Demonstrations


def test_of_comparisons_the_preferred_response_is_imitated(file):
    found = demonstrations(file(comparison("x", 1), comparison("y", 0)), None, columns=None, limit=None, every=False)
    assert [(each.id, each.responses, each.pairs) for each in found.examples] == [("x", ("b",), ()), ("y", ("a",), ())]


def test_of_several_responses_the_one_that_wins_most_is_imitated(file):
    row = comparison("x", 2, 2, 0, responses=("a", "b", "c"))
    [found] = demonstrations(file(row), None, columns=None, limit=None, every=False).examples
    assert found.responses == ("c",)


def test_or_every_response_is(file):
    found = demonstrations(file(comparison("x", 1)), None, columns=None, limit=None, every=True)
    assert [each.responses for each in found.examples] == [("a",), ("b",)]


def test_the_response_that_labels_prefer_is_imitated(file):
    source, labels = file(comparison("x", 1), comparison("y", 0)), file(label("x", 0.9), name="labels.jsonl")
    found = demonstrations(source, labels, columns=None, limit=None, every=False)
    assert [(each.id, each.responses) for each in found.examples] == [("x", ("a",))]
    assert found.rater == "helpfulness by m (d1)"


def test_labels_of_responses_that_are_all_imitated_are_refused(file):
    with pytest.raises(TrainingError, match="every response is imitated"):
        demonstrations(
            file(comparison("x", 1)), file(label("x", 0.9), name="l.jsonl"), columns=None, limit=None, every=True
        )


def test_a_file_of_responses_is_imitated(file):
    rows = [{"prompt": f"p{at}", "completion": f"r{at}"} for at in range(3)]
    found = demonstrations(file(*rows), None, columns=None, limit=2, every=False)
    assert [(each.prompt, each.responses) for each in found.examples] == [("p0", ("r0",)), ("p1", ("r1",))]


# Held-out rows


def prompted(*prompts):
    return Learned([Example(f"{at}", prompt, ("a", "b"), PAIRS) for at, prompt in enumerate(prompts)])


@given(st.lists(st.integers(0, 40).map(str), min_size=1, max_size=120))
def test_no_prompt_is_on_both_sides(prompts):
    train, heldout = split(prompted(*prompts), None)
    assert not {each.topic for each in train} & {each.topic for each in heldout}
    assert sorted(each.id for each in (*train, *heldout)) == sorted(each.id for each in prompted(*prompts).examples)
    assert len({each.topic for each in heldout}) == round(len(set(prompts)) / 10)


def test_a_split_follows_from_the_prompts_alone():
    names = [f"prompt {at}" for at in range(100)]
    one, other = (split(prompted(*each), None)[1] for each in (names, names[::-1]))
    assert len(one) == 10
    assert {each.prompt for each in one} == {each.prompt for each in other}


def test_a_text_and_the_same_text_as_a_users_turn_are_one_prompt():
    turn = (Message(role="user", content="What?"),)
    learned_ = prompted("What?", *(f"other {at}" for at in range(30)))
    with pytest.raises(TrainingError, match="nothing is left"):
        split(learned_, prompted(turn))


def test_held_out_prompts_that_are_trained_on_are_left_out_and_said():
    apart = prompted("a", "b", "c")
    train, heldout = split(prompted("a", "x"), apart)
    assert ([each.prompt for each in train], [each.prompt for each in heldout]) == (["a", "x"], ["b", "c"])
    assert apart.notes == ["1 held-out rows have a prompt of the training rows: left out"]


def test_nothing_left_to_evaluate_on_is_an_error():
    with pytest.raises(TrainingError, match="nothing is left to evaluate on"):
        split(prompted("a"), prompted("a"))
