"""`rlaif evaluate ...`: each command reads files, asks one module, and returns `Found`; nothing is printed.

rlaif.py mounts `app`, prints, and writes the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from data.errors import RlaifError

if TYPE_CHECKING:
    from data.records import Comparison, Failure, Response
    from evaluator.report.document import Report

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


By = Annotated[str | None, Parameter(help="Also for each value of this column.")]


@dataclass(frozen=True)
class Found:
    """What an evaluation has to say: numbers, lines for a terminal, and a report. `files` were read."""

    numbers: Mapping[str, Any]
    lines: Sequence[str]
    page: Callable[[], Report]
    looking: Looking
    files: Sequence[str] = field(default=())

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

    looking = looking or Looking()
    known, own = _people(human, looking), list(read(labels))
    against = None if versus is None else read(versus)
    result = evaluate(own, known, failures=failures(labels), by=by, versus=against)
    return Found(
        result.json(),
        text.alignment_lines(result),
        lambda: pages.alignment(result, bias.card(own, known), own, known, by=by),
        looking,
        [labels, human, *([versus] if versus else [])],
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

    looking = looking or Looking()
    card = measure.card(read(labels), _people(human, looking))
    return Found(card.json(), text.bias_lines(card), lambda: pages.bias(card), looking, [labels, human])


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
    from data.reading import comparisons, responses
    from data.where import kept
    from evaluator import ballots, pages, text
    from evaluator.agreement import agree, mean_kendall_w

    looking = looking or Looking()
    kendall = None
    if matrix:
        votes = ballots.of_matrix(source)
    elif _single(source, looking):
        rated = [*kept(responses(source, looking.columns), looking.where)]
        votes, kendall = ballots.of_responses(rated), mean_kendall_w(ballots.by_prompt(rated))
    else:
        votes = ballots.of_comparisons(kept(comparisons(source, looking.columns), looking.where))
    result = agree(votes, kendall)
    return Found(result.json(), text.agreement_lines(result), lambda: pages.agreement(result), looking, [source])


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

    looking = looking or Looking()
    result = evaluate(_results(sources, comparisons, looking), model, baseline)
    files = [*sources, *([comparisons] if comparisons else [])]
    return Found(result.json(), text.win_rate_lines(result), lambda: pages.win_rate(result), looking, files)


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

    looking = looking or Looking()
    result = rank(_results(sources, comparisons, looking), k=k, prior=prior)
    files = [*sources, *([comparisons] if comparisons else [])]
    return Found(result.json(), text.ranking_lines(result), lambda: pages.ranking(result), looking, files)


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

    looking = looking or Looking()
    named = [
        frozenset(each.strip() for each in text_.split(",") if each.strip()) for text_ in (harmful, harmless, refusal)
    ]
    policy = Policy(named[0], named[1], named[2], threshold, judge)
    result = evaluate(_responses(sources, looking), policy, by=by, baseline=baseline)
    return Found(result.json(), text.harmless_lines(result), lambda: pages.harmless(result), looking, sources)


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

    looking = looking or Looking()
    known = _people(human, looking)
    result = evaluate(read(scores), known.values(), by=by, gold=None if gold is None else read(gold))
    files = [scores, human, *([gold] if gold else [])]
    return Found(result.json(), text.reward_model_lines(result), lambda: pages.reward_model(result), looking, files)


def _people(human: str, looking: Looking) -> dict[str, Comparison]:
    from data.reading import comparisons, merged_votes
    from data.where import kept

    return merged_votes(iter(kept(comparisons(human, looking.columns), looking.where)))


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


def _results(sources: Sequence[str], comparisons: str | None, looking: Looking) -> Any:
    from itertools import chain

    from data.games import games, is_labels, of_labels
    from data.labels import labels
    from evaluator.results import collect

    if not sources:
        raise RlaifError("expected a file of comparisons, results or labels")
    rows = None if comparisons is None else _people(comparisons, looking)
    return collect(
        chain.from_iterable(
            of_labels(labels(source), rows) if is_labels(source) else games(source, looking.columns, looking.where)
            for source in sources
        )
    )


def _responses(sources: Sequence[str], looking: Looking) -> Iterable[Response | Failure]:
    from data.reading import responses
    from data.records import Response
    from data.where import kept

    if not sources:
        raise RlaifError("expected a file of responses")
    stems = [Path(source).stem for source in sources]
    for source, stem in zip(sources, _apart(stems), strict=True):
        name = stem if len(sources) > 1 else None
        for row in kept(responses(source, looking.columns), looking.where):
            unnamed = isinstance(row, Response) and row.model is None and name is not None
            yield row.model_copy(update={"model": name}) if unnamed else row


def _apart(stems: Sequence[str]) -> list[str]:
    """Names of files without the words that all begin with: answers_a and answers_b are a and b."""
    words = [stem.split("_") for stem in stems]
    while all(len(each) > 1 for each in words) and len({each[0] for each in words}) == 1:
        words = [each[1:] for each in words]
    return ["_".join(each) for each in words]


def _digest(name: str) -> str:
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
