"""Each framework's words in and out, as its own code sends and reads them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from rewarding import Noted, Web, good, native, row, served

from labeler.fake import RULES
from labeler.options import Options
from labeler.score import Scorer
from labeler.server.options import Rewarding
from prompts.task import load

QUESTION, ANSWER = "How do I boil an egg?", "Put it into boiling water for eight minutes."
ASKED = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
WHOLE = f"{ASKED}{ANSWER}<|im_end|>\n"
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]

AIOHTTP = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "Python/3.12 aiohttp/3.13.2"}
JSON = {"Content-Type": "application/json"}
REQUESTS = {"User-Agent": "python-requests/2.32.5", "Accept": "*/*", "Connection": "keep-alive"}


def rewarded(prompt: Any = QUESTION, response: str = ANSWER) -> float:
    """What a Scorer says, without a server."""
    scorer = Scorer(load("helpfulness"), Noted(), Options())
    (found,) = asyncio.run(scorer([row(response, prompt)]))
    return found.reward


REWARD = rewarded()


def serving(work: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with served(**options) as web:
            return await work(web)

    return asyncio.run(run())


def post(path: str, body: Any, headers: Any = None, **options: Any) -> Any:
    return good(serving(lambda web: web.post(path, body, headers=headers), **options))


def refused(path: str, body: Any, **options: Any) -> tuple[int, str]:
    reply = serving(lambda web: web.post(path, body), **options)
    return reply.status, reply.json["error"]["message"]


# Native


def test_native_items_are_answered_one_by_one_with_all_that_is_known():
    found = post("/v1/rewards", native("a", "b", prompt=QUESTION, timeout_s=60), {**AIOHTTP, **JSON})
    assert list(found) == ["model", "task", "digest", "items"]
    assert (found["model"], found["task"]) == ("fake:noise", "helpfulness")
    assert [each["id"] for each in found["items"]] == ["0", "1"]
    one = found["items"][0]
    assert one["reward"] == pytest.approx(rewarded(response="a"))
    assert one["score"] == pytest.approx((9 * one["reward"] + 11) / 2)
    assert len(one["distribution"]) == 10
    assert math.isclose(sum(one["distribution"]), 1)
    assert one["scores"] == {"helpfulness": one["score"]}
    assert (one["status"], one["source"], one["cached"], one["reason"]) == ("ok", "model", False, None)
    assert one["usage"]["tokens_in"] > 0


def test_native_takes_a_prompt_messages_or_a_whole_conversation():
    bodies = [
        {"prompt": QUESTION, "response": ANSWER},
        {"prompt": MESSAGES[:1], "response": ANSWER},
        {"messages": MESSAGES},
        {"messages": MESSAGES[:1], "response": ANSWER},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}, MESSAGES[1]]},
        {"prompt": QUESTION, "response": ANSWER, "reference": "?", "rubric": {}, "anything": 1},
    ]
    found = post("/v1/rewards", {"items": bodies})
    assert [each["reward"] for each in found["items"]] == pytest.approx([REWARD] * len(bodies))
    assert [each["id"] for each in found["items"]] == [None] * len(bodies)


def test_a_second_request_knows_the_answer_and_costs_nothing():
    async def work(web: Web) -> Any:
        return [good(await web.post("/v1/rewards", native("a")))["items"][0] for _ in range(2)]

    first, second = serving(work)
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["usage"] == {"tokens_in": 0, "tokens_out": 0}
    assert first["reward"] == second["reward"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "items"),
        ({"items": [{"prompt": "p"}]}, "items.0"),
        ({"items": [{"response": "r"}]}, "items.0"),
        ({"items": [{"messages": []}]}, "items.0"),
        ({"items": [{"messages": MESSAGES[:1]}]}, "items.0"),
        ({"items": [{"prompt": 7, "response": "r"}]}, "items.0.prompt"),
        ({"items": [], "timeout_s": 0}, "timeout_s"),
        ({"items": [], "timeout_s": -1}, "timeout_s"),
    ],
)
def test_native_says_where_a_body_is_wrong(body, place):
    status, message = refused("/v1/rewards", body)
    assert status == 422
    assert message.startswith(place), message


@pytest.mark.parametrize("count", [0, 1, 10])
def test_preferences_are_of_two_to_nine_responses(count):
    status, message = refused("/v1/preferences", {"items": [{"prompt": "p", "responses": ["r"] * count}]})
    assert status == 422
    assert message.startswith("items.0.responses")


# OpenRLHF


def test_openrlhf_sends_one_whole_text_and_gets_lists_of_numbers():
    body = {"query": [WHOLE], "prompts": [ASKED], "labels": [None]}
    found = post("/get_reward", body, {**AIOHTTP, **JSON})
    assert list(found) == ["rewards", "scores", "extra_logs"]
    assert found["rewards"] == pytest.approx([REWARD])
    assert found["scores"] == pytest.approx([(REWARD + 1) / 2])
    assert 0 <= found["scores"][0] <= 1
    for values in found["extra_logs"].values():
        assert [type(each) for each in values] == [float]


@pytest.mark.parametrize("labels", [["x"], [None], [{"a": 1}], [3.5]])
def test_openrlhfs_labels_may_be_anything(labels):
    body = {"query": [WHOLE], "prompts": [ASKED], "labels": labels}
    assert post("/get_reward", body)["rewards"] == pytest.approx([REWARD])


@pytest.mark.parametrize(
    "body",
    [
        {"query": [WHOLE, WHOLE, WHOLE], "prompts": [ASKED, ASKED, ASKED]},
        {"query": [WHOLE] * 3},
        {"query": [WHOLE] * 3, "prompts": None},
        {"query": [WHOLE[10:], WHOLE, WHOLE], "prompts": [ASKED, ASKED, "something else that is long enough"]},
    ],
)
def test_older_openrlhf_sends_batches_and_less_beside_them(body):
    found = post("/get_reward", body)
    assert found["rewards"][:2] == pytest.approx([REWARD] * 2)
    assert {len(found["rewards"]), len(found["scores"]), *map(len, found["extra_logs"].values())} == {3}


def test_of_several_urls_all_but_the_first_get_nothing_and_say_so():
    """With n URLs, ceil(1 / n) = 1 sample goes to the first; the others are asked about no sample."""
    full, *others = [{"query": q, "prompts": p, "labels": n} for q, p, n in (([WHOLE], [ASKED], [None]), ([], [], []))]

    async def work(web: Web) -> Any:
        return [good(await web.post("/get_reward", each)) for each in (full, *others)]

    with_sample, empty = serving(work)
    assert (empty["rewards"], empty["scores"]) == ([], [])
    assert set(empty["extra_logs"]) == set(with_sample["extra_logs"])


def test_openrlhf_hears_where_prompts_and_texts_are_not_as_many():
    assert refused("/get_reward", {"query": ["a", "b"], "prompts": ["a"]})[0] == 422


# LLaMA-Factory


@pytest.mark.parametrize("path", ["/v1/score/evaluation", "/"])
def test_llama_factory_sends_whole_texts_and_reads_scores(path):
    body = {"model": "model", "messages": [WHOLE, WHOLE.replace("eight", "nine")]}
    found = post(path, body, {**REQUESTS, **JSON})
    wanted = [REWARD, rewarded(response=ANSWER.replace("eight", "nine"))]
    assert found["scores"] == pytest.approx(wanted)
    assert (found["object"], found["model"]) == ("score.evaluation", "model")
    assert list(found) == ["id", "object", "model", "scores"]


def test_llama_factory_with_an_empty_buffer():
    assert post("/v1/score/evaluation", {"model": "model", "messages": []})["scores"] == []


# slime


def test_slime_gets_a_bare_number():
    for prompt in (QUESTION, MESSAGES[:1], ASKED):
        body = {"prompt": prompt, "response": f"{ANSWER}<|im_end|>", "label": None}
        found = post("/rm", body, {**AIOHTTP, **JSON})
        assert isinstance(found, float)
        assert found == pytest.approx(REWARD)


# NeMo Gym


ROLLOUT = {
    "responses_create_params": {"input": [{"role": "user", "content": QUESTION, "type": "message"}], "tools": []},
    "response": {
        "id": "resp_1",
        "object": "response",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
            },
        ],
    },
    "verifier_metadata": {"unlike": ["any", 1, None]},
}


def test_gym_gets_its_rollout_back_with_the_reward():
    found = post("/verify", ROLLOUT, {**AIOHTTP, **JSON})
    assert found.pop("reward") == pytest.approx(REWARD)
    assert found == {**ROLLOUT, "mask_sample": False}


@pytest.mark.parametrize(
    "input_", [QUESTION, [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]]
)
def test_gym_asks_with_texts_and_with_parts(input_):
    body = {**ROLLOUT, "responses_create_params": {"input": input_}}
    assert post("/verify", body)["reward"] == pytest.approx(REWARD)


def test_gyms_instructions_are_the_systems_turn():
    body = {**ROLLOUT, "responses_create_params": {"instructions": "Be short.", "input": QUESTION}}
    prompt = ({"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION})
    assert post("/verify", body)["reward"] == pytest.approx(rewarded(prompt))


def test_gym_gets_a_mark_for_a_failure_and_no_score():
    found = post("/verify", ROLLOUT, backend=Noted(rule=RULES["nan"]), rewarding=Rewarding(on_failure="skip"))
    assert found["reward"] == 0.0
    assert found["_ng_failure_class"] == "judge_failed"
    assert "nan" in found["_ng_failure_judge_error"]
    assert (found["mask_sample"], found["failure_kind"]) == (True, "judge_failed")
    assert found["failure_reason"] == found["_ng_failure_judge_error"]


@pytest.mark.parametrize(
    "body",
    [
        {"responses_create_params": {"input": 7}, "response": ROLLOUT["response"]},
        {"responses_create_params": {}, "response": ROLLOUT["response"]},
    ],
)
def test_a_rollout_without_a_prompt_is_refused(body):
    assert refused("/verify", body)[0] == 422


@pytest.mark.parametrize("output", [[], "text", [{"type": "reasoning"}]])
def test_a_rollout_that_never_came_to_its_answer_is_put_aside(output):
    body = {"responses_create_params": {"input": "x"}, "response": {"output": output}}
    found = post("/verify", body)
    assert (found["reward"], found["_ng_failure_class"]) == (0.0, "judge_failed")
    assert "no_response" in found["_ng_failure_judge_error"]


def test_a_rollout_that_failed_once_and_is_good_now_has_no_mark_left():
    marks = {"_ng_failure_class": "judge_failed", "_ng_failure_judge_error": "x", "mask_sample": True}
    found = post("/verify", {**ROLLOUT, **marks, "failure_kind": "judge_failed", "reward": 0.0})
    assert found.pop("reward") == pytest.approx(REWARD)
    assert found == {**ROLLOUT, "mask_sample": False}


def test_gyms_other_calls_are_answered():
    async def work(web: Web) -> Any:
        seeded = good(await web.post("/seed_session", {"anything": 1}))
        told = good(
            await web.post(
                "/aggregate_metrics",
                {
                    "verify_responses": [
                        {"reward": 0.5},
                        {"reward": -1},
                        {"reward": 0.0, "_ng_failure_class": "judge_failed"},
                        {"reward": "text"},
                        {"reward": 10**400},
                        {},
                    ]
                },
            )
        )
        empty = good(await web.post("/aggregate_metrics", {}))
        return seeded, told, empty, good(await web.get("/reverify_mode"))

    seeded, told, empty, mode = serving(work)
    assert (seeded, mode) == ({}, "stateless")
    assert told["agent_metrics"]["mean/reward"] == pytest.approx(-0.25)
    assert (told["agent_metrics"]["count"], told["agent_metrics"]["failed"]) == (2, 1)
    assert empty["agent_metrics"]["mean/reward"] is None


# vLLM and SGLang


def test_verls_reward_loop_reads_the_last_probability():
    found = post("/classify", {"model": "m", "input": WHOLE, "use_activation": False}, {**AIOHTTP, **JSON})
    assert found["data"][-1]["probs"][-1] == pytest.approx(REWARD)
    assert found["data"][0] == {
        "index": 0,
        "label": "LABEL_0",
        "probs": [found["data"][0]["probs"][0]],
        "num_classes": 1,
    }
    assert list(found) == ["id", "object", "created", "model", "data", "usage"]
    assert (found["object"], found["model"]) == ("list", "m")


def test_verl_on_sglang_reads_the_last_embedding():
    found = post("/v1/embeddings", {"model": "m", "input": WHOLE})
    assert found["data"][-1]["embedding"][-1] == pytest.approx(REWARD)


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
@pytest.mark.parametrize(
    "body",
    [{"input": [WHOLE, WHOLE]}, {"input": WHOLE}, {"messages": MESSAGES}, {"input": MESSAGES}, {"input": []}],
    ids=["texts", "text", "messages", "turns", "none"],
)
def test_a_classifier_is_asked_in_every_way(path, body):
    found = post(path, body)
    assert [each["probs"] for each in found["data"]] == [[pytest.approx(REWARD)]] * len(found["data"])
    assert [each["index"] for each in found["data"]] == list(range(len(found["data"])))


def test_pooling_has_its_own_names():
    found = post("/pooling", {"input": [WHOLE]})
    assert found["data"] == [{"index": 0, "object": "pooling", "data": [pytest.approx(REWARD)]}]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"text_1": QUESTION, "text_2": ANSWER}, 1),
        ({"text_1": QUESTION, "text_2": [ANSWER, ANSWER]}, 2),
        ({"text_1": [QUESTION, QUESTION], "text_2": [ANSWER, ANSWER]}, 2),
        ({"queries": QUESTION, "documents": [ANSWER]}, 1),
        ({"queries": [QUESTION], "items": ANSWER}, 1),
        ({"text_1": QUESTION, "text_2": []}, 0),
    ],
)
def test_scores_are_of_one_with_one_one_with_many_and_many_with_many(path, body, count):
    found = post(path, body)
    assert [each["score"] for each in found["data"]] == [pytest.approx(REWARD)] * count


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}),
        ("/score", {"text_1": "a"}),
        ("/classify", {}),
        ("/classify", {"messages": MESSAGES[:1]}),
        ("/classify", {"messages": []}),
    ],
)
def test_what_cannot_be_meant_is_refused(path, body):
    assert refused(path, body)[0] == 422


def test_what_a_prompt_begins_of_the_response_is_judged_on_every_wire():
    """A template that opens a thought: the same rollout has the same reward, whether it comes whole or apart."""
    asked, said = ASKED + "<think>\n", "So be it.</think>Eight minutes."

    async def work(web: Web) -> Any:
        whole = await web.post("/get_reward", {"query": [asked + said], "prompts": [asked], "labels": [None]})
        apart = await web.post("/rm", {"prompt": asked, "response": said, "label": None})
        pair = await web.post("/score", {"text_1": asked, "text_2": said})
        return good(whole)["rewards"][0], good(apart), good(pair)["data"][0]["score"]

    wanted = rewarded(response="<think>\n" + said)
    assert serving(work) == pytest.approx((wanted,) * 3)


def test_preferences_are_the_first_tasks_and_say_so():
    body = {"items": [{"prompt": "p", "responses": ["a", "b"]}]}

    async def work(web: Web) -> Any:
        return good(await web.post("/v1/preferences", body)), good(await web.post("/v1/rewards", native("a")))

    both, rewards = serving(work, tasks=("helpfulness", "harmlessness"))
    one, _ = serving(work)
    assert (both["task"], rewards["task"]) == ("helpfulness", "helpfulness + harmlessness")
    assert both["digest"] == one["digest"] != rewards["digest"]
    assert both["items"][0]["p"] == one["items"][0]["p"]


def test_the_digest_is_the_scores_own_until_the_reward_is_made_of_more():
    from labeler.server.options import Rewarding

    def told(**more: Any) -> str:
        return post("/v1/rewards", native("a"), rewarding=Rewarding(kept="memory", **more))["digest"]

    plain = Scorer(load("helpfulness"), Noted(), Options()).digest
    assert told() == plain
    assert len({plain, told(clip=(-0.5, 0.5)), told(sharpness=0.5)}) == 3


# All of them


BODIES: dict[str, Callable[[str], Any]] = {
    "/v1/rewards": lambda text: native(text),
    "/v1/preferences": lambda text: {"items": [{"prompt": "p", "responses": [text, "other"]}]},
    "/get_reward": lambda text: {"query": [ASKED + text], "prompts": [ASKED], "labels": [None]},
    "/rm": lambda text: {"prompt": "p", "response": text, "label": None},
    "/v1/score/evaluation": lambda text: {"model": "model", "messages": [ASKED + text]},
    "/classify": lambda text: {"input": ASKED + text},
    "/v1/embeddings": lambda text: {"input": ASKED + text},
    "/pooling": lambda text: {"input": ASKED + text},
    "/score": lambda text: {"text_1": "p", "text_2": text},
    "/verify": lambda text: {
        "responses_create_params": {"input": "p"},
        "response": {"output": [{"type": "message", "role": "assistant", "content": text}]},
    },
}


def keys(value: Any) -> Any:
    """The names in an answer, at every depth."""
    if isinstance(value, dict):
        return {name: keys(each) if name not in {"scores", "usage"} else None for name, each in value.items()}
    return [keys(each) for each in value] if isinstance(value, list) and value and isinstance(value[0], dict) else None


@pytest.mark.parametrize("path", BODIES)
def test_the_names_in_an_answer_are_the_same_fresh_known_and_replaced(path):
    """verl and OpenRLHF take the first sample's names for all."""

    def rule(request: Any) -> Any:
        return RULES["nan" if "BAD" in request.prompt.plain() and len(request.options) == 10 else "noise"](request)

    async def work(web: Web) -> Any:
        return [good(await web.post(path, BODIES[path](text))) for text in ("good", "good", "BAD")]

    policy = Rewarding(on_failure="fallback", fallback="fake:uniform", kept="memory")
    fresh, known, replaced = serving(work, backend=Noted(rule=rule), rewarding=policy)
    assert keys(fresh) == keys(known) == keys(replaced)


