"""Rewards for tests: MODULE:FUNCTION of a person who trains."""

import os
from pathlib import Path


def vowels(prompts, responses):
    """The part of a response that is an a or an e."""
    assert len(prompts) == len(responses)
    return [sum(each in "ae" for each in response) / max(1, len(response)) for response in responses]


def mostly(prompts, responses):
    """The same, but a third of the responses get none."""
    found = vowels(prompts, responses)
    return [None if len(response) % 3 == 0 else each for response, each in zip(responses, found, strict=True)]


def counted(prompts, responses):
    """The same, and a file says how many were ever asked about."""
    with Path(os.environ["RLAIF_COUNTED"]).open("a") as file:
        file.writelines(f"{prompt}\t{response!r}\n" for prompt, response in zip(prompts, responses, strict=True))
    return vowels(prompts, responses)


def nothing(prompts, responses):
    return [None] * len(responses)


def constant(prompts, responses):
    return [0.3] * len(responses)


def broken(prompts, responses):
    raise RuntimeError("the judge is out")


def short(prompts, responses):
    return [1.0]


def short_of(prompts, responses):
    return [1 - 2 * min(1.0, len(response) / 40) for response in responses]


def words(prompts, responses):
    return ["good"] * len(responses)


no_function = 3
