import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import Message
from prompts.render import EXAMPLE, FOLLOW, Prompt, Style, cut, pair_question, score_question, transcript
from prompts.task import TaskError, load

SHIPPED = ["harmlessness", "helpfulness", "summarization"]
NOUN = {"summarization": "Summary", "helpfulness": "Response", "harmlessness": "Response"}
CONTEXT = {"summarization": "Text", "helpfulness": "Context", "harmlessness": "Context"}
SYNTAX = ["{{ 7*7 }}", "{% raw %}", "{% endif %}", "{# x #}", "{{ first }}", "{{ cycler.__init__.__globals__ }}", "%}"]
TEXTS = st.text() | st.sampled_from(SYNTAX)


def ask(name, shots=0, *, cot=False):
    return pair_question(load(name), Style(shots, cot)).ask("THE PROMPT", "THE FIRST", "THE SECOND")


@pytest.mark.parametrize("name", SHIPPED)
def test_without_shots_the_sample_follows_the_preamble_and_the_ending_the_sample(name):
    prompt = ask(name)
    noun = NOUN[name]
    assert prompt.user == (f"{CONTEXT[name]} - THE PROMPT\n\n{noun} 1 - THE FIRST\n\n{noun} 2 - THE SECOND")
    assert prompt.answer == f"Preferred {noun}="
    assert prompt.plain() == f"{prompt.system}\n\n{prompt.user}\n\n{prompt.answer}"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_parts_come_in_the_order_preamble_exemplars_sample_ending(name):
    pair = load(name).pairwise
    text = ask(name, shots=2).plain()
    parts = [
        "You are an expert rater",
        f"\n\n{EXAMPLE}\n\n{CONTEXT[name]} - {pair.exemplars[0].prompt}\n\n{NOUN[name]} 1 - {pair.exemplars[0].first}",
        f"\n\n{pair.ending}{pair.exemplars[0].label}\n\n{EXAMPLE}\n\n{CONTEXT[name]} - {pair.exemplars[1].prompt}",
        f"\n\n{pair.ending}{pair.exemplars[1].label}\n\n{FOLLOW}\n\n{CONTEXT[name]} - THE PROMPT",
        f"\n\n{NOUN[name]} 1 - THE FIRST\n\n{NOUN[name]} 2 - THE SECOND",
        f"\n\n{pair.ending}",
    ]
    places = [text.index(part) for part in parts[:-1]]
    assert places == sorted(places)
    assert text.endswith(f"{parts[-2]}{parts[-1]}")


@pytest.mark.parametrize("name", SHIPPED)
@given(prompt=TEXTS, first=TEXTS, second=TEXTS)
def test_rows_of_a_task_and_responses_to_a_prompt_begin_alike_up_to_the_first_response(name, prompt, first, second):
    noun, question = NOUN[name], pair_question(load(name), Style(2))
    for asked in (question.ask(prompt, first, second), question.ask(prompt, second, first)):
        assert asked.beginnings == (
            f"{question.lead}{CONTEXT[name]} - ",
            f"{question.lead}{CONTEXT[name]} - {prompt}\n\n{noun} 1 - ",
        )
        assert all(asked.user.startswith(each) for each in asked.beginnings)
    scored = score_question(load(name)).ask(prompt, first)
    fixed, context = scored.beginnings
    assert scored.user == context + first + scored.user[len(context) + len(first) :]
    assert context.startswith(fixed + prompt)


def test_a_template_that_begins_with_a_response_is_the_same_up_to_there(own):
    sample = (
        '"""Q: {{ prompt }}\\nA1: {{ first }}\\nA2: {{ second }}"""',
        '"Is it {{ first }} or {{ second }}? {{ prompt }}"',
    )
    asked = pair_question(load(own(sample)), Style()).ask("Q", "A", "B")
    assert asked.beginnings == ("Is it ", "Is it A or B? Q")


@pytest.mark.parametrize("shots", range(9))
@pytest.mark.parametrize("cot", [False, True], ids=["plain", "cot"])
def test_as_many_exemplars_are_shown_as_asked_for(shots, cot):
    text = ask("summarization", shots, cot=cot).plain()
    labels = re.findall(r"^Preferred Summary=([12])$", text, flags=re.MULTILINE)
    assert labels == [each.label for each in load("summarization").pairwise.exemplars[:shots]]
    assert text.count(f"{EXAMPLE}\n\nText - ") == shots
    assert text.count(FOLLOW) == (shots > 0)


@pytest.mark.parametrize("name", SHIPPED)
def test_exemplars_hold_their_rationale_only_with_chain_of_thought(name):
    pair = load(name).pairwise
    for exemplar in pair.exemplars[:2]:
        assert f"\n\n{exemplar.rationale}\n\n{pair.ending}{exemplar.label}" in ask(name, 2, cot=True).plain()
        assert exemplar.rationale not in ask(name, 2).plain()


