"""`rlaif train`: a run from words to a model that anyone can load, and what goes wrong in one line."""

from __future__ import annotations

import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from tiny_runs import told
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lm.branches import LogProbabilities, Scores
from trainer import commands, curves, reference

KINDS = ("sft", "reward", "dpo", "cpl")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """No picture, and no threads: a tiny model has nothing to share out."""
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    return tiny_runs.written(tmp_path / "votes.jsonl", tiny_runs.compared(40))


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    rows = [
        {**row, "prompt": f"Tell me: {row['prompt']}", "responses": row["responses"][:2]}
        for row in tiny_runs.compared(9)
    ]
    return tiny_runs.written(tmp_path / "heldout.jsonl", rows)


@pytest.fixture
def words(tiny: Path, votes: Path) -> list[object]:
    short = ("--optim.steps", 4, "--optim.batch", 5, "--optim.lr", 3e-3)
    return ["--data.train", votes, "--model.name", tiny, "--run.out", "run", *short]


def measured(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("[optim]\nlrr = 0.1\n", "--optim.lr"),
        ("[optm]\nlr = 0.1\n", "--optim.lr"),
        ("[algorithm]\nbetta = 0.1\n", "--algorithm.beta"),
        ("[model]\nlora_rank = 4\n", "--model.lora"),
        ("[run]\noutt = 'here'\n", "--run.out"),
    ],
)
def test_a_misspelt_field_of_the_file_is_a_usage_error_that_knows_the_right_one(cli, words, written, meant):
    Path("run.toml").write_text(written)
    said = cli("train", "dpo", *words, "--config", "run.toml")
    assert (said.status, said.out) == (2, "")
    assert f"Did you mean {meant}?" in " ".join(said.err.replace("│", " ").split())
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--optim.lrr", "--optim.lr"),
        ("--optm.lr", "--optim.lr"),
        ("--algorithm.bta", "--algorithm.beta"),
        ("--run.sed", "--run.seed"),
    ],
)
def test_a_misspelt_option_is_a_usage_error_that_knows_the_right_one(cli, words, word, meant):
    said = cli("train", "dpo", *words, word, 1)
    assert (said.status, said.out) == (2, "")
    assert f"Did you mean {meant}?" in " ".join(said.err.replace("│", " ").split())


@pytest.mark.parametrize(
    "asked",
    [
        ("train", "dpo", "--run.out", "run"),
        ("train", "dpo", "--data.train", "votes.jsonl"),
        ("train", "orpo", "--data.train", "votes.jsonl", "--run.out", "run"),
        ("train", "grpo", "--data.train", "votes.jsonl", "--run.out", "run"),
        ("train", "dpo", "--data.train", "votes.jsonl", "--run.out", "run", "--algorithm.loss", "kto"),
        ("train", "dpo", "--data.train", "votes.jsonl", "--run.out", "run", "--optim.batch", "many"),
        ("train", "sft", "--data.train", "votes.jsonl", "--run.out", "run", "--algorithm.beta", "0.1"),
    ],
)
def test_what_is_missing_or_no_value_is_a_usage_error(cli, votes, asked):
    said = cli(*asked)
    assert (said.status, said.out) == (2, "")
    assert "Traceback" not in said.err


