"""What must not change what an update learns: passes, order, layout, padding, where the reference is asked."""

import copy
import math
import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lm import adapt
from lm.branches import LogProbabilities, Scores, without_adapters
from trainer import loop, reference
from trainer.config import Cpl, Dpo, Optim, Reward
from trainer.cpl import cpl
from trainer.dpo import dpo
from trainer.examples import Pair
from trainer.loop import Passes, adamw, fit, look
from trainer.reward import reward
from trainer.rows import Row, batch
from trainer.sft import sft

CPU = torch.device("cpu")
AT_ONCE, SPLIT = Passes(CPU, 10**6), Passes(CPU, 30)
LN2 = math.log(2)

ROWS = [
    Row("shared", (5, 6, 7, 8), ((9, 10, 11), (9, 12)), (Pair(0, 1, 0.8),)),
    Row("another prompt", (5, 6, 14), ((9, 3), (15, 16, 17, 18)), (Pair(1, 0, 0.6),)),
    Row("four", (20, 21), ((3,), (4, 5), (3, 6, 7), (4,)), (Pair(0, 1, 0.9), Pair(3, 2), Pair(1, 2, 0.7))),
    Row("long", tuple(range(30, 60)), (tuple(range(60, 68)), (61, 62)), (Pair(0, 1),)),
    Row("the prefix of the other", (99, 5), ((7, 8, 9), (7, 8)), (Pair(1, 0, 0.75),)),
    Row("one prompt more often", (5, 6, 7, 8), ((9, 10, 11), (13, 14, 15)), (Pair(1, 0, 0.55),)),
]
HARD = [replace(row, pairs=tuple(replace(pair, p=1.0) for pair in row.pairs)) for row in ROWS]
MARGINS = [replace(row, pairs=tuple(replace(pair, margin=0.4) for pair in row.pairs)) for row in ROWS]

REFERENCED = {
    "dpo": Dpo(),
    "dpo of noisy labels": Dpo(noise=0.1, beta=0.5),
    "dpo of hard labels": Dpo(hard=True),
    "hinge": Dpo(loss="hinge", beta=0.05),
    "robust": Dpo(loss="robust", noise=0.2),
    "ipo": Dpo(loss="ipo"),
    "ipo of averages": Dpo(loss="ipo-averaged"),
}
WITHOUT = {"simpo": Dpo(loss="simpo", beta=2.0), "cpl": Cpl(), "cpl without conservatism": Cpl(conservative=1.0)}
REWARDS = {"reward": Reward(), "reward with a centre": Reward(centering=0.05)}
PREFERENCES = {**REWARDS, **REFERENCED, **WITHOUT}
ALL = {**PREFERENCES, "sft": None}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several cost these tiny products more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def language(tiny_llama):
    """A calmer model: in fp32 the wild one tells two orders of the same sum apart in the sixth digit."""
    found = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for each in found.parameters():
            each.mul_(0.4 if each.ndim > 1 else 1)
    return found


@pytest.fixture(scope="module")
def scorer(language):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(3)
    own = {**language.config.to_diff_dict(), "num_labels": 1, "pad_token_id": 0, "initializer_range": 0.08}
    return LlamaForSequenceClassification(LlamaConfig(**own)).eval()


@dataclass
class Learner:
    """An algorithm's model, what it is close to, and how both see rows."""

    policy: torch.nn.Module
    reference: torch.nn.Module

    def algorithm(self, config, ask=None):
        match config:
            case Reward():
                return reward(self.policy, config)
            case Dpo():
                return dpo(self.policy, ask or reference.online(self.reference, AT_ONCE), config)
            case Cpl():
                return cpl(self.policy, config)
            case None:
                return sft(self.policy)


def perturbed(model):
    found = copy.deepcopy(model)
    torch.manual_seed(8)
    with torch.no_grad():
        for each in found.parameters():
            each.add_(0.05 * torch.randn_like(each))
    return found


@pytest.fixture(scope="module")
def learners(language, scorer):
    """By the kind of configuration; each test leaves the weights as they are."""
    other = LogProbabilities(perturbed(language).requires_grad_(requires_grad=False))
    policy = Learner(LogProbabilities(copy.deepcopy(language)), other)
    scores = Learner(Scores(copy.deepcopy(scorer)), other)
    return lambda config: scores if isinstance(config, Reward) else policy


