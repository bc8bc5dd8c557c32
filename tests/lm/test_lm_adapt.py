"""What is trained of a model, and how it leaves: with adapters added, under the names of transformers."""

from __future__ import annotations

import copy

import pytest
import torch

from lm import adapt


@pytest.mark.parametrize("rank", [0, 4], ids=["whole", "adapters"])
def test_the_weights_that_another_engine_gets_are_those_of_the_merged_model(tiny_llama, rank):
    model = copy.deepcopy(tiny_llama)
    if rank:
        model = adapt.with_lora(model, rank=rank, alpha=8.0, dropout=0.1, targets=(), lowest=1, scored=False)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, each in model.named_parameters():
                if "lora_B" in name:
                    each.normal_()
    before = {name: each.clone() for name, each in model.named_parameters()}
    given = dict(adapt.weights(model, torch.float32))
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
    whole = dict(adapt.merged(model).named_parameters())
    assert given.keys() == whole.keys()
    for name, each in whole.items():
        torch.testing.assert_close(given[name], each.detach(), atol=1e-6, rtol=0)
    moved = [name for name in given if not torch.equal(given[name], tiny_llama.state_dict()[name])]
    assert bool(moved) == bool(rank)
    assert all(each.dtype == torch.bfloat16 for _, each in adapt.weights(tiny_llama, torch.bfloat16))
