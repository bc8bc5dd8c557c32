import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lm.sample import Draw, write


@pytest.fixture(scope="module")
def tokenizer():
    words = {f"w{at} ": at for at in range(211)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0 ")))


def draw(prompt, seed=0, *, temperature=0.0, max_tokens=12, stop=()):
    return Draw(tuple(prompt), max_tokens, temperature, 20, seed, stop)


def test_greedy_text_equals_the_models_own_generation(tiny_llama, tokenizer):
    prompts = [(20, 30, 40), (21, 31, 41, 51, 61, 71)]
    written = write(tiny_llama, tokenizer, [draw(prompt) for prompt in prompts], batch=2)
    for prompt, found in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        own = tiny_llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert found.text == tokenizer.decode(own[0, len(prompt) :].tolist(), skip_special_tokens=True)


def test_a_rows_sample_does_not_depend_on_its_batch(tiny_llama, tokenizer):
    draws = [draw((20 + at, 30, 40), seed=at, temperature=1.0) for at in range(5)]
    alone = [write(tiny_llama, tokenizer, [each], batch=1)[0] for each in draws]
    assert [each.drawn for each in write(tiny_llama, tokenizer, draws, batch=5)] == [each.drawn for each in alone]


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_likelihoods_are_those_of_the_distribution_that_was_drawn_from(tiny_llama, tokenizer, temperature):
    prompt = (20, 30, 40)
    asked = Draw(prompt, 9, temperature, 0, 3, ())
    (found,) = write(tiny_llama, tokenizer, [asked], batch=1)
    ids = torch.tensor([[*prompt, *found.drawn]])
    every = (tiny_llama(ids).logits[0] / temperature).log_softmax(-1)
    expected = [float(every[len(prompt) - 1 + at, token]) for at, token in enumerate(found.drawn)]
    assert found.likelihoods == pytest.approx(expected, abs=1e-4)
    assert not found.ended


@torch.no_grad()
def test_draws_follow_the_models_distribution(tiny_llama, tokenizer):
    """The counts of 4,000 first tokens against their chances, by chi-square over the likeliest."""
    prompt = (20, 30, 40)
    draws = [Draw(prompt, 1, 1.0, 0, seed, ()) for seed in range(4000)]
    first = torch.tensor([each.drawn[0] for each in write(tiny_llama, tokenizer, draws, batch=4000)])
    chances = tiny_llama(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    top = chances.topk(20).indices
    seen = torch.stack([(first == each).sum() for each in top]).float()
    expected = 4000 * chances[top]
    assert float(((seen - expected) ** 2 / expected).sum()) < 45.3  # .999 of chi-square with 20 degrees


def test_seeds_give_different_samples_of_one_prompt(tiny_llama, tokenizer):
    draws = [draw((20, 30, 40), seed=at, temperature=1.5) for at in range(4)]
    assert len({each.text for each in write(tiny_llama, tokenizer, draws, batch=4)}) > 1


def test_text_ends_before_its_stop_string(tiny_llama, tokenizer):
    whole = write(tiny_llama, tokenizer, [draw((20, 30, 40))], batch=1)[0].text
    stop = whole.split()[3]
    (cut,) = write(tiny_llama, tokenizer, [draw((20, 30, 40), stop=(stop,))], batch=1)
    assert cut.text == whole[: whole.index(stop)]
    assert cut.tokens < 12


@pytest.fixture(scope="module")
def letters():
    """A tokenizer with one character a token, of one byte or of two."""
    own = Tokenizer(models.WordLevel({chr(0x21 + at): at for at in range(211)}, unk_token="!"))
    own.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=own)


@pytest.mark.parametrize("length", [1, 23, 24, 25, 40])
def test_a_stop_string_of_any_number_of_tokens_ends_the_text(tiny_llama, letters, length):
    (whole,) = write(tiny_llama, letters, [draw((20, 30), seed=1, temperature=1.0, max_tokens=60)], batch=1)
    assert (len(whole.text), whole.ended) == (60, False)
    stop = whole.text[10 : 10 + length]
    start = whole.text.index(stop)
    asked = draw((20, 30), seed=1, temperature=1.0, max_tokens=60, stop=("never seen", stop))
    (cut,) = write(tiny_llama, letters, [asked], batch=1)
    assert (cut.text, cut.ended) == (whole.text[:start], True)
    assert cut.drawn == whole.drawn[: start + length]
