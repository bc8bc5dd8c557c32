"""Where does training end? Where the papers' closed forms say, from data whose truth is known."""

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pytest
import torch
from scipy.optimize import minimize

from lm.branches import Actor, LogProbabilities, Scores
from lm.sample import Draw, write
from trainer.config import Cpl, Dpo, Hir, Optim, Rest, Reward
from trainer.cpl import cpl
from trainer.dpo import dpo
from trainer.examples import Pair
from trainer.experience import Players
from trainer.hir import asked, hir, relabelled
from trainer.loop import Passes, adamw, fit, look
from trainer.rest import improved, rest
from trainer.reward import reward
from trainer.rollouts import Group, Question, Sample
from trainer.rows import Row
from trainer.sft import sft

PASSES = Passes(torch.device("cpu"), 10**6)
PROMPT = (1,)
REF = (0.5, 0.3, 0.2)
REWARD = (1.0, 0.0, 2.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several cost these tiny products more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def llama(kind, seed=0):
    import transformers

    torch.manual_seed(seed)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2, "pad_token_id": 0}
    return getattr(transformers, f"LlamaFor{kind}")(transformers.LlamaConfig(**sizes, **heads, num_labels=1))


def learn(algorithm, rows, *, lr, count):
    """`count` updates on all rows, the rate falling to nothing so that the end does not swing."""
    batches = ((number, rows) for number in range(1, count + 1))
    falls = lambda number: lr * (1 - number / count) ** 2  # noqa: E731
    return list(fit(algorithm, batches, adamw(algorithm.module, Optim(betas=(0.9, 0.99))), PASSES, falls, 0.0))


# Reward models

SCORES = (1.5, 0.7, 0.1, -0.2, -0.9, -1.2)
"""Of the responses that are the tokens 2, 3, ..."""


def planted(i, j, part=1.0):
    """A pair as its Bradley-Terry scores make it; of their difference a part is chance and the rest a margin."""
    ahead = SCORES[i] - SCORES[j]
    return Pair(i, j, sigmoid(part * ahead), (1 - part) * ahead)


def in_pairs():
    return [
        Row(f"{i} {j}", PROMPT, ((2 + i,), (2 + j,)), (Pair(0, 1, planted(i, j).p),))
        for i, j in combinations(range(len(SCORES)), 2)
    ]


def ranked(part=1.0):
    pairs = tuple(planted(i, j, part) for i, j in combinations(range(len(SCORES)), 2))
    return [Row("all", PROMPT, tuple((2 + at,) for at in range(len(SCORES))), pairs)]


def voted():
    """Each pair was shown to many people; what remains is their sampling error."""
    draw = random.Random(0)
    (row,) = ranked()
    shares = [fmean(draw.random() < pair.p for _ in range(4000)) for pair in row.pairs]
    pairs = tuple(Pair(pair.first, pair.second, share) for pair, share in zip(row.pairs, shares, strict=True))
    return [Row(row.id, row.prompt, row.answers, pairs)]


PLANTED = {
    "pairs": (in_pairs(), 0.03),
    "votes": (voted(), 0.1),
    "K-wise": (ranked(), 0.03),
    "K-wise with margins": (ranked(0.5), 0.03),
}


def scored(module):
    from lm.rows import branches

    with torch.no_grad():
        return module(branches([(PROMPT, [(2 + at,) for at in range(len(SCORES))])])).tolist()


@pytest.mark.parametrize(("rows", "near"), PLANTED.values(), ids=PLANTED)
def test_a_reward_model_finds_the_differences_that_were_planted(rows, near):
    module = Scores(llama("SequenceClassification"))
    learn(reward(module, Reward()), rows, lr=0.02, count=150)
    found = scored(module)
    for i, j in combinations(range(len(SCORES)), 2):
        assert found[i] - found[j] == pytest.approx(SCORES[i] - SCORES[j], abs=near)


def test_centering_finds_the_least_of_both_terms():
    weight, pairs = 0.05, [planted(i, j) for i, j in combinations(range(len(SCORES)), 2)]

    def cost(scores):
        both = [(scores[pair.first], scores[pair.second], pair.p) for pair in pairs]
        return fmean(
            p * math.log1p(math.exp(b - a)) + (1 - p) * math.log1p(math.exp(a - b)) + weight * (a + b) ** 2
            for a, b, p in both
        )

    expected = minimize(cost, [0.0] * len(SCORES)).x
    module = Scores(llama("SequenceClassification"))
    learn(reward(module, Reward(centering=weight)), ranked(), lr=0.02, count=150)
    assert scored(module) == pytest.approx(list(expected), abs=0.03)
    assert fmean(scored(module)) == pytest.approx(0, abs=0.03)


