"""Is a forward pass over a tree, with its gradients, the model's own pass over each sequence?"""

import copy
from unittest.mock import patch

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import rows, tree
from lm.branches import LogProbabilities, Scores
from lm.errors import ModelError
from lm.rows import branches, pack, spans

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
SEQUENCES = st.lists(TOKENS, min_size=1, max_size=9)
SIZES = {"vocab_size": 211, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
IDS = {"bos_token_id": 1, "eos_token_id": 2}


def draw(seed, length):
    return tuple(torch.randint(211, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


CASES = {
    "shared beginnings": [((5, 6, 7, 8), ((9, 10, 11), (9, 12), (13,))), ((5, 6, 14), ((9,), (15, 16)))],
    "one answer is the prefix of another": [((5, 6), ((7, 8), (7, 8, 9, 10), (7,), (7, 8, 11)))],
    "the same answer twice": [((5, 6), ((7, 8), (7, 8))), ((5, 6), ((7, 8),))],
    "one row's answers begin another's prompt": [((5, 6), ((7, 8, 9), (3,))), ((5, 6, 7), ((8, 9, 4), (2, 2)))],
    "nothing in common": [((5,), ((6,),)), ((7, 8), ((9, 10),)), ((11,), ((12, 13, 14), (15,)))],
    "a prompt longer than a block": [(draw(1, 300), (draw(2, 5), draw(3, 40)))],
    "answers longer than two blocks": [(draw(4, 9), (draw(5, 530), draw(5, 258)))],
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several cost these tiny products more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return copy.deepcopy(tiny_llama)


@pytest.fixture(scope="module")
def treed(tiny_llama):
    return LogProbabilities(copy.deepcopy(tiny_llama))


def family(name, config=None, **extra):
    """A random model of an architecture, its weights large enough that every attention matters."""
    torch.manual_seed(1)
    config = config or getattr(transformers, f"{name}Config")(**{**SIZES, **HEADS, **IDS, **extra})
    model = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}LMHeadModel")
    model = model(config).eval()
    for each in model.parameters():
        if each.ndim > 1:
            torch.nn.init.normal_(each, std=0.2)
    return model


def log_probabilities(model, asked):
    """Of each token of each answer, by the model's own forward over one sequence at a time."""
    found = []
    for prompt, answers in asked:
        for answer in answers:
            table = model(torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
            found.append(table[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).squeeze(1))
    return torch.cat(found)


def gradients(module, value):
    module.zero_grad()
    value.backward()
    model = module.model if isinstance(module, LogProbabilities | Scores) else module
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same(found, expected, tolerance=1e-5):
    """No two numbers further apart than a part of the largest expected one."""
    apart = float((found.detach().double() - expected.detach().double()).abs().max())
    assert apart <= tolerance * float(expected.detach().abs().max()), apart


def assert_same_gradients(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        assert float((found[name] - each).abs().max()) <= tolerance * largest, name


def weights(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("asked", CASES.values(), ids=CASES)
def test_log_probabilities_and_gradients_equal_plain_passes(asked, plain, treed):
    found, expected = treed(branches(asked)), log_probabilities(plain, asked)
    assert_same(found, expected)
    weight = weights(len(expected))
    assert_same_gradients(gradients(treed, (found * weight).sum()), gradients(plain, (expected * weight).sum()))


@settings(max_examples=12)
@given(SEQUENCES, st.integers(1, 4))
def test_hidden_states_and_gradients_of_random_trees_equal_plain_passes(plain, treed, sequences, chunk):
    with patch.object(rows, "CHUNK", chunk):
        found = pack(sequences)
        laid = tree.lay(found, torch.device("cpu"))
    inner = treed.model.model
    out = inner(input_ids=laid.input_ids, position_ids=laid.position_ids, tree=laid.tree, use_cache=False)
    hidden = torch.cat([out.last_hidden_state[0][found.path(each, 0)] for each in sequences])
    own = torch.cat([plain.model(torch.tensor([each])).last_hidden_state[0] for each in sequences])
    assert_same(hidden, own)
    weight = weights(hidden.numel()).view_as(hidden)
    assert_same_gradients(gradients(treed, (hidden * weight).sum()), gradients(plain, (own * weight).sum()))


def test_scores_and_gradients_equal_plain_passes(tiny_llama):
    torch.manual_seed(3)
    scored = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**{**tiny_llama.config.to_diff_dict(), "num_labels": 1, "pad_token_id": 0})
    ).eval()
    own, module = copy.deepcopy(scored), Scores(scored)
    asked = CASES["shared beginnings"] + CASES["one answer is the prefix of another"]
    found = module(branches(asked))
    expected = torch.stack(
        [own(torch.tensor([prompt + answer])).logits[0, 0] for prompt, answers in asked for answer in answers]
    )
    assert_same(found, expected)
    weight = weights(len(expected))
    assert_same_gradients(gradients(module, (found * weight).sum()), gradients(own, (expected * weight).sum()))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_checkpointed_activations_change_no_gradient(tiny_llama):
    module = LogProbabilities(copy.deepcopy(tiny_llama)).train()
    laid = branches(CASES["shared beginnings"])
    expected = gradients(module, module(laid).sum())
    module.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_gradients(gradients(module, module(laid).sum()), expected, 1e-6)


def test_autocast_loses_no_more_than_the_models_own_bf16(plain, treed):
    asked = [(draw(at, 5 + at), (draw(20 + at, 15), draw(40 + at, 9))) for at in range(8)]  # enough to average over
    exact = log_probabilities(plain, asked)
    exactly = gradients(plain, exact.sum())
    with torch.autocast("cpu", torch.bfloat16):
        found, own = treed(branches(asked)), log_probabilities(plain, asked)
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() <= 1.5 * (own - exact).abs().mean()
    mine, other = gradients(treed, found.sum()), gradients(plain, own.sum())
    lost, losing = (sum((each[name] - exactly[name]).square().sum() for name in exactly) for each in (mine, other))
    assert lost <= 1.5**2 * losing


def ancestors(found):
    """Who sees whom, as the parents of tokens say: (queries, keys)."""
    seen = torch.zeros(len(found.tokens), len(found.tokens), dtype=torch.bool)
    for at, parent in enumerate(found.parents):
        if parent >= 0:
            seen[at] = seen[parent]
        seen[at, at] = True
    return seen


def spanned(found):
    seen = torch.zeros(len(found.tokens), len(found.tokens), dtype=torch.bool)
    for span in spans(found):
        for start, end in span.before:
            seen[span.start : span.end, start:end] = True
        own = slice(span.start, span.end)
        seen[own, own] = torch.ones(span.end - span.start, span.end - span.start, dtype=torch.bool).tril()
    return seen


def masked(found):
    """The block mask's own rule, pair by pair."""
    mask = tree.block_mask(spans(found), torch.device("cpu"))
    places = torch.arange(len(found.tokens))
    zero = torch.tensor(0)
    return mask.mask_mod(zero, zero, places[:, None], places[None, :])


@given(SEQUENCES, st.integers(1, 4))
def test_spans_hold_every_token_once_and_see_its_ancestors(sequences, chunk):
    with patch.object(rows, "CHUNK", chunk):
        found = pack(sequences)
    made = spans(found)
    assert [place for span in made for place in range(span.start, span.end)] == list(range(len(found.tokens)))
    assert max(span.end - span.start for span in made) <= chunk
    assert torch.equal(spanned(found), ancestors(found))


@settings(max_examples=40)
@given(SEQUENCES, st.integers(1, 4))
def test_the_block_mask_shows_each_token_its_ancestors(sequences, chunk):
    with patch.object(rows, "CHUNK", chunk):
        found = pack(sequences)
        assert torch.equal(masked(found), ancestors(found))


LONG = [*(draw(1, 200) + draw(seed, 150) for seed in (2, 3)), draw(1, 90) + draw(4, 300), draw(5, 140)]


def test_the_block_mask_skips_no_block_that_is_seen():
    found = pack(LONG)
    mask = tree.block_mask(spans(found), torch.device("cpu"))
    size, seen = mask.BLOCK_SIZE[0], ancestors(found)
    visited = mask.to_dense()[0, 0].bool()
    for query, key in seen.nonzero().tolist():
        assert visited[query // size, key // size]
    assert not visited.all()
    for row, (count, columns) in enumerate(zip(mask.full_kv_num_blocks[0, 0], mask.full_kv_indices[0, 0], strict=True)):
        for column in columns[:count].tolist():
            assert seen[row * size : (row + 1) * size, column * size : (column + 1) * size].all()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_equals_the_products():
    from torch.nn.attention.flex_attention import flex_attention

    found = pack(LONG)
    made = spans(found)
    query, key, value = (each.detach() for each in heads(6, 2, len(found.tokens), torch.float32))
    mask = tree.block_mask(made, torch.device("cpu"))
    flexed = flex_attention(query[None], key[None], value[None], block_mask=mask, scale=0.3, enable_gqa=True)[0]
    assert_same(tree._Products.apply(query, key, value, made, 0.3), flexed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has gradients on GPUs alone")
def test_on_a_gpu_log_probabilities_and_gradients_equal_plain_passes(tiny_llama):
    asked = [row for case in CASES.values() for row in case]
    module, own = LogProbabilities(copy.deepcopy(tiny_llama).cuda()), copy.deepcopy(tiny_llama)
    found, expected = module(branches(asked)), log_probabilities(own, asked)
    assert_same(found.cpu(), expected, 1e-4)
    mine = {name: each.cpu() for name, each in gradients(module, found.sum()).items()}
    assert_same_gradients(mine, gradients(own, expected.sum()), 1e-4)


def heads(count, groups, tokens, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(each, tokens, 4, dtype=dtype, requires_grad=True) for each in (count, groups, groups)]


@pytest.mark.parametrize(("count", "groups"), [(4, 4), (4, 2), (3, 1)], ids=["no groups", "groups", "one group"])
@settings(max_examples=15)
@given(sequences=SEQUENCES, chunk=st.integers(1, 4))
def test_products_and_their_gradients_equal_masked_softmax_in_float64(count, groups, sequences, chunk):
    with patch.object(rows, "CHUNK", chunk):
        found = pack(sequences)
        made = spans(found)
    query, key, value = heads(count, groups, len(found.tokens))
    wide = [each.repeat_interleave(count // groups, 0) for each in (key, value)]
    scores = (query @ wide[0].transpose(1, 2) * 0.7).masked_fill(~ancestors(found), -torch.inf)
    expected = scores.softmax(-1) @ wide[1]
    produced = tree._Products.apply(*(each.float() for each in (query, key, value)), made, 0.7)
    assert_same(produced, expected, 1e-6)
    weight = weights(expected.numel()).view_as(expected)
    mine, other = (torch.autograd.grad((each * weight).sum(), (query, key, value)) for each in (produced, expected))
    for found_, expected_ in zip(mine, other, strict=True):
        largest = max(float(each.abs().max()) for each in other)
        assert float((found_ - expected_).abs().max()) <= 2e-6 * largest


LATENT = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 2}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
OTHERS = {
    "Qwen2": {},
    "Qwen3": {},
    "Mistral without a window": {"sliding_window": None},
    "Gemma": {},
    "Granite": {"logits_scaling": 8.0},
    "Cohere": {"logit_scale": 0.1},
    "DeepseekV3": {"config": transformers.DeepseekV3Config(**SIZES, **IDS, **LATENT, **EXPERTS)},
    "GPT2": {"config": transformers.GPT2Config(vocab_size=211, n_embd=32, n_layer=2, n_head=2, n_positions=64, **IDS)},
}


@pytest.mark.parametrize(("name", "extra"), OTHERS.items(), ids=OTHERS)
def test_other_architectures_equal_their_own_forward(name, extra):
    model = family(name.split()[0], **extra)
    asked = CASES["shared beginnings"]
    module = LogProbabilities(copy.deepcopy(model))
    found, expected = module(branches(asked)), log_probabilities(model, asked)
    assert_same(found, expected)
    assert_same_gradients(gradients(module, found.sum()), gradients(model, expected.sum()))


def small(name, **own):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return getattr(transformers, f"{name}Config")(**{**sizes, **IDS, "pad_token_id": 0, **own})


REFUSED = {
    "a sliding window": lambda: family("Mistral", sliding_window=8),
    "a sliding window that is asked for": lambda: family(
        "Qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=0
    ),
    "soft caps and sliding windows": lambda: family("Gemma2"),
    "positions within its own attention": lambda: family("Bloom", small("Bloom")),
    "an attention that transformers does not call by name": lambda: family("Falcon", small("Falcon")),
    "no attention at all": lambda: family("Mamba", small("Mamba")),
    "convolutions between its attentions": lambda: family(
        "Lfm2", small("Lfm2", intermediate_size=64, num_key_value_heads=2, layer_types=["conv", "full_attention"])
    ),
    "a tree that its layers are not handed": lambda: family(
        "StableLm", small("StableLm", intermediate_size=64, num_key_value_heads=2)
    ),
    "an encoder": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_model_that_could_not_see_a_tree_is_refused_in_one_line(make):
    with pytest.raises(ModelError) as caught:
        LogProbabilities(make())
    assert "\n" not in str(caught.value)


def test_a_model_that_attends_through_trees_needs_one(treed):
    with pytest.raises(TypeError, match="call it with one"):
        treed.model(torch.tensor([[1, 2]]))