TIES = [{**row, "votes": [{"choice": "tie"}]} for row in tiny_runs.compared(5)]
LONG = [{**row, "responses": ["a " * 300, "b " * 299]} for row in tiny_runs.compared(5)]


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("--config none.toml", "--config none.toml: no such file"),
        ("--config .", "--config .: is a folder; expected a TOML file"),
        ("--config votes.jsonl", "--config votes.jsonl: not TOML: "),
        ("--config latin.toml", "--config latin.toml: not TOML: "),
        ("--data.train none.jsonl", "none.jsonl: no such file"),
        ("--data.train empty.jsonl", "empty.jsonl: the file is empty"),
        ("--data.train ties.jsonl", "ties.jsonl: no row to learn from: 5 x an exact tie, or nobody said which"),
        (
            "--data.train long.jsonl",
            "no row is left to train on: a response alone has 256 tokens or more (data.max_tokens)",
        ),
        (
            "--data.train long.jsonl --data.max-tokens 50",
            "train on: a response alone has 50 tokens or more (data.max_tokens)",
        ),
        ("--data.max-response 1", "no row is left to train on: a response has more than 1 tokens (data.max_response)"),
        ("--data.heldout votes.jsonl", "data.heldout: all of its prompts are in data.train too"),
        ("--data.limit 0", "data.limit must be at least 1"),
        ("--model.name none", "none: no such model; expected smollm2, a model folder, or a hub id like owner/name"),
        ("--model.name ./none", "./none: no such model"),
        ("--model.device cuda:77", "model.device cuda:77: cannot be used here; expected auto, cpu or cuda"),
        (
            "--model.lora 4 --model.lora-targets query",
            "such a name; it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        ),
        ("--model.lora-dropout 0.1", "model.lora_* say how adapters are made, but model.lora is 0"),
        ("--model.freeze 3", "model.freeze 3: the model has 3 layers; leave at least one to train"),
        ("--optim.lr -1", "optim.lr -1: expected more than 0"),
        ("--optim.warmup 1", "optim.warmup and optim.floor are parts of a whole"),
        ("--run.keep 0", "run.keep must be at least 1"),
        ("--algorithm.margins column", "algorithm.margins = 'column' needs a column `margin`; no row has one"),
        (
            "--run.out votes.jsonl/run",
            "votes.jsonl/run: cannot be made or written: not a directory; choose another --run.out",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1_and_no_run(cli, lines, words, asked, complaint):
    lines(TIES, "ties.jsonl")
    lines(LONG, "long.jsonl")
    lines([], "empty.jsonl")
    Path("latin.toml").write_bytes(b'[data]\ntrain = "\xe9.jsonl"\n')
    name, *more = asked.split()
    given = [word for at, word in enumerate(words) if name not in (word, words[at - 1])]
    assert complaint in cli("train", "reward", *given, name, *more).complaint
    assert not Path("run").exists()


def test_rows_that_are_too_long_are_told_of_and_the_others_learned_from(cli, words, lines):
    said = cli("train", "reward", *words[2:], "--data.train", lines([*LONG[:2], *tiny_runs.compared(40)[5:]]), "--json")
    assert (said.status, told(said.err)) == (3, ["2 rows failed; see run/failures.jsonl"])
    assert (said.json["rows"] + said.json["heldout_rows"], said.json["failed"]) == (35, 2)
    failed = [json.loads(line) for line in Path("run/failures.jsonl").read_text().splitlines()]
    assert {row["id"] for row in failed} == {"row 0", "row 1"}


def test_labels_of_two_jobs_do_not_mix(cli, words, lines):
    lines([{**row, "responses": row["responses"][:2]} for row in tiny_runs.compared(6)], "plain.jsonl")
    said = cli("label", "plain.jsonl", "--task", "helpfulness", "--model", "fake:noise", "--out", "labels.jsonl")
    assert said.status == 0
    labels = [json.loads(line) for line in Path("labels.jsonl").read_text().splitlines()]
    lines([{**each, "digest": f"job {at % 2}"} for at, each in enumerate(labels)], "mixed.jsonl")
    asked = ("--data.train", "plain.jsonl", *words[2:], "--data.labels")
    complaint = cli("train", "reward", *asked, "mixed.jsonl").complaint
    assert "mixed.jsonl: holds labels of 2 jobs that do not mix: job 0 (helpfulness by fake:noise); job 1" in complaint
    assert cli("train", "reward", *asked, "labels.jsonl", "--json").json["rows"] == 5


def test_a_models_path_may_be_long(cli, words, tiny, tmp_path):
    """What the reference said is kept in a file that has the model's name."""
    deep = shutil.copytree(tiny, tmp_path.joinpath(*["a folder with a name of some length"] * 7))
    said = cli("train", "dpo", *words[:2], *words[4:], "--model.name", deep)
    assert (said.status, told(said.err)) == (0, [])
    assert [each.suffix for each in (tmp_path / "cache/rlaif/reference").iterdir()] == [".parquet"]


def test_without_torch_it_says_what_to_install(cli, words, monkeypatch):
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "torch" else "here")
    assert cli("train", "sft", *words).complaint == ("rlaif: training needs torch: pip install 'rlaif-service[train]'")


@pytest.fixture
def ran(cli, words) -> Any:
    """`ran("reward", ...)`: the JSON object that a run ends with, the only line that it says."""

    def call(kind: str, *more: object) -> Any:
        said = cli("train", kind, *words, *more, "--json")
        assert (said.status, told(said.err)) == (0, [])
        return said.json

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_all_that_its_folder_promises(ran, heldout, kind):
    found = ran(kind, "--data.heldout", heldout)
    assert (found["out"], found["updates"], found["stopped"]) == ("run", 4, False)
    assert (found["rows"], found["heldout_rows"], found["unusable"]) == (40, 9, 0)
    assert found["accuracy"] is None or 0 <= found["accuracy"]["low"] <= found["accuracy"]["value"] <= 1
    assert (found["accuracy"] is None) == (kind == "sft")
    assert sorted(each.name for each in Path("run").iterdir()) == [
        "card.md", "checkpoints", "config.toml", "failures.jsonl", "metrics.jsonl", "model",
    ]  # fmt: skip
    card = Path("run/card.md").read_text()
    for each in (
        *Path("run/config.toml").read_text().split("\n"),
        "40, and 9 held out",
        "4 updates on 40 rows",
        "votes.jsonl",
    ):
        assert each in card
    first, last = (line["heldout"] for line in (measured(Path("run"))[0], measured(Path("run"))[-1]))
    assert last["loss"] < first["loss"]
    assert last == found["heldout"]


def test_a_process_of_its_own_draws_the_curves_and_says_one_line(process, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = process("-m", "rlaif", "train", "dpo", *words, "--json", OMP_NUM_THREADS="1")
    assert (said.status, told(said.err)) == (0, [])
    assert said.json["updates"] == 4
    assert Path("run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "![curves](curves.png)" in Path("run/card.md").read_text()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("reward", ("--algorithm.centering", 0.01, "--algorithm.hard", "--model.freeze", 1, "--optim.betas", 0.8, 0.9)),
        ("dpo", ("--algorithm.cached=false", "--model.lora", 2, "--model.lora-targets", "q_proj", "v_proj")),
        ("sft", ("--algorithm.responses", "all", "--data.limit", 30, "--run.seed", 3)),
    ],
)
def test_config_toml_makes_the_same_run_again(cli, ran, words, kind, more):
    ran(kind, *more)
    said = cli("train", kind, "--config", "run/config.toml", "--run.out", "again", "--json")
    assert (said.status, told(said.err)) == (0, [])
    assert measured(Path("run")) == measured(Path("again"))
    first, second = (Path(run, "model/model.safetensors").read_bytes() for run in ("run", "again"))
    assert first == second
    known, same = (Path(run, "config.toml").read_text() for run in ("run", "again"))
    assert known == same.replace('out = "again"', 'out = "run"')


def test_without_json_a_person_is_told(cli, words):
    said = cli("train", "reward", *words)
    assert (said.status, told(said.err)) == (0, [])
    first, second, *_, last = said.out.splitlines()
    assert first.startswith("4 updates on 36 rows; the model is that of update ")
    assert second.startswith("held-out accuracy ")
    assert second.endswith(", by the votes in the file")
    assert last == "the model: run/model"


def asked(row: dict[str, Any], tokenizer: Any) -> str:
    turns = [{"role": "user", "content": row["prompt"]}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def likelihoods(model: Any, tokenizer: Any, row: dict[str, Any], response: str) -> torch.Tensor:
    """Log-probabilities of a response's tokens, by a model of transformers."""
    before = tokenizer(asked(row, tokenizer), add_special_tokens=False).input_ids
    after = tokenizer(f"{response}<|end|>", add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1)[range(len(after)), after]


def test_a_reward_model_is_one_of_transformers(ran, heldout):
    """Its stock class loads it and reads whole conversations, padded: its scores are those that the run measured."""
    found = ran("reward", "--data.heldout", heldout)
    model = AutoModelForSequenceClassification.from_pretrained("run/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    assert (model.config.num_labels, model.config.pad_token_id) == (1, tokenizer.pad_token_id)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.reward_bias == pytest.approx(-found["heldout"]["mean_score"])
    right, means = [], []
    for row in map(json.loads, heldout.read_text().splitlines()):
        texts = [f"{asked(row, tokenizer)}{response}<|end|>" for response in row["responses"]]
        inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            scores = model(**inputs).logits[:, 0].tolist()
        best = row["votes"][0]["choice"]
        right.append(scores[best] > scores[1 - best])
        means.append(sum(scores) / 2)
    assert found["accuracy"]["value"] == sum(right) / 9
    assert found["heldout"]["mean_score"] == pytest.approx(sum(means) / 9, abs=1e-5)


ADAPTED = ("--model.lora", 4, "--model.lora-targets", "q_proj", "lm_head", "embed_tokens")


@pytest.mark.parametrize("more", [(), ("--model.lora", 4), ADAPTED], ids=["whole", "adapters", "adapters on the ends"])
def test_a_fine_tuned_model_is_one_of_transformers(ran, heldout, more):
    found = ran("sft", "--data.heldout", heldout, *more)
    model = AutoModelForCausalLM.from_pretrained("run/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    total = count = 0
    for row in map(json.loads, heldout.read_text().splitlines()):
        likely = likelihoods(model, tokenizer, row, row["responses"][row["votes"][0]["choice"]])
        total -= float(likely.sum())
        count += len(likely)
    assert found["heldout"]["loss"] == pytest.approx(total / count, abs=1e-5)
    assert Path("run/adapter/adapter_model.safetensors").is_file() == bool(more)


@pytest.fixture
def poisoned(tiny: Path, tmp_path: Path) -> Path:
    return tiny_runs.poisoned(tiny, tmp_path / "poisoned")


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_no_number_names_its_row_and_leaves_the_checkpoint_before(cli, lines, heldout, poisoned, kind):
    rows = tiny_runs.compared(40)
    rows[17]["prompt"] += " ~"
    asked = ("--data.heldout", heldout, "--model.name", poisoned, "--optim.batch", 5, "--run.seed", 2)
    asked += ("--run.out", "run", "--run.save-every", 1, "--run.keep", 9)
    words = ("train", kind, "--data.train", lines(rows), *asked)
    said = cli(*words)
    assert (said.status, told(said.err)) == (1, ["rlaif: the loss is not a number; rows: row 17"])
    kept = sorted(each.name for each in Path("run/checkpoints").iterdir())
    assert kept == [f"{at:08d}" for at in range(1, len(kept) + 1)]
    assert 0 < len(kept) < 8
    for file in Path("run/checkpoints").rglob("weights.safetensors"):
        learned = {name: each for name, each in load_file(file).items() if "embed" not in name}
        assert all(bool(each.isfinite().all()) for each in learned.values())
    assert [line["update"] for line in measured(Path("run")) if "loss" in line] == list(range(1, len(kept) + 1))
    assert not Path("run/model").exists()
    lines(tiny_runs.compared(40))  # mended, and so another run
    (complaint,) = told(cli(*words, "--resume").err)
    assert f"checkpoints/{kept[-1]}: was made from data " in complaint
    assert "with other data, or another model, a run cannot go on; begin another --run.out" in complaint


def test_held_out_rows_without_a_loss_are_named(cli, words, lines, poisoned):
    rows = [{**row, "prompt": f"Tell me: {row['prompt']}"} for row in tiny_runs.compared(9)]
    for at in (2, 5):
        rows[at]["prompt"] += " ~"
    said = cli("train", "reward", *words[:2], *words[4:], "--model.name", poisoned, "--data.heldout", lines(rows))
    assert said.complaint == "rlaif: the held-out loss is not a number; rows: row 2, row 5"


def test_adapters_on_the_ends_of_a_tied_model_are_refused(cli, words, tmp_path):
    tied = tiny_runs.model_folder(tmp_path / "tied", tied=True)
    complaint = cli("train", "sft", *words[:2], *words[4:], "--model.name", tied, *ADAPTED).complaint
    assert complaint.startswith("rlaif: model.lora_targets lm_head embed_tokens: the embedding and the head ")
    assert not Path("run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_rows_of_which_none_fits_are_an_error_that_names_their_file(cli, words, lines, kind):
    apart = lines([{**row, "prompt": f"Tell me: {row['prompt']}"} for row in LONG], "apart.jsonl")
    assert cli("train", kind, *words, "--data.heldout", apart).complaint == (
        f"rlaif: {apart}: no row is left to evaluate on: a response alone has 256 tokens or more (data.max_tokens)"
    )
    assert not Path("run").exists()


NONE = "no row is held out to evaluate on (a tenth of so few prompts is none; --data.heldout FILE is)"


@pytest.mark.parametrize("kind", KINDS)
def test_of_few_prompts_none_is_held_out_which_is_told(cli, words, lines, kind):
    said = cli("train", kind, *words[2:], "--data.train", lines(tiny_runs.compared(4)), "--json")
    assert (said.status, said.err.splitlines()) == (0, [NONE])
    assert (said.json["rows"], said.json["heldout_rows"], said.json["updates"]) == (4, 0, 4)
    assert (said.json["heldout"], said.json["accuracy"], said.json["before"]) == ({}, None, None)
    assert [line["update"] for line in measured(Path("run"))] == [1, 2, 3, 4]
    assert Path("run/model/model.safetensors").is_file()


@pytest.mark.parametrize(("count", "held"), [(5, 0), (6, 1)])
def test_a_tenth_of_six_prompts_is_one(cli, words, lines, count, held):
    said = cli("train", "sft", *words[2:], "--data.train", lines(tiny_runs.compared(count)), "--json")
    assert (said.status, told(said.err)) == (0, [] if held else [NONE])
    assert said.json["heldout_rows"] == held


@pytest.mark.parametrize(("more", "most"), [((), 256), (("--data.max-tokens", 100), 100)], ids=["context", "set"])
def test_prompts_that_lose_their_beginning_are_counted(cli, words, lines, heldout, more, most):
    rows = tiny_runs.compared(40)
    for at in (3, 17, 30):
        rows[at]["prompt"] = "question number " * 99 + rows[at]["prompt"]
    apart = [json.loads(line) for line in heldout.read_text().splitlines()]
    apart[5]["prompt"] = "question number " * 99 + apart[5]["prompt"]
    files = ("--data.train", lines(rows), "--data.heldout", lines(apart, "apart.jsonl"))
    said = cli("train", "dpo", *words[2:], *files, *more, "--json")
    assert said.status == 0
    assert told(said.err) == [f"4 prompts lost their beginning, to fit into {most} tokens (data.max_tokens)"]
    assert (said.json["rows"], said.json["heldout_rows"]) == (40, 9)


@pytest.fixture
def permuted(tiny: Path, tmp_path: Path) -> Path:
    """The same model with another tokenizer: as large, but two of its tokens have each other's number."""
    place = tmp_path / "permuted"
    shutil.copytree(tiny, place)
    known = json.loads((place / "tokenizer.json").read_text())
    numbers = known["model"]["vocab"]
    numbers["a"], numbers["b"] = numbers["b"], numbers["a"]
    (place / "tokenizer.json").write_text(json.dumps(known))
    return place


@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_reference_with_another_tokenizer_is_refused_before_any_update(cli, words, permuted, tmp_path, cached):
    asked = ("train", "dpo", *words, f"--algorithm.cached={cached}")
    assert cli(*asked, "--algorithm.reference", permuted).complaint == (
        f"rlaif: algorithm.reference {permuted}: has another tokenizer than the model: the same text is other tokens to"
        " it"
    )
    assert not Path("run/metrics.jsonl").exists()
    assert not Path("run/checkpoints").exists()
    assert not (tmp_path / "cache/rlaif/reference").exists()


def test_what_is_mended_after_a_wrong_reference_can_be_started(cli, words, permuted):
    assert cli("train", "dpo", *words, "--algorithm.reference", permuted).status == 1
    assert cli("train", "dpo", *words).status == 0


def short_of_memory(*_: object, **__: object) -> None:
    """As torch says it on a CPU."""
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 99 bytes. Error code 12 (not enough memory)"
    )


FORWARD: dict[type, Any] = {each: each.forward for each in (Scores, LogProbabilities)}


def in_training(self: Any, *given: Any) -> Any:
    return short_of_memory() if self.training else FORWARD[type(self)](self, *given)


def in_looks(self: Any, *given: Any) -> Any:
    return FORWARD[type(self)](self, *given) if self.training else short_of_memory()


PLACES = {
    "the optimizer's first step": ("reward", torch.optim.AdamW, "step", short_of_memory),
    "the forward pass": ("reward", Scores, "forward", in_training),
    "the backward pass": ("cpl", torch.Tensor, "backward", short_of_memory),
    "a look": ("reward", Scores, "forward", in_looks),
    "the reference": ("dpo", LogProbabilities, "forward", in_looks),
    "the reference at an update": ("dpo --algorithm.cached=false", reference, "totals", short_of_memory),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_machine_without_enough_memory_says_what_to_change(cli, words, monkeypatch, place):
    kind, owner, name, instead = PLACES[place]
    monkeypatch.setattr(owner, name, instead)
    said = cli("train", *kind.split(), *words, "--run.tokens", 300)
    assert (said.status, said.out) == (1, "")
    (complaint,) = told(said.err)
    assert re.fullmatch(
        r"rlaif: out of memory on cpu with \d+ tokens at once: give a smaller --run\.tokens \(now 300\),"
        r" --model\.checkpointing, or --model\.lora 16; the last checkpoint stays",
        complaint,
    )


def test_what_is_no_lack_of_memory_is_not_called_so(cli, words, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: torch.ones(2) @ torch.ones(3))
    assert "memory" not in cli("train", "reward", *words).err


def test_dpo_tells_that_the_chosen_response_became_less_likely_though_the_loss_falls(cli, words, lines, tiny):
    """The rejected response says the chosen one's words more often: what makes it unlikely makes both so."""
    chosen, rejected = "never go away", "away go never away go never away go never away go never away go never"
    rows = [
        {"prompt": f"{at}: is it good?", "responses": [chosen, rejected], "votes": [{"choice": 0}]} for at in range(4)
    ]
    files = ("--data.train", lines(rows[:3], "train.jsonl"), "--data.heldout", lines(rows[3:], "heldout.jsonl"))
    steady = ("--optim.steps", 8, "--optim.lr", 1e-3, "--optim.warmup", 0, "--run.evaluate-every", 8)
    said = cli("train", "dpo", *words[2:6], *files, *steady)
    assert said.status == 0, said.err
    found = [line for line in measured(Path("run")) if "loss" in line]
    assert len(found) == 8
    for before, after in pairwise(found):
        assert after["loss"] < before["loss"]
        assert after["logp_chosen"] < before["logp_chosen"]
        assert after["logp_rejected"] - before["logp_rejected"] < after["logp_chosen"] - before["logp_chosen"]
    # The numbers are those of transformers, of the model before and of the one that was written.
    looks = [line["heldout"] for line in measured(Path("run")) if "heldout" in line]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for look, place in zip(looks, (tiny, "run/model"), strict=True):
        model = AutoModelForCausalLM.from_pretrained(place).eval()
        for name, response in (("logp_chosen", chosen), ("logp_rejected", rejected)):
            assert look[name] == pytest.approx(float(likelihoods(model, tokenizer, rows[3], response).sum()), abs=1e-3)
    assert looks[1]["logp_chosen"] < looks[0]["logp_chosen"] - 1
    assert looks[1]["loss"] < looks[0]["loss"]


def numbers(run: Path) -> dict[tuple[str, int], float]:
    """What metrics.jsonl has, by name and update; seconds are nobody's but its own."""
    found: dict[tuple[str, int], float] = {}
    for line in measured(run):
        side, told = ("heldout", line["heldout"]) if "heldout" in line else ("train", line)
        found |= {(f"{side}/{name}", line["update"]): value for name, value in told.items() if name != "update"}
    return found


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_tensorboard_has_the_numbers_of_the_run(ran, kind):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ran(kind, "--run.tensorboard", "--run.evaluate-every", 2)
    events = EventAccumulator("run/tensorboard", size_guidance={"scalars": 0}).Reload()
    found = {(tag, each.step): each.value for tag in events.Tags()["scalars"] for each in events.Scalars(tag)}
    assert sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"]) == len(found)
    expected = numbers(Path("run"))
    assert {("train/loss", 4), ("train/lr", 1), ("heldout/accuracy", 0), ("heldout/loss", 4)} <= expected.keys()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_weights_and_biases_has_the_numbers_of_the_run(ran, monkeypatch):
    logged: list[tuple[int, dict[str, float]]] = []
    begun: list[dict[str, Any]] = []
    stand_in: Any = ModuleType("wandb")

    def init(**given: Any) -> Any:
        begun.append(given)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)))

    stand_in.init = init
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    ran("reward", "--run.wandb", "judges", "--run.evaluate-every", 2)
    (given,) = begun
    assert (given["project"], given["name"], given["dir"]) == ("judges", "run", "run")
    steps = [step for step, _ in logged]
    assert steps == sorted(steps)  # it throws away what comes later of an earlier step
    found = {(name, step): value for step, values in logged for name, value in values.items()}
    assert sum(len(values) for _, values in logged) == len(found)
    assert found == numbers(Path("run"))


@pytest.mark.parametrize(
    ("asked", "missing", "said"),
    [
        (("--run.wandb", "judges"), "wandb", "rlaif: run.wandb needs it: pip install wandb"),
        (("--run.tensorboard",), "torch.utils.tensorboard", "rlaif: run.tensorboard needs it: pip install tensorboard"),
    ],
)
def test_a_tracker_that_is_not_installed_is_one_line(cli, words, monkeypatch, asked, missing, said):
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli("train", "reward", *words, *asked).complaint == said


@pytest.mark.parametrize("more", [(), *((kind,) for kind in KINDS)], ids=["train", *KINDS])
def test_help_needs_no_torch_and_names_the_sections(process, without_torch, more):
    said = process("-m", "rlaif", "train", *more, "--help", PYTHONPATH=without_torch)
    assert (said.status, said.err) == (0, "")
    for section in ("data", "model", "optim", "run", *(["algorithm"] if more else [])):
        assert f"--{section}." in said.out if more else f"[{section}]" in said.out
    if not more:
        assert all(f"│ {kind} " in said.out for kind in KINDS)
