"""What is trained of a model, and how it leaves: with adapters added, under the names of transformers."""

from __future__ import annotations

import copy

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from lm import adapt
from lm.branches import LogProbabilities
from lm.errors import ModelError
from lm.load import load_trainable
from trainer.config import Optim
from trainer.folder import export
from trainer.loop import Passes, adamw, fit
from trainer.pairs import laid_out
from trainer.rows import Row
from trainer.sft import sft


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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model whose head is its embedding, and one that has both."""
    place = tmp_path_factory.mktemp("models")
    return {tied: tiny_runs.model_folder(place / str(tied), tied=tied) for tied in (True, False)}


def loaded(folder):
    return load_trainable(str(folder), cache=folder, device="cpu", head="language")


def adapted(model, targets):
    return adapt.with_lora(model, rank=4, alpha=8.0, dropout=0.0, targets=targets, lowest=0, scored=False)


@pytest.mark.parametrize("targets", [("q_proj", "vv_proj"), ("vv_proj", "q_proj", "down_proj"), ("vv_proj",)])
def test_a_misspelt_target_among_good_ones_is_refused_by_its_name(tiny_llama, targets):
    with pytest.raises(ModelError) as raised:
        adapted(copy.deepcopy(tiny_llama), targets)
    assert str(raised.value) == (
        "model.lora_targets vv_proj: no linear layer of the model has such a name; it has down_proj, gate_proj, k_proj,"
        " o_proj, q_proj, up_proj, v_proj"
    )


def test_all_misspelt_targets_are_named(tiny_llama):
    with pytest.raises(ModelError, match=r"^model\.lora_targets query proj: no linear layer"):
        adapted(copy.deepcopy(tiny_llama), ("query", "v_proj", "proj"))


ENDS = [("lm_head",), ("embed_tokens",), ("q_proj", "lm_head"), ("embed_tokens", "lm_head", "v_proj")]


@pytest.mark.parametrize("targets", ENDS, ids=" ".join)
def test_an_adapter_on_a_head_that_is_the_embedding_is_refused(folders, targets):
    named = " ".join(each for each in targets if "proj" not in each)
    with pytest.raises(ModelError) as raised:
        adapted(loaded(folders[True]).model, targets)
    assert str(raised.value) == (
        f"model.lora_targets {named}: the embedding and the head of this model are one matrix, which an adapter on one"
        " of them would tear apart"
    )


@pytest.mark.parametrize("targets", ENDS, ids=" ".join)
def test_an_adapter_on_a_head_of_its_own_leaves_with_the_model(folders, tmp_path, targets):
    policy = loaded(folders[False])
    module = LogProbabilities(adapted(policy.model, targets))
    rows = [Row("a", (5, 6, 7, 8), ((9, 10, 11, 2),)), Row("b", (20, 21, 5), ((9, 300, 2),))]
    before = module(laid_out(rows)).detach()
    optimizer, passes = adamw(module, Optim(lr=0.03)), Passes(torch.device("cpu"), 1000)
    list(fit(sft(module), [(at, rows) for at in range(1, 5)], optimizer, passes, lambda _: 0.03, 1.0))
    trained = module.eval()(laid_out(rows)).detach()
    assert float((trained - before).abs().max()) > 0.1
    given = dict(adapt.weights(module.model, torch.float32))  # what another engine would get
    place = export(tmp_path, module.model, policy.tokenizer)
    again = LogProbabilities(loaded(place).model)
    torch.testing.assert_close(again(laid_out(rows)).detach(), trained, atol=1e-5, rtol=0)
    stored = load_file(place / "model.safetensors")
    assert given.keys() == stored.keys()
    for name, each in stored.items():
        torch.testing.assert_close(given[name], each, atol=1e-6, rtol=0)


def test_a_tied_model_has_adapters_on_its_layers(folders):
    model = adapted(loaded(folders[True]).model, ())
    names = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
