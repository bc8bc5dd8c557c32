"""A real page of votes in a process of its own: `with page(folder, "in.jsonl", "--raters", "ann") as it:`."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 30

_OPEN = build_opener(ProxyHandler({})).open


@dataclass
class Page:
    """`url` where names are open; `links` by rater where they are not. `port` keeps the address over a restart."""

    process: subprocess.Popen[str]
    said: list[str]

    @property
    def url(self) -> str:
        return next(line for line in self.said if line.startswith("http"))

    @property
    def links(self) -> dict[str, str]:
        return dict(found.groups() for line in self.said if (found := re.match(r"(\S+) +(http\S+)$", line)))

    @property
    def port(self) -> int:
        addresses = [urlsplit(word) for line in self.said for word in line.split() if word.startswith("http")]
        return addresses[0].port or 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> str:
        """The last line that it says."""
        self.process.send_signal(how)
        out, _ = self.process.communicate(timeout=PATIENCE)
        return out.splitlines()[-1]


def start(folder: Path, *words: str) -> Page:
    """`rlaif annotate WORDS --out votes.jsonl`, once it is ready. Raises RuntimeError with what it complained of."""
    command = [sys.executable, str(ROOT / "rlaif.py"), "annotate", *words]
    if "--out" not in words:
        command += ["--out", "votes.jsonl"]
    if "--port" not in words:
        command += ["--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line.rstrip("\n"))
        if line.startswith("Ctrl-C"):
            return Page(process, said)
    raise RuntimeError(process.communicate()[1].strip())


@contextlib.contextmanager
def page(folder: Path, *words: str) -> Iterator[Page]:
    it = start(folder, *words)
    try:
        yield it
    finally:
        it.kill()
        it.process.communicate()


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def votes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The votes of votes.jsonl, by id."""
    lines = (folder / "votes.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row.get("votes", row.get("ratings")) for row in map(json.loads, lines)}


def get(url: str) -> str:
    with _OPEN(url, timeout=PATIENCE) as answer:
        return answer.read().decode()


def vote(link: str, **form: str) -> str:
    """What a browser without JavaScript does: read the page, send its form; the next page."""
    ballot = re.findall(r'name="ballot" value="(\w+)"', get(link))[0]
    parts = urlsplit(link)
    body = urlencode({"ballot": ballot, **form}).encode()
    headers = {"Origin": f"{parts.scheme}://{parts.netloc}"}
    with _OPEN(Request(f"{link}/vote", body, headers), timeout=PATIENCE) as answer:
        return answer.read().decode()
