"""Does a row that is written token by token see what one forward pass over it sees?"""

import pytest
import torch

from lm import decoder, decoding
from lm.decoding import decoding as begun

PROMPTS = [(5, 9, 12, 30), (5, 9, 77), (41,) * 90]
OF = [0, 2, 0, 1, 2, 0]


def plain(model, tokens):
    return model(torch.tensor([tokens])).logits[0, -1]


@pytest.fixture(params=["written out", "the model's own"])
def model(request, tiny_llama, monkeypatch):
    if request.param != "written out":
        monkeypatch.setattr(decoder, "supports", lambda _model: False)
    return tiny_llama


@torch.no_grad()
def test_every_step_is_a_plain_pass_over_what_is_there(model):
    generator = torch.Generator().manual_seed(0)
    rows = [list(PROMPTS[each]) for each in OF]
    with begun(model, PROMPTS, OF) as under_way:
        for step in range(decoding.GROW + 5):
            if step % 17 == 0:
                for row, logits in zip(rows, under_way.logits, strict=True):
                    assert torch.allclose(logits, plain(model, row), atol=2e-5)
            if step in {3, 20}:
                kept = [at for at in range(len(rows)) if at != 1]
                under_way.keep(torch.tensor(kept))
                rows = [rows[at] for at in kept]
            tokens = torch.randint(211, (len(rows),), generator=generator)
            under_way.step(tokens)
            rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
        for row, logits in zip(rows, under_way.logits, strict=True):
            assert torch.allclose(logits, plain(model, row), atol=2e-5)


@torch.no_grad()
def test_a_model_that_attends_through_trees_writes_as_before(tiny_llama):
    import copy

    from lm import tree

    used = copy.deepcopy(tiny_llama)
    tree.use(used)
    with begun(used, PROMPTS, OF) as ours, begun(tiny_llama, PROMPTS, OF) as theirs:
        assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)


def test_training_goes_on_where_it_was(tiny_llama):
    tiny_llama.train()
    with begun(tiny_llama, PROMPTS, OF):
        assert not tiny_llama.training
    assert tiny_llama.training
    tiny_llama.eval()