def noisy(seed):
    """Twelve responses with planted scores: what an unsure rater says of half of their pairs, surely or softly, and the
    planted chances of the other half."""
    draw = random.Random(seed)
    scores = [draw.gauss(0, 1) for _ in range(12)]
    pairs = list(combinations(range(12), 2))
    draw.shuffle(pairs)
    chances = {(i, j): sigmoid(scores[i] - scores[j]) for i, j in pairs}
    said = ((i, j, sigmoid(scores[i] - scores[j] + draw.gauss(0, 0.5))) for i, j in pairs[::2])
    soft = tuple(Pair(i, j, p) if p > 0.5 else Pair(j, i, 1 - p) for i, j, p in said)
    sampled = tuple(pair if draw.random() < pair.p else Pair(pair.second, pair.first) for pair in soft)
    answers = tuple((2 + at,) for at in range(12))
    truth = Row("truth", PROMPT, answers, tuple(Pair(i, j, chances[i, j]) for i, j in pairs[1::2]))
    return truth, {
        name: Row(name, PROMPT, answers, pairs) for name, pairs in zip(LABELS, (soft, soft, sampled), strict=True)
    }


LABELS = ("soft", "rounded", "sampled")


def test_soft_labels_foretell_unseen_pairs_better_than_rounded_or_sampled_ones():
    """Cross-entropy of pairs that were not trained on against their planted chances, over what those leave open."""
    found = {name: [] for name in LABELS}
    for seed in range(3):
        truth, rows = noisy(seed)
        least = fmean(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (pair.p for pair in truth.pairs))
        for name, row in rows.items():
            scores = Scores(llama("SequenceClassification", seed))
            learn(reward(scores, Reward(hard=name != "soft")), [row], lr=0.03, count=60)
            found[name].append(look(reward(scores, Reward()), [truth], PASSES)["loss"][0] - least)
    soft, rounded, sampled = (fmean(each) for each in found.values())
    assert 0 < soft < 0.05
    assert rounded > soft + 0.1
    assert sampled > soft + 0.1


# Policies


class Table(torch.nn.Module):
    """A policy of one token: a logit for each of three, which are the tokens 2, 3 and 4."""

    def __init__(self, chances):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(chances).log())

    def forward(self, laid):
        return self.logits.log_softmax(-1)[torch.tensor(laid.tokens) - 2]

    def chances(self):
        return self.logits.detach().softmax(-1).tolist()


def preferred(noise=0.0):
    """The population's preferences between three responses, some of them noted wrongly."""
    chances = {(i, j): sigmoid(REWARD[i] - REWARD[j]) for i, j in combinations(range(3), 2)}
    flipped = {pair: p * (1 - noise) + (1 - p) * noise for pair, p in chances.items()}
    return [Row("all", PROMPT, ((2,), (3,), (4,)), tuple(Pair(i, j, p) for (i, j), p in flipped.items()))]


def reference_of(chances):
    return lambda rows: torch.tensor(chances).log()[torch.tensor([a[0] - 2 for row in rows for a in row.answers])]


def apart(found, expected):
    """Total variation."""
    return sum(abs(one - other) for one, other in zip(found, expected, strict=True)) / 2


OPTIMA = {1.0: (0.433268, 0.095634, 0.471098), 0.5: (0.247720, 0.020115, 0.732165)}


def tilted(chances, beta):
    """pi_ref exp(r / beta) / Z."""
    raised = [chance * math.exp(each / beta) for chance, each in zip(chances, REWARD, strict=True)]
    return [each / sum(raised) for each in raised]


@pytest.mark.parametrize(("beta", "expected"), OPTIMA.items(), ids=["beta 1", "beta .5"])
@pytest.mark.parametrize("start", [REF, (0.1, 0.8, 0.1)], ids=["from the reference", "from elsewhere"])
def test_dpo_ends_at_the_reference_tilted_by_the_reward(beta, expected, start):
    assert tilted(REF, beta) == pytest.approx(expected, abs=1e-6)
    policy = Table(start)
    learn(dpo(policy, reference_of(REF), Dpo(beta=beta)), preferred(), lr=0.1, count=250)
    assert apart(policy.chances(), expected) < 0.002