@pytest.mark.parametrize("name", SHIPPED)
def test_chain_of_thought_without_shots_replaces_the_ending_by_request_and_opening(name):
    pair = load(name).pairwise
    text = ask(name, cot=True).plain()
    assert text.endswith(f"2 - THE SECOND\n\n{pair.rationale.request}\n\nRationale:")
    assert pair.ending not in text


@pytest.mark.parametrize("name", SHIPPED)
def test_chain_of_thought_with_shots_opens_with_the_thoughts_and_makes_no_request(name):
    text = ask(name, 1, cot=True).plain()
    assert text.endswith(f"2 - THE SECOND\n\nThoughts on {NOUN[name]} 1 -")
    assert load(name).pairwise.rationale.request not in text


@pytest.mark.parametrize("name", [f"{name}:{preamble}" for name in SHIPPED for preamble in ("base", "detailed")])
def test_the_preamble_asks_for_a_number_or_for_an_explanation(name):
    assert "output 1 or 2" in ask(name).system
    assert "explain which" in ask(name, cot=True).system
    assert "output 1 or 2" not in ask(name, cot=True).system


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("cot", [False, True], ids=["plain", "cot"])
@pytest.mark.parametrize("shots", [0, 2])
def test_no_prompt_ends_in_a_space(name, cot, shots):
    text = ask(name, shots, cot=cot).plain()
    assert text == text.rstrip()


def test_the_question_knows_polarity_and_ending_of_its_task():
    question = pair_question(load("harmlessness"), Style(2, cot=True))
    assert (question.polarity, question.ending, question.cut) == ("worse", "Preferred Response=", "start")


@pytest.mark.parametrize("shots", [-1, 3])
def test_more_shots_than_exemplars_are_refused(shots):
    with pytest.raises(TaskError, match=f"task helpfulness has 2 exemplars; --shots {shots} is not among 0 to that"):
        pair_question(load("helpfulness"), Style(shots))


def test_what_a_task_has_no_table_for_is_refused(own):
    only_score = 'about = "x"\n[score]\npreamble = "p"\nsample = "{{ prompt }}{{ response }}"\nending = "S:"\n'
    only_pair = (
        'about = "x"\n[pairwise]\npreamble = "p"\nending = "E="\n'
        'sample = "{{ prompt }}{{ first }}{{ second }}"\npreambles = {p = "q"}\n'
    )
    with pytest.raises(TaskError, match=r"has no \[pairwise\] table; it can only score"):
        pair_question(load(own(text=only_score)), Style())
    with pytest.raises(TaskError, match=r"has no \[score\] table; it can only compare"):
        score_question(load(own(text=only_pair)))
    with pytest.raises(TaskError, match=r"has no \[pairwise.rationale\] table; run without --cot"):
        pair_question(load(own(text=only_pair)), Style(cot=True))


def test_a_task_of_ones_own_is_rendered(own):
    prompt = pair_question(load(own()), Style(1, cot=True)).ask("p", "f", "s")
    assert prompt.plain() == (
        "Rate and explain.\n\n"
        "»»»» Example »»»»\n\nQ: example question\nA1: example first\nA2: example second\n\nA1 is worse.\n\nBest=2\n\n"
        "»»»» Follow the instructions and the example(s) above »»»»\n\n"
        "Q: p\nA1: f\nA2: s\n\nA1 is"
    )


def test_white_space_control_of_a_template_holds_around_the_prompt(own):
    sample = (
        '"""Q: {{ prompt }}\\nA1: {{ first }}\\nA2: {{ second }}"""',
        "'Q:  {{- prompt -}}  {{ first }}{{ second }}'",
    )
    assert pair_question(load(own(sample)), Style()).ask("p", "f", "s").user == "Q:pfs"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_score_is_asked_for_after_the_response(name):
    head = "TEXT" if name == "summarization" else "CONTEXT"
    noun = NOUN[name].upper()
    prompt = score_question(load(name)).ask("THE PROMPT", "THE RESPONSE")
    assert prompt.plain().endswith(f"\n\n{head}: THE PROMPT\n\n{noun}: THE RESPONSE\n\nSCORE:")
    assert "from 1 to 10" in prompt.system


