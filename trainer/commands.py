"""`rlaif train`: a run from its TOML file, any field of which the command line may say otherwise."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict

from data.errors import UsageError
from trainer.config import (
    Algorithm,
    Config,
    Cpl,
    Data,
    Dpo,
    Grpo,
    Hir,
    Judged,
    Model,
    Optim,
    Ppo,
    Reinforce,
    Rejection,
    Rest,
    Reward,
    Rollout,
    Run,
    Sft,
    TrainingError,
)


def _from_file(app: App, _commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """The file of --config fills what the command line does not say."""
    given = next((each.tokens[-1].value for each in arguments if each.name == "--config" and each.tokens), None)
    if given is None:
        return
    if not Path(given).is_file():
        what = "is a folder; expected a TOML file" if Path(given).is_dir() else "no such file"
        raise TrainingError(f"--config {given}: {what}")
    try:
        found: dict[str, Any] = tomllib.loads(Path(given).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"--config {given}: not TOML: {error}") from None
    Dict(found, source=given)(app, (), arguments)  # its sections are ours: none is the name of a command


app = App(
    name="train",
    help="Train a model: on labels (sft, reward, dpo, cpl), or on its own samples and their rewards (ppo, reinforce, "
    "grpo, rejection, rest, hir).\n\nA run is a TOML file of [model] [data] [optim] [algorithm] [run], and for the "
    "latter [rollout] [reward]; each field is an option too, --section.field VALUE, which wins.\n\n"
    "For example: rlaif train dpo --data.train comparisons.jsonl --data.labels labels.parquet --run.out runs/dpo\n\n"
    "Several processes: torchrun --nproc-per-node N -m rlaif train ...",
    config=[_from_file],
    default_parameter=Parameter(consume_multiple=True),  # --model.lora-targets q_proj v_proj
)


@dataclass(frozen=True)
class Wanted:
    """A run that was asked for; rlaif.py starts it, since it knows the cache and how to make intervals."""

    config: Config
    resume: bool
    json: bool


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What every run has."""

    data: Data = field(default_factory=Data)
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    config: Annotated[Path | None, Parameter(help="The run's TOML file.")] = None
    resume: Annotated[bool, Parameter(help="Go on from the last checkpoint, exactly.")] = False
    json: Annotated[bool, Parameter(help="Print one JSON object with the result.")] = False

    def wanted(self, algorithm: Algorithm, rollout: Rollout | None = None, reward: Judged | None = None) -> Wanted:
        if not self.data.train or self.run.out == Path():
            raise UsageError(
                "what is learned from, and where to? Say --data.train FILE --run.out DIR, or --config FILE.toml"
            )
        missing = [name for name in ("torch", "transformers", "safetensors") if find_spec(name) is None]
        if missing:
            raise TrainingError(f"training needs {' and '.join(missing)}: pip install 'rlaif-service[train]'")
        config = Config(
            algorithm=algorithm,
            data=self.data,
            run=self.run,
            model=self.model,
            optim=self.optim,
            rollout=rollout,
            reward=reward,
        )
        return Wanted(config, self.resume, self.json)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sampling(Common):
    """What a run has that learns from its own samples."""

    rollout: Rollout = field(default_factory=Rollout)
    reward: Judged = field(default_factory=Judged)

    def sampled(self, algorithm: Algorithm) -> Wanted:
        if not self.reward.of:
            raise UsageError(
                "who rewards? Say --reward.of reward:DIR, http://HOST:PORT, MODULE:FUNCTION, or a labeler and"
                " --reward.task"
            )
        return self.wanted(algorithm, self.rollout, self.reward)


NOTHING, ALONE = Common(), Sampling()


@app.command
def sft(*, common: Common = NOTHING, algorithm: Sft | None = None) -> Wanted:
    """Imitate responses: the preferred ones of comparisons, or every response of a file."""
    return common.wanted(algorithm or Sft())


@app.command
def reward(*, common: Common = NOTHING, algorithm: Reward | None = None) -> Wanted:
    """Train a reward model on soft labels, votes or rankings."""
    return common.wanted(algorithm or Reward())


@app.command
def dpo(*, common: Common = NOTHING, algorithm: Dpo | None = None) -> Wanted:
    """Train a policy on soft labels, close to a reference (Rafailov et al. 2023)."""
    return common.wanted(algorithm or Dpo())


@app.command
def cpl(*, common: Common = NOTHING, algorithm: Cpl | None = None) -> Wanted:
    """Train a policy on soft labels without a reference (Hejna et al. 2023)."""
    return common.wanted(algorithm or Cpl())


@app.command
def ppo(*, common: Sampling = ALONE, algorithm: Ppo | None = None) -> Wanted:
    """Train a policy on rewards, with a critic and a KL penalty (Ouyang et al. 2022)."""
    return common.sampled(algorithm or Ppo())


@app.command
def reinforce(*, common: Sampling = ALONE, algorithm: Reinforce | None = None) -> Wanted:
    """Train a policy on rewards as RLAIF does: REINFORCE with a learned baseline (Lee et al. 2023)."""
    return common.sampled(algorithm or Reinforce())


@app.command
def grpo(*, common: Sampling = ALONE, algorithm: Grpo | None = None) -> Wanted:
    """Train a policy on rewards without a critic: GRPO, Dr. GRPO, DAPO, RLOO."""
    return common.sampled(algorithm or Grpo())


@app.command
def rejection(*, common: Sampling = ALONE, algorithm: Rejection | None = None) -> Wanted:
    """Imitate each prompt's best response of several, round after round (Llama 2)."""
    return common.sampled(algorithm or Rejection())


@app.command
def rest(*, common: Sampling = ALONE, algorithm: Rest | None = None) -> Wanted:
    """Grow samples, then improve on ever better parts of them (Gulcehre et al. 2023)."""
    return common.sampled(algorithm or Rest())


@app.command
def hir(*, common: Sampling = ALONE, algorithm: Hir | None = None) -> Wanted:
    """Learn from every response under the instruction that it fulfils (Zhang et al. 2023)."""
    return common.sampled(algorithm or Hir())
