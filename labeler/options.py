"""What may be said about a job: how the model is asked, how the job runs, how a server is reached.

These are the command line's options too: rlaif.py shows their names, defaults and docstrings as they stand here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data.errors import RlaifError

MOST_VOTES = 100
MOST_SAMPLES = 9
"""Responses of a comparison."""

Rung = Literal["logprobs", "votes", "stated"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the model is asked: options that change the answers, and so make another job."""

    needs: Rung | None = None
    """How likelihoods are made. Default: logprobs where the model tells them, else votes; stated: in its own words."""
    votes: int = 5
    """Answers sampled for each question where the model tells no log-probabilities (or with --needs votes)."""
    shots: int = 0
    """Exemplars shown before the question, as many as the task file has at most."""
    cot: bool = False
    """Have the model write a rationale first, then choose (chain of thought)."""
    samples: int = 1
    """Rationales per order, averaged (self-consistency; with --cot)."""
    one_order: bool = False
    """Ask in the given order only: half the cost, and position bias goes into the labels."""
    temperature: float | None = None
    """Of rationales. Default: 0 for one sample, 0.7 for several."""
    top_k: int = 40
    """Tokens that a sampled rationale may choose from; 0 for all."""
    max_rationale: int = 512
    """Most tokens of a rationale."""
    clamp: tuple[float, float] | None = None
    """Keep chain-of-thought labels between two probabilities (Constitutional AI: 0.4 0.6)."""
    seed: int = 0
    """Of sampled rationales, and of drawn principles."""
    constitution: str | None = None
    """Draw a principle for each comparison, in place of the task's preamble: default, or the path of your own .toml."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_rationale < 1 or self.shots < 0 or self.top_k < 0:
            raise RlaifError("--samples and --max-rationale must be at least 1, --shots and --top-k at least 0")
        if not 1 <= self.votes <= MOST_VOTES:
            raise RlaifError(f"--votes {self.votes}: expected 1 to {MOST_VOTES}")
        if self.samples > 1 and not self.cot:
            raise RlaifError(
                "--samples needs --cot: it averages over rationales, and without them all samples are equal"
            )
        if self.clamp is not None and not 0 <= self.clamp[0] < 0.5 < self.clamp[1] <= 1:
            raise RlaifError("--clamp expects LOW HIGH with 0 <= LOW < 0.5 < HIGH <= 1, for example 0.4 0.6")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise RlaifError(f"--temperature {self.temperature}: expected 0 or more")
        if not self.cot and (self.clamp is not None or self.temperature is not None):
            raise RlaifError("--clamp and --temperature are about rationales: they need --cot")

    @property
    def heat(self) -> float:
        """The temperature of rationales: 0 for one (RLAIF, section 3.3), 0.7 for several, unless it was given."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.samples == 1 else 0.7


