"""What may be said about a run: the sections of its TOML file, and --section.field on the command line.

Plain data without torch, so that `rlaif train --help` answers at once. What can be derived is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.errors import RlaifError


class TrainingError(RlaifError):
    """A run that cannot begin or go on, in one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained."""

    name: str = "smollm2"
    """smollm2, a model folder (also one that another run made), or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; bfloat16 is autocast over fp32 weights."""
    device: str = "auto"
    """cpu, cuda, or what there is."""
    lora: int = 0
    """Rank of LoRA adapters on all linear layers, with the model itself as their reference; 0 trains the model."""
    lora_alpha: float | None = None
    """Scale of the adapters. Default: twice the rank."""
    lora_dropout: float = 0.0
    """Dropout in front of the adapters."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters, e.g. q_proj v_proj. Default: every linear layer but the head."""
    freeze: int = 0
    """So many of the lowest layers, and the embedding, stay as they are."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    compile: bool = False
    """Compile the layers (torch.compile): worth it on GPUs, for long runs."""

    def __post_init__(self) -> None:
        if self.lora < 0 or self.freeze < 0:
            raise TrainingError("model.lora and model.freeze must not be negative")
        if not 0 <= self.lora_dropout < 1:
            raise TrainingError(f"model.lora_dropout {self.lora_dropout:g}: expected 0 to less than 1")
        if not self.lora and (self.lora_targets or self.lora_alpha is not None or self.lora_dropout):
            raise TrainingError("model.lora_* say how adapters are made, but model.lora is 0: give it a rank, e.g. 16")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What it learns from."""

    train: str = ""
    """Comparisons (any file that `rlaif check` reads); for sft also prompts with a response."""
    labels: str | None = None
    """What `rlaif label` or `rlaif rank` wrote about them. Default: people's votes in the comparisons themselves."""
    heldout: str | None = None
    """Comparisons to evaluate on. Default: a tenth of the prompts of `train`, at most 500, chosen by their hash."""
    heldout_labels: str | None = None
    """What the rater said of those. Default: the votes in the file."""
    columns: str | None = None
    """prompt=...,a=...,b=...,human=... where the names in the file are others."""
    limit: int | None = None
    """Only so many rows of each file."""
    max_tokens: int = 1024
    """Prompt and response together; longer prompts lose their beginning, longer responses are left out."""
    max_response: int | None = None
    """Most tokens of a response."""

    def __post_init__(self) -> None:
        if self.max_tokens < 8:
            raise TrainingError(f"data.max_tokens {self.max_tokens}: expected at least 8")
        if self.limit is not None and self.limit < 1:
            raise TrainingError("data.limit must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How it learns: AdamW, a warm-up, and a cosine down to `floor`."""

    lr: float = 1e-5
    """The highest learning rate."""
    batch: int = 32
    """Rows (prompts with all of their responses) of one update."""
    epochs: float = 1.0
    """How often each row is seen."""
    steps: int | None = None
    """Updates, in place of epochs."""
    warmup: float = 0.03
    """The part of all updates in which the rate rises."""
    floor: float = 0.1
    """The part of `lr` where the cosine ends; 1 keeps the rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the gradient's mean and square."""
    clip: float = 1.0
    """The gradient's largest norm; 0 leaves it."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise TrainingError(f"optim.lr {self.lr:g}: expected more than 0")
        if self.clip < 0 or self.weight_decay < 0 or not all(0 <= each < 1 for each in self.betas):
            raise TrainingError("optim.clip and optim.weight_decay must not be negative; optim.betas lie in [0, 1)")
        if self.batch < 1 or (self.steps is not None and self.steps < 1) or not 0 < self.epochs < math.inf:
            raise TrainingError("optim.batch, optim.steps and optim.epochs must be more than 0")
        if not (0 <= self.warmup < 1 and 0 <= self.floor <= 1):
            raise TrainingError("optim.warmup and optim.floor are parts of a whole: expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where it is written, and how it goes."""

    out: Path = Path()
    """The run's folder: config.toml, metrics.jsonl, curves.png, checkpoints/, model/, card.md."""
    seed: int = 0
    """Of the order of rows, of a new head, of dropout."""
    tokens: int | None = None
    """Tokens that go through the model at once; less needs less memory and changes no number. Default: by device."""
    evaluate_every: int | None = None
    """Updates between two looks at the held-out rows. Default: ten looks a run."""
    save_every: int | None = None
    """Updates between two checkpoints. Default: where it evaluates."""
    keep: int = 2
    """Checkpoints that stay, beside the best."""
    patience: int | None = None
    """Stop after so many looks without a better one, and take the best. Default: 3 for reward models, else never."""
    tensorboard: bool = False
    """Write event files for TensorBoard too."""
    wandb: str | None = None
    """A project of Weights & Biases to log to as well."""

    def __post_init__(self) -> None:
        for name in ("tokens", "evaluate_every", "save_every", "keep", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"run.{name} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Supervised fine-tuning: the mean cross-entropy of response tokens."""

    responses: Literal["chosen", "all"] = "chosen"
    """Of comparisons: the preferred response, or every one."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward model: a scalar head, Bradley-Terry on soft labels; all pairs of one prompt in one row."""

    margins: Literal["none", "small", "large", "column"] = "none"
    """Llama 2's margin by how much better people found a response; column: the file's `margin`."""
    hard: bool = False
    """Round labels to 0 or 1 first."""
    centering: float = 0.0
    """Weight of (first + second)^2, which keeps scores around 0."""
    center_on: Literal["heldout", "none"] = "heldout"
    """After training a bias makes the mean score of these responses 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.centering < math.inf:
            raise TrainingError(f"algorithm.centering {self.centering:g}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimisation on soft labels."""

    loss: Literal["sigmoid", "hinge", "robust", "ipo", "ipo-averaged", "simpo"] = "sigmoid"
    """sigmoid is DPO; ipo sums log-probabilities, ipo-averaged takes their mean; simpo has no reference."""
    beta: float = 0.1
    """How far the policy may go from the reference: less goes further."""
    noise: float = 0.0
    """Chance that a label is wrong: smooths the labels of sigmoid (cDPO), makes robust unbiased."""
    gamma: float = 0.5
    """simpo's margin, which beta does not scale."""
    hard: bool = False
    """Round labels to 0 or 1 first."""
    reference: str | None = None
    """The model to stay close to. Default: the one that is trained, as it is before."""
    cached: bool = True
    """Ask the reference once for each row before training, and keep the answers; else at each update."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise TrainingError(f"algorithm.beta {self.beta:g}: expected more than 0")
        if not 0 <= self.noise < 0.5:
            raise TrainingError(f"algorithm.noise {self.noise:g}: expected 0 to less than .5")
        if self.noise and self.loss not in {"sigmoid", "robust"}:
            raise TrainingError(f"algorithm.noise is for sigmoid and robust; {self.loss} has no use for it")
        if self.reference is not None and self.loss == "simpo":
            raise TrainingError("algorithm.reference: simpo has no reference")


@dataclass(frozen=True, kw_only=True)
class Cpl:
    """Contrastive preference learning: no reference, no reward model."""

    alpha: float = 0.1
    """Scale of the summed log-probabilities."""
    conservative: float = 0.5
    """lambda in (0, 1]: below 1, both responses' likelihoods are kept up."""
    hard: bool = False
    """Round labels to 0 or 1 first."""

    def __post_init__(self) -> None:
        if not 0 < self.conservative <= 1 or not self.alpha > 0:
            raise TrainingError("algorithm.conservative lies in (0, 1], algorithm.alpha above 0")


Algorithm = Sft | Reward | Dpo | Cpl


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    algorithm: Algorithm
    data: Data
    run: Run
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
