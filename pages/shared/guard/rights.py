"""Decide who may act: spend the GPU, or change what all visitors share.

Reading and planning are open to whoever reaches the app. Measuring, cancelling, freeing a worker's memory, importing,
deleting and recovering are not. Where Streamlit's ``[auth]`` is configured, the users in `PLANNER_USERS` may act.
Without it, only visitors from this machine may, unless `PLANNER_TRUST_NETWORK=1` lets everyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from pages.shared.frame.escape import plain
from pages.shared.guard import settings
from pages.shared.guard.hosts import host_parts
from planner.errors import PlannerError

# A proxy adds one of these, and then the visitor's own address is not the one that is seen.
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")


class MayNot(PlannerError):
    """Report that this visitor may not do what was asked; the message says what to do instead."""


@dataclass(frozen=True)
class Right:
    """Say that a visitor may act, and why: as which user, or from where."""

    why: str


@dataclass(frozen=True)
class Refusal:
    """Say in one sentence why a visitor may not act, and what to do."""

    sentence: str


def of_user(user: Mapping[str, Any], allowed: frozenset[str]) -> Right | Refusal:
    """Decide by a user's claims, where logging in is configured."""
    if not user.get("is_logged_in"):
        return Refusal("Log in to do this; reading and planning need no login.")
    email = str(user.get("email") or "").casefold()
    if not email:
        return Refusal("Your login has no e-mail address, so ask the operator of this app for another login.")
    if user.get("email_verified") is False:
        return Refusal(f"Confirm the address {email} with your identity provider, then log in again.")
    if email not in allowed:
        return Refusal(f"Ask the operator of this app to add {email} to {settings.USERS}: nobody else may do this.")
    return Right(f"user {email}")


def of_visitor(headers: Mapping[str, str], address: str | None) -> Right | Refusal:
    """Decide by where a visitor comes from, where no login is configured.

    `headers` are those of the page's WebSocket; `address` is the client's, None for the loopback device. A script that
    no visitor runs, as in a test, has no headers: every WebSocket has some.
    """
    if not headers:
        return Right("no visitor")
    if settings.trusts_network():
        return Right(f"{settings.NETWORK}=1")
    given = {name.lower(): value for name, value in headers.items()}
    host = host_parts(given.get("host", ""))
    is_here = (address is None or settings.is_loopback(address)) or settings.is_published_here()
    # A proxy on this machine also comes from the loopback device, but under the name that visitors know.
    if is_here and host and settings.is_loopback(host[0]) and not any(name in given for name in FORWARDED):
        return Right("this machine")
    return Refusal(
        "Only visitors on the app's own machine may do this; ask its operator to set up a login with "
        f"{settings.USERS}, or to trust this network with {settings.NETWORK}=1."
    )


def is_login_configured() -> bool:
    """Tell whether the app's secrets have a section ``[auth]``, which switches Streamlit's login on."""
    return bool(st.secrets.load_if_toml_exists()) and "auth" in st.secrets


def may_act() -> Right | Refusal:
    """Decide whether the visitor of this page may act."""
    if is_login_configured():
        return of_user(st.user.to_dict(), settings.users())
    return of_visitor(st.context.headers, st.context.ip_address)


def demand() -> Right:
    """Return the visitor's right to act; call it where the work starts, not where a button is drawn.

    Raises:
        MayNot: the visitor may not.
    """
    found = may_act()
    if isinstance(found, Refusal):
        raise MayNot(found.sentence.removesuffix("."))
    return found


def refused() -> bool:
    """Tell whether this visitor may not act; if so, draw the sentence that says what to do."""
    found = may_act()
    if isinstance(found, Refusal):
        st.error(plain(found.sentence), icon=":material/lock:")
        return True
    return False


def login_control() -> None:
    """Draw a button to log in or out, where a login is configured."""
    if not is_login_configured():
        return
    if st.user.to_dict().get("is_logged_in"):
        st.button("Log out", icon=":material/logout:", key="log-out", on_click=st.logout)
    else:
        st.button("Log in", icon=":material/login:", key="log-in", on_click=st.login)
