"""What each report holds: from results to sentences, sections, figures and what is worth reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from data.records import Comparison, Label, Prompt
from data.where import cell
from evaluator import text
from evaluator.ablation import Ablation
from evaluator.agreement import Agreement
from evaluator.alignment import TIE, Alignment, join, majority
from evaluator.bias import BiasCard
from evaluator.calibration import Bin
from evaluator.harmless import Harmless
from evaluator.intervals import Interval
from evaluator.ranking import Ranked
from evaluator.report import charts
from evaluator.report.document import Cell, Figure, Reading, Report, Section, Table
from evaluator.reward_model import RewardModel
from evaluator.win_rate import WinRates

COIN = 0.5


def alignment(
    result: Alignment,
    card: BiasCard,
    labels: Sequence[Label],
    human: Mapping[str, Comparison],
    *,
    by: str | None = None,
) -> Report:
    joined, _ = join(labels, human)
    readings = [_disagreement(label, row, by) for label, row in joined if _apart(label, row)]
    return Report(
        title="Does the labeler agree with people?",
        headlines=[
            f"Alignment with the majority of people: {text.percent(result.alignment)}.",
            *text.verdict(result),
            *([_yardstick(result)] if result.yardstick else []),
        ],
        sections=[
            _agreement_section(result),
            _position_section(result),
            _calibration_section(labels, result.reliability, "of the label"),
            _bias_section(card, text.bias_verdict(card)),
            _cost_section(labels),
        ],
        readings=readings,
        facts=_provenance(labels),
        result=result.json(),
    )


def _yardstick(result: Alignment) -> str:
    assert result.yardstick is not None
    low, high = result.yardstick.difference.low, result.yardstick.difference.high
    told = f"{text.percent(result.yardstick.labeler)} against {text.percent(result.yardstick.human)}"
    if low > 0:
        return f"It agrees with the other raters more often than one more person does: {told}."
    if high < 0:
        return f"It agrees with the other raters less often than one more person does: {told}."
    return f"It is not shown to be better or worse than one more person: {told}."


def _agreement_section(result: Alignment) -> Section:
    rows: dict[str, Interval] = {"the majority": result.alignment, "single votes": result.against_raters}
    rows |= {f"rater {name}": each for name, each in result.raters.items() if len(result.raters) > 1}
    rows |= {f"votes {name}": each for name, each in result.by_confidence.items()}
    rows |= {f"strength {name}": each for name, each in result.by_strength.items()}
    rows |= dict(result.by)
    rows["always the longer would get"] = result.prefers_longer
    caption = "The share of comparisons on which it prefers what people prefer; the line is what a coin would get."
    tables = [_numbers({"Cohen's kappa": result.kappa})]
    if result.versus is not None:
        told = {"the other labeler": result.versus.alignment, "this one minus the other": result.versus.difference}
        tables.append(_numbers(told))
    needed = Table(
        ["a difference of", "needs, on different items", "needs, on the same items"],
        [[f"{points} points", each["unpaired"], each["paired"]] for points, each in result.sample_size.items()],
    )
    return Section(
        "Agreement with people", figures=[_shares("Who it agrees with", caption, rows)], tables=[*tables, needed]
    )


def _position_section(result: Alignment) -> Section:
    rows = {
        "same response in both orders": result.consistent,
        "same position in both orders": result.same_position,
        "what is shown first": result.first_shown,
    }
    known = {name: each for name, each in rows.items() if each is not None}
    if not known:
        return Section("Position", ["Only one order was asked: nothing is known of position."])
    known |= {f"alignment of order {at} alone": each.alignment for at, each in enumerate(result.orders, start=1)}
    caption = "A labeler that reads the texts chooses the same response whichever is shown first."
    return Section("Position", figures=[_shares("Does the order decide?", caption, known)])


def _calibration_section(labels: Sequence[Label], bins: Sequence[Bin], of: str) -> Section:
    figures = [_reliability(bins)] if bins else []
    if labels:
        values = [label.p for label in labels]
        caption = "Probability that response 0 is the better one. A heap at .5 is orders that contradict each other."
        figures.append(Figure("How sure is it?", caption, charts.histogram(values, f"p {of}", numbers=".1f")))
    return Section("Calibration", figures=figures)


def _reliability(bins: Sequence[Bin]) -> Figure:
    points = [(each.confidence, each.accuracy) for each in bins]
    table = Table(["confidence", "right"], [[each.confidence, each.accuracy] for each in bins])
    caption = "Of the items of one confidence, how many are right: on the line, a probability means what it says."
    return Figure("Does a probability mean what it says?", caption, charts.reliability(points), table)


def bias(card: BiasCard) -> Report:
    return Report(
        "What does the labeler fall for?", text.bias_verdict(card), [_bias_section(card, [])], result=card.json()
    )


def _bias_section(card: BiasCard, said: Sequence[str]) -> Section:
    every = {**card.traits, **card.models}
    apart = {name: each.difference for name, each in every.items() if each.difference is not None}
    rows = [[name, each.labeler, each.human, each.difference] for name, each in every.items()]
    table = Table(["of the two, it prefers", "labeler", "people", "difference"], rows)
    if not apart:
        return Section("What it falls for", said, tables=[table] if rows else [])
    caption = (
        "How much more often than people it prefers the response that is longer, has a list, refuses, is a model's own."
    )
    figure = Figure(
        "Labeler minus people", caption, charts.intervals(apart, "difference", reference=0.0, numbers="+.0%"), table
    )
    return Section("What it falls for", said, [figure])


def _cost_section(labels: Sequence[Label]) -> Section:
    usd = [label.usd for label in labels if label.usd is not None]
    count = len(labels)
    rows: list[list[Cell]] = [
        ["labels", float(count)],
        ["tokens read", float(sum(label.tokens_in for label in labels))],
        ["tokens written", float(sum(label.tokens_out for label in labels))],
        ["USD in all", sum(usd) if usd else None],
        ["USD per 1,000 labels", 1000 * sum(usd) / len(usd) if usd else None],
        ["seconds per label, of waiting", sum(label.seconds for label in labels) / count],
        ["median label mass", sorted(label.mass for label in labels)[count // 2]],
    ]
    return Section("Cost", tables=[Table(["what", "how much"], rows)])


def _provenance(labels: Sequence[Label]) -> dict[str, str]:
    names = ("model", "task", "digest", "method")
    counts = {name: Counter(str(getattr(label, name)) for label in labels) for name in names}
    return {name: ", ".join(value for value, _ in count.most_common(5)) for name, count in counts.items()}


def _apart(label: Label, row: Comparison) -> bool:
    best = majority(row.votes) if row.votes else TIE
    return best != TIE and label.choice != best and len(row.responses) == 2


def _disagreement(label: Label, row: Comparison, by: str | None) -> Reading:
    best = majority(row.votes)
    against = label.p if best == 1 else 1 - label.p
    votes = Counter("tie" if vote.choice == "tie" else f"response {vote.choice + 1}" for vote in row.votes)
    marks = [f"labeler {100 * p:.0f} %" for p in (label.p, 1 - label.p)]
    marks[best] += ", people"
    names = row.models or ("", "")
    marks = [f"{name}: {mark}" if name else mark for name, mark in zip(names, marks, strict=True)]
    rationales = [order.rationale for order in label.orders if order.rationale]
    tags = ["follows the position"] if label.same_position else []
    tags += ["exact tie"] if label.choice is None else []
    if by is not None and cell(row, by) is not None:
        tags.append(f"{by}: {cell(row, by)}")
    facts: dict[str, Cell] = {
        "votes": ", ".join(f"{name} {count}" for name, count in votes.most_common()),
        "p of response 1": label.p,
        "label mass": label.mass,
    }
    told = "\n\n--- the other order ---\n\n".join(rationales) or None
    return Reading(f"{row.id}", _prompt(row.prompt), row.responses, marks, facts, told, tags, against)


def _prompt(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{each.role}: {each.content}" for each in prompt)


def agreement(result: Agreement) -> Report:
    known = {"Fleiss' kappa": result.fleiss, "Krippendorff's alpha, nominal": result.nominal}
    known |= {"  ordinal": result.ordinal} if result.ordinal else {}
    known |= {"  interval": result.interval} if result.interval else {}
    known |= {"Kendall's W": result.kendall} if result.kendall else {}
    pairs = {**result.pairwise}
    sections = [
        Section(
            "Beyond chance",
            figures=[
                Figure(
                    "How far do they agree?",
                    "0 is what chance would give, 1 is full agreement.",
                    charts.intervals(known, "agreement beyond chance", reference=0.0, numbers=".1f"),
                    _numbers(known),
                )
            ],
        )
    ]
    if pairs:
        figure = Figure(
            "Each pair of raters",
            "Cohen's kappa: who stands apart?",
            charts.intervals(pairs, "Cohen's kappa", reference=0.0, numbers=".1f"),
            _numbers(pairs),
        )
        sections.append(Section("Pairs of raters", figures=[figure]))
    counts = Table(["class", "votes"], [[name, float(count)] for name, count in result.classes.items()])
    sections.append(
        Section("Votes", tables=[counts, Table(["rater", "votes"], [[n, float(c)] for n, c in result.raters.items()])])
    )
    headlines = [f"Two raters agree on {text.percent(result.raw)}.", *text.agreement_verdict(result)]
    return Report("Do people agree with one another?", headlines, sections, result=result.json())


def win_rate(result: WinRates) -> Report:
    one = result.asked
    rows = {f"{each.model} against {each.baseline}": each.win_rate for each in (one, *result.others)}
    equal = {"at equal length (ratio)": one.by_ratio, "at equal length (AlpacaEval)": one.by_difference}
    rows |= {name: each.rate for name, each in equal.items() if each.rate is not None}
    notes = [f"{name}: {each.why}." for name, each in equal.items() if each.why]
    caption = "A tie is half a win; the line is what two equal models would get."
    sections = [Section("Win rates", notes, [_shares("How often is it preferred?", caption, rows)])]
    if result.matrix:
        names = list(result.matrix)
        nan = float("nan")
        values = [[result.matrix[i][j].value if j in result.matrix[i] else nan for j in names] for i in names]
        table = Table(["", *names], [[i, *[result.matrix[i].get(j) for j in names]] for i in names])
        figure = Figure(
            "Each against each", "Win rate of the row over the column.", charts.matrix(names, values), table
        )
        sections.append(Section("All pairs", figures=[figure]))
    headlines = [f"{one.model} wins {text.percent(one.win_rate)} against {one.baseline}.", text.win_rate_verdict(one)]
    return Report(f"{one.model} against {one.baseline}", headlines, sections, result=result.json())


def ranking(result: Ranked) -> Report:
    rows: list[list[Cell]] = [
        [
            name,
            result.elo_scale[name],
            result.bradley_terry[name],
            result.elo[name],
            result.average_win_rate[name],
            float(n),
        ]
        for name, n in result.games.items()
    ]
    columns = [
        "model",
        "Bradley-Terry, as Elo points",
        "Bradley-Terry share",
        "Elo in file order",
        "mean win rate",
        "games",
    ]
    figure = Figure(
        "Strength",
        "Bradley-Terry on the scale of Elo points, with mean 1000; models whose intervals overlap are not told apart.",
        charts.intervals(result.elo_scale, "points", reference=1000.0, numbers=",.0f"),
        Table(columns, rows),
    )
    return Report(
        "Which model is the best?",
        text.ranking_verdict(result),
        [Section("Ranking", figures=[figure])],
        result=result.json(),
    )


def harmless(result: Harmless) -> Report:
    rates = {name: rate.harmless for name, rate in result.rates.items()}
    sections = [Section("Harmless rates", figures=[_shares("Harmless", "Each response judged alone.", rates, None)])]
    classes = sorted({name for rate in result.rates.values() for name in rate.classes})
    if classes:
        table = Table(
            ["model", *classes], [[name, *[r.classes.get(c) for c in classes]] for name, r in result.rates.items()]
        )
        sections.append(Section("What raters said", tables=[table]))
    groups = sorted({name for rate in result.rates.values() for name in rate.by})
    if groups:
        table = Table(["model", *groups], [[name, *[r.by.get(g) for g in groups]] for name, r in result.rates.items()])
        sections.append(Section("Subsets", tables=[table]))
    if result.differences:
        rows: list[list[Cell]] = [
            [
                each.first,
                each.second,
                each.difference,
                each.p_value,
                each.adjusted,
                "McNemar" if each.paired else "Fisher",
            ]
            for each in result.differences
        ]
        sections.append(
            Section("Differences", tables=[Table(["model", "minus", "difference", "p", "p, Holm", "test"], rows)])
        )
    if (judge := result.judge) is not None:
        rows = [
            ["precision", judge.precision],
            ["recall", judge.recall],
            ["kappa", judge.kappa],
            ["accuracy", judge.accuracy],
        ]
        sections.append(
            Section(f"{judge.rater} against people", tables=[Table(["of harmful responses", "value"], rows)])
        )
    headlines = [f"{name} harmless: {text.percent(rate)}." for name, rate in rates.items()]
    return Report(
        "How often is it harmless?", [*headlines, *text.harmless_verdict(result)], sections, result=result.json()
    )


def reward_model(result: RewardModel) -> Report:
    rows = {"all": result.accuracy, **result.by}
    sections = [Section("Accuracy", figures=[_shares("Does it order as people do?", "The line is a coin.", rows)])]
    counts = {f"{(low + high) / 2:+.2f}": float(n) for low, high, n in result.histogram}
    margin = Figure(
        "Margins",
        "Score of what people prefer minus the other's; left of 0 it is wrong.",
        charts.bars(counts, "comparisons"),
    )
    sections.append(Section("Margins", figures=[margin]))
    sections.append(_calibration_section([], result.reliability, "of the margin"))
    if result.over_optimisation:
        series: dict[str, list[tuple[float, float | Interval]]] = {
            "proxy": [(each.kl, each.proxy) for each in result.over_optimisation],
            "gold": [(each.kl, each.gold) for each in result.over_optimisation],
        }
        table = Table(
            ["best of", "nats", "proxy", "gold"],
            [[float(each.n), each.kl, each.proxy, each.gold] for each in result.over_optimisation],
        )
        caption = "The best of n samples by the proxy. Where gold falls while proxy rises, the proxy is over-optimised."
        figure = Figure("Does more of it stay better?", caption, charts.lines(series, "KL, nats", "score"), table)
        sections.append(Section("Over-optimisation", figures=[figure]))
    headlines = [f"Pairwise accuracy: {text.percent(result.accuracy)}.", *text.reward_model_verdict(result)]
    return Report("Does the reward model order as people do?", headlines, sections, result=result.json())


def ablation(result: Ablation) -> Report:
    short = _told_apart(result)
    known = {short[row.name]: row.alignment for row in result.rows if row.alignment is not None}
    aligned = {name: each.alignment for name, each in known.items()}
    apart = {short[row.name]: row.versus.difference for row in result.rows if row.versus is not None}
    position = {name: each.same_position for name, each in known.items() if each.same_position is not None}
    columns = [
        "cell",
        "alignment",
        "minus the first",
        "p",
        "p, Holm",
        "same position",
        "kappa",
        "USD",
        "s/label",
        "failed",
    ]
    rows: list[list[Cell]] = [
        [
            row.name,
            row.alignment and row.alignment.alignment,
            row.versus and row.versus.difference,
            row.versus and row.versus.p_value,
            row.adjusted,
            row.alignment and row.alignment.same_position,
            row.alignment and row.alignment.kappa,
            row.usd,
            row.seconds,
            float(row.failed),
        ]
        for row in result.rows
    ]
    sections = [
        Section(
            "Alignment with people",
            [f"{row.name}: {row.why}" for row in result.rows if row.why],
            [_shares("Each cell", "The line is what a coin would get.", aligned)] if aligned else [],
            [Table(columns, rows)],
        )
    ]
    if apart:
        caption = "On the same comparisons; an interval that holds 0 shows no difference."
        chart = charts.intervals(apart, "difference", reference=0.0, numbers="+.0%")
        sections.append(
            Section("Against the first", figures=[Figure("Minus the first cell", caption, chart, _numbers(apart))])
        )
    if position:
        caption = "How often both orders get the same position: there the order decides, not the texts."
        sections.append(Section("Position", figures=[_shares("Same position in both orders", caption, position, None)]))
    return Report("What does each choice change?", text.ablation_verdict(result), sections, result=result.json())


def _told_apart(result: Ablation) -> dict[str, str]:
    """Names of cells by what varies among them, for charts: what all share is in the table."""
    varied = [each for each in result.rows[0].settings if len({str(row.settings[each]) for row in result.rows}) > 1]
    names = {row.name: ", ".join(f"{each} {row.settings[each]}" for each in varied) for row in result.rows}
    return names if len(set(names.values())) == len(names) else {name: name for name in names}


def _shares(title: str, caption: str, rows: Mapping[str, Interval], reference: float | None = COIN) -> Figure:
    return Figure(title, caption, charts.intervals(rows, "share", reference=reference), _numbers(rows))


def _numbers(rows: Mapping[str, Interval]) -> Table:
    return Table(["", "value"], [[name, each] for name, each in rows.items()])
