"""What TRL's last PPO makes of fixed responses.

    .venv-trl-ppo/bin/python tests/trainer/trl_ppo_worker.py FOLDER

Runs in a venv that has TRL 1.12, so it imports nothing from this project. FOLDER has the models `policy`, `value`,
`reward`, `reference` and `sampler` (the policy that is said to have written the responses) and `jobs.json`: `pad` and
`end`, `temperature`, `rate` (of plain SGD), and `jobs`, each with a `name`, `prompts` and `responses` (tokens, a prompt
each), `epochs`, `whiten`, and `index`: where the score of a response that has ended stands, `after` its last token as
in TRL or on the `last`. Written are NAME.json, what it logged, and NAME.safetensors, the first gradient.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

HEADS = {"policy": AutoModelForCausalLM, "reference": AutoModelForCausalLM, "sampler": AutoModelForCausalLM}
AFTER, LAST = "sequence_lengths_p1 = sequence_lengths + 1", "sequence_lengths_p1 = sequence_lengths"


def train(index: str) -> Callable[[PPOTrainer], None]:
    """TRL's own training; for `last` with the one line changed that moves the score and the last value."""
    if index == "after":
        return PPOTrainer.train
    source = inspect.cleandoc("\n" + inspect.getsource(PPOTrainer.train))
    if source.count(AFTER) != 1:
        raise ValueError(f"this is not TRL 1.12: {AFTER}")
    found: dict[str, Any] = {}
    exec(source.replace(AFTER, LAST), vars(ppo_trainer), found)
    return found["train"]


def padded(rows: list[list[int]], pad: int, *, left: bool) -> Tensor:
    longest = max(map(len, rows))
    fill = [[pad] * (longest - len(row)) for row in rows]
    return torch.tensor([more + row if left else row + more for row, more in zip(rows, fill, strict=True)])


def run(folder: Path, given: dict[str, Any], job: dict[str, Any], output: str) -> None:
    names = ("policy", "value", "reward", "reference", "sampler")
    models = {
        name: HEADS.get(name, AutoModelForSequenceClassification).from_pretrained(folder / name, dtype="float32")
        for name in names
    }
    queries = padded(job["prompts"], given["pad"], left=True)
    whole = torch.cat([queries, padded(job["responses"], given["pad"], left=False)], dim=1)

    @torch.no_grad()
    def batch_generation(_model: Any, asked: Tensor, _size: int, pad: int, _config: Any) -> tuple[Tensor, Tensor]:
        if not torch.equal(asked, queries):
            raise ValueError("other prompts than those that were given")
        logits = ppo_trainer.forward(models["sampler"], whole, pad).logits[:, asked.shape[1] - 1 : -1]
        return whole, logits / (given["temperature"] + 1e-7)

    ppo_trainer.batch_generation = batch_generation
    trained = {f"{name}.{at}": each for name in ("policy", "value") for at, each in models[name].named_parameters()}
    optimizer = torch.optim.SGD(trained.values(), lr=given["rate"])
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, each in trained.items():
            if each.grad is not None:
                gradients.setdefault(name, each.grad.clone())

    optimizer.register_step_pre_hook(keep)
    count = len(queries)
    config = PPOConfig(
        output_dir=output,
        per_device_train_batch_size=count,
        gradient_accumulation_steps=1,
        total_episodes=count,
        num_ppo_epochs=job["epochs"],
        num_mini_batches=1,
        local_rollout_forward_batch_size=count,
        num_sample_generations=0,
        response_length=whole.shape[1] - queries.shape[1],
        stop_token="eos",
        temperature=given["temperature"],
        whiten_rewards=job["whiten"],
        kl_coef=0.05,
        kl_estimator="k1",
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        config,
        SimpleNamespace(pad_token_id=given["pad"], eos_token_id=given["end"]),
        models["policy"],
        models["reference"],
        models["reward"],
        Dataset.from_dict({"row": list(range(count))}),
        models["value"],
        data_collator=lambda _: {"input_ids": queries},  # in this order, whatever the sampler's
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    )
    train(job["index"])(trainer)
    (logged,) = (entry for entry in trainer.state.log_history if "loss/policy_avg" in entry)
    (folder / f"{job['name']}.json").write_text(json.dumps(logged), "utf-8")
    save_file(gradients, folder / f"{job['name']}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    asked = json.loads((place / "jobs.json").read_text("utf-8"))
    for each in asked["jobs"]:
        with TemporaryDirectory() as scratch:
            run(place, asked, each, scratch)
