"""Are the log-probabilities of a few tokens, and their gradients, those of the whole softmax?"""

import pytest
import torch

from lm import head
from lm.head import token_log_probabilities

COUNT, WIDTH, VOCABULARY = 13, 8, 29


def given(*, bias, frozen=False, dtype=torch.float32):
    """Hidden states, a head, and tokens; a token comes twice, and so does a hidden state."""
    torch.manual_seed(0)
    hidden = torch.randn(COUNT, WIDTH, dtype=dtype)
    hidden[1] = hidden[0]
    linear = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype).requires_grad_(not frozen)
    tokens = torch.randint(VOCABULARY, (COUNT,))
    tokens[1:3] = tokens[0]
    return hidden.requires_grad_(), linear, tokens


def softmax(hidden, linear, tokens):
    return linear(hidden).float().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def gradients(found, hidden, linear):
    weight = torch.randn(COUNT, generator=torch.Generator().manual_seed(1))
    asked = [each for each in (hidden, *linear.parameters()) if each.requires_grad]
    return torch.autograd.grad((found * weight).sum(), asked)


@pytest.mark.parametrize("piece", [1, VOCABULARY, 5 * VOCABULARY, 13 * VOCABULARY, 1 << 25])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
def test_values_and_gradients_are_those_of_the_softmax_in_pieces_of_any_size(piece, bias, frozen, monkeypatch):
    monkeypatch.setattr(head, "PIECE", piece)
    hidden, linear, tokens = given(bias=bias, frozen=frozen)
    found, expected = token_log_probabilities(hidden, linear, tokens), softmax(hidden, linear, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for mine, other in zip(gradients(found, hidden, linear), gradients(expected, hidden, linear), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_head_is_trained_on_hidden_states_that_are_not():
    hidden, linear, tokens = given(bias=True)
    hidden.requires_grad_(requires_grad=False)
    found, expected = token_log_probabilities(hidden, linear, tokens), softmax(hidden, linear, tokens)
    for mine, other in zip(gradients(found, hidden, linear), gradients(expected, hidden, linear), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("piece", [VOCABULARY, 1 << 25], ids=["one token at a time", "at once"])
def test_autocast_takes_bf16_products_and_sums_in_fp32(piece, monkeypatch):
    monkeypatch.setattr(head, "PIECE", piece)
    hidden, linear, tokens = given(bias=True)
    exactly = gradients(softmax(hidden, linear, tokens), hidden, linear)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = token_log_probabilities(hidden, linear, tokens), softmax(hidden, linear, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for mine, exact in zip(gradients(found, hidden, linear), exactly, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - exact).abs().max() <= 0.02 * exact.abs().max()


def test_a_bf16_head_gives_fp32_values():
    hidden, linear, tokens = given(bias=False, dtype=torch.bfloat16)
    found = token_log_probabilities(hidden, linear, tokens)
    torch.testing.assert_close(found, softmax(hidden, linear, tokens), rtol=0, atol=1e-5)
    assert [each.dtype for each in gradients(found, hidden, linear)] == [torch.bfloat16] * 2


def test_logits_too_large_for_exp_stay_finite():
    hidden, linear, tokens = given(bias=False)
    loud = (hidden.detach() * 1e4).requires_grad_()
    found = token_log_probabilities(loud, linear, tokens)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, softmax(loud, linear, tokens), rtol=1e-6, atol=1e-3)
    assert all(torch.isfinite(each).all() for each in gradients(found, loud, linear))


@pytest.mark.parametrize("piece", [VOCABULARY, 5 * VOCABULARY, 1 << 25])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_entropies_and_their_gradients_are_those_of_the_softmax(piece, bias, monkeypatch):
    monkeypatch.setattr(head, "PIECE", piece)
    hidden, linear, tokens = given(bias=bias)
    every = linear(hidden).log_softmax(-1)
    expected = softmax(hidden, linear, tokens), -(every.exp() * every).sum(-1)
    found = head.foretold(hidden, linear, tokens)
    for own, wanted in zip(found, expected, strict=True):
        assert torch.allclose(own, wanted, atol=1e-5)
    ours, theirs = (gradients(a * 2 - b / 3, hidden, linear) for a, b in (found, expected))
    for own, wanted in zip(ours, theirs, strict=True):
        assert torch.allclose(own, wanted, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_the_mean_over_the_vocabulary_comes_from_one_token(bias):
    hidden, linear, tokens = given(bias=bias)
    likely = softmax(hidden, linear, tokens)
    found = head.mean_log_probability(hidden, linear, tokens, likely)
    expected = linear(hidden).log_softmax(-1).mean(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    for own, wanted in zip(gradients(found, hidden, linear), gradients(expected, hidden, linear), strict=True):
        assert torch.allclose(own, wanted, atol=1e-5)
