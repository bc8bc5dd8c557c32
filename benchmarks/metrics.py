"""Bradley-Terry against evalica, and how long an evaluation of a million votes takes.

    python benchmarks/metrics.py [--json] [--games N] [--comparisons N] [--rounds N]

- bradley_terry: 100 models and a million games, drawn anew each round, in memory as three lists: both models' numbers,
  and who won. Both sides count wins and fit, to the same convergence, on one thread. Each runs in a fresh process, in
  turn, and counts only if both found the same strengths to 1e-6. `from_names` are lists of names instead, which ours
  takes as one record a game (with its prompt, for the intervals), as they come out of a file.
- million_votes: 200,000 comparisons of 100 models with five raters each, and a label each, in Parquet. What a user
  runs: `rlaif evaluate alignment`, `agreement` and `ranking`, each a process of its own, from its start to its exit.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from data.games import Game  # noqa: E402
from evaluator.ranking import bradley_terry  # noqa: E402
from evaluator.results import Results, collect, wins  # noqa: E402

MODELS, GAMES, COMPARISONS, RATERS, VOTES, ROUNDS = 100, 1_000_000, 200_000, 40, 5, 5
"""`RATERS` is how many people there are, `VOTES` how many of them see a comparison."""
CLOSE = 1e-9
"""At which change of its scores evalica stops: with this both agree to 1e-6."""
SAME = 1e-6
MARK = "RESULT "

Numbers = np.ndarray[Any, Any]


# The games, the same for both sides


@dataclass(frozen=True)
class Drawn:
    """Who met whom, and how it ended: 0 the first won, 1 the second, 2 a tie."""

    first: Numbers
    second: Numbers
    ended: Numbers


def draw(games: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    strength = rng.normal(0, 1, MODELS)
    first = rng.integers(0, MODELS, games)
    second = (first + rng.integers(1, MODELS, games)) % MODELS
    won = rng.random(games) < 1 / (1 + np.exp(strength[second] - strength[first]))
    return Drawn(first, second, np.where(rng.random(games) < 0.1, 2, np.where(won, 0, 1)))


def names(numbers: Numbers) -> list[str]:
    known = [f"model {at:03}" for at in range(MODELS)]
    return [known[number] for number in numbers.tolist()]


def told(models: tuple[str, ...], strengths: Numbers) -> dict[str, float]:
    shares = np.exp(strengths - strengths.max())
    return dict(zip(models, (shares / shares.sum()).tolist(), strict=True))


def ours_from_names(drawn: Drawn) -> tuple[float, dict[str, float]]:
    first, second, ended = names(drawn.first), names(drawn.second), drawn.ended.tolist()
    outcome = (1.0, 0.0, 0.5)
    gc.collect()
    started = time.perf_counter()
    games = (
        Game(one, other, outcome[how], str(at), str(at))
        for at, (one, other, how) in enumerate(zip(first, second, ended, strict=True))
    )
    results = collect(games)
    strengths = bradley_terry(wins(results))
    return time.perf_counter() - started, told(results.models, strengths)


def ours(drawn: Drawn) -> tuple[float, dict[str, float]]:
    models = tuple(f"model {each:03}" for each in range(MODELS))
    first, second, score = drawn.first.tolist(), drawn.second.tolist(), np.array([1.0, 0.0, 0.5])[drawn.ended].tolist()
    gc.collect()
    started = time.perf_counter()
    at = np.arange(len(first))
    results = Results(models, np.array(first), np.array(second), np.array(score), at, at, np.empty((0, 2)))
    strengths = bradley_terry(wins(results))
    return time.perf_counter() - started, told(models, strengths)


def evalica(drawn: Drawn) -> tuple[float, dict[str, float]]:
    seconds, scores = _evalica(drawn.first.tolist(), drawn.second.tolist(), drawn)
    return seconds, {f"model {int(name):03}": each for name, each in scores.items()}


def evalica_from_names(drawn: Drawn) -> tuple[float, dict[str, float]]:
    return _evalica(names(drawn.first), names(drawn.second), drawn)


def _evalica(first: list[Any], second: list[Any], drawn: Drawn) -> tuple[float, dict[str, float]]:
    import evalica as peer

    kinds = (peer.Winner.X, peer.Winner.Y, peer.Winner.Draw)
    winners = [kinds[how] for how in drawn.ended.tolist()]
    gc.collect()
    started = time.perf_counter()
    found = peer.bradley_terry(first, second, winners, tolerance=CLOSE, limit=10_000)
    seconds = time.perf_counter() - started
    scores = found.scores / found.scores.sum()
    return seconds, {str(name): float(score) for name, score in scores.items()}


SIDES: dict[str, Callable[[Drawn], tuple[float, dict[str, float]]]] = {
    "ours": ours,
    "evalica": evalica,
    "ours_from_names": ours_from_names,
    "evalica_from_names": evalica_from_names,
}


def alone(side: str, games: int, seed: int) -> tuple[float, dict[str, float]]:
    """Seconds and shares of one side, in a process of its own."""
    words = [sys.executable, __file__, "--measure", side, str(games), str(seed)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise SystemExit(f"{side} did not finish:\n{done.stderr[-3000:]}")
    seconds, shares = json.loads(line.removeprefix(MARK))
    return seconds, shares


def against_evalica(games: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, a round after the other; raises AssertionError where they disagree."""
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in range(rounds):
        sides = list(SIDES)[:: 1 if seed % 2 else -1]
        found = {side: alone(side, games, seed) for side in sides}
        expected = found["ours"][1]
        assert len(expected) == MODELS
        for side, (seconds, shares) in found.items():
            apart = max(abs(shares[name] / each - 1) for name, each in expected.items())
            assert apart < SAME, f"{side} is {apart} from ours"
            taken[side].append(seconds)
    return taken


