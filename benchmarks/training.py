"""Pairs a second in training, against TRL on the same rows: DPO, reward model, SFT; and the memory that each takes.

    python benchmarks/training.py [--json] [--steps N] [--only dpo|reward|sft] [--model FOLDER|random]

SmolLM2-135M, batches of 8 pairs as long as those of HH's harmless comparisons, in fp32 and bf16 autocast, with the
reference asked at each update and precomputed. Each side runs in a process of its own, in turn; TRL's last release and
that with full logits (1.12) live in venvs made here (.bench/). A step is forward, backward, clipping and AdamW.
Gradient checkpointing is off for both. Where there is a GPU both use it, memory is the GPU's, `random` is a Llama of
0.6B parameters to try there, and the part of the GPU's peak that ours reaches (model FLOPs utilisation) is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

BENCH = ROOT / ".bench"
CACHE = Path(os.environ.get("RLAIF_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"
TRL, OLD = "1.16.0", "1.12.0"
BATCH = 8
PROMPTS = ((0.0, 30), (0.05, 38), (0.25, 50), (0.5, 115), (0.75, 194), (0.95, 367), (1.0, 600))
ANSWERS = ((0.0, 3), (0.05, 7), (0.25, 16), (0.5, 32), (0.75, 58), (0.95, 127), (1.0, 250))
"""Quantiles of tokens in HH's harmless test comparisons with SmolLM2's tokenizer and chat template."""

KINDS = {
    "dpo": ("dpo", False),
    "dpo_precomputed": ("dpo", True),
    "reward": ("reward", False),
    "sft": ("sft", False),
}


def lengths(quantiles: tuple[tuple[float, int], ...], draw: random.Random) -> int:
    at = draw.random()
    for (low, least), (high, most) in pairwise(quantiles):
        if at <= high:
            return round(least + (most - least) * (at - low) / (high - low))
    raise AssertionError


def pairs(count: int) -> list[dict[str, list[int]]]:
    """Pairs of random tokens, as long as real ones."""
    draw = random.Random(0)

    def tokens(size: int) -> list[int]:
        return [draw.randrange(100, 40000) for _ in range(size)]

    return [
        {
            "prompt_ids": tokens(lengths(PROMPTS, draw)),
            "chosen_ids": tokens(lengths(ANSWERS, draw)),
            "rejected_ids": tokens(lengths(ANSWERS, draw)),
        }
        for _ in range(count)
    ]


def theirs(kind: str, rows: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """The same rows as TRL's trainers take them."""
    if kind == "reward":
        return [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in rows]
    if kind == "sft":
        prompts = [(len(row["prompt_ids"]), row) for row in rows]
        return [
            {
                "input_ids": row["prompt_ids"] + row["chosen_ids"],
                "completion_mask": [0] * prompt + [1] * len(row["chosen_ids"]),
            }
            for prompt, row in prompts
        ]
    return rows


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """This project on a job: in a process of its own, for its memory."""
    import torch
    from measure import now, peak_mib

    from lm.branches import LogProbabilities, Scores
    from lm.load import load_trainable
    from trainer import reference
    from trainer.config import Dpo, Optim, Reward
    from trainer.dpo import dpo
    from trainer.examples import Pair
    from trainer.loop import Passes, adamw, fit
    from trainer.reward import reward
    from trainer.rows import Row
    from trainer.sft import sft

    kind, device = job["kind"], "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    loaded = load_trainable(
        job["folder"], cache=CACHE, device=device, head="new-score" if kind == "reward" else "language"
    )
    module = Scores(loaded.model) if kind == "reward" else LogProbabilities(loaded.model)
    passes = Passes(torch.device(device), job["tokens"], bfloat16=job["dtype"] == "bfloat16")
    sides = ("chosen_ids",) if kind == "sft" else ("chosen_ids", "rejected_ids")
    rows = [
        Row(str(at), tuple(row["prompt_ids"]), tuple(tuple(row[side]) for side in sides), (Pair(0, 1),))
        for at, row in enumerate(job["rows"])
    ]
    precompute = 0.0
    if kind == "dpo":
        started = time.perf_counter()
        if job["precompute"]:
            with tempfile.TemporaryDirectory() as folder:
                known = reference.cached(module, rows, passes, Path(folder) / "known.parquet", lambda _: None)
            precompute = time.perf_counter() - started
        else:
            other = load_trainable(job["folder"], cache=CACHE, device=device, head="language").model
            known = reference.online(LogProbabilities(other.requires_grad_(requires_grad=False)), passes)
        aim = dpo(module, known, Dpo(beta=0.1))
    else:
        aim = reward(module, Reward()) if kind == "reward" else sft(module)
    optim = Optim(lr=1e-6, betas=(0.9, 0.999))
    steps = job["warmup"] + job["steps"]
    batches = [(at + 1, rows[at * BATCH : (at + 1) * BATCH]) for at in range(steps)]
    seconds, losses, began = [], [], now()
    for update in fit(aim, batches, adamw(module, optim), passes, lambda _: optim.lr, optim.clip):
        seconds.append(now() - began)
        losses.append(update.metrics["loss"])
        began = now()
    return {
        "seconds": seconds[job["warmup"] :],
        "loss": losses[job["warmup"] :],
        "peak_mib": peak_mib(),
        "tokens": [sum(row.size for row in batch) for _, batch in batches[job["warmup"] :]],
        "parameters": multiplied(loaded.model),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "precompute_seconds": precompute,
        "versions": {"torch": torch.__version__},
    }