def taught(algorithm, rows, passes=AT_ONCE):
    """What an update logs, and its gradients by the name of the model's parameter."""
    algorithm.module.zero_grad()
    metrics = loop._accumulate(algorithm, rows, passes)
    named = algorithm.module.named_parameters()
    return metrics, {name: each.grad.clone() for name, each in named if each.grad is not None}


def assert_same(found, expected, tolerance=1e-6):
    """All that is logged, and all gradients to a part of the largest."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance, abs=tolerance)
    largest = max(float(each.abs().max()) for each in expected[1].values())
    assert largest > 0
    assert found[1].keys() == expected[1].keys()
    for name, each in expected[1].items():
        assert float((found[1][name] - each).abs().max()) <= tolerance * largest, name


def mirrored(row):
    last = len(row.answers) - 1
    pairs = tuple(replace(each, first=last - each.first, second=last - each.second) for each in row.pairs)
    return replace(row, answers=row.answers[::-1], pairs=pairs)


def relabelled(row):
    return replace(row, pairs=tuple(Pair(each.second, each.first, 1 - each.p) for each in row.pairs))


CHANGES = {
    "rows in another order": lambda rows: rows[::-1],
    "responses in another order": lambda rows: [mirrored(row) for row in rows],
    "pairs in another order": lambda rows: [replace(row, pairs=row.pairs[::-1]) for row in rows],
}


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_order_changes_nothing(learners, config, change):
    algorithm = learners(config).algorithm(config)
    assert_same(taught(algorithm, change(MARGINS)), taught(algorithm, MARGINS))


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_the_split_into_passes_changes_nothing(learners, config):
    algorithm = learners(config).algorithm(config)
    assert_same(taught(algorithm, MARGINS, SPLIT), taught(algorithm, MARGINS))


@pytest.mark.parametrize("config", [each for each in PREFERENCES.values() if not getattr(each, "hard", False)])
def test_a_swapped_pair_with_the_other_label_teaches_the_same(learners, config):
    algorithm = learners(config).algorithm(config)
    (metrics, found), (other, expected) = (
        taught(algorithm, rows) for rows in ([relabelled(row) for row in ROWS], ROWS)
    )
    assert_same(({"loss": metrics["loss"]}, found), ({"loss": other["loss"]}, expected))


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_a_row_comes_to_the_same_in_any_company(learners, config):
    algorithm = learners(config).algorithm(config)
    together = look(algorithm, ROWS, SPLIT)
    for at, row in enumerate(ROWS):
        alone = {name: each[at] for name, each in together.items()}
        assert {name: value for name, (value,) in look(algorithm, [row], AT_ONCE).items()} == pytest.approx(
            alone, rel=1e-5, abs=1e-6
        )


def test_an_update_is_the_weighted_mean_of_its_rows(learners):
    for config in (None, Dpo()):
        algorithm = learners(config).algorithm(config)
        weights = [algorithm.weigh(row) for row in ROWS]
        each = look(algorithm, ROWS, AT_ONCE)["loss"]
        mean = sum(w * value for w, value in zip(weights, each, strict=True)) / sum(weights)
        assert taught(algorithm, ROWS, SPLIT)[0]["loss"] == pytest.approx(mean, rel=1e-6)


# Every answer as a row of its own, through the model's own forward


class Padded(torch.nn.Module):
    """The same interface without any sharing."""

    def __init__(self, model, side):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, laid):
        pairs = [(row.prompt, answer) for row in laid.rows for answer in row.answers]
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs) + 3
        left = [(longest - len(p) - len(a)) * (self.side == "left") for p, a in pairs]
        ids = torch.zeros(len(pairs), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, ((prompt, answer), skip) in enumerate(zip(pairs, left, strict=True)):
            ids[at, skip : skip + len(prompt + answer)] = torch.tensor(prompt + answer)
            mask[at, skip : skip + len(prompt + answer)] = 1
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=places).logits
        if logits.shape[-1] == 1:
            return logits[:, 0]
        table, starts = logits.log_softmax(-1), [skip + len(p) - 1 for (p, _), skip in zip(pairs, left, strict=True)]
        return torch.cat(
            [
                table[at, start + i, token][None]
                for at, start in enumerate(starts)
                for i, token in enumerate(pairs[at][1])
            ]
        )


def each_alone(rows):
    return SimpleNamespace(rows=rows, lengths=[len(answer) for row in rows for answer in row.answers])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_the_shared_layout_equals_padded_rows(language, scorer, learners, config, side, monkeypatch):
    expected = taught(learners(config).algorithm(config), MARGINS)
    for name in ("reward", "dpo", "cpl", "sft", "reference"):
        monkeypatch.setattr(f"trainer.{name}.laid_out", each_alone)
    model = copy.deepcopy(scorer if isinstance(config, Reward) else language)
    padded = Learner(Padded(model, side), Padded(perturbed(language), side))
    assert_same(taught(padded.algorithm(config), MARGINS), expected, 2e-6)


def by_hand(config, pair, own, other, lengths):
    """A pair's loss from summed log-probabilities of the policy and of the reference, as the papers write it."""
    first, second = pair.first, pair.second
    h = own[first] - other[first] - (own[second] - other[second])
    per_token = [value / length for value, length in zip(own, lengths, strict=True)]
    match config:
        case Dpo(loss="sigmoid", beta=beta):
            return -pair.p * F.logsigmoid(beta * h) - (1 - pair.p) * F.logsigmoid(-beta * h)
        case Dpo(loss="ipo", beta=beta):
            return pair.p * (h - 1 / (2 * beta)) ** 2 + (1 - pair.p) * (h + 1 / (2 * beta)) ** 2
        case Dpo(loss="simpo", beta=beta, gamma=gamma):
            ahead = beta * (per_token[first] - per_token[second])
            return -pair.p * F.logsigmoid(ahead - gamma) - (1 - pair.p) * F.logsigmoid(-ahead - gamma)
        case Cpl(alpha=alpha, conservative=part):
            good, bad = (alpha * own[each] for each in (first, second))
            one, two = (a - torch.logaddexp(a, part * b) for a, b in ((good, bad), (bad, good)))
            return -pair.p * one - (1 - pair.p) * two


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "cpl"])
def test_losses_are_those_of_summed_log_probabilities(language, learners, name):
    def summed(model, row):
        found = []
        for answer in row.answers:
            table = model(torch.tensor([row.prompt + answer])).logits[0].double().log_softmax(-1)
            found.append(sum(table[len(row.prompt) - 1 + at, token] for at, token in enumerate(answer)))
        return found

    expected, config, other = [], ALL[name], perturbed(language)
    with torch.no_grad():
        for row in ROWS:
            own, theirs = summed(language, row), summed(other, row)
            lengths = [len(answer) for answer in row.answers]
            losses = [float(by_hand(config, pair, own, theirs, lengths)) for pair in row.pairs]
            expected.append(sum(losses) / len(losses))
    assert look(learners(config).algorithm(config), ROWS, AT_ONCE)["loss"] == pytest.approx(expected, rel=2e-5)


