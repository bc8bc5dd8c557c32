"""Are a conversation's tokens those of the model's own template, whatever the texts hold?"""

import threading
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lm.chat import Encoder

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}<|im_end|>"
    "{% endif %}{% endfor %}"
)
WITHOUT_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]
TEXTS = ["What is a tree?", "A plant with a trunk.", "system user assistant Human Assistant", "[INST] [/INST]"]
CONVERSATIONS = {
    "one turn": [("user", "What is a tree?")],
    "several turns": [("user", "What?"), ("assistant", "A plant."), ("user", "Where?")],
    "a system turn": [("system", "Answer well."), ("user", "What is it?")],
    "a system turn and several": [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c d")],
}


def made(template, **own):
    """A byte-level tokenizer as chat models have, trained on a few words."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<|im_end|>", **own)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module", params=["made here", pytest.param("SmolLM2", marks=pytest.mark.slow)])
def tokenizer(request):
    return made(CHATML) if request.param == "made here" else request.getfixturevalue("smollm2").tokenizer


def templated(tokenizer, turns, **own):
    messages = [{"role": role, "content": content} for role, content in turns]
    return tuple(tokenizer.apply_chat_template(messages, return_dict=False, **own))


def special(tokenizer, tokens):
    return [token for token in tokens if token in set(tokenizer.all_special_ids)]


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_prompt_is_what_the_template_makes_of_it(tokenizer, turns):
    expected = templated(tokenizer, turns, add_generation_prompt=True)
    assert Encoder(tokenizer).prompt(turns, 10**6) == expected


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_prompt_and_answer_are_the_template_up_to_its_end_token(tokenizer, turns):
    encoder = Encoder(tokenizer)
    whole = templated(tokenizer, [*turns, ("assistant", "A plant, I think.")])
    found = encoder.prompt(turns, 10**6) + encoder.answer("A plant, I think.", [role for role, _ in turns])
    assert found == whole[: len(found)]
    assert found[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in encoder.answer("A plant.")[:-1]
    assert not tokenizer.decode(list(whole[len(found) :])).strip()


PIECES = [*SPECIAL, "assistant\n", "\n", " ", "a", "é", "\ue0000\ue000"]
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@settings(max_examples=30)
@given(texts=st.lists(HOSTILE, min_size=1, max_size=5))
def test_no_text_becomes_a_special_token(tokenizer, texts):
    encoder = Encoder(tokenizer)
    roles = [("user", "assistant")[at % 2] for at in range(len(texts))]
    found = encoder.prompt(list(zip(roles, texts, strict=True)), 10**6)
    clean = encoder.prompt([(role, "a") for role in roles], 10**6)
    assert special(tokenizer, found) == special(tokenizer, clean)
    answer = encoder.answer(texts[0])
    assert special(tokenizer, answer) == [tokenizer.eos_token_id]
    assert tokenizer.decode(list(answer[:-1])) == texts[0]


@pytest.mark.parametrize("template", [CHATML, WITHOUT_SYSTEM, INST, None])
@settings(max_examples=30)
@given(before=HOSTILE, context=HOSTILE, first=HOSTILE, second=HOSTILE, answer=st.sampled_from(["", "Best=", " a\n"]))
def test_prompts_are_cut_where_others_part_from_them(template, before, context, first, second, answer):
    """Both orders of a comparison, and another comparison of the same job, meet in whole parts."""
    encoder = Encoder(made(template))

    def cut(context, after):
        begins = (before, f"{before}{context} 1 - ")
        whole = encoder.encode("judge", f"{before}{context} 1 - {after}", answer)
        cuts = encoder.cuts(whole, "judge", begins, answer)
        assert list(cuts) == sorted({each for each in cuts if 0 <= each < len(whole)})
        return [whole[a:b] for a, b in pairwise((0, *cuts, len(whole)))]

    one, swapped, other = cut(context, first + second), cut(context, second + first), cut(f"{context}!", first)
    assert one[0] == swapped[0] == other[0]
    assert one[1] == swapped[1]
    assert len(one) == 3


def test_a_rationale_stands_apart_from_its_question():
    encoder = Encoder(made(CHATML))
    begins, rationale = ("", "What is a tree?"), "A plant with a trunk. " * 20
    for answer in (rationale, f"{rationale}Best="):
        whole = encoder.encode("judge", "What is a tree? A plant.", answer)
        question = encoder.encode("judge", "What is a tree? A plant.", "")
        assert encoder.cuts(whole, "judge", begins, answer)[-1] == len(question)


def test_added_tokens_that_are_not_special_stay_text():
    tokenizer = made(CHATML)
    tokenizer.add_tokens(["<think>"])
    added = tokenizer.convert_tokens_to_ids("<think>")
    encoder = Encoder(tokenizer)
    assert added not in encoder.prompt([("user", "a <think> b")], 100) + encoder.answer("<think>x")


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_cutting_keeps_the_template_and_the_end_of_the_texts(tokenizer, turns):
    encoder = Encoder(tokenizer)
    whole = encoder.prompt(turns, 10**6)
    contents = [encoder.answer(content)[:-1] for _, content in turns]
    frame = len(whole) - sum(map(len, contents))
    empty = encoder.prompt([(role, "") for role, _ in turns], frame)
    for limit in range(frame, len(whole) + 1):
        found = encoder.prompt(turns, limit)
        assert len(found) == limit
        assert special(tokenizer, found) == special(tokenizer, empty)
        left, cut = limit - frame, []
        # The last turn keeps most, then what the system says, then the later of the others.
        kept = sorted(range(len(turns)), key=lambda at: (at == len(turns) - 1, turns[at][0] == "system", at))
        for at in reversed(kept):
            cut.insert(0, contents[at][max(0, len(contents[at]) - left) :])
            left -= len(cut[0])
        assert encoder.fitted(turns, limit) == (found, limit < len(whole))
        assert sorted(found) == sorted([*empty, *(token for each in cut for token in each)])
        assert tokenizer.decode(list(cut[-1])) in tokenizer.decode(list(found))
    with pytest.raises(ValueError, match="no room is left"):
        encoder.prompt(turns, frame - 1)


def test_the_last_turn_is_cut_when_all_others_are_gone():
    tokenizer = made(CHATML)
    encoder = Encoder(tokenizer)
    turns = [("user", "a b c"), ("assistant", "d e f"), ("user", "g h i")]
    frame = len(encoder.prompt([(role, "") for role, _ in turns], 1000))
    found = tokenizer.decode(list(encoder.prompt(turns, frame + 2)))
    assert found == tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in (("user", ""), ("assistant", ""), ("user", " i"))],
        tokenize=False,
        add_generation_prompt=True,
    )


def test_a_template_with_blanks_around_texts_keeps_its_text():
    tokenizer = made(INST)
    encoder = Encoder(tokenizer)
    turns = [("user", "What?"), ("assistant", "A tree."), ("user", "Where?")]
    found = encoder.prompt(turns, 1000) + encoder.answer("Here.", [role for role, _ in turns])
    expected = "<s>[INST] What? [/INST] A tree.<|im_end|>[INST] Where? [/INST] Here.<|im_end|>"
    assert tokenizer.decode(list(found)) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [(INST, "refuses turns of system, user"), (WITHOUT_SYSTEM, "leaves a turn out of system, user")],
    ids=["raises", "leaves one out"],
)
def test_a_template_that_does_not_take_these_turns_says_so(template, message):
    with pytest.raises(ValueError, match=message):
        Encoder(made(template)).prompt([("system", "Be kind."), ("user", "a")], 100)


def test_an_end_token_that_the_template_does_not_write_ends_answers():
    tokenizer = made(CHATML)
    tokenizer.eos_token = "<s>"
    assert special(tokenizer, Encoder(tokenizer).answer("Yes."))[-1] == tokenizer.eos_token_id


def test_without_an_end_token_the_template_ends_answers():
    tokenizer = made(CHATML)
    tokenizer.eos_token = None
    found = Encoder(tokenizer).answer("Yes.")
    assert tokenizer.decode(list(found)).startswith("Yes.<|im_end|>")


def test_without_a_template_a_prompt_is_its_text_and_a_gap():
    tokenizer = made(None)
    encoder = Encoder(tokenizer)
    found = encoder.prompt([("user", "What is a tree?")], 100)
    assert tokenizer.decode(list(found)) == "What is a tree?\n\n"
    cut = tokenizer.decode(list(encoder.prompt([("user", "What is a tree?")], len(found) - 2)))
    assert cut == tokenizer.decode(list(found[2:]))
    assert tokenizer.decode(list(encoder.answer("A plant."))) == "A plant.<|im_end|>"


def test_without_a_template_turns_are_named():
    tokenizer = made(None)
    encoder = Encoder(tokenizer)
    turns = [("system", "Be kind."), ("user", "What?"), ("assistant", "A tree."), ("user", "Where?")]
    expected = "System: Be kind.\n\nHuman: What?\n\nAssistant: A tree.\n\nHuman: Where?\n\nAssistant: "
    assert tokenizer.decode(list(encoder.prompt(turns, 1000))) == expected
    assert encoder.answer("Here.", [role for role, _ in turns])[-1] == tokenizer.eos_token_id


def test_without_a_template_a_text_begins_as_the_tokenizer_begins_texts():
    tokenizer = made(None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    found = Encoder(tokenizer).prompt([("user", "<s>What?")], 100)
    assert special(tokenizer, found) == [tokenizer.bos_token_id]
    assert found[0] == tokenizer.bos_token_id
    assert tokenizer.decode(list(found[1:])) == "<s>What?\n\n"


@settings(max_examples=50)
@given(st.text(), st.integers(1, 200), st.sampled_from(["", " ", "\n", "a", "word "]))
def test_a_text_has_no_fewer_tokens_than_its_length_over_the_longest(tokenizer, text, times, more):
    encoder = Encoder(tokenizer)
    whole = text + more * times
    assert len(encoder._fresh(whole)) * encoder.longest >= len(whole)


def test_megabytes_that_cannot_fit_are_not_encoded(monkeypatch):
    from labeler.backend import Write
    from labeler.engine import InProcess
    from prompts.render import Prompt

    encoder = Encoder(made(CHATML))
    backend = InProcess("local:x", "x", None, encoder, context=1000, rows=1)
    size = []
    monkeypatch.setattr(Encoder, "encode", lambda _, *parts: size.append(sum(map(len, parts))) or (1,) * 2000)
    for length in (100, 10_000, 10_000_000):
        prompt = Prompt("", "", "x" * length, "", "", "")
        assert (backend.overflow(Write(prompt, 1)) > 0) == (length > 100)
    assert size == [10_000]


DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '1 Jan 1970' %}{% endif %}"
    "{% endif %}"
    "<|im_start|>system\nToday Date: {{ date_string }}\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}<|im_end|>\n"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Llama 3 writes the day."""


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_template_that_writes_the_day_always_writes_the_same_one(turns):
    tokenizer = made(DATED)
    encoder = Encoder(tokenizer)
    today = templated(tokenizer, turns, add_generation_prompt=True)
    assert "26 Jul 2024" not in tokenizer.decode(list(today))
    found = encoder.prompt(turns, 10**6)
    assert tokenizer.decode(list(found)).startswith("<|im_start|>system\nToday Date: 26 Jul 2024\n")
    assert found == templated(tokenizer, turns, add_generation_prompt=True, date_string="26 Jul 2024")
    whole = templated(tokenizer, [*turns, ("assistant", "A plant.")], date_string="26 Jul 2024")
    found += encoder.answer("A plant.", [role for role, _ in turns])
    assert found == whole[: len(found)]


def test_a_raters_question_has_that_day_too():
    tokenizer = made(DATED)
    found = tokenizer.decode(list(Encoder(tokenizer).encode("Be brief.", "Which?", "Preferred:")))
    assert found == (
        "<|im_start|>system\nToday Date: 26 Jul 2024\nBe brief.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>\n"
        "<|im_start|>assistant\nPreferred:"
    )


def test_threads_do_not_change_what_becomes_a_special_token_under_one_another():
    """Which tokens may be special is a setting of the tokenizer that they share."""
    encoder = Encoder(made(CHATML))
    right = encoder._framed(("user",))
    end = time.monotonic() + 0.5
    wrong: list[object] = []

    def texts():
        while time.monotonic() < end:
            encoder._fresh("a <|im_end|> tree " * 100)

    def frames():
        while time.monotonic() < end and not wrong:
            wrong.extend(each for each in [encoder._framed(("user",))] if each != right)

    threads = [threading.Thread(target=each) for each in (texts, frames)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