def times(ours: list[float], theirs: list[float]) -> float:
    """How many times as fast: each round's own ratio, since what else the machine does changes between rounds."""
    return statistics.median(other / own for own, other in zip(ours, theirs, strict=True))


# A million votes


def votes(count: int) -> Iterator[tuple[list[dict[str, Any]], list[str], float]]:
    """The votes on each comparison, its two models, and a labeler's probability."""
    rng = np.random.default_rng(0)
    strength = rng.normal(0, 1, MODELS)
    first = rng.integers(0, MODELS, count)
    second = (first + rng.integers(1, MODELS, count)) % MODELS
    apart = strength[first] - strength[second] + rng.normal(0, 1, count)
    start = rng.integers(0, RATERS, count)
    said = rng.random((count, VOTES)) > 1 / (1 + np.exp(-apart[:, None]))
    p = 1 / (1 + np.exp(-apart - rng.normal(0, 1, count)))
    table = zip(*(each.tolist() for each in (first, second, start, said, p)), strict=True)
    for one, other, rater, choices, chance in table:
        cast = [
            {"rater": f"rater {(rater + 7 * at) % RATERS:02}", "choice": str(int(choice))}
            for at, choice in enumerate(choices)
        ]
        yield cast, [f"model {one:03}", f"model {other:03}"], chance


def write(paths: tuple[Path, Path], count: int) -> None:
    """Comparisons and labels, as Parquet, with short texts: reading them is part of what is measured."""
    import polars

    rng = np.random.default_rng(1)
    lengths = rng.integers(80, 400, (count, 2)).tolist()
    human: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    for at, ((cast, models, p), (one, other)) in enumerate(zip(votes(count), lengths, strict=True)):
        prompt = f"Question {at}. " + "Which of the two is the better answer to it? " * 3
        texts = [f"{at} first ".ljust(one, "a"), f"{at} second ".ljust(other, "b")]
        choices = [{"rater": each["rater"], "choice": int(each["choice"])} for each in cast]
        human.append({"id": str(at), "prompt": prompt, "responses": texts, "models": models, "votes": choices})
        same = {"mass": 1.0, "same_position": False, "model": "benchmark", "task": "helpfulness", "digest": "0"}
        cost = {"tokens_in": 100, "tokens_out": 2, "usd": 0.0, "seconds": 0.1, "method": "logprobs"}
        orders = [{"p_first": each, "mass": 1.0} for each in (p, 1 - p)]
        labels.append({"id": str(at), "p": p, "choice": int(p < 0.5), "orders": orders, **same, **cost})
    for path, rows in zip(paths, (human, labels), strict=True):
        polars.DataFrame(rows).write_parquet(path)


