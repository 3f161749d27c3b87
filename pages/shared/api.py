"""``GET /api/fit`` beside the app: the JSON of ``python -m planner fit --json``, for checks that cannot run Python.

The query has the names of a plan's address, which are the request's fields: a link to a plan becomes a check by putting
``api/fit`` before its question mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pages.shared.plan_state import (
    ATTACHED_KEY,
    BASIS_KEY,
    CAPABILITY_KEY,
    CARDS_KEY,
    FIELDS,
    MEMORY_KEY,
    PUBLISHED_KEY,
    WORKERS_KEY,
    truth,
)
from planner.answer import EXIT_CODES, Verdict, worst
from planner.errors import InvalidArgument, PlannerError
from planner.fit import fit
from planner.formula import estimate
from planner.gpus import DEFAULT_CARDS, Card, card_named, described_card, shared_card
from planner.report import SCHEMA, fit_object
from planner.request import GenerationRequest, parse_whole

if TYPE_CHECKING:
    from planner.evidence import Evidence

PATH = "/api/fit"


# Everything that a plan's address may hold, by name.
_FIELDS = {field.name: field.parse for field in FIELDS}
_OTHERS = (CARDS_KEY, MEMORY_KEY, CAPABILITY_KEY, ATTACHED_KEY, WORKERS_KEY, BASIS_KEY, PUBLISHED_KEY)


def request_of(query: Mapping[str, str]) -> GenerationRequest:
    """The request that a query asks about; fields left out take their defaults.

    Raises:
        InvalidArgument: a name is unknown, or a value breaks its rule.
    """
    for name in query:
        if name not in _FIELDS and name not in _OTHERS:
            close = get_close_matches(name, [*_FIELDS, *_OTHERS], n=1)
            raise InvalidArgument("query", "has an unknown name", name, f"did you mean {close[0]}?" if close else None)
    return GenerationRequest.from_dict(
        {name: parse(name, query[name]) for name, parse in _FIELDS.items() if name in query}
    )


def cards_of(names: Sequence[str], query: Mapping[str, str]) -> list[Card]:
    """The cards that a query asks about: those named, those attached, the one described, else the default ones.

    Where `workers` share them, each card is the share of one.

    Raises:
        PlannerError: a name is unknown, no card is attached, or a description breaks its rule.
    """
    chosen: list[Card] = []
    for name in names:
        if name != ATTACHED_KEY:
            chosen.append(card_named(name))
    if ATTACHED_KEY in names or truth(ATTACHED_KEY, query.get(ATTACHED_KEY, "false")):
        from cache.attached import cards

        chosen += [card.as_card() for card in cards()]
    described = [query.get(name) for name in (MEMORY_KEY, CAPABILITY_KEY)]
    if any(described):
        memory, capability = described
        if memory is None or capability is None:
            missing = "gpu_memory" if memory is None else "compute_capability"
            raise InvalidArgument(
                missing, "must be given with the other", None, "gpu_memory=16GiB&compute_capability=7.5"
            )
        chosen.append(described_card(memory, capability))
    workers = parse_whole(WORKERS_KEY, query.get(WORKERS_KEY, "1"))
    whole = list(dict.fromkeys(chosen)) or [card_named(name) for name in DEFAULT_CARDS]
    return [shared_card(card, workers) for card in whole]


def _evidence(basis: str, *, with_published: bool) -> Evidence | None:
    if basis in ("formula", "dry-run"):
        return None
    from pages.shared import calls

    return calls.evidence(with_published).evidence


def answer_to(query: Mapping[str, str], gpus: Sequence[str]) -> tuple[dict[str, Any], Verdict]:
    """The JSON object of ``fit --json`` for this query, and the verdict that decides over its cards.

    Raises:
        PlannerError: the query breaks a rule.
    """
    from pages.shared import calls

    request, basis = request_of(query), query.get(BASIS_KEY, "best")
    cards = cards_of(gpus, query)
    evidence = _evidence(basis, with_published=truth(PUBLISHED_KEY, query.get(PUBLISHED_KEY, "true")))
    answers = [fit(request, card, basis, library=calls.library()[0], evidence=evidence) for card in cards]
    return fit_object(request, answers, estimate(request)), worst(answer.verdict for answer in answers)


def _endpoint(request: Request) -> Response:
    try:
        found, verdict = answer_to(request.query_params, request.query_params.getlist(CARDS_KEY))
    except PlannerError as error:
        return JSONResponse({"schema": SCHEMA, "error": str(error)}, status_code=400)
    # What a shell would get as the exit code, for those who look at nothing else.
    headers = {"Planner-Verdict": verdict, "Planner-Exit-Code": str(EXIT_CODES[verdict]), "Cache-Control": "no-store"}
    return JSONResponse(found, headers=headers)


ROUTES = [Route(PATH, _endpoint, methods=["GET"])]
