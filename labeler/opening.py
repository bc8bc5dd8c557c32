"""Which backend does a model's name mean? A new backend is one new file and one `case` here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labeler.backend import Backend, BackendError
from labeler.batches import Desk
from labeler.options import Limits
from labeler.prices import Price, listed
from labeler.spending import Spending

LISTING = """\
local:smollm2          SmolLM2-135M-Instruct, embedded: offline, on a CPU; far too small to be trusted
local:DIR              a Hugging Face model folder, through transformers and torch
local:OWNER/NAME       a model of the Hugging Face hub, or of its local cache
vllm:DIR-or-OWNER/NAME the same models through vLLM in this process (also vllm:smollm2)
openai:NAME            OpenAI, with the key in OPENAI_API_KEY
openai:NAME --base-url URL   any server that speaks its protocol: vLLM, SGLang, llama.cpp, LM Studio, ...
anthropic:NAME         Anthropic, with the key in ANTHROPIC_API_KEY; no log-probabilities, so it votes
litellm:PROVIDER/NAME  what else LiteLLM can reach (pip install 'rlaif-service[litellm]')
reward:DIR             a reward model that `rlaif train reward` made (RUN/model), for score and serve
fake:RULE              no model: first, second, longer, noise, uniform, nan; to try out what is around a model"""


@dataclass(frozen=True)
class Reach:
    """Where a remote model is, with which keys (by provider, from the environment), how fast, at what price."""

    base_url: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    limits: Limits = field(default_factory=Limits)
    price: Price | None = None
    spending: Spending = field(default_factory=Spending)


def open_backend(
    name: str, *, cache: Path, dtype: str, device: str, reach: Reach | None = None, batch: bool = False
) -> Backend:
    """The backend behind `KIND:NAME`, at the price that it has in a `batch` or else.

    Raises BackendError, or ModelError where a local model cannot be loaded.
    """
    reach = reach or Reach()
    kind, _, rest = name.partition(":")
    if is_reward_model(name):
        raise BackendError(f"--model {name}: a reward model scores single responses: `rlaif score`, `rlaif serve`")
    if not rest:
        raise BackendError(f"--model {name}: expected KIND:NAME, for example local:smollm2 (`rlaif models` lists them)")
    if reach.base_url is not None and kind in HERE:
        raise BackendError(f"--base-url: {name} runs in this process; a server's model is openai:NAME")
    match kind:
        case "local":
            need("local", "torch transformers", "local models")
            from labeler.local import open_local

            return open_local(rest, cache=cache, dtype=dtype, device=device)
        case "vllm":
            need("vllm", "vllm", "vLLM models")
            from labeler.vllm import open_vllm

            return open_vllm(rest, cache=cache, dtype=dtype)
        case "openai":
            from labeler.openai import open_openai

            return open_openai(
                rest,
                base_url=reach.base_url,
                key=reach.keys.get("openai"),
                limits=reach.limits,
                spending=reach.spending,
                price=reach.price or (listed("openai", rest, batch=batch) if reach.base_url is None else None),
            )
        case "anthropic":
            from labeler.anthropic import open_anthropic

            return open_anthropic(
                rest,
                base_url=reach.base_url,
                key=reach.keys.get("anthropic"),
                limits=reach.limits,
                spending=reach.spending,
                price=reach.price or listed("anthropic", rest, batch=batch),
            )
        case "litellm":
            need("litellm", "litellm", "LiteLLM's models")
            from labeler.litellm import open_litellm

            return open_litellm(
                rest,
                base_url=reach.base_url,
                secrets=tuple(reach.keys.values()),
                limits=reach.limits,
                spending=reach.spending,
                price=reach.price,
            )
        case "fake":
            from labeler.fake import open_fake

            return open_fake(rest)
        case _:
            raise BackendError(f"--model {name}: unknown kind {kind!r}; `rlaif models` lists what there is")


REWARD = "reward:"
"""Begins the name of a trained reward model, which scores and is asked no question: no backend."""


def is_reward_model(name: str) -> bool:
    return name.startswith(REWARD)


HERE = ("local", "vllm", "fake")
KINDS = (*HERE, "openai", "anthropic", "litellm")


def known(name: str) -> None:
    """Raises BackendError for a name that no backend has, without opening one."""
    kind, _, rest = name.partition(":")
    if kind not in KINDS or not rest:
        raise BackendError(f"--model {name}: expected KIND:NAME with KIND one of {', '.join(KINDS)} (`rlaif models`)")
    if kind == "fake":
        from labeler.fake import open_fake

        open_fake(rest)


def open_desk(name: str, reach: Reach) -> Desk:
    """Where the provider behind `KIND:NAME` takes batches. Raises BackendError."""
    kind, _, model = name.partition(":")
    if kind not in {"openai", "anthropic"} or not model:
        raise BackendError(f"--batch --model {name}: only openai:NAME and anthropic:NAME have batches")
    need("batch", kind, "batches")
    price = reach.price or (listed(kind, model, batch=True) if reach.base_url is None else None)
    key = reach.keys.get(kind)
    if kind == "openai":
        from labeler import openai, openai_batches

        chat = openai.open_openai(model, base_url=reach.base_url, key=key, limits=reach.limits, price=price)
        url = reach.base_url or openai.OFFICIAL
        return openai_batches.open_desk(chat.name, chat.identity, chat.chat, url, reach.limits, key or "none")
    from labeler import anthropic, anthropic_batches

    messages = anthropic.open_anthropic(model, base_url=reach.base_url, key=key, limits=reach.limits, price=price)
    url = reach.base_url or anthropic.OFFICIAL
    named = (messages.name, messages.identity, messages.dialect)
    return anthropic_batches.open_desk(*named, url, reach.limits, key or "none")


def need(extra: str, packages: str, what: str) -> None:
    """Raises BackendError where packages of an extra are not installed."""
    from importlib.util import find_spec

    missing = [package for package in packages.split() if find_spec(package) is None]
    if missing:
        raise BackendError(f"{what} need {' and '.join(missing)}: pip install 'rlaif-service[{extra}]'")