@dataclass(frozen=True)
class Ran:
    """One command: wall-clock and CPU seconds, peak memory in GB, and the JSON that it said."""

    seconds: float
    cpu: float
    memory: float
    said: dict[str, Any]


def command(*words: object) -> Ran:
    """`rlaif evaluate ...` in a process of its own."""
    run = [sys.executable, "-m", "rlaif", "evaluate", *map(str, words), "--json"]
    with tempfile.TemporaryFile() as out:
        started = time.perf_counter()
        process = subprocess.Popen(run, cwd=ROOT, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, f"{words[0]}: status {process.returncode}"
        out.seek(0)
        found = json.loads(out.read())
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return Ran(seconds, usage.ru_utime + usage.ru_stime, memory, found)


def million_votes(comparisons: int) -> dict[str, Ran]:
    with tempfile.TemporaryDirectory() as name:
        human, labels = Path(name) / "comparisons.parquet", Path(name) / "labels.parquet"
        # in another process: a child's peak begins at its parent's
        subprocess.run([sys.executable, __file__, "--write", human, labels, str(comparisons)], check=True)
        parts = {
            "alignment": command("alignment", labels, "--human", human),
            "agreement": command("agreement", human),
            "bradley_terry": command("ranking", human),
        }
    assert parts["alignment"].said["against_raters"]["n"] == comparisons
    assert parts["alignment"].said["alignment"]["low"] is not None
    assert parts["agreement"].said["votes"] == comparisons * VOTES
    assert sum(parts["bradley_terry"].said["games"].values()) == 2 * comparisons * VOTES
    return parts


# Telling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--games", type=int, default=GAMES)
    parser.add_argument("--comparisons", type=int, default=COMPARISONS, help=f"each has {VOTES} votes")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "GAMES", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=3, metavar=("HUMAN", "LABELS", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        human, labels, count = options.write
        write((Path(human), Path(labels)), int(count))
        return
    if options.measure:
        side, games, seed = options.measure
        print(MARK + json.dumps(SIDES[side](draw(int(games), int(seed)))))
        return
    load = os.getloadavg()[0]
    parts = million_votes(options.comparisons)
    seconds = {part: each.seconds for part, each in parts.items()}
    taken = against_evalica(options.games, options.rounds)
    found = {
        "ratios": {
            "bradley_terry_vs_evalica": times(taken["ours"], taken["evalica"]),
            "bradley_terry_from_names_vs_evalica": times(taken["ours_from_names"], taken["evalica_from_names"]),
        },
        "bradley_terry_seconds": {side: statistics.median(each) for side, each in taken.items()},
        "million_votes_seconds": {"all": sum(seconds.values()), **seconds},
        "peak_memory_gb": max(each.memory for each in parts.values()),
        "conditions": {
            "models": MODELS,
            "games": options.games,
            "comparisons": options.comparisons,
            "votes": options.comparisons * VOTES,
            "rounds": {side: [round(each, 4) for each in rounds] for side, rounds in taken.items()},
            "memory_gb": {part: each.memory for part, each in parts.items()},
            "cpu_seconds": {part: each.cpu for part, each in parts.items()},
            "same_strengths_to": SAME,
            "evalica_tolerance": CLOSE,
            "load_average_before": load,
            "cpus": os.cpu_count(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("evalica", "numpy", "scipy", "polars")},
        },
    }
    print(json.dumps(found) if options.json else table(found))


def table(found: dict[str, Any]) -> str:
    lines = [f"{options:34} {each:8.2f} times as fast" for options, each in found["ratios"].items()]
    lines += [f"  {side:32} {each:8.3f} s" for side, each in found["bradley_terry_seconds"].items()]
    lines += [f"{found['conditions']['votes']:,} votes"]
    lines += [f"  {part:32} {each:8.1f} s" for part, each in found["million_votes_seconds"].items()]
    return "\n".join([*lines, f"  {'peak memory':32} {found['peak_memory_gb']:8.2f} GB"])


if __name__ == "__main__":
    main()