def kwise(folder: str) -> float:
    """How many times as fast a row of four responses is learned as its six pairs, one by one, at the same loss."""
    import torch

    from lm.branches import Scores
    from lm.load import load_trainable
    from trainer.config import Reward
    from trainer.examples import Pair
    from trainer.reward import reward
    from trainer.rows import Row

    torch.manual_seed(0)
    loaded = load_trainable(folder, cache=CACHE, device="cpu", head="new-score")
    aim = reward(Scores(loaded.model), Reward())
    first, second = pairs(2)
    answers = tuple(tuple(row[side]) for row in (first, second) for side in ("chosen_ids", "rejected_ids"))
    order = tuple(Pair(i, j) for i, j in combinations(range(4), 2))
    prompt = tuple(first["prompt_ids"])
    whole = [Row("whole", prompt, answers, order)]
    apart = [Row(str(each), prompt, (answers[each.first], answers[each.second]), (Pair(0, 1),)) for each in order]

    def learned(passes: list[list[Row]]) -> tuple[float, float]:
        started, losses = time.perf_counter(), []
        for rows in passes:
            loss = aim.values(rows)["loss"].mean()
            loss.backward()
            losses.append(float(loss.detach()))
        return time.perf_counter() - started, statistics.mean(losses)

    learned([whole])
    (together, one), (separate, other) = learned([whole]), learned([[row] for row in apart])
    assert abs(one - other) < 1e-5, f"not the same loss: {one} and {other}"
    return separate / together


def multiplied(model: Any) -> int:
    """The parameters that each token is multiplied with: an embedding is only looked up, unless it is the head too."""
    looked_up = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    idle = 0 if head is not None and head.weight is looked_up else looked_up.numel()
    return sum(each.numel() for each in model.parameters()) - idle


def trl_python(version: str) -> Path:
    """The interpreter of a venv with a release of TRL, made on first use (about a minute)."""
    folder = BENCH / f"trl-{version}"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for wanted in ("torch", f"trl=={version}"):
            subprocess.run([*pip, wanted, "-c", str(ROOT / "constraints.txt")], check=True)
        (folder / ".installed").touch()
    return folder / "bin/python"


