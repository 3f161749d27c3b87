"""The catalogue of cards, each number with its source.

Memory is what torch reports on Linux, as a range over the reports found, or derived where there is none: the low end
decides until the attached card says otherwise.
"""

from planner.cards.card import Card
from planner.cards.catalogue_geforce import GEFORCE
from planner.cards.catalogue_rows import card_of
from planner.cards.catalogue_server import SERVER
from planner.cards.catalogue_workstation import WORKSTATION

ROWS = (*SERVER, *WORKSTATION, *GEFORCE)

CATALOGUE: tuple[Card, ...] = tuple(card_of(row, ROWS) for row in ROWS)
