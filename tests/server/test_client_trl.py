"""TRL trains against a real server: GRPO on a tiny random Llama, whose server is killed in the middle."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rewarding import ROOT, Process, process, start

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed here: make test-clients"),
]

WORDS = ("--task", "helpfulness", "--model", "fake:noise")
VOCABULARY = ["how", "are", "you", "what", "is", "the", "best", "way", "to", "go", "there", "please", "tell", "me", "a"]
VOCABULARY += ["story", "of", "an", "egg", "fine", "well", "no", "yes"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    words = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate([*special, *VOCABULARY])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", padding_side="left"
    )
    found.chat_template = TEMPLATE
    return found


@pytest.fixture
def policy(tokenizer: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=0,
            eos_token_id=2,
            bos_token_id=None,
        )
    )


def trained(policy: Any, tokenizer: Any, folder: Path, reward: Any, prompts: list[Any], *callbacks: Any) -> Any:
    """What was logged in three steps, a dictionary each."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(
        output_dir=str(folder / "out"),
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    rows = Dataset.from_list([{"prompt": each, "source": "here"} for each in prompts])
    trainer = GRPOTrainer(policy, reward, settings, rows, processing_class=tokenizer, callbacks=list(callbacks))
    trainer.train()
    return [each for each in trainer.state.log_history if "rewards/rlaif/mean" in each]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    with process(*WORDS, cache=tmp_path / "cache") as it:
        yield it


PLAIN = ["how are you", "what is the best way", "tell me a story", "please go there"]
TALKS = [[{"role": "user", "content": each}] for each in PLAIN]


@pytest.mark.parametrize("prompts", [PLAIN, TALKS], ids=["texts", "conversations"])
def test_grpo_trains_on_the_servers_rewards(policy, tokenizer, server, tmp_path, prompts):
    import rlaif

    before = {name: each.detach().clone() for name, each in policy.named_parameters()}
    logged = trained(policy, tokenizer, tmp_path, rlaif.trl_reward(server.url), prompts)
    assert len(logged) == 3
    for each in logged:
        assert -1 <= each["rewards/rlaif/mean"] <= 1
        assert each["rewards/rlaif/std"] > 0
        assert each["rlaif/failed"] == 0
        assert math.isfinite(each["loss"])
    assert any((before[name] != each).any() for name, each in policy.named_parameters())
    items = next(
        line for line in server.ask("GET", "/metrics").text.splitlines() if line.startswith("rlaif_items_total")
    )
    assert float(items.split()[-1]) == 12


def test_a_server_that_is_killed_and_comes_back_is_waited_for(policy, tokenizer, server, tmp_path):
    from transformers import TrainerCallback

    import rlaif

    again: list[Process] = []
    words = (*WORDS, "--port", str(server.port))
    starting = threading.Thread(target=lambda: again.append(start(*words, cache=tmp_path / "cache")))

    class Killing(TrainerCallback):
        """Kills the server after the first step, and starts it again while the next one waits for its rewards."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                server.kill()
                starting.start()

    try:
        logged = trained(policy, tokenizer, tmp_path, rlaif.trl_reward(server.url), PLAIN, Killing())
    finally:
        starting.join()
        for each in again:
            each.kill()
    assert len(logged) == 3
    assert all(math.isfinite(each["rewards/rlaif/mean"]) and each["rlaif/failed"] == 0 for each in logged)


def test_a_server_that_stays_dead_costs_rewards_and_not_the_run(policy, tokenizer, server, tmp_path):
    from transformers import TrainerCallback

    import rlaif

    class Killing(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                server.kill()

    logged = trained(policy, tokenizer, tmp_path, rlaif.trl_reward(server.url, timeout=0.5), PLAIN, Killing())
    assert [each["rlaif/failed"] for each in logged] == [0, 1, 1]
    assert math.isfinite(logged[0]["rewards/rlaif/mean"])
    assert [each["rewards/rlaif/mean"] for each in logged[1:]] == [None, None], "no reward is not a reward of 0"
    assert [each["loss"] for each in logged[1:]] == [0, 0]


def test_the_example_trains(policy, tokenizer, server, tmp_path, monkeypatch):
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in TALKS))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import trl_grpo

    small = {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 6, "max_steps": 2}
    quiet = {"use_cpu": True, "bf16": False, "report_to": [], "logging_steps": 1}
    prompts, out = str(tmp_path / "prompts.jsonl"), str(tmp_path / "out")
    trainer = trl_grpo.train(server.url, str(tmp_path / "policy"), prompts, out, **small, **quiet)
    logged = [each["rewards/rlaif/mean"] for each in trainer.state.log_history if "rewards/rlaif/mean" in each]
    assert len(logged) == 2
    assert all(map(math.isfinite, logged))
    assert (tmp_path / "out" / "config.json").is_file()
