"""Will It Fit: which GPUs run a Stable Diffusion v1.5 request, by how much, and how we know."""

from planner.answer import Answer, Verdict
from planner.cards.lookup import Card, card_named
from planner.errors import InvalidArgument, PlannerError, UnknownCard
from planner.fit import fit
from planner.formula import estimate
from planner.request import GenerationRequest

# The one place of the version: pyproject.toml reads it here.
__version__ = "0.5.0"

__all__ = [
    "Answer",
    "Card",
    "GenerationRequest",
    "InvalidArgument",
    "PlannerError",
    "UnknownCard",
    "Verdict",
    "__version__",
    "card_named",
    "estimate",
    "fit",
]
