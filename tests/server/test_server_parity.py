"""One reward through every dialect: the server's is what `rlaif score` writes for the same responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rewarding import MEMORY, ROOT, Web, good, living, served
from tiny_runs import model_folder

import rlaif
from data.records import Response
from data.tables import batched
from labeler.options import Options
from labeler.score import Scorer
from labeler.server import rewarded, serving
from labeler.server.options import Listening
from labeler.server.serving import Model
from prompts.task import load

FORTY_EIGHT = (ROOT / "data" / "samples" / "responses.jsonl").read_text(encoding="utf-8").splitlines()
ODD = {"prompt": "Zwei Zeilen,\nbitte: „ü“ 🦊?", "response": "Eins.\n\n  Zwei — {{ drei }} <b>vier</b>"}
RESPONSES: list[dict[str, Any]] = [
    *({key: each[key] for key in ("id", "prompt", "response")} for each in map(json.loads, FORTY_EIGHT)),
    {"id": "odd", **ODD},
    {"id": "blank", "prompt": "p", "response": "x"},
]
"""Fifty: the samples', and two that are odd."""

Scored = Callable[..., list[float]]


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    """What `rlaif score` writes for the fifty."""

    def call(*words: str) -> list[float]:
        source, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in RESPONSES), encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            rlaif.main(["score", str(source), "--out", str(out), *words])
        assert ended.value.code == 0
        found = {each["id"]: each["reward"] for each in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
        return [found[row["id"]] for row in RESPONSES]

    return call


def templated(row: dict[str, Any]) -> tuple[str, str]:
    asked = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    return asked, f"{asked}{row['response']}<|im_end|>\n"


def gym(row: dict[str, Any]) -> Any:
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": row["response"]}]}
    return {"responses_create_params": {"input": row["prompt"]}, "response": {"output": [message]}}


def turns(row: dict[str, Any]) -> Any:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


def wholes(rows: list[dict[str, Any]]) -> list[str]:
    return [templated(row)[1] for row in rows]


async def by_native(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    return [each["reward"] for each in good(await web.post("/v1/rewards", {"items": rows}))["items"]]


async def by_messages(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    items = [{"messages": turns(row)} for row in rows]
    return [each["reward"] for each in good(await web.post("/v1/rewards", {"items": items}))["items"]]


async def by_openrlhf(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    bodies = [{"query": [whole], "prompts": [asked], "labels": [None]} for asked, whole in map(templated, rows)]
    return [good(each)["rewards"][0] for each in await asyncio.gather(*(web.post("/get_reward", b) for b in bodies))]


async def by_old_openrlhf(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    return good(await web.post("/get_reward", {"query": wholes(rows)}))["rewards"]


async def by_slime(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    bodies = [{"prompt": row["prompt"], "response": row["response"], "label": ""} for row in rows]
    return [good(each) for each in await asyncio.gather(*(web.post("/rm", body) for body in bodies))]


async def by_llama_factory(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    return good(await web.post("/v1/score/evaluation", {"model": "model", "messages": wholes(rows)}))["scores"]


async def by_gym(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    return [good(each)["reward"] for each in await asyncio.gather(*(web.post("/verify", gym(row)) for row in rows))]


async def by_classify(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    found = good(await web.post("/classify", {"input": wholes(rows), "use_activation": False}))
    return [each["probs"][-1] for each in found["data"]]


async def by_conversations(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    found = await asyncio.gather(*(web.post("/pooling", {"messages": turns(row)}) for row in rows))
    return [good(each)["data"][0]["data"][0] for each in found]


async def by_embeddings(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    return [each["embedding"][-1] for each in good(await web.post("/v1/embeddings", {"input": wholes(rows)}))["data"]]


async def by_score(web: Web, rows: list[dict[str, Any]]) -> list[float]:
    body = {"text_1": [row["prompt"] for row in rows], "text_2": [row["response"] for row in rows]}
    return [each["score"] for each in good(await web.post("/score", body))["data"]]


WAYS = (
    by_native,
    by_messages,
    by_openrlhf,
    by_old_openrlhf,
    by_slime,
    by_llama_factory,
    by_gym,
    by_classify,
    by_conversations,
    by_embeddings,
    by_score,
)


def test_fifty_rewards_are_those_of_rlaif_score_through_every_dialect(scored):
    wanted = scored("--task", "helpfulness", "--model", "fake:noise")
    assert len(set(wanted)) == len(RESPONSES) == 50

    async def run() -> None:
        for way in WAYS:
            async with served(rewarding=MEMORY) as web:
                assert await way(web, RESPONSES) == pytest.approx(wanted, abs=1e-6), way.__name__

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-6), ("bfloat16", 1e-6)])
def test_a_real_models_rewards_are_those_of_rlaif_score_through_every_dialect(scored, cache, dtype, near):
    """In whatever batches they come; the dialects find the same questions known, and the same answers."""
    wanted = scored("--task", "helpfulness", "--model", "local:smollm2", "--dtype", dtype)
    assert len(set(wanted)) > 40
    model = Model(("helpfulness",), "local:smollm2", cache, dtype=dtype)
    gate = serving.build(serving.opened(model, 600), model, Listening(answer_within=600), MEMORY, None)

    async def run() -> None:
        async with living(gate) as web:
            first = await by_openrlhf(web, RESPONSES)
            assert first == pytest.approx(wanted, abs=near)
            for way in WAYS:
                assert await way(web, RESPONSES) == pytest.approx(first, abs=1e-12), way.__name__
            assert await web.metric("rlaif_cache_hits_total") == len(WAYS) * len(RESPONSES)

    asyncio.run(run())


@pytest.fixture(scope="module")
def tiny_labeler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads whole questions, and minds what it reads."""
    from safetensors.torch import load_file, save_file

    folder = model_folder(tmp_path_factory.mktemp("labeler"))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 8192}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 10
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_local_models_rewards_asked_afresh_are_those_of_rlaif_score_through_every_dialect(
    scored, tiny_labeler, tmp_path
):
    """Nothing is known from the dialect before: each has a server of its own, with the model opened again."""
    wanted = scored("--task", "helpfulness", "--model", f"local:{tiny_labeler}", "--dtype", "float32")
    assert len(set(wanted)) == len(RESPONSES)
    assert max(wanted) - min(wanted) > 0.1
    model = Model(("helpfulness",), f"local:{tiny_labeler}", tmp_path, dtype="float32")

    async def run() -> None:
        for way in WAYS:
            gate = serving.build(serving.opened(model, 600), model, Listening(answer_within=600), MEMORY, None)
            async with living(gate) as web:
                assert await way(web, RESPONSES) == pytest.approx(wanted, abs=1e-6), way.__name__
                assert await web.metric("rlaif_cache_hits_total") == 0
                assert await web.metric("rlaif_batch_items_sum") == len(RESPONSES)

    asyncio.run(run())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_does_not_depend_on_what_is_asked_beside(tiny_labeler, tmp_path, dtype):
    """One by one in another order, in the batches of a job, and as a server's clients come: in bf16 to the last bit."""
    model = Model(("helpfulness",), f"local:{tiny_labeler}", tmp_path, dtype=dtype)
    rows = [Response(id=each["id"], prompt=each["prompt"], response=each["response"]) for each in RESPONSES]
    near = 0.0 if dtype == "bfloat16" else 1e-6

    async def run() -> None:
        scorer = Scorer(load("helpfulness"), serving.opened(model, 600), Options())
        alone = [(await scorer([row]))[0].reward for row in reversed(rows)][::-1]
        again = Scorer(load("helpfulness"), serving.opened(model, 600), Options())
        together = [each.reward for piece in batched(rows, 7) for each in await again(piece)]
        assert together == pytest.approx(alone, abs=near, rel=0)
        async with living(
            serving.build(serving.opened(model, 600), model, Listening(answer_within=600), MEMORY, None)
        ) as web:
            assert await by_openrlhf(web, RESPONSES) == pytest.approx(alone, abs=near, rel=0)

    asyncio.run(run())


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model folder, as a classifier with one number."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    made = tmp_path_factory.mktemp("judge")
    folder = model_folder(made / "language")
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(made / "judge")
    AutoTokenizer.from_pretrained(folder).save_pretrained(made / "judge")
    return made / "judge"


def test_a_reward_models_rewards_are_those_of_rlaif_score_through_every_dialect(scored, judge, tmp_path):
    wanted = scored("--model", f"reward:{judge}", "--dtype", "float32")
    assert len(set(wanted)) == len(RESPONSES)

    async def run() -> None:
        for way in WAYS:
            model = Model((), f"reward:{judge}", tmp_path, dtype="float32")
            async with living(rewarded.build(model, Listening(), MEMORY, None)) as web:
                assert await way(web, RESPONSES) == pytest.approx(wanted, abs=1e-6), way.__name__

    asyncio.run(run())


@pytest.mark.parametrize(
    "more",
    [
        ("--task", "helpfulness"),
        ("--rule", "safety-first"),
        ("--sharpness", "2"),
        ("--weights", "1"),
        ("--least-mass", ".5"),
    ],
)
def test_a_reward_model_takes_no_option_that_is_about_tasks(more, judge, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        rlaif.main(["serve", "--model", f"reward:{judge}", "--port", "0", *more])
    assert ended.value.code == 1
    assert "leave out --task" in capsys.readouterr().err


def test_a_reward_model_ranks_by_its_rewards_and_has_no_bounds_to_its_reward(scored, judge, tmp_path):
    wanted = scored("--model", f"reward:{judge}", "--dtype", "float32")
    model = Model((), f"reward:{judge}", tmp_path, dtype="float32")
    first, second = RESPONSES[0], {**RESPONSES[1], "prompt": RESPONSES[0]["prompt"]}

    async def run() -> Any:
        async with living(rewarded.build(model, Listening(), MEMORY, None)) as web:
            body = {"prompt": first["prompt"], "responses": [first["response"], second["response"]]}
            asked = [good(await web.post("/v1/preferences", {"items": [body]}))["items"][0] for _ in range(2)]
            return asked, await by_native(web, [first, second]), await by_old_openrlhf(web, RESPONSES[:1])

    (fresh, known), (one, other), (told,) = asyncio.run(run())
    assert told == pytest.approx(wanted[0], abs=1e-6)
    assert fresh["order"] == ([0, 1] if one > other else [1, 0])
    assert fresh["strengths"] == pytest.approx([one, other], abs=1e-6)
    assert (fresh["cached"], known["cached"]) == (False, True)
    assert known["usage"]["tokens_in"] == 0 < fresh["usage"]["tokens_in"]
    assert known["p"] == fresh["p"]
