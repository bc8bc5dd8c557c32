"""What may be said about a run: the sections of its TOML file, and --section.field on the command line.

Plain data without torch, so that `rlaif train --help` answers at once. What can be derived is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
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
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise TrainingError(f"model.lora_alpha {self.lora_alpha:g}: expected more than 0")
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
    pretrain: str | None = None
    """For ppo with ptx: what sft takes, kept likely meanwhile."""

    def __post_init__(self) -> None:
        for name in ("labels", "heldout", "heldout_labels", "columns", "pretrain"):
            if getattr(self, name) == "":  # takes back what a file says
                object.__setattr__(self, name, None)
        if self.max_tokens < 8:
            raise TrainingError(f"data.max_tokens {self.max_tokens}: expected at least 8")
        if self.limit is not None and self.limit < 1:
            raise TrainingError("data.limit must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How it learns: AdamW, a warm-up, and a cosine down to `floor`."""

    lr: float = 0.0
    """The highest learning rate. 0: what suits the algorithm, 1e-5 where it imitates or scores, 1e-6 where it weighs
    responses (dpo, cpl, ppo, reinforce, grpo); ten times that for adapters.
    """
    batch: int = 32
    """Rows (prompts with all of their responses) of one update."""
    epochs: float = 1.0
    """How often each row is seen."""
    steps: int | None = None
    """Updates, in place of epochs; rounds, for what learns from its own samples."""
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
        if not 0 <= self.lr < math.inf:
            raise TrainingError(f"optim.lr {self.lr:g}: expected more than 0, or 0 for what suits the algorithm")
        if not (0 <= self.clip < math.inf and 0 <= self.weight_decay < math.inf) or not all(
            0 <= each < 1 for each in self.betas
        ):
            raise TrainingError("optim.clip and optim.weight_decay must not be negative; optim.betas lie in [0, 1)")
        for name in ("batch", "steps", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TrainingError(f"optim.{name} {value:g}: expected more than 0")
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
        if not math.isfinite(self.gamma):
            raise TrainingError(f"algorithm.gamma {self.gamma:g}: expected a number")
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
        if not 0 < self.conservative <= 1 or not 0 < self.alpha < math.inf:
            raise TrainingError("algorithm.conservative lies in (0, 1], algorithm.alpha above 0")


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How the policy samples what it learns from."""

    prompts: int = 32
    """Prompts of one round; each round samples, asks for rewards, then learns."""
    samples: int = 4
    """Responses to each prompt."""
    max_tokens: int = 128
    """Most tokens of a response."""
    temperature: float = 1.0
    """What is learned is the policy at this temperature."""
    stop: tuple[str, ...] = ()
    """Texts that end a response, beside the model's own ending."""
    unended: float = 0.0
    """Taken from the reward of a response that did not end within `max_tokens`."""
    rows: int = 0
    """Responses that are written at the same time; changes no number. 0: 64, or 512 where vLLM writes."""
    engine: str = "here"
    """here: the policy itself; vllm: vLLM in a process beside this one; http://HOST:PORT: a `vllm serve`, started with
    VLLM_SERVER_DEV_MODE=1. vLLM is handed the policy's weights each round.
    """
    memory: float = 0.3
    """The part of the GPU (without one, of the machine's memory) that vllm takes."""
    handed: Path | None = None
    """Folder through which vLLM is handed weights; a `vllm serve` must see it too. Default: the run's."""

    def __post_init__(self) -> None:
        if min(self.prompts, self.samples, self.max_tokens) < 1 or self.rows < 0:
            raise TrainingError("rollout.prompts, samples and max_tokens must be at least 1, rows at least 0")
        if not math.isfinite(self.unended):
            raise TrainingError(f"rollout.unended {self.unended:g}: expected a number")
        if any(not each for each in self.stop):
            raise TrainingError("rollout.stop: an empty text ends every response at once")
        if self.engine not in {"here", "vllm"} and not self.engine.startswith(("http://", "https://")):
            raise TrainingError(f"rollout.engine {self.engine}: expected here, vllm or http://HOST:PORT")
        if not 0 < self.memory < 1:
            raise TrainingError(f"rollout.memory {self.memory:g}: expected a part, between 0 and 1")
        if not 0 < self.temperature < math.inf:
            raise TrainingError(
                f"rollout.temperature {self.temperature:g}: expected more than 0, or all samples would be the same"
            )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Who says how good a response is."""

    of: tuple[str, ...] = ()
    """reward:DIR (a reward model), http://HOST:PORT (`rlaif serve`), MODULE:FUNCTION of yours (prompts, responses) ->
    numbers, or a labeler (local:..., openai:...) with `task`. Two with rule safety-first: helpfulness, safety.
    """
    task: str = ""
    """What a labeler is asked (`rlaif tasks`)."""
    base_url: str | None = None
    """A labeler's server, where it is one of yours that speaks OpenAI's protocol."""
    budget: float | None = None
    """USD that labelers may cost until this start of the run ends: at most what is in flight then goes beyond."""
    price: str | None = None
    """IN,OUT or IN,OUT,CACHED: USD per million tokens, where the price table does not know a labeler."""
    rule: Literal["sum", "safety-first"] = "sum"
    """sum adds what each says times its weight; safety-first is Llama 2's: safety below `unsafe`, or for a prompt
    that is marked as unsafe, else helpfulness; then the logit, whitened.
    """
    weights: tuple[float, ...] = ()
    """One for each of `of`. Default: all 1."""
    unsafe: float = 0.15
    """Where safety, as a probability, comes first."""
    failures: Literal["drop", "stop"] = "drop"
    """A response without a reward is left out, or ends the run; it never counts as 0."""
    patience: float = 600.0
    """Seconds to wait for a server that gives no reward at all."""

    def __post_init__(self) -> None:
        if self.rule == "safety-first" and len(self.of) != 2:
            raise TrainingError("reward.rule safety-first needs two in reward.of: helpfulness, then safety")
        if self.weights and len(self.weights) != len(self.of):
            raise TrainingError(f"reward.weights: {len(self.weights)} for {len(self.of)} in reward.of")
        if not all(map(math.isfinite, self.weights)):
            raise TrainingError("reward.weights: expected numbers")
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise TrainingError(f"reward.budget {self.budget:g}: expected USD, 0 or more")
        if not 0 <= self.patience < math.inf:
            raise TrainingError(f"reward.patience {self.patience:g}: expected seconds, 0 or more")
        if not 0 <= self.unsafe <= 1:
            raise TrainingError(f"reward.unsafe {self.unsafe:g}: expected a probability, 0 to 1")


Critic = Literal["trunk", "model", "reward"]


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """Proximal policy optimisation with a KL penalty in the reward (Ziegler et al. 2019; Ouyang et al. 2022)."""

    beta: float = 0.05
    """Weight of the KL penalty."""
    target: float | None = None
    """The KL of a whole response that `beta` is adapted to. Default: `beta` stays."""
    horizon: float = 10000.0
    """Responses in which an adapted `beta` changes by a fifth."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of the KL penalty; k1 alone has the right gradient in a reward."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """GAE's lambda: 1 trusts rewards, 0 the critic."""
    epochs: int = 4
    """Passes over a round's samples."""
    clip: float = 0.2
    """How far the policy's ratio may move in one round."""
    value_clip: float = 0.2
    """How far a value may move in one round."""
    value_weight: float = 0.1
    """Weight of the critic's loss."""
    critic: Critic = "trunk"
    """trunk: a head on the policy; model: one of its own that begins as the policy; reward: the first reward:DIR."""
    whiten: bool = False
    """Scale rewards to variance 1, without shifting their mean."""
    entropy: float = 0.0
    """Weight of an entropy bonus."""
    stop: float | None = None
    """End a round's updates when the policy is this far (KL per token) from what sampled it."""
    ptx: float = 0.0
    """PPO-ptx: weight of log-likelihood on `data.pretrain`, in the same updates."""
    reference: str | None = None
    """The model to stay close to. Default: the one that is trained, as it is before."""

    def __post_init__(self) -> None:
        _positive(self, "horizon", "clip", "value_clip", "epochs")
        _not_negative(self, "beta", "value_weight", "entropy", "ptx")
        if not (0 < self.gamma <= 1 and 0 <= self.lam <= 1):
            raise TrainingError("algorithm.gamma lies in (0, 1], algorithm.lam in [0, 1]")
        for name in ("target", "stop"):
            if getattr(self, name) is not None:
                _positive(self, name)
        if self.target is not None and not self.beta:
            raise TrainingError("algorithm.beta 0: there is nothing to adapt to algorithm.target; begin with e.g. 0.05")


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """REINFORCE as in RLAIF (Lee et al. 2023, appendix F): (1 - beta) reward - beta KL, with a learned baseline."""

    beta: float = 0.05
    """In [0, 1]: the KL's weight; the reward has what is left."""
    value_weight: float = 0.5
    """Weight of the critic's loss."""
    critic: Critic = "trunk"
    """trunk: a head on the policy; model: a model of its own; reward: the first reward:DIR."""
    reference: str | None = None
    """The model to stay close to. Default: the one that is trained, as it is before."""

    def __post_init__(self) -> None:
        _not_negative(self, "value_weight")
        if not 0 <= self.beta <= 1:
            raise TrainingError(f"algorithm.beta {self.beta:g}: expected 0 to 1; the reward has weight 1 - beta")


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Group baselines: what a response is worth against the others to its prompt (GRPO, Dr. GRPO, DAPO, RLOO)."""

    advantage: Literal["grpo", "batch", "centered", "rloo"] = "grpo"
    """Less the group's mean, over its deviation (grpo), over that of all (batch), or over nothing (centered); rloo:
    less the mean of the others.
    """
    aggregate: Literal["response", "token", "constant"] = "response"
    """The mean of responses' means (GRPO), of all tokens (DAPO, BNPO), or sums over `max_tokens` (Dr. GRPO)."""
    beta: float = 0.04
    """Weight of the KL penalty."""
    penalty: Literal["loss", "reward"] = "loss"
    """Where the KL stands: a term of the loss (GRPO), or in the reward (RLOO)."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of the KL; GRPO takes k3. In a reward k1 has the right gradient, in a loss k2."""
    clip: float = 0.2
    """How far the policy's ratio may move in one round."""
    epochs: int = 1
    """Passes over a round's samples."""
    reference: str | None = None
    """The model to stay close to. Default: the one that is trained, as it is before."""

    def __post_init__(self) -> None:
        _positive(self, "clip", "epochs")
        _not_negative(self, "beta")
        if self.penalty == "loss" and self.estimator == "k1":
            raise TrainingError("algorithm.estimator k1 has no gradient in a loss: take k2 or k3, or penalty reward")


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Rejection sampling: fine-tune on each prompt's best response of all rounds so far (Llama 2)."""

    epochs: int = 1
    """Passes over the best responses, each round."""

    def __post_init__(self) -> None:
        _positive(self, "epochs")


@dataclass(frozen=True, kw_only=True)
class Rest:
    """ReST (Gulcehre et al. 2023): each round grows a set of samples, then improves on ever better parts of it."""

    thresholds: tuple[float, ...] = (0.7, 0.8, 0.9)
    """One pass each: what a reward has to exceed. As percentiles, parts of the responses that are left out."""
    kind: Literal["percentile", "prompt", "absolute"] = "percentile"
    """percentile of all rewards; of those of each prompt; or the reward itself."""
    decay: float = 0.5
    """Each pass learns at this part of the rate before it."""

    def __post_init__(self) -> None:
        if not self.thresholds or not all(a < b for a, b in pairwise((*self.thresholds, math.inf))):
            raise TrainingError("algorithm.thresholds: expected numbers that rise")
        if self.kind != "absolute" and not all(0 <= each < 1 for each in self.thresholds):
            raise TrainingError(f"algorithm.thresholds: as {self.kind} they lie in [0, 1)")
        if not 0 < self.decay <= 1:
            raise TrainingError(f"algorithm.decay {self.decay:g}: expected more than 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Hir:
    """Hindsight instruction relabeling (Zhang et al. 2023): every response is right for some instruction."""

    right: str = "Give a good answer."
    """What is put after a prompt whose response has more than `threshold`."""
    wrong: str = "Give a bad answer."
    """What is put after the others."""
    threshold: float = 0.0
    """The reward that a good answer exceeds."""
    smoothing: float = 0.2
    """Label smoothing of the likelihood and of the contrast."""
    contrast: float = 1.0
    """Weight of the contrast between both instructions."""
    entropy: float = 0.001
    """Weight of an entropy bonus."""
    epochs: int = 1
    """Passes over a round's samples."""

    def __post_init__(self) -> None:
        _positive(self, "epochs")
        _not_negative(self, "contrast", "entropy")
        if not math.isfinite(self.threshold):
            raise TrainingError(f"algorithm.threshold {self.threshold:g}: expected a number")
        if not 0 <= self.smoothing < 0.5:
            raise TrainingError(f"algorithm.smoothing {self.smoothing:g}: expected 0 to less than .5")
        if self.right.strip() == self.wrong.strip():
            raise TrainingError("algorithm.right and algorithm.wrong are the same instruction")


def _positive(section: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(section, name) < math.inf:
            raise TrainingError(f"algorithm.{name} {getattr(section, name):g}: expected more than 0")


def _not_negative(section: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(section, name) < math.inf:
            raise TrainingError(f"algorithm.{name} {getattr(section, name):g}: expected 0 or more")


Offline = Sft | Reward | Dpo | Cpl
Online = Ppo | Reinforce | Grpo | Rejection | Rest | Hir
"""What learns from its own samples."""
Algorithm = Offline | Online


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    algorithm: Algorithm
    data: Data
    run: Run
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    rollout: Rollout | None = None
    reward: Judged | None = None

    def __post_init__(self) -> None:
        if not self.optim.lr:
            object.__setattr__(self, "optim", replace(self.optim, lr=_rate(self)))
        if self.rollout is None:
            return
        if self.data.labels is not None or self.data.heldout_labels is not None:
            raise TrainingError("data.labels: prompts alone are read here; labels teach reward, dpo, cpl and sft")
        count = self.rollout.prompts * self.rollout.samples
        if isinstance(self.algorithm, Ppo) and self.algorithm.target is not None and self.algorithm.horizon < count:
            raise TrainingError(
                f"algorithm.horizon {self.algorithm.horizon:g}: a round has {count} responses already; expected more"
            )
        if isinstance(self.algorithm, Grpo) and self.rollout.samples < 2:
            raise TrainingError(
                f"rollout.samples {self.rollout.samples}: at least 2: a response is compared to its prompt's others"
            )


def _rate(config: Config) -> float:
    """What papers take: SFT and reward models 1e-5 (InstructGPT, appendix C), DPO 1e-6 (appendix B), RL 1e-6 (Llama 2,
    section 3.4.3). Adapters learn best at about ten times the rate of a whole model (Schulman et al. 2025, LoRA Without
    Regret).
    """
    whole = 1e-6 if isinstance(config.algorithm, Dpo | Cpl | Ppo | Reinforce | Grpo) else 1e-5
    return 10 * whole if config.model.lora else whole
