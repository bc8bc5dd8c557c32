"""Is what an actor says that of the model's own distribution at a temperature, whatever its head?"""

import copy

import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

from lm import head
from lm.branches import Actor
from lm.rows import branches

PROMPT, ANSWERS = (5, 6, 7, 8), ((9, 10, 11), (9, 12), (13, 4, 4, 2))


def phi():
    """Its head has a bias by design."""
    config = PhiConfig(
        vocab_size=211,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        max_position_embeddings=128,
        resid_pdrop=0.0,
    )
    torch.manual_seed(4)
    return PhiForCausalLM(config)


def biased(model):
    found = copy.deepcopy(model)
    found.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    torch.nn.init.normal_(found.lm_head.weight, std=0.3)
    return found


@pytest.fixture(scope="module", params=["phi", "llama with a bias", "llama"])
def model(request, tiny_llama):
    torch.manual_seed(5)
    match request.param:
        case "phi":
            found = phi()
        case "llama with a bias":
            found = biased(tiny_llama)
        case _:
            found = copy.deepcopy(tiny_llama)
    own = found.get_output_embeddings()
    if own.bias is not None:
        torch.nn.init.normal_(own.bias, std=2.0)
    assert head.is_plain(found)
    return found.eval()


def foretold(model, temperature):
    """Log P of each answer's tokens, the entropies and the means over the vocabulary, by the model's own forward."""
    found = []
    for answer in ANSWERS:
        every = (model(torch.tensor([PROMPT + answer])).logits[0].float() / temperature).log_softmax(-1)
        every = every[len(PROMPT) - 1 : -1]
        told = every[range(len(answer)), answer]
        found.append(torch.stack([told, -(every.exp() * every).sum(-1), every.mean(-1)]))
    return torch.cat(found, 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_an_actor_is_the_models_distribution_at_its_temperature(model, temperature):
    expected = foretold(model, temperature)
    actor = Actor(copy.deepcopy(model), temperature=temperature, meaned=True, valued=True)
    told = actor(branches([(PROMPT, ANSWERS)]))
    found = torch.stack([told.likelihoods, told.entropies, told.means])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert told.values.tolist() == [0.0] * expected.shape[1]
    plain = actor(branches([(PROMPT, ANSWERS)]), plain=True)
    torch.testing.assert_close(plain.likelihoods, foretold(model, 1.0)[0], atol=1e-5, rtol=1e-5)
    # What is learned: the gradient of the head and of what lies below.
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    names = [name for name, _ in model.named_parameters()]
    mine = torch.autograd.grad((found * weight).sum(), [actor.model.get_parameter(name) for name in names])
    other = torch.autograd.grad((expected * weight).sum(), list(model.parameters()))
    for name, one, two in zip(names, mine, other, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max())), name
