"""A reward in ten lines, for `--reward.of brief:score`: short, and about what was asked (rlaif train ppo)."""

import re

ENOUGH = 15
"""Words that cost nothing."""


def score(prompts, responses):
    """One number in [0, 1] a response: the share of its longer words that the prompt has, less for more than ENOUGH."""
    return [_one(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _one(prompt, response):
    words = re.findall(r"[a-z0-9']+", response.lower())
    asked = prompt if isinstance(prompt, str) else " ".join(turn["content"] for turn in prompt)
    known = set(re.findall(r"[a-z0-9']+", asked.lower()))
    telling = [word for word in words if len(word) > 3]
    if not telling:
        return 0.0
    return sum(word in known for word in telling) / len(telling) * min(1.0, ENOUGH / len(words))
