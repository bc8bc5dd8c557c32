"""Rounds of reinforcement learning against TRL on the same model, prompts, samples and epochs; sampling against
`transformers.generate`.

    python benchmarks/rl.py [--json] [--only rollout|ppo|grpo] [--dtype float32|bfloat16] [--rounds N] [--model FOLDER]

SmolLM2-135M, 8 prompts as long as those of HH's harmless comparisons. Responses have 64 tokens on both sides, so that
nobody gains by short ones. PPO: one sample a prompt, 4 epochs, a policy, a reference, a reward model and a critic.
GRPO: four samples a prompt, one epoch, a reference. Each side runs in a process of its own, in turn; ours twice,
around the others. Where there is a GPU both sides use it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from training import BATCH, CACHE, OLD, PROMPTS, TRL, lengths, run, trl_python

TOKENS = 64
KINDS = {"rollout": (4, 1), "ppo": (1, 4), "grpo": (4, 1)}
"""Samples of each prompt, and epochs."""


def prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(100, 40000) for _ in range(lengths(PROMPTS, draw))] for _ in range(BATCH)]


class Plain:
    """No word ends a response, and nothing has to be read."""

    eos_token_id = None

    def decode(self, tokens: list[int], **_: object) -> str:
        return str(len(tokens))


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """This project on a job: in a process of its own, for its memory."""
    import torch
    from measure import peak_mib

    from lm.load import load_trainable

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    loaded = load_trainable(job["folder"], cache=CACHE, device=device(), head="language")
    loaded.model.generation_config.eos_token_id = None
    seconds = rollouts(job, loaded.model) if job["kind"] == "generate" else rounds(job, loaded)
    return {
        "seconds": seconds[job["warmup"] :],
        "peak_mib": peak_mib(),
        "versions": {"torch": torch.__version__},
    }


def rollouts(job: dict[str, Any], model: Any) -> list[float]:
    import torch
    from measure import now

    from lm.sample import Draw, write

    model = model.to(getattr(torch, job["dtype"])).eval()
    seconds: list[float] = []
    for number in range(job["warmup"] + job["rounds"]):
        started = now()
        draws = [
            Draw(tuple(prompt), job["tokens"], 1.0, 0, number * 1000 + at, ())
            for prompt in job["prompts"]
            for at in range(job["samples"])
        ]
        written = write(model, Plain(), draws, batch=len(draws))
        seconds.append(now() - started)
        assert all(len(each.drawn) == job["tokens"] for each in written)
    return seconds


def rounds(job: dict[str, Any], loaded: Any) -> list[float]:
    """What a run does in a round: sample, reward, ask critic and reference, learn."""
    import torch
    from measure import now

    from lm.branches import Actor, Scores, Values
    from lm.load import load_trainable
    from lm.rows import branches
    from trainer.config import Grpo, Optim, Ppo, Rollout
    from trainer.experience import Players
    from trainer.grpo import grpo
    from trainer.loop import Passes, adamw, fit
    from trainer.pairs import laid_out
    from trainer.ppo import ppo
    from trainer.rollouts import Question, rewarded, sampled
    from trainer.writers import Here

    passes = Passes(torch.device(device()), 4096, bfloat16=job["dtype"] == "bfloat16")
    actor = Actor(loaded.model)

    def another(head: Any) -> Any:
        return load_trainable(job["folder"], cache=CACHE, device=device(), head=head).model

    frozen = Actor(another("language").requires_grad_(requires_grad=False)).eval()

    @torch.no_grad()
    def reference(rows: Any) -> Any:
        with passes.precision():
            return frozen(laid_out(rows)).likelihoods

    critic = Values(another("new-score")) if job["kind"] == "ppo" else None
    judge = Scores(another("new-score").requires_grad_(requires_grad=False)).eval() if critic is not None else None
    players = Players(actor, critic, reference, passes)

    def order(count: int, _round: int, _epoch: int) -> range:
        return range(count)

    batch = len(job["prompts"])
    if critic is not None:
        made = ppo(players, Ppo(epochs=job["epochs"]), batch, order, lambda each: each)
    else:
        made = grpo(players, Grpo(epochs=job["epochs"]), batch, order, lambda each: each, job["tokens"])
    known = {str(at): tuple(prompt) for at, prompt in enumerate(job["prompts"])}
    questions = [Question(name, name, tokens, name) for name, tokens in known.items()]

    @torch.no_grad()
    def ask(asked: Any, texts: Any, _unsafe: Any) -> list[float]:
        if judge is None:
            return [float(at % 7) for at in range(len(texts))]
        answers = [tuple(range(100, 100 + job["tokens"])) for _ in texts]  # as many tokens as a response has
        with passes.precision():
            return judge(branches((known[name], (each,)) for name, each in zip(asked, answers, strict=True))).tolist()

    optim = Optim(lr=1e-6)
    module = torch.nn.ModuleDict({"actor": actor} if critic is None else {"actor": actor, "critic": critic})
    optimizer = adamw(module, optim)
    rollout = Rollout(prompts=batch, samples=job["samples"], max_tokens=job["tokens"])
    writer = Here(loaded.model, Plain(), passes.precision, 0)
    seconds: list[float] = []
    for number in range(1, job["warmup"] + job["rounds"] + 1):
        started = now()
        written = sampled(writer, questions, rollout, number=number, seed=0)
        groups = rewarded(written, ask, None, number=number, unended=0.0, done=lambda _: None)
        for lesson in made.prepare(number, groups).lessons:
            for _ in fit(made.algorithm, enumerate(lesson.batches, 1), optimizer, passes, lambda _: optim.lr, 1.0):
                pass
        seconds.append(now() - started)
    return seconds


def compare(kind: str, dtype: str, folder: str, count: int) -> dict[str, Any]:
    """Ours, TRL's (or transformers'), then ours again."""
    samples, epochs = KINDS[kind]
    job = {"kind": "generate" if kind == "rollout" else kind, "folder": folder, "prompts": prompts()}
    job |= {"samples": samples, "epochs": epochs, "tokens": TOKENS, "rounds": count, "warmup": 1, "dtype": dtype}
    job |= {"threads": os.cpu_count()}
    peer = trl_python(OLD if kind == "ppo" else TRL)
    worker = Path(__file__).with_name("trl_rl_worker.py")
    first = run(Path(sys.executable), Path(__file__), job)
    theirs = run(peer, worker, job)
    again = run(Path(sys.executable), Path(__file__), job)
    mine = statistics.median([*first["seconds"], *again["seconds"]])
    ratio = statistics.median(theirs["seconds"]) / mine
    print(f"{kind} {dtype}: {ratio:.2f} times as fast ({mine:.1f} s a round)", file=sys.stderr, flush=True)
    return {
        "seconds_a_round": {"ours": mine, "theirs": statistics.median(theirs["seconds"])},
        "times_as_fast": ratio,
        "tokens_per_second": {
            name: BATCH * samples * TOKENS / each
            for name, each in (("ours", mine), ("theirs", statistics.median(theirs["seconds"])))
        },
        "peak_mib": {"ours": first["peak_mib"], "theirs": theirs["peak_mib"]},
        "versions": {"ours": first["versions"], "theirs": theirs["versions"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--only", choices=list(KINDS), help="one comparison")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="one precision")
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds of each side, after one untimed")
    parser.add_argument("--model", help="a model folder in place of SmolLM2")
    options = parser.parse_args()
    from lm.load import find

    folder = str(find(options.model or "smollm2", CACHE))
    found = {
        f"{kind}_{dtype}": compare(kind, dtype, folder, options.rounds)
        for kind in KINDS
        if options.only in {None, kind}
        for dtype in ("float32", "bfloat16")
        if options.dtype in {None, dtype}
    }
    names = {"rollout": "rollout_vs_generate", "ppo": "ppo_vs_trl_1_12", "grpo": "grpo_vs_trl"}
    result = {
        # the least over precisions: what can be promised
        "ratios": {
            name: min(each["times_as_fast"] for key, each in found.items() if key.startswith(kind))
            for kind, name in names.items()
            if any(key.startswith(kind) for key in found)
        },
        "settings": found,
        "conditions": {
            "model": Path(folder).name,
            "prompt_tokens": [len(each) for each in prompts()],
            "response_tokens": TOKENS,
            "cpus": os.cpu_count(),
            "rounds": options.rounds,
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, each in found.items():
        rates = ", ".join(f"{side} {seconds:.1f}" for side, seconds in each["seconds_a_round"].items())
        peaks = ", ".join(f"{side} {mib:.0f}" for side, mib in each["peak_mib"].items())
        print(f"{name:<18} seconds a round: {rates}; times as fast: {each['times_as_fast']:.2f}; peak MiB: {peaks}")
    print("ratios: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items()))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        print("RESULT " + json.dumps(ours(json.loads(Path(sys.argv[1]).read_text("utf-8")))))
    else:
        main()
