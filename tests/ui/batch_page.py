"""The list of images by itself, as a page would draw it. Streamlit runs this file."""

from pages.shared import calls
from pages.shared.batch_list import batch_list_view
from pages.shared.inputs import card_controls, request_controls
from pages.shared.plan_state import enter_page, plan

enter_page("Plan")
request, cards = request_controls(), card_controls()
if request is not None:
    library, _ = calls.library()
    batch_list_view(request, cards, plan().get("basis", "best"), library, None)
