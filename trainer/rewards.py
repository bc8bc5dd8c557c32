"""How good is each response? One callable for every source: (prompts, responses) -> a number or None, in order.

A reward that failed is None and its sample is left out: it never counts as 0.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from data.errors import RlaifError
from data.records import Prompt
from lm.rewards import RewardModel
from trainer.config import Judged, TrainingError
from trainer.rows import turns

Rewards = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float | None]]
"""What a reward is: as many numbers as responses, None for those without one."""
Ask = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], list[float | None]]
"""All sources together; the last argument says which prompts are marked as unsafe."""
Opener = Callable[[str], Rewards | None]
"""Makes the reward of a name that this package does not know, a server's address or a labeler; None for others."""


@dataclass(frozen=True)
class Patience:
    """How long a source that cannot be reached is asked again, who is told, and what ends it early."""

    seconds: float
    tell: Callable[[str], None]
    stopped: Event


REWARD = "reward:"
LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 before their logit is taken."""
HOUSE = Path(__file__).parent
FILES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What does not pass by waiting, of the errors of an operating system."""
FIRST, AGAIN = 0.25, 5.0
"""Seconds between two tries while nothing answers: at first, and at most, doubled each time."""


def opened(config: Judged, elsewhere: Opener, device: str) -> list[Rewards]:
    """The sources of a configuration, each ready to be called. Raises TrainingError, ModelError."""
    if not config.of:
        raise TrainingError(
            "reward.of: who rewards? Say reward:DIR, http://HOST:PORT, MODULE:FUNCTION, or a labeler with reward.task"
        )
    return [_opened(name, elsewhere, device) for name in config.of]


def reached(config: Judged, sources: Sequence[Rewards], patience: Patience) -> None:
    """Wait until something listens at servers' addresses, before anything is sampled for them. Raises TrainingError."""
    for name, each in zip(config.of, sources, strict=True):
        if name.startswith(("http://", "https://")):
            _asked(name, each, [], [], patience)


def combined(config: Judged, sources: Sequence[Rewards], patience: Patience) -> Ask:
    """All sources as one. A response that any of them cannot reward has no reward."""

    def ask(prompts: Sequence[Prompt], responses: Sequence[str], unsafe: Sequence[bool]) -> list[float | None]:
        found = [
            _asked(name, each, prompts, responses, patience) for name, each in zip(config.of, sources, strict=True)
        ]
        if config.rule == "safety-first":
            units = [_units(name, each) for name, each in zip(config.of, found, strict=True)]
            return [
                None if help_ is None or safe is None else safety_first(help_, safe, unsafe=mark, below=config.unsafe)
                for help_, safe, mark in zip(*units, unsafe, strict=True)
            ]
        weights = config.weights or (1.0,) * len(found)
        return [
            None
            if None in each
            else _finite(math.fsum(w * value for w, value in zip(weights, each, strict=True) if value is not None))
            for each in zip(*found, strict=True)
        ]

    return ask


def safety_first(helpfulness: float, safety: float, *, unsafe: bool, below: float) -> float:
    """Llama 2's rule (Touvron et al. 2023, section 3.2.3) on two probabilities: the logit of safety where the prompt is
    unsafe or the response likely so, else of helpfulness. The caller whitens.
    """
    chosen = safety if unsafe or safety < below else helpfulness
    kept = min(max(chosen, LEAST), 1 - LEAST)
    return math.log(kept / (1 - kept))


def _opened(name: str, elsewhere: Opener, device: str) -> Rewards:
    if name.startswith(REWARD):
        return _model(name.removeprefix(REWARD), device)
    found = elsewhere(name)
    module, colon, function = name.partition(":")
    if found is None and colon and module.replace(".", "").isidentifier() and function.isidentifier():
        found = _function(module, function)
    if found is None and "/" not in name and function.isidentifier():
        raise TrainingError(
            f"reward.of {name}: there is no module {module} in this folder or installed, and no labeler of that name"
            " (`rlaif models`)"
        )
    if found is None:
        raise TrainingError(
            f"reward.of {name}: expected reward:DIR, http://HOST:PORT, MODULE:FUNCTION that can be imported, or a"
            " labeler (`rlaif models`)"
        )
    return found


