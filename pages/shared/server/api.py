"""``GET /api/fit`` beside the app: the JSON of ``python -m planner fit --json``, for checks that cannot run Python.

The query has the names of a plan's address, which are the request's fields. As on the command line, the default cards
are asked about where none is named, described or attached; on Plan they may stand beside those, so the check that Plan
shows names every card. Where ``images`` are listed, ``images`` of the answer has the worst of them on each card, and
the verdict in the headers is the worst of all that is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pages.shared.frame.plan_state import (
    API_PATH,
    ATTACHED_KEY,
    BASIS_KEY,
    CAPABILITY_KEY,
    CARDS_KEY,
    FIELDS,
    IMAGES_KEY,
    MEMORY_KEY,
    PLAN_KEYS,
    PUBLISHED_KEY,
    VIEW_KEYS,
    WORKERS_KEY,
    name_meant,
    truth,
)
from planner.alternatives.images import answer_images, parse_images
from planner.answer import EXIT_CODES, SCHEMA, Verdict, worst
from planner.cards.lookup import DEFAULT_CARDS, Card, card_named, described_card, shared_card
from planner.errors import InvalidArgument, PlannerError
from planner.fit import fit
from planner.formula import estimate
from planner.report.text import fit_object, images_object
from planner.request import GenerationRequest, parse_whole

if TYPE_CHECKING:
    from planner.calibration.evidence import Evidence

_FIELDS = {field.name: field.parse for field in FIELDS}
# How a page is looked at, by our own controls or Streamlit's, is no part of what it says.
_IGNORED = (*VIEW_KEYS, "embed", "embed_options")


def check_names(query: QueryParams) -> None:
    """Hold the query's names against those of a plan.

    Raises:
        InvalidArgument: a name is unknown, or one that has a single value is given twice.
    """
    for name in query:
        if name in _IGNORED:
            continue
        if name not in PLAN_KEYS:
            raise InvalidArgument("query", "has an unknown name", name, name_meant(name))
        given = query.getlist(name)
        if name != CARDS_KEY and len(given) > 1:
            raise InvalidArgument(name, "must be given once", given)


def request_of(query: Mapping[str, str]) -> GenerationRequest:
    """The request that a query asks about; fields left out take their defaults.

    Raises:
        InvalidArgument: a value breaks its rule.
    """
    return GenerationRequest.from_dict(
        {name: parse(name, query[name]) for name, parse in _FIELDS.items() if name in query}
    )


def cards_of(names: Sequence[str], query: Mapping[str, str]) -> list[Card]:
    """The cards that a query asks about: those named, attached and described, or the default ones where none is.

    An empty name is none. Where `workers` share them, each card is the share of one.

    Raises:
        PlannerError: a name is unknown, there is no card, none is attached, or a description breaks its rule.
    """
    chosen = [card_named(name) for name in names if name and name != ATTACHED_KEY]
    if ATTACHED_KEY in names or truth(ATTACHED_KEY, query.get(ATTACHED_KEY, "false")):
        from cache.machine.attached import cards, cards_to_plan_on

        chosen += cards_to_plan_on(cards())
    described = [query.get(name) for name in (MEMORY_KEY, CAPABILITY_KEY)]
    if any(described):
        memory, capability = described
        if memory is None or capability is None:
            missing = "gpu_memory" if memory is None else "compute_capability"
            raise InvalidArgument(
                missing, "must be given with the other", None, "gpu_memory=16GiB&compute_capability=7.5"
            )
        chosen.append(described_card(memory, capability))
    if not names and not chosen:
        chosen = [card_named(name) for name in DEFAULT_CARDS]
    if not chosen:
        default = f"left out, it is {', '.join(DEFAULT_CARDS)}"
        raise InvalidArgument(CARDS_KEY, "must name a card where none is described or attached", "", default)
    workers = parse_whole(WORKERS_KEY, query.get(WORKERS_KEY, "1"))
    return [shared_card(card, workers) for card in dict.fromkeys(chosen)]


def _evidence(basis: str, *, with_published: bool) -> Evidence | None:
    if basis in ("formula", "dry-run"):
        return None
    from pages.shared.frame import session

    return session.evidence(with_published).evidence


def answer_to(query: QueryParams) -> tuple[dict[str, Any], Verdict]:
    """The JSON object of ``fit --json`` for this query, and the verdict that decides over all that it answers.

    Raises:
        PlannerError: the query breaks a rule.
    """
    from pages.shared.frame import session

    check_names(query)
    request, basis = request_of(query), query.get(BASIS_KEY, "best")
    cards, rows = cards_of(query.getlist(CARDS_KEY), query), parse_images(query.get(IMAGES_KEY, ""))
    evidence = _evidence(basis, with_published=truth(PUBLISHED_KEY, query.get(PUBLISHED_KEY, "true")))
    library, _ = session.library()
    answers = [fit(request, card, basis, library=library, evidence=evidence) for card in cards]
    found = fit_object(request, answers, estimate(request))
    verdicts = [answer.verdict for answer in answers]
    if rows:
        listed = answer_images(rows, request, cards, basis, library=library, evidence=evidence)
        found["images"] = images_object(listed)
        verdicts.append(listed.verdict)
    return found, worst(verdicts)


def _endpoint(request: Request) -> Response:
    try:
        found, verdict = answer_to(request.query_params)
    except PlannerError as error:
        return JSONResponse({"schema": SCHEMA, "error": str(error)}, status_code=400)
    # What a shell would get as the exit code, for those who look at nothing else.
    headers = {"Planner-Verdict": verdict, "Planner-Exit-Code": str(EXIT_CODES[verdict]), "Cache-Control": "no-store"}
    return JSONResponse(found, headers=headers)


ROUTES = [Route(API_PATH, _endpoint, methods=["GET"])]
