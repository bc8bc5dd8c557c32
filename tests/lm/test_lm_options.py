import copy
import math

import pytest
import torch

from data.tables import batched
from lm import decoder, plain
from lm import options as module
from lm.options import Options
from lm.rows import common_prefix
from lm.strings import Ask

SPLIT = (*tuple(((each,),) for each in range(1, 10)), ((1, 0),))
WHOLE = tuple(((each,),) for each in range(1, 11))
ONE = (((3,),),)
VARIANTS = (((1,), (5, 1)), ((2,), (5, 2)))


def sequences(seed, count, *, shared=40, text=30, tail=12):
    """Prompts as the labeler makes them: all begin alike, pairs share a text, tails differ."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return tuple(torch.randint(12, 211, (length,), generator=generator).tolist())

    prefix = draw(shared)
    made = []
    for _ in range(count):
        middle = draw(text + int(torch.randint(0, 9, (1,), generator=generator)))
        made += [prefix + middle + draw(tail), prefix + middle + draw(tail + 3)]
    return made


def asks(prompts, *variants, shared=40):
    """Cut where all part, and where the two of a pair do."""
    pairs = [(a, b) for a, b in batched(prompts, 2) for _ in range(2)] if len(prompts) % 2 == 0 else []
    cuts = [(shared, common_prefix(a, b)) for a, b in pairs] or [(shared,)] * len(prompts)
    return [Ask(prompt, variants or ONE, each) for prompt, each in zip(prompts, cuts, strict=True)]


def plainly(model, prompt):
    """The distribution after a prompt, by the model's own forward, alone in its batch."""
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)


def brute(model, prompt, tokens):
    return sum(float(plainly(model, prompt + tokens[:at])[token]) for at, token in enumerate(tokens))


def test_shared_rows_equal_plain_passes_on_a_random_llama(tiny_llama):
    prompts = sequences(0, 5)
    found = Options(tiny_llama).log_probabilities(asks(prompts, ((3,),), ((4,),)))
    for prompt, values in zip(prompts, found, strict=True):
        assert values == pytest.approx([brute(tiny_llama, prompt, (3,)), brute(tiny_llama, prompt, (4,))], abs=1e-5)


def test_long_segments_equal_plain_passes(tiny_llama):
    prompts = sequences(1, 2, shared=600, text=400, tail=300)
    found = Options(tiny_llama).log_probabilities(asks(prompts, shared=600))
    for prompt, (value,) in zip(prompts, found, strict=True):
        assert value == pytest.approx(brute(tiny_llama, prompt, (3,)), abs=1e-5)


def test_what_a_job_begins_with_is_computed_once(tiny_llama, monkeypatch):
    encoded = []
    original = decoder.encode_prefix
    monkeypatch.setattr(
        decoder, "encode_prefix", lambda model, tokens: encoded.append(tokens) or original(model, tokens)
    )
    monkeypatch.setattr(module, "KEPT", 160)  # four of them
    options = Options(tiny_llama)
    calls = [sequences(2, 1), sequences(2, 4), sequences(3, 2), sequences(2, 1)]
    for prompts in calls:
        found = options.log_probabilities(asks(prompts))
        assert [v for (v,) in found] == pytest.approx([brute(tiny_llama, each, (3,)) for each in prompts], abs=1e-5)
    assert encoded == [calls[0][0][:40], calls[2][0][:40]]
    for seed in range(20, 24):  # others push it out
        options.log_probabilities(asks(sequences(seed, 1)))
    options.log_probabilities(asks(calls[0]))
    assert len(encoded) == 2 + 4 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_do_not_depend_on_what_is_asked_beside(tiny_llama, dtype):
    """In bf16 to the last bit; products of few rows in fp32 are added up in another order."""
    model = copy.deepcopy(tiny_llama).to(dtype)
    scale = [asks(sequences(seed, 6, text=length), *SPLIT) for seed, length in ((14, 3), (14, 90), (15, 30))]
    every = [ask for some in scale for ask in some]
    every += [Ask((*ask.prompt[:-2], 7, 9, 8), ask.variants, ask.cuts) for ask in every[::3]]  # alike but for the end
    alone = [Options(model).log_probabilities([ask])[0] for ask in every]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    options = Options(model)
    found = {}
    for sizes in ([len(every)], [5, 1, 9, 2, 20, 30]):
        at = 0
        for size in sizes:
            some = order[at : at + size]
            found |= dict(zip(some, options.log_probabilities([every[each] for each in some]), strict=True))
            at += size
        for number, values in found.items():
            assert values == (alone[number] if dtype == torch.bfloat16 else pytest.approx(alone[number], abs=5e-6))


def test_prompts_with_nothing_in_common(tiny_llama):
    prompts = [(20, 21, 22), (30, 31), (40,)]
    found = Options(tiny_llama).log_probabilities([Ask(prompt, ONE) for prompt in prompts])
    assert [each for (each,) in found] == pytest.approx([brute(tiny_llama, p, (3,)) for p in prompts], abs=1e-5)


@pytest.mark.parametrize("scale", [SPLIT, WHOLE], ids=["10 is two tokens", "10 is one token"])
def test_ten_scores_equal_brute_force_over_complete_strings(tiny_llama, scale):
    (prompt,) = sequences(4, 1)[:1]
    (values,) = Options(tiny_llama).log_probabilities(asks([prompt], *scale))
    expected = [brute(tiny_llama, prompt, option[0]) for option in scale]
    if scale is SPLIT:
        goes_on = math.exp(brute(tiny_llama, (*prompt, 1), (0,)))
        expected[0] += math.log1p(-goes_on)
    assert values == pytest.approx(expected, abs=1e-5)
    assert math.fsum(map(math.exp, values)) <= 1


