"""Read the settings of the served app from the environment; docs/deploy.md lists them.

Each is read when it is asked for, and what is not understood raises an error that names the variable.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from functools import partial

import streamlit as st

from planner.errors import InvalidArgument

HOSTS, FRAMES, USERS, NETWORK = "PLANNER_HOSTS", "PLANNER_FRAMES", "PLANNER_USERS", "PLANNER_TRUST_NETWORK"
PUBLISHED, METRICS, EVENTS, SECONDS = "PLANNER_PUBLISHED", "PLANNER_METRICS", "PLANNER_MOST_EVENTS", "PLANNER_SECONDS"

# Names of this machine that no other machine can have.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# The allocator events that one question may replay. An event takes about 0.4 microseconds of one core.
MOST_EVENTS = 60_000_000
# The seconds after which nobody waits for an answer any longer.
DEADLINE_S = 30

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_SITE = re.compile(r"https?://(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*(:[0-9]{1,5})?", re.IGNORECASE)


def _listed(name: str, environ: Mapping[str, str]) -> list[str]:
    return [part.strip() for part in environ.get(name, "").split(",") if part.strip()]


def is_address(host: str) -> bool:
    """Tell whether a host is written as an IP address, without brackets or a port."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine itself, by name or by address."""
    if not is_address(host):
        return host.lower() == "localhost"
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def bind_address() -> str:
    """Return the address that the server listens on; empty for every address of the machine."""
    address = str(st.get_option("server.address") or "").strip("[]").lower()
    return "" if address in ("", "0.0.0.0", "::") else address


def hosts(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """List the names that the operator gave the app, in lower case.

    Each is like ``fit.example.com``, ``*.example.com`` or ``*``.

    Raises:
        InvalidArgument: one of them is no name.
    """
    names = [name.strip("[]").rstrip(".").lower() for name in _listed(HOSTS, environ)]
    for name in names:
        if name != "*" and not is_address(name) and not _NAME.fullmatch(name):
            raise InvalidArgument(HOSTS, "must be names without a scheme, a port or a path", name, "fit.example.com")
    return tuple(names)


def frames(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """List the sites that may show the embedded page in a frame: ``https://wiki.example.com``.

    Raises:
        InvalidArgument: one of them is no site.
    """
    sites = _listed(FRAMES, environ)
    for site in sites:
        if not _SITE.fullmatch(site):
            raise InvalidArgument(
                FRAMES, "must be sites with their scheme, without a path", site, "https://example.com"
            )
    return tuple(sites)


def users(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """List the e-mail addresses of those who may act, without regard to case."""
    return frozenset(user.casefold() for user in _listed(USERS, environ))


def _is_on(environ: Mapping[str, str] = os.environ, *, name: str) -> bool:
    text = environ.get(name, "").strip()
    if text not in ("", "0", "1"):
        raise InvalidArgument(name, "must be 1 or 0", text)
    return text == "1"


# Each raises InvalidArgument for a value that is neither 1 nor 0: a guess could open the app to strangers.
trusts_network = partial(_is_on, name=NETWORK)
shows_metrics = partial(_is_on, name=METRICS)


def is_published_here(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a container's port is published to its own host alone.

    compose.yaml says so with the address that it publishes to. The app cannot see it: in a container, every visitor
    comes by the container's gateway.
    """
    published = environ.get(PUBLISHED, "").strip()
    return bool(published) and is_loopback(published.strip("[]"))


def _number(name: str, otherwise: int, environ: Mapping[str, str]) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return otherwise
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < 1:
        raise InvalidArgument(name, "must be a whole number of at least 1", text)
    return int(text)


def most_events(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many allocator events one question may replay.

    Raises:
        InvalidArgument: the setting is no whole number of at least 1.
    """
    return _number(EVENTS, MOST_EVENTS, environ)


def deadline_s(environ: Mapping[str, str] = os.environ) -> int:
    """Return the seconds after which a question is given up.

    Raises:
        InvalidArgument: the setting is no whole number of at least 1.
    """
    return _number(SECONDS, DEADLINE_S, environ)


def checked() -> None:
    """Read every setting once, so that a wrong one stops the start and not a visitor.

    Raises:
        InvalidArgument: a setting is not understood.
    """
    for read in (hosts, frames, users, trusts_network, shows_metrics, most_events, deadline_s):
        read()