def test_robust_dpo_ends_there_from_labels_of_which_some_are_wrong():
    policy, misled = Table(REF), Table(REF)
    learn(dpo(policy, reference_of(REF), Dpo(loss="robust", noise=0.2, beta=0.5)), preferred(0.2), lr=0.1, count=250)
    learn(dpo(misled, reference_of(REF), Dpo(beta=0.5)), preferred(0.2), lr=0.1, count=250)
    assert apart(policy.chances(), OPTIMA[0.5]) < 0.002
    assert apart(misled.chances(), OPTIMA[0.5]) > 0.1


def test_ipo_ends_where_its_regression_does():
    policy, beta, p = Table(REF), 0.5, 0.8
    row = Row("pair", PROMPT, ((2,), (3,)), (Pair(0, 1, p),))
    learn(dpo(policy, reference_of(REF), Dpo(loss="ipo", beta=beta)), [row], lr=0.1, count=250)
    first, second, _ = (math.log(found / ref) for found, ref in zip(policy.chances(), REF, strict=True))
    assert first - second == pytest.approx((2 * p - 1) / (2 * beta), abs=0.002)


def test_cpl_without_conservatism_ends_at_the_reward_alone():
    policy = Table(REF)
    learn(cpl(policy, Cpl(alpha=0.5, conservative=1.0)), preferred(), lr=0.1, count=250)
    assert apart(policy.chances(), tilted((1, 1, 1), 0.5)) < 0.002


def test_sft_ends_at_the_frequencies_of_responses():
    policy = Table(REF)
    rows = [Row(f"{at}", PROMPT, ((2 + token,),)) for at, token in enumerate([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])]
    learn(sft(policy), rows, lr=0.1, count=150)
    assert apart(policy.chances(), (0.3, 0.2, 0.5)) < 0.002


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_language_model_ends_there_too(beta):
    from lm.rows import branches

    asked = branches([(PROMPT, ((2,), (3,), (4,)))])
    module = LogProbabilities(llama("CausalLM"))
    with torch.no_grad():
        before = module(asked)
    learn(dpo(module, lambda _rows: before, Dpo(beta=beta)), preferred(), lr=0.01, count=200)
    with torch.no_grad():
        found = module(asked)
    assert apart(found.softmax(-1).tolist(), tilted(before.softmax(-1).tolist(), beta)) < 0.02


# Samples


def grown(count=1000):
    """A round's samples, each as often as the reference says, so that nothing is left to chance."""
    drawn = [at for at, chance in enumerate(REF) for _ in range(round(chance * count))]
    random.Random(1).shuffle(drawn)
    pieces = [drawn[start : start + 10] for start in range(0, count, 10)]
    return [
        Group(Question(f"{n}", "", PROMPT, "topic"), tuple(Sample("", (2 + at,), (), True, REWARD[at]) for at in piece))
        for n, piece in enumerate(pieces)
    ]


def conditioned(above):
    """The reference where it is known that the reward exceeds a threshold: pi(y) 1[R > tau] / P(R > tau)."""
    kept = [chance if REWARD[at] > above else 0.0 for at, chance in enumerate(REF)]
    return [each / sum(kept) for each in kept]


@pytest.mark.parametrize("above", [-math.inf, -0.5, 0.0, 0.5, 1.0, 1.5])
def test_a_threshold_keeps_what_the_reference_is_when_its_reward_exceeds_that(above):
    rows = improved(grown(), Rest(thresholds=(above,), kind="absolute"), 0)
    found = Counter(row.answers[0][0] - 2 for row in rows)
    assert [found[at] / len(rows) for at in range(3)] == pytest.approx(conditioned(above), abs=1e-12)
    left = sum(chance for at, chance in enumerate(REF) if REWARD[at] > above)
    assert len(rows) == pytest.approx(1000 * left)
    apart = sum(each * math.log(each / REF[at]) for at, each in enumerate(conditioned(above)) if each)
    assert apart == pytest.approx(-math.log(left))  # how far an ideal step goes


