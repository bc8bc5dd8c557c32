"""Seconds a training step of TRL, its own loop and its defaults, on the GPU where there is one.

    .bench/trl-1.16.0/bin/python benchmarks/trl_worker.py JOB.json

Runs in a venv that has TRL, so it imports nothing from this project but measure.py. JOB says `kind` (dpo, reward, sft),
`folder`,
`rows` (tokenised: dpo prompt_ids, chosen_ids, rejected_ids; reward chosen_ids, rejected_ids; sft input_ids,
completion_mask), `batch`, `steps`, `warmup`, `dtype`, `precompute`, `beta` and `threads`. The rows are taken in their
order, from the start again when they run out. The last line printed is `RESULT {json}`.

A step runs from `on_step_begin` to `on_step_end`: forward, the reference's too when it is online, backward, clipping,
optimizer, zero_grad. `precompute_seconds` are the reference's forwards alone, over all rows once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # no telemetry either

import torch
from datasets import Dataset
from measure import now, peak_mib
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

FLAGS = ("gradient_checkpointing", "precompute_ref_log_probs", "padding_free", "bf16", "loss_type", "optim")


class TokenisedDPO(DPOTrainer):
    """DPOTrainer tokenises whatever it is given; the rows here are tokenised already."""

    precompute_seconds = 0.0
    loaded_mib: float | None = None

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        self.loaded_mib = self.loaded_mib or peak_mib()
        started = time.perf_counter()
        found = super().compute_ref_log_probs(model, inputs)
        self.precompute_seconds += time.perf_counter() - started
        return found


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self.started)


def run(job: dict[str, Any], output: str) -> dict[str, Any]:
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "dpo": (TokenisedDPO, DPOConfig, {"beta": job["beta"], "precompute_ref_log_probs": job["precompute"]}),
        "reward": (RewardTrainer, RewardConfig, {}),
        "sft": (SFTTrainer, SFTConfig, {"completion_only_loss": True}),  # by default False for tokenised rows
    }
    trainer_type, config_type, own = kinds[job["kind"]]
    if len(job["rows"]) % job["batch"]:
        raise ValueError(f"{len(job['rows'])} rows do not fill batches of {job['batch']}")
    config = config_type(
        output_dir=output,
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_steps=job["warmup"] + job["steps"],
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        max_length=None,
        bf16=job["dtype"] == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        model_init_kwargs={"dtype": "float32"},  # the reference's too
        **own,
    )
    clock = Clock()
    trainer = trainer_type(job["folder"], args=config, train_dataset=Dataset.from_list(job["rows"]), callbacks=[clock])
    loaded = getattr(trainer, "loaded_mib", None) or peak_mib()
    trainer.train()
    return {
        "seconds": clock.seconds[job["warmup"] :],
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][job["warmup"] :],
        "precompute_seconds": getattr(trainer, "precompute_seconds", 0.0),
        "loaded_mib": loaded,
        "peak_mib": peak_mib(),
        "versions": {name: version(name) for name in ("trl", "torch", "transformers")},
        "settings": {name: getattr(trainer.args, name, None) for name in FLAGS},
    }


if __name__ == "__main__":
    given = {"beta": 0.1, "precompute": False, "threads": None} | json.loads(Path(sys.argv[1]).read_text("utf-8"))
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    with TemporaryDirectory() as folder:
        print("RESULT", json.dumps(run(given, folder)))
