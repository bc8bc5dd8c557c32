"""Seconds a round of TRL's reinforcement learning, its own loop, on the GPU where there is one.

    .bench/trl-1.12.0/bin/python benchmarks/trl_rl_worker.py JOB.json

Runs in a venv that has TRL, so it imports nothing from this project but measure.py. JOB says `kind` (ppo, grpo,
generate), `folder`,
`prompts` (tokens), `samples` of each, `tokens` of each response, `epochs`, `rounds`, `warmup`, `dtype`, `threads`.
Responses have exactly `tokens` tokens, so that both sides write and learn the same amount. The last line printed is
`RESULT {json}`. A round runs from one `on_step_end` to the next: sampling, rewards, the reference, all epochs.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # no telemetry either

import torch
from datasets import Dataset
from measure import now, peak_mib
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)

PASSES = 2
"""Of an update of PPO."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.at.append(now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(now())


def common(job: dict[str, Any], output: str) -> dict[str, Any]:
    return {
        "output_dir": output,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "learning_rate": 1e-6,
        "bf16": job["dtype"] == "bfloat16",
        "use_cpu": DEVICE == "cpu",
        "seed": 0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def ppo(job: dict[str, Any], output: str, clock: Clock) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["folder"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    count = len(job["prompts"])
    assert count % PASSES == 0, "each pass has as many rows"
    config = PPOConfig(
        per_device_train_batch_size=count // PASSES,  # all rows at once need all of 24 GB
        num_ppo_epochs=job["epochs"],
        num_mini_batches=1,
        total_episodes=count * (job["warmup"] + job["rounds"]),
        response_length=job["tokens"],
        local_rollout_forward_batch_size=count,
        num_sample_generations=0,
        temperature=1.0,
        kl_coef=0.05,
        **{**common(job, output), "gradient_accumulation_steps": PASSES},
    )

    def scored() -> Any:
        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_pretrained(job["folder"], num_labels=1, dtype=torch.float32)
        made.config.pad_token_id = tokenizer.pad_token_id
        return made

    def language() -> Any:
        return AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)

    rows = Dataset.from_list([{"input_ids": prompt} for prompt in job["prompts"]] * 2)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=language(),
        ref_model=language(),
        reward_model=scored(),
        value_model=scored(),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    trainer.train()


def grpo(job: dict[str, Any], output: str, clock: Clock) -> None:
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["folder"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    class Tokenised(GRPOTrainer):
        """GRPOTrainer tokenises texts; these prompts are tokens already, and are looked up by their names."""

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [job["prompts"][int(each)] for each in prompts], None, {}

    config = GRPOConfig(
        per_device_train_batch_size=len(job["prompts"]),  # with all rows at once 24 GB are not enough
        num_generations=job["samples"],
        max_completion_length=job["tokens"],
        generation_kwargs={"min_new_tokens": job["tokens"]},
        max_steps=job["warmup"] + job["rounds"],
        num_iterations=job["epochs"],
        beta=0.04,
        temperature=1.0,
        loss_type="grpo",
        model_init_kwargs={"dtype": "float32"},
        **{**common(job, output), "gradient_accumulation_steps": job["samples"]},
    )
    rows = Dataset.from_list([{"prompt": str(at)} for at in range(len(job["prompts"]))])
    trainer = Tokenised(
        job["folder"],
        args=config,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [float(len(each) % 7) for each in completions],
        train_dataset=rows,
        callbacks=[clock],
    )
    trainer.train()


def generate(job: dict[str, Any], _output: str, clock: Clock) -> None:
    """`model.generate` alone, G samples of each prompt."""
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=dtype).to(DEVICE).eval()
    longest = max(map(len, job["prompts"]))
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in job["prompts"]], device=DEVICE)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in job["prompts"]], device=DEVICE)
    clock.on_train_begin()
    for _ in range(job["warmup"] + job["rounds"]):
        torch.manual_seed(0)
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=job["samples"],
            max_new_tokens=job["tokens"],
            min_new_tokens=job["tokens"],
            pad_token_id=0,
        )
        assert out.shape == (len(job["prompts"]) * job["samples"], longest + job["tokens"])
        clock.on_step_end()


def run(job: dict[str, Any], output: str) -> dict[str, Any]:
    clock = Clock()
    {"ppo": ppo, "grpo": grpo, "generate": generate}[job["kind"]](job, output, clock)
    seconds = [after - before for before, after in zip(clock.at, clock.at[1:], strict=False)]
    return {
        "seconds": seconds[job["warmup"] :],
        "peak_mib": peak_mib(),
        "versions": {name: version(name) for name in ("trl", "torch", "transformers")},
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    torch.set_num_threads(given["threads"])
    with TemporaryDirectory() as folder:
        print("RESULT", json.dumps(run(given, folder)))