def test_sft_is_transformers_own_loss_of_masked_labels(language, learners):
    own = copy.deepcopy(language)
    sequences = [(row.prompt, answer) for row in ROWS for answer in row.answers]
    total = sum(len(answer) for _, answer in sequences)
    loss = sum(
        own(torch.tensor([p + a]), labels=torch.tensor([(-100,) * len(p) + a])).loss * len(a) for p, a in sequences
    )
    (loss / total).backward()
    found, grads = taught(learners(None).algorithm(None), ROWS, SPLIT)
    assert found["loss"] == pytest.approx(loss.item() / total, rel=1e-6)
    assert_same(({}, grads), ({}, {f"model.{name}": each.grad for name, each in own.named_parameters()}))


def test_sft_learns_nothing_where_prompts_are_foretold(learners):
    policy = learners(None).policy
    kept = []

    def keep(_module, _given, out):
        out.last_hidden_state.retain_grad()
        kept.append(out.last_hidden_state)

    hook = policy.model.model.register_forward_hook(keep)
    try:
        taught(sft(policy), ROWS[:1])
    finally:
        hook.remove()
    (hidden,) = kept
    learned = hidden.grad[0].abs().sum(-1) > 0
    prompt, answers = len(ROWS[0].prompt), sum(map(len, ROWS[0].answers))
    assert not learned[: prompt - 1].any()
    assert learned[prompt - 1]
    assert int(learned.sum()) == 1 + answers - len(ROWS[0].answers) - 1  # both answers begin with the same token


