"""The stand-in provider for a test: `with provider(latency=0.05) as it:`; `it.url`, `it.control(...)`, `it.seen()`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from provider_settings import words_for

SERVER = Path(__file__).with_name("server.py")

PATIENCE = 30
"""Seconds."""


@dataclass
class Provider:
    """`url` for Anthropic's SDK; OpenAI's wants `url + "/v1"`."""

    url: str
    process: subprocess.Popen[str]

    def control(self, **changes: Any) -> dict[str, Any]:
        """Other settings from now on; `reset=True` forgets what was counted. Gives all settings back."""
        return self._ask("POST", "/_control", json.dumps(changes))

    def seen(self, *, answers: bool = True) -> dict[str, Any]:
        """What was asked so far; without `answers` it stays small after a long run."""
        return self._ask("GET", f"/_seen?answers={answers:d}")

    def stop(self) -> None:
        """Ends the process; a second call does nothing."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        """Not through a proxy, and without a library that a test may have patched."""
        with contextlib.closing(HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)) as connection:
            connection.request(method, path, body)
            found = json.loads(connection.getresponse().read())
        if "error" in found:
            raise ValueError(found["error"])
        return found


@contextlib.contextmanager
def provider(**settings: Any) -> Iterator[Provider]:
    """A stand-in of one's own, ready; ended afterwards. Fails where the stand-in itself had a bug."""
    it = start(**settings)
    try:
        yield it
        if it.process.poll() is None:
            bugs = it.seen(answers=False)["bugs"]
            assert not bugs, bugs[0]
    finally:
        it.stop()


def start(**settings: Any) -> Provider:
    words = [sys.executable, str(SERVER), *words_for(settings)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = Provider(json.loads(line)["url"] if line else "", process)
    if not line:
        found.stop()
        raise RuntimeError(f"the stand-in did not start: exit status {process.returncode}")
    return found
