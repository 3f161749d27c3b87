"""The catalogue of cards, each number with its source.

Memory is what torch reports on Linux, as a range over the reports found, or derived where there is none: the low end
decides until the attached card says otherwise.
"""

from planner.card import Card
from planner.catalogue_geforce import GEFORCE
from planner.catalogue_rows import card_of
from planner.catalogue_server import SERVER
from planner.catalogue_workstation import WORKSTATION

ROWS = (*SERVER, *WORKSTATION, *GEFORCE)

CATALOGUE: tuple[Card, ...] = tuple(card_of(row, ROWS) for row in ROWS)