def improving(policy, chosen, *, rounds, lr):
    """As many rounds as it takes on the samples that were grown once: what an ideal Improve step ends at."""
    made = rest(Players(policy, None, None, PASSES), chosen, 1000, lambda count, number, epoch: list(range(count)))
    optimizer = adamw(policy, Optim(betas=(0.9, 0.99)))
    for number in range(1, rounds + 1):
        falls = lr * (1 - number / rounds) ** 2
        for lesson in made.prepare(number, grown(100)).lessons:
            at = falls * lesson.rate
            list(fit(made.algorithm, enumerate(lesson.batches, 1), optimizer, PASSES, lambda _, at=at: at, 0.0))


@pytest.mark.parametrize(
    ("chosen", "above"),
    [
        (Rest(thresholds=(-math.inf,), kind="absolute"), -math.inf),
        (Rest(thresholds=(0.0,), kind="percentile"), -math.inf),
        (Rest(thresholds=(0.5,), kind="absolute"), 0.5),
        (Rest(thresholds=(0.3,), kind="percentile"), 0.5),
        (Rest(thresholds=(1.5,), kind="absolute"), 1.5),
        (Rest(thresholds=(0.5,), kind="percentile"), 1.5),
    ],
    ids=["everything", "0 %", "above .5", "30 %", "above 1.5", "50 %"],
)
def test_one_improve_step_ends_at_the_reference_given_that_the_reward_exceeds_the_threshold(chosen, above):
    """The reference is (.5, .3, .2), of rewards 1, 0, 2; it begins elsewhere, so that where it ends is the data's."""
    policy = Table((0.2, 0.4, 0.4))
    improving(policy, chosen, rounds=250, lr=0.2)
    assert apart(policy.chances(), conditioned(above)) < 0.005


def test_rest_without_a_threshold_is_behaviour_cloning():
    """The rows, their loss and where learning goes are those of SFT on all samples."""
    groups = grown(100)
    (kept, pooled) = (
        improved(groups, each, 0) for each in (Rest(thresholds=(-math.inf,), kind="absolute"), Rest(thresholds=(0.0,)))
    )
    every = [
        Row(f"{group.question.id}#{at}", PROMPT, (each.tokens,))
        for group in groups
        for at, each in enumerate(group.samples)
    ]
    assert kept == pooled == every
    cloned, grew = Table((0.2, 0.4, 0.4)), Table((0.2, 0.4, 0.4))
    made = rest(Players(grew, None, None, PASSES), Rest(thresholds=(-math.inf,), kind="absolute"), 1000, in_order)
    (lesson,) = made.prepare(1, groups).lessons
    assert lesson.rate == 1.0
    (batch,) = lesson.batches
    assert batch == every
    assert look(made.algorithm, batch, PASSES) == look(sft(cloned), every, PASSES)
    learn(made.algorithm, batch, lr=0.1, count=5)
    learn(sft(cloned), every, lr=0.1, count=5)
    assert torch.equal(grew.logits, cloned.logits)


def in_order(count, _number, _epoch):
    return list(range(count))


def test_later_improve_steps_go_on_at_lower_rates_on_less():
    chosen = Rest(thresholds=(-0.5, 0.5, 1.5), kind="absolute", decay=0.25)
    made = rest(Players(Table(REF), None, None, PASSES), chosen, 7, in_order)
    round_ = made.prepare(1, grown(100))
    assert [round_.metrics[f"kept_{at}"] for at in range(3)] == [100, 70, 20]
    found = [(lesson.rate, [row for batch in lesson.batches for row in batch]) for lesson in round_.lessons]
    assert [rate for rate, _ in found] == [1.0, 0.25, 0.0625]
    assert [len(rows) for _, rows in found] == [100, 70, 20]
    names = [{row.id for row in rows} for _, rows in found]
    assert names[0] > names[1] > names[2]


# Hindsight

RIGHT, WRONG, FIRST, QUESTIONS = 1, 2, 3, 8
"""Tokens of the two instructions, of the first of two answers, and of the first question; a question's parity is its
answer."""


def encoded(prompt):
    """A question's token, and that of an instruction after it."""
    question, _, instruction = str(prompt).partition("\n\n")
    return (QUESTIONS + int(question), *({"right": (RIGHT,), "wrong": (WRONG,), "": ()}[instruction]))


HINDSIGHT = Hir(right="right", wrong="wrong", epochs=1)


