"""OpenAI's chat completions: what is asked, what is refused and how it is said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from provider_answers import Answer, Question, hidden_tokens, sealed, tokens_of
from provider_caches import Caches
from provider_faults import STATUS, retry_headers
from provider_replies import RefusedError, Reply, json_reply
from provider_schema import openai_objection
from provider_settings import CONTENT, LOGPROBS, Settings

WIRE = "openai"

CREATED = 1_767_225_600

KNOWN = frozenset(
    re.findall(
        r"\w+",
        "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens "
        "max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key "
        "prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed "
        "service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user "
        "verbosity web_search_options",
    )
)

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))

CATALOG = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4o-split", "gpt-4o-lowmass", "gpt-5-mini", "o4-mini", "vllm-llama")

QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)


def key_of(headers: Mapping[str, str]) -> str:
    return headers.get("Authorization", "").removeprefix("Bearer ")


def check_key(headers: Mapping[str, str], settings: Settings) -> str:
    """The API key, or a refusal."""
    key = key_of(headers)
    if not key:
        raise RefusedError(
            401,
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY).",
        )
    if settings.keys and key not in settings.keys:
        masked = key if len(key) <= 12 else key[:8] + "*" * (len(key) - 12) + key[-4:]
        message = f"Incorrect API key provided: {masked}. You can find your API key at "
        message += "https://platform.openai.com/account/api-keys."
        raise RefusedError(401, message, code="invalid_api_key")
    return key


def check_model(model: str, settings: Settings) -> None:
    if model not in settings.models if settings.models else model.startswith("missing"):
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise RefusedError(404, message, code="model_not_found")


def is_reasoning(model: str) -> bool:
    return re.match(r"gpt-5|o\d", model) is not None


def read(body: Any, settings: Settings, headers: Mapping[str, str] | None = None) -> Question:
    """The question in a request's body. Raises RefusedError."""
    if not isinstance(body, dict):
        raise RefusedError(400, "We could not parse the JSON body of your request. The API expects a JSON payload.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedError(400, "you must provide a model parameter")
    if not body.get("messages"):
        raise _missing("messages")
    _check_arguments(body, model)
    check_model(model, settings)
    if body.get("stream"):
        raise RefusedError(400, "The stand-in does not stream.", param="stream", code="unsupported_value")
    text, last, characters, role = _messages(body["messages"])
    question = Question(model, text, last, tokens_of(characters))
    _options(question, body)
    if is_reasoning(model):
        _check_reasoning(body)
    question.continues = body.get("continue_final_message") is True and role == "assistant"
    _check_context(question, settings)
    sealed(question, WIRE, body.get("user"))
    if is_reasoning(model):
        question.hidden = hidden_tokens(question.digest, body.get("reasoning_effort"))
    return question


def content_faults(question: Question) -> tuple[str, ...]:
    return CONTENT if question.logprobs else tuple(name for name in CONTENT if name not in LOGPROBS)


def body_of(question: Question, answers: Sequence[Answer], caches: Caches, settings: Settings) -> dict[str, Any]:
    cached = caches.leading(question.model, question.text)
    if question.tokens_in < settings.cache_minimum:
        cached = 0
    spent = sum(answer.tokens for answer in answers)
    reasoning = sum(min(question.hidden, answer.tokens) for answer in answers)
    return {
        "id": f"chatcmpl-{question.key}",
        "object": "chat.completion",
        "created": CREATED,
        "model": question.model,
        "choices": [_choice(question, answer, index) for index, answer in enumerate(answers)],
        "usage": {
            "prompt_tokens": question.tokens_in,
            "completion_tokens": spent,
            "total_tokens": question.tokens_in + spent,
            "prompt_tokens_details": {"cached_tokens": min(cached, question.tokens_in), "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": "fp_stand_in",
    }


def error_body(refused: RefusedError, request_id: str = "") -> dict[str, Any]:
    error = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
    return {"error": error}


def refusal(refused: RefusedError, request_id: str) -> Reply:
    return json_reply(error_body(refused), {"x-request-id": request_id, **refused.headers}, status=refused.status)


def id_header(request_id: str) -> dict[str, str]:
    return {"x-request-id": request_id}


def fault_error(name: str, settings: Settings) -> RefusedError:
    """The refusal that a fault of this name is."""
    headers = retry_headers(settings, name)
    if name == "quota":
        return RefusedError(
            429, QUOTA, "insufficient_quota", code="insufficient_quota", headers={"x-should-retry": "false"}
        )
    if name not in STATUS:
        return limited("Rate limit reached for requests. Please try again later.", "requests", headers)
    if name == "http_500":
        message = "The server had an error while processing your request. Sorry about that!"
    else:
        message = "The server is currently overloaded with other requests. Sorry about that! Please retry later."
    return RefusedError(STATUS[name], message, "server_error", headers=headers)


def limited(message: str, kind: str, headers: Mapping[str, str]) -> RefusedError:
    return RefusedError(429, message, kind, code="rate_limit_exceeded", headers=headers)


def too_fast(model: str, unit: str, limit: int, used: int, wanted: int, wait: float | None) -> RefusedError:
    """`unit` is "requests" or "tokens"; a request that never fits (`wait` None) has no time to try again."""
    short = "RPM" if unit == "requests" else "TPM"
    if wait is None:
        message = f"Request too large for {model} in organization org-stand-in on {unit} per min ({short}): "
        return limited(f"{message}Limit {limit}, Requested {wanted}.", unit, {})
    message = f"Rate limit reached for {model} in organization org-stand-in on {unit} per min ({short}): "
    message += f"Limit {limit}, Used {used}, Requested {wanted}. Please try again in {duration(wait)}."
    headers = {"retry-after": str(-int(-wait // 1)), "retry-after-ms": str(-int(-wait * 1000 // 1))}
    return limited(message, unit, headers)


def limit_headers(rows: Sequence[tuple[str, int, int, float]]) -> dict[str, str]:
    """`rows`: unit, limit, what is left, seconds until it is full again."""
    found: dict[str, str] = {}
    for unit, limit, left, wait in rows:
        found[f"x-ratelimit-limit-{unit}"] = str(limit)
        found[f"x-ratelimit-remaining-{unit}"] = str(left)
        found[f"x-ratelimit-reset-{unit}"] = duration(wait)
    return found


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{seconds // 60:.0f}m{seconds % 60:.0f}s"


def model_body(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "stand-in"}


def models_body(names: Sequence[str]) -> dict[str, Any]:
    return {"object": "list", "data": [model_body(name) for name in names]}


def _choice(question: Question, answer: Answer, index: int) -> dict[str, Any]:
    logprobs = None
    if question.logprobs and answer.positions is not None:
        logprobs = {"content": [_position(question, each) for each in answer.positions], "refusal": None}
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": answer.refusal, "annotations": []},
        "logprobs": logprobs,
        "finish_reason": "length" if answer.finish == "length" else "stop",
    }


def _position(question: Question, position: Any) -> dict[str, Any]:
    return {
        "token": position.token,
        "logprob": position.logprob,
        "bytes": _bytes(position.token),
        "top_logprobs": [
            {"token": token, "logprob": log, "bytes": _bytes(token)} for token, log in position.top[: question.top]
        ],
    }


@cache
def _bytes(token: str) -> list[int]:
    return list(token.encode())


def _missing(name: str) -> RefusedError:
    return RefusedError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _check_arguments(body: dict[str, Any], model: str) -> None:
    if model.startswith("vllm-"):
        if body.get("continue_final_message") and body.get("add_generation_prompt", True):
            message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            raise RefusedError(400, message, "BadRequestError", code=400)
    elif not KNOWN.issuperset(body):
        unknown = sorted(set(body) - KNOWN)
        plural = "s" if len(unknown) > 1 else ""
        raise RefusedError(400, f"Unrecognized request argument{plural} supplied: {', '.join(unknown)}")


def _messages(messages: Any) -> tuple[str, str, int, str]:
    """All text, the last message's text, the number of characters of content, the last role."""
    parts: list[str] = []
    characters, role, text = 0, "", ""
    for at, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            supported = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"
            message = f"Invalid value: '{role}'. Supported values are: {supported}."
            raise RefusedError(400, message, param=f"messages[{at}].role", code="invalid_value")
        if isinstance(content, str):
            text = content
        elif content is None and role == "assistant":
            text = ""
        elif isinstance(content, list) and all(isinstance(part.get("text"), str) for part in content):
            text = "".join(part["text"] for part in content)
        else:
            message = f"Invalid type for 'messages[{at}].content': expected one of a string or array of objects."
            raise RefusedError(400, message, param=f"messages[{at}].content", code="invalid_type")
        characters += len(text)
        parts += ("\x1e", role, "\x1f", text)
    return "".join(parts), text, characters, role


def _options(question: Question, body: dict[str, Any]) -> None:
    limit = body.get("max_completion_tokens")
    if limit is not None and body.get("max_tokens") is not None:
        message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise RefusedError(400, message, code="invalid_parameter_combination")
    _number(body, "max_tokens", 1, 2**31)
    _number(body, "max_completion_tokens", 1, 2**31)
    question.max_tokens = body.get("max_tokens") if limit is None else limit
    question.n = _number(body, "n", 1, 128) or 1
    temperature = _number(body, "temperature", 0, 2)
    question.temperature = 1.0 if temperature is None else float(temperature)
    question.seed = body.get("seed")
    question.logprobs = bool(body.get("logprobs"))
    question.top = _number(body, "top_logprobs", 0, 20) or 0
    if body.get("top_logprobs") is not None and not question.logprobs:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise RefusedError(400, message, param="top_logprobs")
    stop = body.get("stop") or ()
    question.stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(question.stop) > 4 and not question.model.startswith("vllm-"):
        message = "Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with "
        message += f"length {len(question.stop)} instead."
        raise RefusedError(400, message, param="stop", code="array_above_max_length")
    question.schema = _schema(body.get("response_format"), question.text)


def _number(body: dict[str, Any], name: str, low: float, high: float) -> Any:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        message = f"Invalid type for '{name}': expected a number, but got a {type(value).__name__} instead."
        raise RefusedError(400, message, param=name, code="invalid_type")
    if low <= value <= high:
        return value
    kind = "decimal" if name == "temperature" else "integer"
    side, sign, bound = ("above maximum", "<=", high) if value > high else ("below minimum", ">=", low)
    message = f"Invalid '{name}': {kind} {side} value. Expected a value {sign} {bound}, but got {value} instead."
    code = f"{kind}_{side.replace(' maximum', '_max').replace(' minimum', '_min')}_value"
    raise RefusedError(400, message, param=name, code=code)


def _schema(wanted: Any, text: str) -> dict[str, Any] | None:
    kind = (wanted or {}).get("type")
    if kind == "json_object":
        if "json" not in text.lower():
            message = "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
            raise RefusedError(400, f"{message}'json_object'.", param="messages")
        return {"type": "object", "properties": {"answer": {"type": "string", "enum": ["1", "2"]}}}
    if kind != "json_schema":
        return None
    named = wanted["json_schema"]
    schema = named.get("schema", {})
    objection = openai_objection(named.get("name", ""), schema) if named.get("strict") else None
    if objection:
        raise RefusedError(400, objection, param="response_format")
    return schema


def _check_reasoning(body: dict[str, Any]) -> None:
    for name in ("logprobs", "top_logprobs"):
        if body.get(name):
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise RefusedError(400, message, param=name, code="unsupported_parameter")
    if body.get("max_tokens") is not None:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. "
        message += "Use 'max_completion_tokens' instead."
        raise RefusedError(400, message, param="max_tokens", code="unsupported_parameter")
    if body.get("temperature") not in (None, 1):
        message = f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. "
        message += "Only the default (1) value is supported."
        raise RefusedError(400, message, param="temperature", code="unsupported_value")
    if body.get("stop"):
        message = "Unsupported parameter: 'stop' is not supported with this model."
        raise RefusedError(400, message, param="stop", code="unsupported_parameter")


def _check_context(question: Question, settings: Settings) -> None:
    tokens, asked, limit = question.tokens_in, question.max_tokens or 0, settings.context
    if tokens + asked <= limit:
        return
    message = f"This model's maximum context length is {limit} tokens. However, "
    if tokens > limit:
        message += f"your messages resulted in {tokens} tokens. Please reduce the length of the messages."
    else:
        message += f"you requested {tokens + asked} tokens ({tokens} in the messages, {asked} in the completion). "
        message += "Please reduce the length of the messages or completion."
    raise RefusedError(400, message, param="messages", code="context_length_exceeded")
