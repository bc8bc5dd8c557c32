"""GRPO with TRL, rewarded by `rlaif serve`.

rlaif serve --task helpfulness --model local:smollm2            # in another terminal
python examples/trl_grpo.py --model Qwen/Qwen2.5-0.5B-Instruct --prompts prompts.jsonl --out trained

`prompts.jsonl` has a column `prompt`: texts, or messages with `role` and `content`. More of TRL's options go where
`GRPOConfig` is made. Needs `pip install 'trl>=1.16'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

from rlaif import trl_reward


def train(url: str, model: str, prompts: str, out: str, **more: Any) -> GRPOTrainer:
    """Train on the rewards of the server at `url`; `more` are GRPOConfig's own options."""
    rows = load_dataset("json", data_files=prompts, split="train")
    settings = GRPOConfig(output_dir=out, **{"num_generations": 8, "max_completion_length": 256, **more})
    trainer = GRPOTrainer(model, trl_reward(url), settings, rows)
    trainer.train()
    trainer.save_model(out)
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8300")
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args(arguments)
    train(options.url, options.model, options.prompts, options.out)


if __name__ == "__main__":
    main()
