"""What may be said about a page of votes. These are the command line's options too, as they stand here."""

from __future__ import annotations

import ipaddress
import unicodedata
from dataclasses import dataclass

from data.errors import RlaifError

LONGEST_NAME = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """How people judge, and who can reach the page."""

    harmful: bool = False
    """Single responses, each judged alone: harmful or harmless."""
    raters: str | None = None
    """Who votes, as ann,bob: each gets a secret link. Default: whoever opens the page says a name."""
    columns: str | None = None
    """As for `rlaif label`."""
    shuffle_seed: int = 0
    """Of the order of the responses, and of the rows, both drawn anew for each rater."""
    file_order: bool = False
    """Show the rows in the order of the file."""
    host: str = "127.0.0.1"
    """Where to listen. Other machines reach the page only with --raters."""
    port: int = 8000
    """0 takes a free one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise RlaifError(f"--port {self.port}: expected 0 to {2**16 - 1}")
        if self.raters is None and not _loopback(self.host):
            raise RlaifError(
                f"--host {self.host}: anybody could vote under any name; give each person a link: --raters ann,bob"
            )
        if self.raters is not None:
            names(self.raters)


def names(text: str) -> tuple[str, ...]:
    """The raters of `ann,bob`, each once. Raises RlaifError."""
    return tuple(dict.fromkeys(name(each) for each in text.split(",")))


def name(text: str) -> str:
    """A rater's name as it is stored, so that what looks the same is the same. Raises RlaifError."""
    found = " ".join(unicodedata.normalize("NFC", text).split())
    if not found or len(found) > LONGEST_NAME or not found.isprintable():
        raise RlaifError(f"a rater's name has 1 to {LONGEST_NAME} letters; got {found[:LONGEST_NAME]!r}")
    return found


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
