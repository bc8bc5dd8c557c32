"""Training rows out of labels and texts."""

from __future__ import annotations

from typing import Any

import pytest

from data.reading import open_comparisons
from data.records import Comparison, Failure, Label, Message, Order
from data.tables import write
from labeler.export import Counts, conversational, rows


def label(identity: str, p: float) -> Label:
    order = Order(p_first=p, mass=1.0)
    fields: dict[str, Any] = {"tokens_in": 1, "tokens_out": 1, "usd": 0.0, "seconds": 0.0, "method": "logprobs"}
    choice = None if p == 0.5 else int(p < 0.5)
    return Label(
        **fields, id=identity, p=p, choice=choice, orders=(order,), mass=1.0, same_position=None,
        model="fake:x", task="helpfulness", digest="d",
    )  # fmt: skip


def row(identity: str, prompt: Any = "What now?") -> Comparison:
    return Comparison(id=identity, prompt=prompt, responses=(f"{identity} first", f"{identity} second"))


CHAT = (
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Yes?"),
    Message(role="user", content="?"),
)


def exported(comparisons: list[Comparison | Failure], labels: list[Label], form: str = "trl") -> tuple[Any, Counts]:
    counts = Counts()
    messages = form == "trl" and conversational(comparisons)
    return list(rows(comparisons, labels, counts, messages=messages)), counts


def test_chosen_is_the_better_one_and_p_says_how_surely():
    found, _ = exported([row("a"), row("b")], [label("a", 0.9), label("b", 0.3)])
    assert [(each["chosen"], each["rejected"], each["p"]) for each in found] == [
        ("a first", "a second", 0.9),
        ("b second", "b first", 0.7),
    ]


@pytest.mark.parametrize(
    ("p", "margin"), [(0.99, 1.0), (0.1, 2 / 3), (0.7, 1 / 3), (0.49, 0.0)], ids=lambda each: f"{each:.2f}"
)
def test_margins_follow_the_label_on_either_side(p: float, margin: float):
    found, _ = exported([row("a")], [label("a", p)])
    assert found[0]["margin"] == pytest.approx(margin)


def test_exact_ties_are_left_out_and_counted():
    found, counts = exported([row("a"), row("b"), row("c")], [label("a", 0.5), label("b", 0.8)])
    assert [each["id"] for each in found] == ["b"]
    assert (counts.written, counts.ties, counts.unlabelled) == (1, 1, 1)


def test_rows_follow_the_comparisons_not_the_labels():
    found, _ = exported([row("a"), row("b"), row("c")], [label("c", 0.8), label("a", 0.8), label("b", 0.8)])
    assert [each["id"] for each in found] == ["a", "b", "c"]


def test_a_repeated_comparison_is_written_once():
    found, counts = exported([row("a"), row("a")], [label("a", 0.8)])
    assert len(found) == counts.written == 1
    assert counts.unlabelled == 0, "it has a label"


def test_broken_rows_of_the_file_are_passed_over():
    broken = Failure(id="x:1", stage="read", reason="bad_row", message="broken")
    found, counts = exported([broken, row("a")], [label("a", 0.8)])
    assert (len(found), counts.unlabelled) == (1, 0)


def test_trl_keeps_conversations_as_messages():
    (found,), _ = exported([row("a", CHAT)], [label("a", 0.2)])
    assert found["prompt"] == [message.model_dump() for message in CHAT]
    assert found["chosen"] == [{"role": "assistant", "content": "a second"}]
    assert found["rejected"] == [{"role": "assistant", "content": "a first"}]


def test_pairs_writes_every_prompt_as_one_text():
    found, _ = exported([row("a", CHAT), row("b")], [label("a", 0.2), label("b", 0.2)], "pairs")
    assert [each["prompt"] for each in found] == ["Human: Hi\n\nAssistant: Yes?\n\nHuman: ?", "What now?"]
    assert found[0]["chosen"] == "a second"


@pytest.mark.parametrize("prompts", [("text", CHAT), (CHAT, "text")], ids=["text first", "messages first"])
def test_trl_writes_prompts_of_two_kinds_as_messages(prompts: tuple[Any, Any]):
    found, _ = exported([row("a", prompts[0]), row("b", prompts[1])], [label("a", 0.2), label("b", 0.2)])
    assert all(isinstance(each["prompt"], list) and isinstance(each["chosen"], list) for each in found)
    assert [{"role": "user", "content": "text"}] in [each["prompt"] for each in found]


@pytest.mark.parametrize("form", ["trl", "pairs"])
@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
@pytest.mark.parametrize("prompt", ["What now?", CHAT], ids=["text", "messages"])
def test_what_is_exported_is_read_as_comparisons_again(tmp_path, form: str, name: str, prompt: Any):
    path = tmp_path / name
    write(path, exported([row("a", prompt), row("b", prompt)], [label("a", 0.9), label("b", 0.2)], form)[0])
    first, second = open_comparisons(str(path)).rows
    assert isinstance(first, Comparison)
    assert isinstance(second, Comparison)
    assert first.responses[first.votes[0].choice] == "a first"
    assert second.responses[second.votes[0].choice] == "b second"
    for row_, sure in ((first, 0.9), (second, 0.8)):  # in the vote, wherever the reader put the chosen one
        assert row_.votes[0].p == pytest.approx(sure if row_.votes[0].choice == 0 else 1 - sure)
    assert first.meta == {"margin": pytest.approx(2 / 3)}