def test_loss_at_the_start_is_that_of_chance(learners):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    fresh = LlamaForCausalLM(LlamaConfig(vocab_size=211, **sizes))
    found, _ = taught(sft(LogProbabilities(fresh)), ROWS)
    assert found["loss"] == pytest.approx(math.log(211), abs=0.05)


# The reference


@pytest.mark.parametrize(
    "config", [each for each in REFERENCED.values() if each.loss != "ipo-averaged"], ids=lambda each: each.loss
)
def test_a_constant_added_to_the_reference_changes_nothing(learners, config):
    ask = reference.online(learners(config).reference, AT_ONCE)

    def moved(rows):
        return ask(rows) + torch.cat([torch.full((len(row.answers),), float(len(row.prompt))) for row in rows])

    algorithm, other = (learners(config).algorithm(config, each) for each in (ask, moved))
    assert_same(taught(other, ROWS), taught(algorithm, ROWS))


def refuses(_laid):
    raise AssertionError("the reference was asked again")


def test_a_cached_reference_teaches_what_an_online_one_does(learners, tmp_path, monkeypatch):
    learner, place = learners(Dpo()), tmp_path / "cache" / "reference.parquet"
    seen = []
    cached = reference.cached(learner.reference, [*ROWS[:4], ROWS[0]], SPLIT, place, seen.append)
    assert sum(seen) == 4
    expected = taught(learner.algorithm(Dpo()), ROWS[:4])
    assert_same(taught(learner.algorithm(Dpo(), cached), ROWS[:4], SPLIT), expected)
    more = reference.cached(learner.reference, ROWS, SPLIT, place, seen.append)
    assert sum(seen) == len(ROWS)
    monkeypatch.setattr(learner.reference, "forward", refuses)
    known = reference.cached(learner.reference, ROWS[::-1], SPLIT, place, seen.append)
    assert torch.equal(known(ROWS), more(ROWS))


def test_asking_the_reference_leaves_its_mode_and_gradients(learners, tmp_path):
    learner = learners(Dpo())
    learner.policy.train()
    reference.cached(learner.policy, ROWS, SPLIT, tmp_path / "reference.parquet", lambda _count: None)
    assert learner.policy.training
    assert not reference.ask(learner.policy, ROWS, AT_ONCE).requires_grad


@pytest.fixture
def adapted(language):
    torch.manual_seed(0)
    own = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": (), "lowest": 0, "scored": False}
    return LogProbabilities(adapt.with_lora(copy.deepcopy(language), **own))


def unadapted(policy):
    def ask(rows):
        with without_adapters(policy.model):
            return reference.ask(policy, rows, AT_ONCE)

    return ask


def update(algorithm, rows, *, lr=0.01, count=1, **own):
    optimizer = adamw(algorithm.module, Optim(lr=lr, **own))
    batches = ((number, rows) for number in range(1, count + 1))
    return list(fit(algorithm, batches, optimizer, SPLIT, lambda _number: lr, 1.0)), optimizer


def test_fresh_adapters_are_their_reference(adapted):
    found, grads = taught(dpo(adapted, unadapted(adapted), Dpo()), HARD)
    assert found["loss"] == pytest.approx(LN2, abs=1e-6)
    assert found["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert all("lora_" in name for name in grads)


def test_the_reference_stays_where_it_was_while_adapters_learn(adapted):
    ask = unadapted(adapted)
    before = ask(ROWS)
    frozen = {name: each.detach().clone() for name, each in adapted.named_parameters() if not each.requires_grad}
    (first, *_, last), optimizer = update(dpo(adapted, ask, Dpo(beta=0.5)), HARD, count=5)
    assert last.metrics["loss"] < first.metrics["loss"]
    assert torch.equal(ask(ROWS), before)
    assert not torch.allclose(reference.ask(adapted, ROWS, AT_ONCE), before)
    assert all(torch.equal(each, frozen[name]) for name, each in adapted.named_parameters() if name in frozen)
    assert all("lora_" in name for name, each in adapted.named_parameters() if each in optimizer.state)


def test_adapters_on_a_reward_model_train_its_head_too(scorer):
    own = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ("q_proj", "v_proj"), "lowest": 0, "scored": True}
    module = Scores(adapt.with_lora(copy.deepcopy(scorer), **own))
    head = module.model.score
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    (first, *_, last), _ = update(reward(module, Reward()), HARD, count=5)
    assert last.metrics["loss"] < first.metrics["loss"]
    changed = {name for name, each in module.named_parameters() if not torch.equal(each, before[name])}
    assert any("score" in name for name in changed), head
    assert all("lora_" in name or "score" in name for name in changed)