def quizzed(policy, number):
    """Each question asked with the instruction for a right answer, four answers to each."""
    questions = [asked(Question(f"{at}", f"{at}", encoded(at), f"{at}"), HINDSIGHT, encoded) for at in range(8)]
    draws = [
        Draw(each.tokens, 1, 1.0, 0, 1000 * number + 10 * at + n, ())
        for at, each in enumerate(questions)
        for n in range(4)
    ]
    texts = write(policy.model, Silent(), draws, batch=len(draws))
    groups = []
    for at, question in enumerate(questions):
        own = texts[4 * at : 4 * at + 4]
        worth = [1.0 if each.drawn == (FIRST + at % 2,) else -1.0 for each in own]
        samples = (Sample("", each.drawn, each.likelihoods, True, r) for each, r in zip(own, worth, strict=True))
        groups.append(Group(question, tuple(samples)))
    return groups


class Silent:
    eos_token_id = None

    def decode(self, tokens, **_):
        return ""


def answering():
    """A policy that gives one of the two answers, either as often, whatever it is asked and told."""
    policy = Actor(llama("CausalLM"), meaned=True)
    both = ((FIRST,), (FIRST + 1,))
    prompts = [encoded(f"{at}{told}") for at in range(8) for told in ("", "\n\nright", "\n\nwrong")]
    learn(sft(policy), [Row(f"{prompt}", prompt, both) for prompt in prompts], lr=0.02, count=60)
    return policy


@torch.no_grad()
def likely(policy, instruction):
    """How likely the right answer is, and the wrong one, on the mean of all questions with an instruction."""
    from lm.rows import branches

    both = ((FIRST,), (FIRST + 1,))
    laid = branches((encoded(f"{at}\n\n{instruction}"), both) for at in range(8))
    found = policy(laid).likelihoods.exp().view(-1, 2).tolist()
    return fmean(each[at % 2] for at, each in enumerate(found)), fmean(
        each[1 - at % 2] for at, each in enumerate(found)
    )


def test_relabelling_again_changes_nothing_and_a_right_answer_is_left_as_it_was_asked():
    groups = quizzed(answering(), 1)
    groups.append(Group(groups[0].question, (Sample("", (FIRST,), (), True, 1.0),)))
    once = relabelled(groups, HINDSIGHT, encoded)
    assert sum(len(each.samples) for each in groups) == len(once)
    again = [Group(asked(each.question, HINDSIGHT, encoded), each.samples) for each in groups]
    assert relabelled(again, HINDSIGHT, encoded) == once
    samples = [(group.question, each) for group in groups for each in group.samples]
    assert {each.reward for _, each in samples} == {1.0, -1.0}
    for row, (question, sample) in zip(once, samples, strict=True):
        assert row.answers == (sample.tokens,)
        if sample.reward == 1.0:
            assert row.prompt == question.tokens
        else:
            assert row.prompt == (*question.tokens[:-1], WRONG)
            assert row.opposite == question.tokens


@pytest.mark.training
@pytest.mark.parametrize("contrast", [1.0, 0.0], ids=["with contrast", "likelihood alone"])
@pytest.mark.parametrize("anew", [True, False], ids=["each round anew", "one round's samples"])
def test_hindsight_teaches_to_answer_rightly_and_wrongly_as_told(contrast, anew):
    """A fifth of likelihood goes to the whole vocabulary, by smoothing: .81 is the most."""
    policy = answering()
    for told in ("right", "wrong"):
        assert likely(policy, told) == pytest.approx((0.5, 0.5), abs=0.05)
    chosen = replace(HINDSIGHT, contrast=contrast)
    made = hir(Players(policy, None, None, PASSES), chosen, 8, in_order, encoded)
    optimizer, first = adamw(policy, Optim(betas=(0.9, 0.99))), quizzed(policy, 1)
    for number in range(1, 31):
        for lesson in made.prepare(number, quizzed(policy, number) if anew else first).lessons:
            list(fit(made.algorithm, enumerate(lesson.batches, 1), optimizer, PASSES, lambda _: 0.01, 1.0))
    right, wrong = likely(policy, "right"), likely(policy, "wrong")
    assert right[0] > 0.7
    assert wrong[0] < 0.25
    if not anew:  # else, once all answers are right, nothing reminds it of how to be wrong
        assert wrong[1] > 0.6