def _model(folder: str, device: str) -> Rewards:
    model = RewardModel(folder, dtype="auto", device=device)

    def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        found: dict[int, float] = {}
        asked: list[tuple[int, Any]] = []
        for at, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                asked.append((at, model.encode(turns(prompt), response)))
            except ValueError:  # too long for the model: there is no reward
                continue
        for (at, _), value in zip(asked, model.rewards([each for _, each in asked]), strict=True):
            found[at] = value
        return [found.get(at) for at in range(len(responses))]

    return rewards


def _function(module: str, name: str) -> Rewards | None:
    """A function of the user's, in the folder where the command runs or installed; None where there is no such module,
    so that the name may mean something else.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return None
        raise TrainingError(f"reward.of {module}:{name}: importing it failed: {error}") from error
    except Exception as error:
        raise TrainingError(
            f"reward.of {module}:{name}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    own = getattr(found, name, None)
    if not callable(own):
        raise TrainingError(f"reward.of {module}:{name}: {module} has no function {name}")
    if inspect.iscoroutinefunction(own):
        raise TrainingError(f"reward.of {module}:{name}: is async; expected a function that returns a list of numbers")

    def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        plain: list[Any] = [each if isinstance(each, str) else [m.model_dump() for m in each] for each in prompts]
        given: Any = own(plain, list(responses))
        try:
            return list(given)
        except TypeError:
            kind = "None" if given is None else f"a {type(given).__name__}"
            raise TrainingError(
                f"reward.of {module}:{name}: returned {kind}; expected a list of {len(responses)} numbers"
            ) from None

    return rewards


def _asked(
    name: str, source: Rewards, prompts: Sequence[Prompt], responses: Sequence[str], patience: Patience
) -> list[float | None]:
    """Numbers and None, whatever a source gives. One that cannot be reached (OSError: no connection, no answer in time)
    is asked again, so that a server which is away for a minute is a pause. Raises TrainingError.
    """
    end, pause = time.monotonic() + patience.seconds, FIRST
    while True:
        try:
            found = list(source(prompts, responses))
            break
        except RlaifError:
            raise
        except OSError as error:
            if isinstance(error, FILES):
                raise _failed(name, error) from error
            if time.monotonic() >= end or patience.stopped.is_set():
                raise TrainingError(
                    f"reward.of {name}: no answer for {patience.seconds:g} s ({error}): is it there? Nothing is"
                    " lost: --resume goes on from the last checkpoint, or begins"
                ) from error
            if pause == 2 * FIRST:  # once, and not of a connection that only broke
                patience.tell(
                    f"reward.of {name}: no answer ({error}); asked again for {patience.seconds:g} s (reward.patience)"
                )
            patience.stopped.wait(min(pause, max(0.0, end - time.monotonic())))
            pause = min(2 * pause, AGAIN)
        except (Exception, SystemExit) as error:
            raise _failed(name, error) from error
    if len(found) != len(responses):
        raise TrainingError(f"reward.of {name}: gave {len(found)} rewards for {len(responses)} responses")
    return [_number(name, each) for each in found]


def _failed(name: str, error: BaseException) -> TrainingError:
    return TrainingError(f"reward.of {name}: {type(error).__name__}: {error}{_place(error)}")


def _place(error: BaseException) -> str:
    """Where somebody's own function failed."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename).parent != HOUSE]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TrainingError(
            f"reward.of {name}: {value!r:.60} is no number; None says that there is no reward"
        ) from None
    return _finite(number)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _units(name: str, values: Sequence[float | None]) -> list[float | None]:
    """As probabilities: scores of a reward model are logits, rewards of labelers lie in [-1, 1]."""
    if name.startswith(REWARD):
        return [None if each is None else 1 / (1 + math.exp(-max(-700.0, each))) for each in values]
    if any(each is not None and not -1 <= each <= 1 for each in values):
        raise TrainingError(f"reward.of {name}: safety-first takes reward:DIR, or rewards in [-1, 1]")
    return [None if each is None else (each + 1) / 2 for each in values]
