"""What do others make of it? TRL finds the same losses and gradients, transformers the same scores of what we wrote."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.branches import LogProbabilities, Scores
from lm.chat import Encoder
from trainer import folder, reference
from trainer.config import Config, Data, Dpo, Model, Optim, Reward, Run
from trainer.dpo import dpo
from trainer.examples import Example, Pair
from trainer.loop import Algorithm, Passes, fit
from trainer.pairs import laid_out
from trainer.reward import reward
from trainer.rows import Row, encode
from trainer.run import train
from trainer.running import Around
from trainer.sft import sft

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed here: make test-clients"),
]

CLOSE, SAME = 1e-5, 1e-6
VOCABULARY = 211
PASSES = Passes(torch.device("cpu"), tokens=64)
"""So few tokens at once that an update takes several passes."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several cost these tiny products more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama(kind: str = "CausalLM", **more: Any) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **{"initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, **more},
    )
    torch.manual_seed(7)
    return getattr(transformers, f"LlamaFor{kind}")(config)


def perturbed(model: Any, by: float = 0.02, *, seed: int = 8) -> Any:
    """A reference that the policy has gone some way from."""
    found = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for each in found.parameters():
            each.add_(by * torch.randn_like(each))
    return found


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, VOCABULARY), k=count))


def rows() -> list[Row]:
    """Ragged pairs, the better one first or second: one prompt twice, answers that begin alike, one within another."""
    long, alike = tokens(30, 1), tokens(7, 2)
    return [
        Row("longer", tokens(17, 3), (tokens(9, 4), tokens(4, 5)), (Pair(0, 1, margin=0.5),)),
        Row("one token", tokens(3, 6), (tokens(1, 7), tokens(12, 8)), (Pair(1, 0),)),
        Row("alike", long, (alike + tokens(3, 9), alike + tokens(5, 10)), (Pair(0, 1, margin=1.0),)),
        Row("same prompt", long, (tokens(5, 11), tokens(11, 12)), (Pair(1, 0, margin=0.25),)),
        Row("short prompt", tokens(1, 13), (tokens(6, 14), tokens(3, 15)), (Pair(0, 1),)),
        Row("within", tokens(9, 16), (alike, alike[:4]), (Pair(0, 1, margin=2.0),)),
    ]


def ranked() -> list[Row]:
    """Two prompts with three answers each, every pair compared."""
    pairs = (Pair(2, 0, margin=0.5), Pair(2, 1), Pair(0, 1, margin=1.0))
    return [Row(str(at), tokens(9 + at, at), tuple(tokens(k, at + k) for k in (3, 8, 5)), pairs) for at in (20, 40)]


def compared(found: Sequence[Row]) -> list[dict[str, Any]]:
    """What DPOTrainer takes for them, a pair each."""
    return [
        {
            "prompt_ids": row.prompt,
            "chosen_ids": row.answers[pair.first],
            "rejected_ids": row.answers[pair.second],
        }
        for row in found
        for pair in row.pairs
    ]


@pytest.fixture(scope="module")
def causal() -> Any:
    return llama()