# Learning


HEART = {name: ALL[name] for name in ("reward", "dpo", "ipo", "simpo", "cpl", "sft")}


@pytest.mark.parametrize("config", HEART.values(), ids=HEART)
def test_one_batch_is_learned_by_heart(language, scorer, config):
    model = copy.deepcopy(scorer if isinstance(config, Reward) else language)
    module = Scores(model) if isinstance(config, Reward) else LogProbabilities(model)
    learner = Learner(module, LogProbabilities(copy.deepcopy(language)))
    # One batch cannot have it both ways: a response of the first row is better in one place and worse in another.
    rows = HARD[:5]
    if config is None:
        rows = [replace(row, answers=row.answers[:1], pairs=()) for row in rows]
    found, _ = update(learner.algorithm(config), rows, lr=0.003, count=25)
    losses = [each.metrics["loss"] for each in found]
    assert losses[-1] < 0.3 * losses[0]
    if config is not None:
        assert found[-1].metrics["accuracy"] == 1


def test_frozen_layers_stay_to_the_byte_and_out_of_the_optimizer(language):
    model = copy.deepcopy(language)
    adapt.freeze(model, 2)
    module = LogProbabilities(model)
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    _, optimizer = update(sft(module), ROWS, count=3, weight_decay=0.1)
    frozen = {name for name, each in module.named_parameters() if not each.requires_grad}
    assert {name.split(".")[3] for name in frozen if ".layers." in name} == {"0", "1"}
    assert any("embed_tokens" in name for name in frozen)
    for name, each in module.named_parameters():
        assert torch.equal(each.view(torch.int32), before[name].view(torch.int32)) == (name in frozen), name
        assert (each in optimizer.state) == (name not in frozen), name
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for name, each in module.named_parameters() if name not in frozen}


def test_upper_layers_alone_have_the_gradients_they_have_among_all(language, learners):
    model = copy.deepcopy(language)
    adapt.freeze(model, 2)
    found = taught(sft(LogProbabilities(model)), ROWS)
    metrics, grads = taught(learners(None).algorithm(None), ROWS)
    assert_same(found, (metrics, {name: each for name, each in grads.items() if name in found[1]}))


def test_decay_shrinks_matrices_alone(language):
    module = LogProbabilities(copy.deepcopy(language))
    decayed, others = adamw(module, Optim(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0)
    assert all(each.ndim >= 2 for each in decayed["params"])
    assert all(each.ndim < 2 for each in others["params"])


@pytest.mark.parametrize("config", [Reward(), Dpo(), Cpl(), None], ids=["reward", "dpo", "cpl", "sft"])
def test_bf16_is_close_and_keeps_fp32_weights(learners, config):
    algorithm = learners(config).algorithm(config)
    exact, grads = taught(algorithm, ROWS)
    found, coarse = taught(algorithm, ROWS, replace(SPLIT, bfloat16=True))
    assert found["loss"] == pytest.approx(exact["loss"], rel=0.1)
    one, other = (torch.cat([each.flatten() for each in known.values()]) for known in (grads, coarse))
    assert other.dtype == torch.float32
    assert F.cosine_similarity(one, other, dim=0) > 0.98


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo warns of its own doings
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("config", [Dpo(), Reward()], ids=["dpo", "reward"])
def test_compiled_layers_teach_what_eager_ones_do(language, scorer, learners, config):
    expected = [taught(learners(config).algorithm(config), batch(ROWS, size, 0, 0)) for size in (2, 3, 6, 4)]
    model = copy.deepcopy(scorer if isinstance(config, Reward) else language)
    module = Scores(model) if isinstance(config, Reward) else LogProbabilities(model)
    for layer in adapt.layers(model):
        layer.compile(dynamic=True)
    algorithm = Learner(module, learners(config).reference).algorithm(config)
    for size, each in zip((2, 3, 6, 4), expected, strict=True):
        assert_same(taught(algorithm, batch(ROWS, size, 0, 0)), each, 1e-5)
