"""Models for tests: a random Llama built here, a tokenizer trained here, and SmolLM2 out of its package."""

import os
from pathlib import Path

import hypothesis
import pytest

# How long one example takes says how busy the machine is.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

CACHE = Path(os.environ.get("RLAIF_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def cache() -> Path:
    return CACHE


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in fp32, the real embedded model."""
    from lm.load import load

    return load("smollm2", cache=CACHE, dtype="float32")


@pytest.fixture(scope="session")
def tiny_llama():
    """A random Llama with grouped heads, small enough to run a thousand tokens in milliseconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=211,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    torch.manual_seed(7)
    return LlamaForCausalLM(config).eval()