def test_variants_of_a_label_add_up(tiny_llama):
    (prompt,) = sequences(5, 1)[:1]
    (values,) = Options(tiny_llama).log_probabilities(asks([prompt], *VARIANTS))
    expected = [math.log(sum(math.exp(brute(tiny_llama, prompt, tokens)) for tokens in option)) for option in VARIANTS]
    assert values == pytest.approx(expected, abs=1e-5)


def test_other_architectures_go_through_their_own_forward():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=211, n_embd=32, n_layer=2, n_head=2, n_positions=128)).eval()
    assert not decoder.supports(model)
    prompts = sequences(6, 2, shared=10, text=5, tail=4)
    found = Options(model).log_probabilities(asks(prompts, shared=10))
    assert [v for (v,) in found] == pytest.approx([brute(model, p, (3,)) for p in prompts], abs=1e-5)


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Mistral"])
def test_the_llama_family_equals_its_own_forward(family):
    import transformers

    sizes = {"vocab_size": 211, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
    extra = {"sliding_window": None} if family == "Mistral" else {}
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **extra)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    assert decoder.supports(model)
    prompts = sequences(7, 2)
    found = Options(model).log_probabilities(asks(prompts))
    assert [v for (v,) in found] == pytest.approx([brute(model, p, (3,)) for p in prompts], abs=1e-5)


def test_sliding_windows_are_left_to_the_model():
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(vocab_size=50, hidden_size=64, intermediate_size=16, num_hidden_layers=1, sliding_window=8)
    assert not decoder.supports(MistralForCausalLM(config))


def test_scores_too_large_for_exp_are_computed_again_with_a_maximum(tiny_llama):
    loud = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for layer in loud.model.layers:
            layer.self_attn.q_proj.weight.mul_(20)
            layer.self_attn.k_proj.weight.mul_(20)
    prompts = sequences(8, 2)
    found = Options(loud).log_probabilities(asks(prompts))
    assert [v for (v,) in found] == pytest.approx([brute(loud, p, (3,)) for p in prompts], abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_too_large_for_exp_do_not_change_the_numbers_beside(tiny_llama, dtype):
    """One token, 5, attends to itself so hard that only a pass with the maximum taken off can tell."""
    model = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[5] = torch.eye(len(model.model.embed_tokens.weight[5]))[0]
        for each in (model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj):
            each.weight[:, 0] = 9.0
    model = model.to(dtype)
    quiet = asks(sequences(16, 6))
    (loud,) = asks([(*sequences(16, 1)[0], 5, 5, 5)])
    alone = Options(model).log_probabilities(quiet)
    *beside, told = Options(model).log_probabilities([*quiet, loud])
    near = {"abs": 0.0 if dtype == torch.bfloat16 else 5e-6, "rel": 0.0}
    assert [v for (v,) in beside] == pytest.approx([v for (v,) in alone], **near)
    assert told == pytest.approx(Options(model).log_probabilities([loud])[0], **near)
    if dtype == torch.float32:
        assert told == pytest.approx([brute(model, loud.prompt, (3,))], abs=1e-4)


def test_cuts_rise_within_their_prompt():
    for cuts in ((0,), (1, 2), (0, 1)):
        assert sum(map(len, Ask((1, 2, 3), ONE, cuts).parts)) == cuts[-1]
    for cuts in ((3,), (2, 2), (2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="do not rise within 3 tokens"):
            Ask((1, 2, 3), ONE, cuts)


def test_nothing_asked_is_nothing_answered(tiny_llama):
    assert Options(tiny_llama).log_probabilities([]) == []
    assert Options(tiny_llama).log_probabilities([Ask((1, 2, 3), (), (1,))]) == [[]]


def test_nan_weights_come_back_as_nan(tiny_llama):
    broken = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    (values,) = Options(broken).log_probabilities(asks(sequences(9, 1)[:1], ((3,),), ((4,),)))
    assert all(math.isnan(value) for value in values)


def test_padding_does_not_change_a_plain_pass(tiny_llama):
    prompts = sequences(10, 2)
    table = plain.log_probabilities(tiny_llama, prompts)
    expected = [brute(tiny_llama, prompt, (3,)) for prompt in prompts]
    assert table[:, 3].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["Granite", "Cohere", "Gemma2"])
def test_models_that_change_their_logits_are_asked_for_them(family):
    import transformers

    sizes = {"vocab_size": 211, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0}
    extra = {"Granite": {"logits_scaling": 8.0}, "Cohere": {"logit_scale": 0.1}, "Gemma2": {}}[family]
    torch.manual_seed(2)
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **extra)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    assert not decoder.supports(model)
    prompts = sequences(12, 2, shared=10, text=5, tail=4)
    found = Options(model).log_probabilities(asks(prompts, shared=10))
    assert [v for (v,) in found] == pytest.approx([brute(model, p, (3,)) for p in prompts], abs=1e-5)


def test_weights_that_sum_to_infinity_are_seen():
    from lm.attention import make_plan, tree_attention
    from lm.rows import pack

    found = pack([(1, 2)])
    plan = make_plan(found, torch.device("cpu"))
    query, value = torch.ones(2, 1, 4), torch.full((2, 1, 4), 0.01)
    key = torch.tensor([[-22.2] * 4, [22.2] * 4]).unsqueeze(1)
    loud = tree_attention(query, key, value, plan=plan, prefix=None, stable=False)
    assert not torch.isfinite(loud).all()
    assert tree_attention(query, key, value, plan=plan, prefix=None, stable=True) == pytest.approx(0.01)


def test_bf16_labels_are_not_rounded_to_ties(tiny_llama):
    coarse = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    found = Options(coarse).log_probabilities(asks(sequences(11, 20), ((3,),), ((4,),)))
    assert sum(one == two for one, two in found) == 0
