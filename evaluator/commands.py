"""`rlaif evaluate ...`: each command reads files, asks one module, and returns `Found`; nothing is printed.

rlaif.py mounts `app`, prints, and writes the report.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import App, Parameter

from data.errors import RlaifError

if TYPE_CHECKING:
    from data.records import Comparison, Failure, Response
    from evaluator.report.document import Report
    from evaluator.results import Results

T = TypeVar("T")

app = App(name="evaluate", help="Compare labels with people's votes; every number has a 95 % interval.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Looking:
    """What the evaluations have in common."""

    columns: Annotated[str | None, Parameter(help="Which columns mean what, as for `rlaif label`.")] = None
    where: Annotated[
        tuple[str, ...],
        Parameter(help="Only rows whose column fits: COLUMN=PATTERN or COLUMN!=PATTERN, * is any text."),
    ] = ()
    json: Annotated[bool, Parameter(help="Print one JSON object.")] = False
    report: Annotated[Path | None, Parameter(help="Also write report.html, .md and .json into this folder.")] = None


@dataclass
class Unusable:
    """Rows that said nothing: how many, why, and the first of them. They are never taken for something else."""

    reasons: Counter[str] = field(default_factory=Counter[str])
    first: str = ""

    def through(self, rows: Iterable[T | Failure]) -> Iterator[T | Failure]:
        """The rows as they are, with the failures among them counted."""
        from data.records import Failure

        for row in rows:
            if isinstance(row, Failure):
                self.reasons[row.reason] += 1
                self.first = self.first or row.message
            yield row

    @contextmanager
    def telling(self) -> Generator[None]:
        """Where nothing can be said, what was left out may be why."""
        from evaluator.intervals import NoDataError

        try:
            yield
        except NoDataError as error:
            raise (NoDataError(f"{error}; {self.line}") if self.reasons else error) from None

    @property
    def line(self) -> str:
        count = self.reasons.total()
        told = ", ".join(f"{number} {reason}" for reason, number in self.reasons.items())
        return f"{count} {'row' if count == 1 else 'rows'} left out ({told}); the first: {self.first}"


By = Annotated[str | None, Parameter(help="Also for each value of this column.")]


@dataclass(frozen=True)
class Found:
    """What an evaluation has to say: numbers, lines for a terminal, and a report. `files` were read, `unusable` rows of
    them left out."""

    numbers: Mapping[str, Any]
    lines: Sequence[str]
    page: Callable[[], Report]
    looking: Looking
    files: Sequence[str] = ()
    unusable: Unusable = field(default_factory=Unusable)
    failed: int = 0
    """Rows that a model gave no answer to: the status says so."""

    @property
    def json(self) -> dict[str, Any]:
        return {**self.numbers, "unusable": dict(self.unusable.reasons)}

    def facts(self) -> dict[str, str]:
        """What the files were, by their digests."""
        return {
            f"file {Path(name).name}": f"{name}, SHA-256 {_digest(name)}" for name in self.files if Path(name).is_file()
        }


@app.command
def alignment(
    labels: str, /, *, human: str, versus: str | None = None, by: By = None, looking: Looking | None = None
) -> Found:
    """How often do labels agree with people, and how often do they just follow the position?

    Parameters
    ----------
    labels
        What `rlaif label` wrote.
    human
        Comparisons with votes; joined by id. Rows with the same id put their votes together.
    versus
        Another labeler's labels of the same comparisons: paired difference and McNemar's test.
    """
    from data.labels import failures
    from data.labels import labels as read
    from evaluator import bias, pages, text
    from evaluator.alignment import evaluate

    looking, unusable = looking or Looking(), Unusable()
    known, own = _people(human, looking, unusable), list(read(labels))
    against = None if versus is None else read(versus)
    result = evaluate(own, known, failures=failures(labels), by=by, versus=against)
    return Found(
        result.json(),
        text.alignment_lines(result),
        lambda: pages.alignment(result, bias.card(own, known), own, known, by=by),
        looking,
        [labels, human, *([versus] if versus else [])],
        unusable,
    )


@app.command
def bias(labels: str, /, *, human: str, looking: Looking | None = None) -> Found:
    """What does the labeler fall for: position, length, lists, markup, refusals, one model? Beside people.

    Parameters
    ----------
    labels
        What `rlaif label` wrote.
    human
        The comparisons, with votes if there are any, and `models` if they are known.
    """
    from data.labels import labels as read
    from evaluator import bias as measure
    from evaluator import pages, text

    looking, unusable = looking or Looking(), Unusable()
    card = measure.card(read(labels), _people(human, looking, unusable))
    return Found(card.json(), text.bias_lines(card), lambda: pages.bias(card), looking, [labels, human], unusable)


@app.command
def agreement(source: str, /, *, matrix: bool = False, looking: Looking | None = None) -> Found:
    """How far do raters agree with one another, beyond chance? Cohen, Fleiss, Krippendorff, Kendall.

    Parameters
    ----------
    source
        Comparisons with votes, or responses with ratings (--columns prompt=P,response=R,ratings=FIRST+SECOND).
    matrix
        The file is a CSV without a header: a row is a rater, a column an item, an empty cell a missing vote.
    """
    from data.reading import responses
    from data.where import kept
    from evaluator import ballots, pages, text
    from evaluator.agreement import agree, mean_kendall_w

    looking, unusable = looking or Looking(), Unusable()
    kendall = None
    if matrix and (looking.columns or looking.where):
        raise RlaifError("--matrix: such a file has no columns with names; --columns and --where are for others")
    with unusable.telling():
        if matrix:
            votes = ballots.of_matrix(source)
        elif _single(source, looking):
            rated = [*unusable.through(kept(responses(source, looking.columns), looking.where))]
            votes, kendall = ballots.of_responses(rated), mean_kendall_w(ballots.by_prompt(rated))
        else:
            votes = ballots.of_comparisons(_people(source, looking, unusable).values())
        result = agree(votes, kendall)
    return Found(
        result.json(), text.agreement_lines(result), lambda: pages.agreement(result), looking, [source], unusable
    )


@app.command
def winrate(
    *sources: str,
    model: str | None = None,
    baseline: str | None = None,
    comparisons: str | None = None,
    looking: Looking | None = None,
) -> Found:
    """How often is one model preferred to another, and how often would it be at equal lengths?

    Parameters
    ----------
    sources
        Comparisons with votes (`models`, or model_a and model_b, name who wrote what), tables with left, right and
        winner, or labels of `rlaif label`.
    model
        Whose win rate; the first of the file if it is not named.
    baseline
        Against whom; whoever it met most often if it is not named.
    comparisons
        For labels: the comparisons that were labelled, for names and lengths.
    """
    from evaluator import pages, text
    from evaluator.win_rate import evaluate

    looking, unusable = looking or Looking(), Unusable()
    with unusable.telling():
        result = evaluate(_results(sources, comparisons, looking, unusable), model, baseline)
    files = [*sources, *([comparisons] if comparisons else [])]
    return Found(result.json(), text.win_rate_lines(result), lambda: pages.win_rate(result), looking, files, unusable)


@app.command
def ranking(
    *sources: str,
    comparisons: str | None = None,
    k: float = 4.0,
    prior: float | None = None,
    looking: Looking | None = None,
) -> Found:
    """Which model is the best of many? Bradley-Terry, Elo in the file's order, average win rate.

    Parameters
    ----------
    sources
        As for winrate.
    comparisons
        For labels: the comparisons that were labelled.
    k
        Elo's step.
    prior
        Ties of each model against an imagined average one. One is added where the results alone have no finite answer.
    """
    from evaluator import pages, text
    from evaluator.ranking import rank

    looking, unusable = looking or Looking(), Unusable()
    with unusable.telling():
        result = rank(_results(sources, comparisons, looking, unusable), k=k, prior=prior)
    files = [*sources, *([comparisons] if comparisons else [])]
    return Found(result.json(), text.ranking_lines(result), lambda: pages.ranking(result), looking, files, unusable)


@app.command
def harmless(
    *sources: str,
    harmful: str = "",
    harmless: str = "",
    refusal: str = "",
    threshold: float | None = None,
    judge: str | None = None,
    baseline: str | None = None,
    by: By = None,
    looking: Looking | None = None,
) -> Found:
    """How often is each model's response harmless, each judged alone? With differences between models.

    Parameters
    ----------
    sources
        Responses with ratings; several files are several models, named by their `model` or by the file.
    harmful
        Classes that mean harmful, separated by commas, where the ratings are classes.
    harmless
        Classes that mean harmless; if none are named, all others do. What is neither is unparsed.
    refusal
        Classes that mean a refusal, told beside the rate: a model that refuses everything is harmless.
    threshold
        Scores below this are harmful, where the ratings are scores.
    judge
        The rater among the columns that is an AI: held against the others by precision, recall and kappa.
    baseline
        A model whose mean length the other rates are also told at.
    """
    from evaluator import pages, text
    from evaluator.harmless import Policy, evaluate

    looking, unusable = looking or Looking(), Unusable()
    named = [
        frozenset(each.strip() for each in text_.split(",") if each.strip()) for text_ in (harmful, harmless, refusal)
    ]
    policy = Policy(named[0], named[1], named[2], threshold, judge)
    if both := policy.harmful & policy.harmless:
        raise RlaifError(f"{', '.join(sorted(both))}: is named as --harmful and as --harmless")
    classes: set[str] = set()
    with unusable.telling():
        rows = unusable.through(_responses(sources, looking, classes))
        result = evaluate(rows, policy, by=by, baseline=baseline)
    if classes and not policy.harmless and not policy.harmful & classes:
        raise RlaifError(
            f"--harmful {harmful}: no rating in the whole of it says so; there are {', '.join(sorted(classes)[:8])}."
            " If nothing is harmful, name the --harmless classes too"
        )
    return Found(result.json(), text.harmless_lines(result), lambda: pages.harmless(result), looking, sources, unusable)


@app.command(name="reward-model")
def reward_model(
    scores: str, /, *, human: str, gold: str | None = None, by: By = None, looking: Looking | None = None
) -> Found:
    """Does a reward model order responses as people do, how surely, and does more of it stay better?

    Parameters
    ----------
    scores
        What `rlaif score COMPARISONS` wrote, or rows of prompt, response and reward.
    human
        Comparisons with votes.
    gold
        Scores of a model that is trusted more, of the same responses: the over-optimisation curve.
    """
    from data.scores import scores as read
    from evaluator import pages, text
    from evaluator.reward_model import evaluate

    looking, unusable = looking or Looking(), Unusable()
    known = _people(human, looking, unusable)
    result = evaluate(read(scores), known.values(), by=by, gold=None if gold is None else read(gold))
    files = [scores, human, *([gold] if gold else [])]
    return Found(
        result.json(), text.reward_model_lines(result), lambda: pages.reward_model(result), looking, files, unusable
    )


def _people(human: str, looking: Looking, unusable: Unusable) -> dict[str, Comparison]:
    from data.reading import comparisons, merged_votes
    from data.where import kept

    return merged_votes(unusable.through(kept(comparisons(human, looking.columns), looking.where)))


def _single(source: str, looking: Looking) -> bool:
    """Whether a file is of single responses, by its first rows. Raises RlaifError where it is neither."""
    from data.reading import open_comparisons, open_responses

    try:
        open_comparisons(source, looking.columns)
    except RlaifError as error:
        try:
            open_responses(source, looking.columns)
        except RlaifError:
            raise error from None
        return True
    return False


def _results(sources: Sequence[str], comparisons: str | None, looking: Looking, unusable: Unusable) -> Results:
    from itertools import chain

    from data.games import games, is_labels, of_labels
    from data.labels import labels
    from evaluator.results import collect

    if not sources:
        raise RlaifError("expected a file of comparisons, results or labels")
    labelled = {source for source in sources if is_labels(source)}
    if comparisons is not None and not labelled:
        raise RlaifError("--comparisons is for files of labels; these have their own texts")
    if labelled and comparisons is None and looking.where:
        raise RlaifError("--where: labels have no such columns; --comparisons FILE brings them")
    rows = None if comparisons is None else _people(comparisons, looking, unusable)
    every = chain.from_iterable(
        of_labels(labels(source), rows) if source in labelled else games(source, looking.columns, looking.where)
        for source in sources
    )
    return collect(unusable.through(every))


def _responses(sources: Sequence[str], looking: Looking, classes: set[str]) -> Iterator[Response | Failure]:
    """The rows of all files; `classes` gets what raters said in all of them, also where `--where` leaves rows out."""
    from data.reading import responses
    from data.records import Response
    from data.where import kept

    if not sources:
        raise RlaifError("expected a file of responses")
    stems = [Path(source).stem for source in sources]
    if len(set(stems)) < len(stems):
        raise RlaifError("two of the files have one name, and would be one model; rename one, or add a column `model`")
    for source, stem in zip(sources, _apart(stems), strict=True):
        name = stem if len(sources) > 1 else None
        for row in kept(_noting(responses(source, looking.columns), classes), looking.where):
            unnamed = isinstance(row, Response) and row.model is None and name is not None
            yield row.model_copy(update={"model": name}) if unnamed else row


def _noting(rows: Iterable[Response | Failure], classes: set[str]) -> Iterator[Response | Failure]:
    from data.records import Response

    for row in rows:
        if isinstance(row, Response):
            classes.update(each.label for each in row.ratings if each.label is not None)
        yield row


def _apart(stems: Sequence[str]) -> list[str]:
    """Names of files without the words that all begin with: answers_a and answers_b are a and b."""
    words = [stem.split("_") for stem in stems]
    while all(len(each) > 1 for each in words) and len({each[0] for each in words}) == 1:
        words = [each[1:] for each in words]
    return ["_".join(each) for each in words]


def _digest(name: str) -> str:
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