def test_conversations_are_read_as_turns():
    turns = [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three")]
    prompt = tuple(Message(role=role, content=content) for role, content in turns)
    assert transcript(prompt) == "System: Be brief.\n\nHuman: one\n\nAssistant: two\n\nHuman: three"


@pytest.mark.parametrize("text", SYNTAX)
def test_template_syntax_in_data_stays_text(text):
    turns = (Message(role="user", content=text),)
    assert pair_question(load("summarization"), Style(2)).ask(text, text, text).user.count(text) == 3
    assert pair_question(load("summarization"), Style(2)).ask(turns, "", "").context == f"Human: {text}"
    assert score_question(load("summarization")).ask(text, text).user.count(text) == 2


@given(TEXTS, TEXTS, TEXTS)
def test_any_text_is_rendered_as_it_stands(prompt, first, second):
    asked = QUESTION.ask(prompt, first, second)
    assert asked.user == f"Text - {prompt}\n\nSummary 1 - {first}\n\nSummary 2 - {second}"
    assert asked.context == prompt


QUESTION = pair_question(load("summarization"), Style())


def test_template_syntax_in_exemplars_stays_text(own):
    path = own(("example question", "{{ 7*7 }}"), ("A1 is worse.", "{% if %}"))
    text = pair_question(load(path), Style(1, cot=True)).ask("p", "f", "s").plain()
    assert "Q: {{ 7*7 }}\n" in text
    assert "\n\n{% if %}\n\nBest=2" in text


PROMPT = Prompt("system", "before ", "abcde", " after", "answer")


@pytest.mark.parametrize(
    ("keep", "side", "expected"),
    [
        (2, "end", "ab"),
        (2, "start", "de"),
        (0, "end", ""),
        (0, "start", ""),
        (5, "end", "abcde"),
        (5, "start", "abcde"),
        (7, "end", "abcde"),
        (7, "start", "abcde"),
    ],
)
def test_a_cut_keeps_the_side_that_the_task_names(keep, side, expected):
    assert cut(PROMPT, keep, side).context == expected


@given(st.text(), st.integers(0, 40), st.sampled_from(["start", "end"]))
def test_a_cut_changes_the_context_alone(context, keep, side):
    whole = Prompt("system", "before", context, "after", "answer")
    short = cut(whole, keep, side)
    assert (short.system, short.before, short.after, short.answer) == ("system", "before", "after", "answer")
    assert len(short.context) == min(keep, len(context))
    assert context.startswith(short.context) if side == "end" else context.endswith(short.context)


def test_a_cut_prompt_still_has_exemplars_candidates_and_ending():
    prompt = cut(ask("summarization", shots=2), 3, load("summarization").cut)
    tail = "Text - THE\n\nSummary 1 - THE FIRST\n\nSummary 2 - THE SECOND\n\nPreferred Summary="
    assert prompt.plain().endswith(f"{FOLLOW}\n\n{tail}")


def test_the_second_step_ends_in_the_ending_exactly_once():
    question = pair_question(load("summarization"), Style(cot=True))
    text = question.ask("p", "f", "s").continued(" The first is clear.", question.ending).plain()
    assert text.endswith("\n\nRationale: The first is clear.\n\nPreferred Summary=")
    assert text.count("Preferred Summary=") == 1


class TestTurns:
    """What a chat model reads that begins its own answer."""

    def turns(self, answer, instruction):
        return Prompt("system", "before ", "context", " after", answer, " request").turns(instruction)

    @pytest.mark.parametrize(
        ("answer", "instruction", "end"),
        [
            ("Best=", "Say 1 or 2.", "\n\nSay 1 or 2.\n\nBest="),
            ("Best=", "", "\n\nBest="),
            ("", "Say 1 or 2.", "\n\nSay 1 or 2."),
            ("", "", ""),
        ],
    )
    def test_instruction_and_beginning_of_the_answer_end_the_request(self, answer, instruction, end):
        assert self.turns(answer, instruction) == [("user", f"before context after request{end}")]

    @pytest.mark.parametrize("reason", ["Because: so.", "Because: so.\n\nAnd so.\n\n- too"])
    def test_a_rationale_is_the_assistants_turn(self, reason):
        assert self.turns(f"{reason}\n\nBest=", "Say 1 or 2.") == [
            ("user", "before context after request"),
            ("assistant", reason),
            ("user", "Say 1 or 2.\n\nBest="),
        ]

    @pytest.mark.parametrize("name", SHIPPED)
    @pytest.mark.parametrize("shots", [0, 2])
    def test_the_second_step_asks_again_after_the_rationale(self, name, shots):
        question = pair_question(load(name), Style(shots, cot=True))
        prompt = question.ask("p", "f", "s")
        ((role, first),) = prompt.turns("")
        second = prompt.continued(" The first is clear.\n\nIt is.", question.ending).turns("Say 1 or 2.")
        assert (role, first) == ("user", f"{prompt.user}\n\n{prompt.answer}")
        assert second == [
            ("user", prompt.user),
            ("assistant", f"{prompt.answer} The first is clear.\n\nIt is."),
            ("user", f"Say 1 or 2.\n\n{question.ending}"),
        ]

    def test_nothing_is_lost_and_nothing_said_twice(self):
        for prompt in (ask("helpfulness"), score_question(load("helpfulness")).ask("p", "r")):
            ((_, text),) = prompt.turns("")
            assert f"{prompt.system}\n\n{text}" == prompt.plain()
