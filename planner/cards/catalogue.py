"""The catalogue of cards, each number with its source.

Memory is what torch reports on Linux, as a range over the reports found. Where no report was found it is derived from
those of other cards. The low end of the range decides until the driver of an attached card reports a size.
"""

from planner.cards.card import Card
from planner.cards.catalogue_geforce import GEFORCE
from planner.cards.catalogue_rows import card_of
from planner.cards.catalogue_server import SERVER
from planner.cards.catalogue_workstation import WORKSTATION

ROWS = (*SERVER, *WORKSTATION, *GEFORCE)

CATALOGUE: tuple[Card, ...] = tuple(card_of(row, ROWS) for row in ROWS)