def test_a_failed_item_has_the_same_names_as_a_good_one():
    def rule(request: Any) -> Any:
        return RULES["nan" if "BAD" in request.prompt.plain() else "noise"](request)

    found = post("/v1/rewards", native("a", "BAD"), backend=Noted(rule=rule))["items"]
    assert list(found[0]) == list(found[1])


@pytest.mark.parametrize("path", BODIES)
def test_a_retried_body_asks_the_model_once(path):
    """OpenRLHF tries 5 times, slime 10, verl 16: while the first try is on its way, and after it."""

    async def run() -> None:
        backend = Noted(let=asyncio.Event())
        async with served(backend) as web:
            tasks = [asyncio.create_task(web.post(path, BODIES[path]("unheard-of"))) for _ in range(16)]
            await backend.begun.wait()
            assert backend.let is not None
            backend.let.set()
            found = [good(each) for each in await asyncio.gather(*tasks)]
            found.append(good(await web.post(path, BODIES[path]("unheard-of"))))
        assert backend.about("unheard-of") == (2 if path == "/v1/preferences" else 1), "a pair is asked in both orders"
        assert len({json.dumps(each.get("data") if isinstance(each, dict) else each) for each in found[:-1]}) == 1

    asyncio.run(run())


@pytest.mark.parametrize("path", BODIES)
def test_a_caller_who_hangs_up_and_asks_again_gets_the_answer_of_the_first_try(path):
    """A client's own timeout, while the model answers already."""

    async def run() -> None:
        backend, gone = Noted(let=asyncio.Event()), asyncio.Event()
        assert backend.let is not None
        backend.let.set()
        async with served(backend) as web:
            while (await web.get("/ready")).status != 200:
                await asyncio.sleep(0.001)
            backend.let.clear()
            first = asyncio.create_task(web.post(path, BODIES[path]("unheard-of"), gone=gone))
            while not backend.about("unheard-of"):
                await asyncio.sleep(0.001)
            gone.set()
            assert (await first).status == 0
            again = asyncio.create_task(web.post(path, BODIES[path]("unheard-of")))
            await asyncio.sleep(0.01)
            backend.let.set()
            assert good(await again)
        assert backend.about("unheard-of") == (2 if path == "/v1/preferences" else 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=utf-8"}]
)
@pytest.mark.parametrize("path", BODIES)
def test_a_body_is_json_whatever_its_header_says(path, headers):
    assert good(serving(lambda web: web.post(path, BODIES[path]("x"), headers=headers)))


def test_a_prompt_that_was_cut_is_told_and_counted():
    long = "a very long story " * 1000

    async def work() -> None:
        async with served(Noted(limit=6000)) as web:
            items = [{"prompt": each, "response": "r"} for each in (long, "short")]
            told = good(await web.post("/v1/rewards", {"items": items}))["items"]
            assert [each["truncated"] for each in told] == [True, False]
            body = {"query": [f"{long}r", "shortr"], "prompts": [long, "short"]}
            logs = good(await web.post("/get_reward", body))["extra_logs"]
            assert logs["judge_truncated"] == [1.0, 0.0]
            assert await web.metric("rlaif_truncated_total") == 2
            items = [{"prompt": each, "responses": ["r", "s"]} for each in (long, "short")]
            told = good(await web.post("/v1/preferences", {"items": items}))["items"]
            assert [each["truncated"] for each in told] == [True, False]
            assert await web.metric("rlaif_truncated_total") == 3

    asyncio.run(work())
