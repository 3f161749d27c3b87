"""Draw the list of images on a page of its own, which Streamlit runs."""

from pages.shared.controls.cards import card_controls
from pages.shared.controls.request import request_controls
from pages.shared.frame import session
from pages.shared.frame.plan_state import enter_page, plan
from pages.shared.plan.images import batch_list_view

enter_page("Plan")
request, cards = request_controls(), card_controls()
if request is not None:
    library, _ = session.library()
    batch_list_view(request, cards, plan().get("basis", "best"), library, None)