def run(python: Path, script: Path, job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        done = subprocess.run(
            [str(python), str(script), file.name],
            env={"CUDA_VISIBLE_DEVICES": "0", **os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{python} did not finish:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("RESULT "))


def compare(kind: str, dtype: str, folder: str, steps: int) -> dict[str, Any]:
    """One setting: ours, TRL's current release, for DPO also the old one, then ours again."""
    worker, precompute = KINDS[kind]
    rows = pairs(BATCH * (steps + 1))
    job = {"kind": worker, "folder": folder, "batch": BATCH, "steps": steps, "warmup": 1, "dtype": dtype}
    job |= {"precompute": precompute, "beta": 0.1, "threads": os.cpu_count(), "tokens": 4096}
    own, peer = {**job, "rows": rows}, {**job, "rows": theirs(worker, rows)}
    script = Path(__file__).with_name("trl_worker.py")
    sides = {"ours": run(Path(sys.executable), Path(__file__), own), "trl": run(trl_python(TRL), script, peer)}
    if worker == "dpo":
        sides["trl_1_12"] = run(trl_python(OLD), script, peer)
    again = run(Path(sys.executable), Path(__file__), own)
    sides["ours"]["seconds"] += again["seconds"]
    rates = {name: BATCH / statistics.median(each["seconds"]) for name, each in sides.items()}
    return {
        "pairs_per_second": rates,
        "times_as_fast": {name: rates["ours"] / rate for name, rate in rates.items() if name != "ours"},
        "peak_mib": {name: each["peak_mib"] for name, each in sides.items()},
        "utilisation": utilisation(sides["ours"], dtype, online=worker == "dpo" and not precompute),
        "loss": {name: each["loss"] for name, each in sides.items()},
        "settings": {name: each.get("settings") for name, each in sides.items() if name != "ours"},
        "versions": {name: each["versions"] for name, each in sides.items()},
    }


PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOPs a second of dense bf16 products, from the makers' data sheets."""


def utilisation(side: dict[str, Any], dtype: str, *, online: bool) -> float | None:
    """The part of a GPU's peak that the model's own products come to: 6 a parameter and token of a training step, 2
    more where a reference is asked (Chowdhery et al. 2022, appendix B, without attention).
    """
    peak = next((peak for name, peak in PEAKS.items() if name in side["device"]), None)
    if peak is None or dtype != "bfloat16":
        return None
    work = (8 if online else 6) * side["parameters"] * statistics.mean(side["tokens"])
    return work / statistics.median(side["seconds"]) / peak


def random_model() -> str:
    """A folder with a Llama of 0.6B random parameters, made on first use, with SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lm.load import load

    folder = BENCH / "random-0.6b"
    if not (folder / "config.json").exists():
        tokenizer = load("smollm2", cache=CACHE, device="cpu").tokenizer
        size = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 20}
        heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True}
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **heads, **ends)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each side, after one untimed")
    parser.add_argument("--only", choices=["dpo", "reward", "sft"], help="one algorithm")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="one precision")
    parser.add_argument("--model", help="a model folder in place of SmolLM2, or `random`")
    options = parser.parse_args()
    from lm.load import find

    folder = random_model() if options.model == "random" else str(find(options.model or "smollm2", CACHE))
    found = {
        f"{kind}_{dtype}": compare(kind, dtype, folder, options.steps)
        for kind in KINDS
        if options.only is None or kind.startswith(options.only)
        for dtype in ("float32", "bfloat16")
        if options.dtype in {None, dtype}
    }
    result = {
        "ratios": {**ratios(found), "kwise_vs_pairs": kwise(folder)},
        "settings": found,
        "conditions": conditions(folder, options.steps),
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, each in found.items():
        rates = ", ".join(f"{side} {rate:.3f}" for side, rate in each["pairs_per_second"].items())
        fast = ", ".join(f"{side} {ratio:.2f}" for side, ratio in each["times_as_fast"].items())
        peak = ", ".join(f"{side} {mib:.0f}" for side, mib in each["peak_mib"].items())
        used = "" if each["utilisation"] is None else f"; model FLOPs utilisation {each['utilisation']:.1%}"
        print(f"{name:<26} pairs a second: {rates}; times as fast: {fast}; peak MiB: {peak}{used}")
    print("ratios: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items()))


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """The least over precisions and references: what can be promised."""
    wanted = {
        "dpo_vs_trl": ("dpo", "trl"),
        "dpo_vs_trl_1_12": ("dpo", "trl_1_12"),
        "reward_vs_trl": ("reward", "trl"),
        "sft_vs_trl": ("sft", "trl"),
    }
    least = {
        name: min((each["times_as_fast"][side] for key, each in found.items() if key.startswith(kind)), default=None)
        for name, (kind, side) in wanted.items()
    }
    peaks = [each["peak_mib"]["trl"] / each["peak_mib"]["ours"] for each in found.values()]
    return {name: each for name, each in {**least, "peak_memory_vs_trl": min(peaks)}.items() if each is not None}


def conditions(folder: str, steps: int) -> dict[str, Any]:
    made = pairs(BATCH * (steps + 1))
    padded = [
        2 * BATCH * max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in batch)
        for batch in (made[at : at + BATCH] for at in range(0, len(made), BATCH))
    ]
    return {
        "model": Path(folder).name,
        "batch": BATCH,
        "steps": steps,
        "prompt_tokens": statistics.mean(len(row["prompt_ids"]) for row in made),
        "answer_tokens": statistics.mean(len(row[side]) for row in made for side in ("chosen_ids", "rejected_ids")),
        "padded_tokens_a_step": padded,
        "cpus": os.cpu_count(),
        "gradient_checkpointing": False,
    }


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        print("RESULT " + json.dumps(ours(json.loads(Path(sys.argv[1]).read_text("utf-8")))))
    else:
        main()
