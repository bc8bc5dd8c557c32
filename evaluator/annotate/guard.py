"""Who may talk to the page? Pure checks of a request's headers, and the headers of every answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

LARGEST_BODY = 4096

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def refusal(method: str, headers: Mapping[str, str], hosts: Collection[str]) -> tuple[int, str] | None:
    """Status and reason where a request is not answered. `hosts` are the names that the page goes by."""
    host = headers.get("host", "")
    if not _ours(host, hosts):
        return 421, "this page does not go by that name"
    if method in {"GET", "HEAD"}:
        return None
    if urlsplit(headers.get("origin") or headers.get("referer") or "").netloc != host:
        return 403, "votes are taken from this page only"
    told = headers.get("content-length", "")
    if not told.isdecimal() or len(told) > len(str(LARGEST_BODY)) or int(told) > LARGEST_BODY:
        return 413, f"a form of at most {LARGEST_BODY} bytes is expected"
    return None


def _ours(host: str, hosts: Collection[str]) -> bool:
    """An address is always ours, as the request came here; a name could have been made to point here by anybody."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in hosts or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