def words(**special: str) -> Any:
    """A tokenizer of words that stand for their number; `special` says what the first three are for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<a>", "<b>", "<c>", *(f"w{at}" for at in range(3, VOCABULARY))]
    made = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<b>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return words(pad_token="<a>", unk_token="<b>", eos_token="<c>")


@dataclass(frozen=True)
class Found:
    """A loss, and its gradient by each parameter."""

    loss: float
    gradients: Mapping[str, Tensor]

    def agrees(self, other: Found, scale: float = 1.0) -> None:
        assert self.gradients.keys() == other.gradients.keys()
        apart = {name: float((each - other.gradients[name]).abs().max()) for name, each in self.gradients.items()}
        largest = max(float(each.abs().max()) for each in self.gradients.values())
        far = abs(self.loss - other.loss)
        print(f"loss {self.loss:.7g} apart {far:.2g}; gradients up to {largest:.3g} apart {max(apart.values()):.2g}")
        assert largest > 1e-4
        assert far <= CLOSE * scale
        assert max(apart.values()) <= CLOSE * scale, max(apart, key=lambda name: apart[name])


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def ours(aim: Algorithm, batch: Sequence[Row]) -> Found:
    """What an update of the loop hands to its optimizer."""
    model, seen = aim.module.model, {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.update(gradients(model)))
    (update,) = fit(aim, [(1, batch)], optimizer, PASSES, lambda _: 0.0, clip=0.0)
    return Found(update.metrics["loss"], seen)


@pytest.fixture
def theirs(tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """TRL's trainer of a kind, for rows that are tokens already."""
    import trl
    from datasets import Dataset

    class DPO(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    kinds = {
        "dpo": (DPO, trl.DPOConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "sft": (trl.SFTTrainer, trl.SFTConfig),
    }

    def make(kind: str, model: Any, examples: list[dict[str, Any]], *, reference: Any = None, **own: Any) -> Any:
        trainer, config = kinds[kind]
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        args = config(output_dir=str(tmp_path), max_length=None, **quiet, **own)
        more = {} if reference is None else {"ref_model": copy.deepcopy(reference)}
        rows = Dataset.from_list(examples)
        return trainer(copy.deepcopy(model), args=args, train_dataset=rows, processing_class=tokenizer, **more)

    return make


def asked(trainer: Any, **more: Tensor) -> Found:
    """TRL's own loss of all of its rows as one batch."""
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, {**trainer.data_collator(list(trainer.train_dataset)), **more})
    loss.backward()
    return Found(loss.item(), gradients(trainer.model))


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(
    ("config", "own"),
    [
        pytest.param(Dpo(loss="sigmoid"), {"loss_type": "sigmoid"}, id="sigmoid"),
        pytest.param(Dpo(loss="robust", noise=0.1), {"loss_type": "robust", "label_smoothing": 0.1}, id="robust"),
        pytest.param(Dpo(loss="hinge"), {"loss_type": "hinge"}, id="hinge"),
        pytest.param(Dpo(loss="ipo-averaged"), {"loss_type": "ipo"}, id="ipo"),
    ],
)
@pytest.mark.parametrize("batch", [rows(), ranked()], ids=["pairs", "ranked"])
def test_dpo_is_trls(causal, theirs, tmp_path, batch, config, own, beta):
    config = replace(config, beta=beta)
    far = perturbed(causal)
    known = reference.cached(LogProbabilities(copy.deepcopy(far)), batch, PASSES, tmp_path / "known", lambda _: None)
    found = ours(dpo(LogProbabilities(copy.deepcopy(causal)), known, config), batch)
    wanted = asked(theirs("dpo", causal, compared(batch), reference=far, beta=beta, **own))
    # IPO is about (1 / 2 beta)^2, its slope 1 / beta: around 2500 neighbouring fp32 numbers are 2e-4 apart
    found.agrees(wanted, scale=1 / beta if own["loss_type"] == "ipo" and beta < 0.1 else 1.0)


def test_noise_and_soft_labels_are_trls_smoothed_loss(causal, theirs):
    """Of one pair alone its optimal transport is DPO with smoothed labels; its sigmoid takes none."""
    far = perturbed(causal)
    for row in rows()[:3]:
        (pair,) = row.pairs
        soft = [replace(row, pairs=(replace(pair, p=0.9),))]
        trainer = theirs("dpo", causal, compared([row]), reference=far, beta=0.1, loss_type="aot", label_smoothing=0.1)
        wanted = asked(trainer)
        for batch, config in (([row], Dpo(noise=0.1)), (soft, Dpo())):
            known = reference.online(LogProbabilities(copy.deepcopy(far)), PASSES)
            ours(dpo(LogProbabilities(copy.deepcopy(causal)), known, config), batch).agrees(wanted)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_simpo_is_trls_averaged_loss_with_its_margin_as_the_reference(causal, theirs, beta):
    batch, gamma = rows(), 0.5
    trainer = theirs("dpo", causal, compared(batch), reference=perturbed(causal), beta=beta, loss_type="sigmoid_norm")
    trainer.precompute_ref_logps = True
    lengths = torch.tensor([len(each["chosen_ids"]) for each in compared(batch)])
    wanted = asked(trainer, ref_chosen_logps=lengths * gamma / beta, ref_rejected_logps=torch.zeros(len(lengths)))
    config = Dpo(loss="simpo", beta=beta, gamma=gamma)
    ours(dpo(LogProbabilities(copy.deepcopy(causal)), None, config), batch).agrees(wanted)


@pytest.mark.parametrize(
    ("config", "margins", "own"),
    [
        pytest.param(Reward(), False, {}, id="plain"),
        pytest.param(Reward(margins="column"), True, {}, id="margins"),
        pytest.param(Reward(centering=0.01), False, {"center_rewards_coefficient": 0.01}, id="centered"),
    ],
)
@pytest.mark.parametrize("batch", [rows(), ranked()], ids=["pairs", "ranked"])
def test_the_reward_model_is_trls(theirs, batch, config, margins, own):
    model = llama("SequenceClassification", num_labels=1)
    examples = [
        {
            "chosen_ids": row.prompt + row.answers[pair.first],
            "rejected_ids": row.prompt + row.answers[pair.second],
            **({"margin": pair.margin} if margins else {}),
        }
        for row in batch
        for pair in row.pairs
    ]
    if not margins:
        batch = [replace(row, pairs=tuple(replace(pair, margin=0.0) for pair in row.pairs)) for row in batch]
    found = ours(reward(Scores(copy.deepcopy(model)), config), batch)
    found.agrees(asked(theirs("reward", model, examples, **own)))


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_sft_is_trls_loss_of_completions(theirs, tied):
    model, batch = llama(tie_word_embeddings=tied), rows()
    examples = [
        {"input_ids": row.prompt + each, "completion_mask": [0] * len(row.prompt) + [1] * len(each)}
        for row in batch
        for each in row.answers
    ]
    found = ours(sft(LogProbabilities(copy.deepcopy(model))), batch)
    found.agrees(asked(theirs("sft", model, examples, completion_only_loss=True)))


def said(count: int, seed: int) -> str:
    return " ".join(f"w{each}" for each in tokens(count, seed))


TEXTS = [
    {"prompt": said(2 + at, at), "chosen": said(9 - at, at + 50), "rejected": said(1 + at, at + 90)} for at in range(8)
]


def trained(start: Path, out: Path, asked: Sequence[Row], monkeypatch: pytest.MonkeyPatch, lora: int) -> Tensor:
    """Train a reward model and write it; what it said of the rows' answers, just before it was written."""
    kept: list[Tensor] = []
    export = folder.export

    def exported(place: Path, model: Any, tokenizer: Any) -> Path:
        with torch.no_grad():
            kept.append(Scores(model.eval())(laid_out(asked)))
        return export(place, model, tokenizer)

    monkeypatch.setattr(folder, "export", exported)
    source = start / "train.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in TEXTS))
    config = Config(
        algorithm=Reward(),
        data=Data(train=str(source)),
        run=Run(out=out),
        model=Model(name=str(start), device="cpu", lora=lora),
        optim=Optim(lr=1e-3, batch=4, epochs=2),
    )

    def interval(found: Sequence[float], _: Sequence[str]) -> Mapping[str, Any]:
        return {"value": fmean(found), "n": len(found)}

    train(config, Around(start, interval, print, "0"), resume=False)
    (scores,) = kept
    return scores


PAD_UNK_END = {"pad_token": "<a>", "unk_token": "<b>", "eos_token": "<c>"}


@pytest.mark.parametrize(
    ("special", "ends", "lora"),
    [
        pytest.param(PAD_UNK_END, 2, 0, id="padding"),
        pytest.param({"pad_token": "<c>", "unk_token": "<b>", "eos_token": "<c>"}, 2, 0, id="padding is the end"),
        pytest.param({"unk_token": "<a>", "bos_token": "<a>", "eos_token": "<a>"}, 0, 0, id="one special token"),
        pytest.param(PAD_UNK_END, [2, 1], 0, id="several ends"),
        pytest.param(PAD_UNK_END, 2, 4, id="adapters"),
    ],
)
def test_transformers_scores_as_we_do(tmp_path, monkeypatch, special, ends, lora):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    made = words(**special)
    llama(eos_token_id=ends, initializer_range=0.05).save_pretrained(tmp_path / "start")
    made.save_pretrained(tmp_path / "start")
    examples = [Example(str(at), each["prompt"], (each["chosen"], each["rejected"])) for at, each in enumerate(TEXTS)]
    encoded = encode(examples, Encoder(made), most=200, response=None, failures=[])
    asked = [f"{each['prompt']} {each[kind]} {made.eos_token}" for each in TEXTS for kind in ("chosen", "rejected")]
    assert made(asked).input_ids == [[*row.prompt, *answer] for row in encoded for answer in row.answers]
    wanted = trained(tmp_path / "start", tmp_path / "out", encoded, monkeypatch, lora)
    assert float(wanted.std()) > 0.05

    place = tmp_path / "out" / folder.MODEL
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    for side in ("left", "right"):
        reader = AutoTokenizer.from_pretrained(place, padding_side=side)
        padded = reader(asked, padding=True, return_tensors="pt")
        assert int(padded.attention_mask[:, 0 if side == "left" else -1].sum()) < len(asked)
        with torch.no_grad():
            found = model(**padded).logits.squeeze(-1)
        piped = pipeline("text-classification", str(place), tokenizer=reader, function_to_apply="none")
        scores = torch.tensor([each["score"] for each in piped(asked, batch_size=5)])
        apart = [float((each - wanted).abs().max()) for each in (found, scores)]
        print(
            f"scores {wanted.min():.3g} to {wanted.max():.3g}, apart {apart[0]:.2g}, through a pipeline {apart[1]:.2g}"
        )
        assert max(apart) <= SAME