@dataclass(frozen=True, kw_only=True)
class Revising:
    """How responses are revised."""

    rounds: int = 4
    """Critiques and revisions, each of the response before, by a principle of its own."""
    shots: int = 2
    """Worked examples shown before, as many as the constitution has at most."""
    temperature: float = 1.0
    """Of responses, critiques and revisions."""
    max_tokens: int = 512
    """Most tokens of each."""
    seed: int = 0
    """Of the principles that are drawn, and of what is sampled."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.max_tokens < 1 or self.shots < 0:
            raise RlaifError("--rounds and --max-tokens must be at least 1, --shots not below 0")
        if not 0 <= self.temperature < math.inf:
            raise RlaifError(f"--temperature {self.temperature:g}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are written."""

    samples: int = 1
    """Responses to each prompt; two and more are a comparison."""
    temperature: float = 1.0
    """0 writes the likeliest response, and then `samples` are all the same."""
    max_tokens: int = 256
    """Most tokens of a response."""
    seed: int = 0
    """Of what is sampled."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MOST_SAMPLES or self.max_tokens < 1:
            raise RlaifError(f"--samples lies between 1 and {MOST_SAMPLES}, --max-tokens is at least 1")
        if not 0 <= self.temperature < math.inf:
            raise RlaifError(f"--temperature {self.temperature:g}: expected 0 or more")
        if self.samples > 1 and self.temperature == 0:
            raise RlaifError("--samples needs a --temperature above 0: all samples would be the same")


@dataclass(frozen=True, kw_only=True)
class Running:
    """How the job runs: options that leave the answers as they are."""

    limit: int | None = None
    """Read only the first N rows."""
    columns: str | None = None
    """Names of the columns in other tables: prompt=COLUMN,a=COLUMN,b=COLUMN,human=COLUMN (also id, rater, response)."""
    fresh: bool = False
    """Start over instead of going on where the last run of this job stopped."""
    dry_run: int | None = None
    """Ask nothing: show a prompt, count the tokens of N rows, and say what the job would cost."""
    deadline: float | None = None
    """Hours after which no new request starts; the same command goes on later."""
    batch: bool = False
    """Hand the requests in as the provider's batches: about half the price, answered within a day."""
    engine: Literal["local", "ray"] = "local"
    """Where the model runs: in this process, or in workers of Ray, on this machine or a cluster (RAY_ADDRESS)."""
    workers: int = 2
    """Of --engine ray: processes with a model each."""
    worker_cpus: float = 1.0
    """CPU cores of a worker."""
    worker_gpus: float = 0.0
    """GPUs of a worker; vLLM takes as many as one model needs."""
    strict: bool = False
    """Stop at the first unusable row instead of listing it in OUT.failures.jsonl."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of a local model: bfloat16 where the hardware multiplies it fast."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... of a local model."""
    json: bool = False
    """Print one JSON object with the outcome."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise RlaifError(f"--limit {self.limit}: expected at least 1")
        if self.workers < 1 or min(self.worker_cpus, self.worker_gpus) < 0:
            raise RlaifError("--workers must be at least 1, --worker-cpus and --worker-gpus not below 0")
        if self.engine == "ray" and (self.batch or self.deadline is not None):
            raise RlaifError("--engine ray cannot be combined with --batch or --deadline")
        if self.batch and self.deadline is not None:
            raise RlaifError(
                "--deadline is for requests; a --batch can be left at any time, it goes on at the provider"
            )
        if self.dry_run is not None and self.dry_run < 1:
            raise RlaifError(f"--dry-run {self.dry_run}: expected at least 1 row")
        if self.deadline is not None and not self.deadline > 0:
            raise RlaifError(f"--deadline {self.deadline:g}: expected more than 0 hours")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How hard a server may be pressed, and for how long a request goes on trying."""

    in_flight: int = 256
    """Most requests at once; fewer while the server says that it is too much."""
    rpm: int | None = None
    """Most requests a minute. Default: what the server's headers say."""
    tpm: int | None = None
    """Most tokens a minute. Default: what the server's headers say."""
    timeout: float = 120.0
    """Seconds for one attempt of a request."""
    attempts: int = 8
    """How often a request is tried before its row fails."""
    patience: float = 900.0
    """Seconds for one request with all of its attempts."""
    longest_wait: float = 60.0
    """Most seconds that a server's Retry-After is obeyed."""

    def __post_init__(self) -> None:
        if min(self.in_flight, self.attempts, *(each for each in (self.rpm, self.tpm) if each is not None)) < 1:
            raise RlaifError("--in-flight, --attempts, --rpm and --tpm must be at least 1")
        if min(self.timeout, self.patience) <= 0 or self.longest_wait < 0:
            raise RlaifError("--timeout and --patience must be more than 0 seconds, --longest-wait not less than 0")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Where a server is, and how much it may cost. Keys come from the environment."""

    base_url: str | None = None
    """A server of your own that speaks OpenAI's protocol, for example http://127.0.0.1:8000/v1."""
    budget: float | None = None
    """USD for this run: no request starts once so much is spent; at most what is in flight then goes beyond."""
    price: str | None = None
    """IN,OUT or IN,OUT,CACHED: USD per million tokens, where the price table does not know the model."""

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise RlaifError(f"--budget {self.budget:g}: expected more than 0 USD")
