"""Images that run one after another: the list as text, what each needs, and which of them decides on each GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from planner.answer import SIGNS, Answer, Verdict, worst
from planner.cards.lookup import Card
from planner.errors import InvalidArgument
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import gib

if TYPE_CHECKING:
    from planner.calibration.evidence import Evidence
    from planner.programs.library import Library

# More would be a study, which verify --sweep is for.
MAX_IMAGES = 24
_RULE = "must be sizes such as 1024x768, or 1024x768*2 for two at once, with commas between"


class ImageRow(NamedTuple):
    """One call of the pipeline: its size in pixels, and how many images of it run at once."""

    width: int
    height: int
    count: int = 1

    @property
    def text(self) -> str:
        """Say it as a person reads it."""
        return f"{self.width}×{self.height}" + (f", {self.count} at once" if self.count > 1 else "")

    def of(self, request: GenerationRequest) -> GenerationRequest:
        """Give the request for these images, with all other settings of `request`.

        Raises:
            InvalidArgument: the request's task does not take this size.
        """
        return replace(request, width=self.width, height=self.height, batch=self.count)


def parse_images(text: str) -> list[ImageRow]:
    """List the images of `text`, as `images_text` writes them; none for an empty text.

    Raises:
        InvalidArgument: the text is no such list, is too long, or a number in it breaks its rule.
    """
    if not text.strip():
        return []
    parts = text.split(",", MAX_IMAGES)
    if len(parts) > MAX_IMAGES:
        raise InvalidArgument("images", f"must be at most {MAX_IMAGES}", text)
    rows = []
    for part in parts:
        match = re.fullmatch(r"\s*([0-9]{1,5})x([0-9]{1,5})(?:\*([0-9]{1,3}))?\s*", part)
        if match is None:
            raise InvalidArgument("images", _RULE, part)
        row = ImageRow(int(match[1]), int(match[2]), int(match[3] or 1))
        try:
            # img2img takes every size within the limits: the plan's own task is asked where the image is listed.
            row.of(GenerationRequest())
        except InvalidArgument as error:
            rule = f"has {part.strip()}, whose {error.argument} {error.rule}"
            raise InvalidArgument("images", rule, error.value, error.nearest) from error
        rows.append(row)
    return rows


def images_text(rows: Iterable[ImageRow]) -> str:
    """Write the images as an address holds them: ``1024x768*2,512x512``."""
    return ",".join(f"{row.width}x{row.height}" + (f"*{row.count}" if row.count > 1 else "") for row in rows)


def deciding(answers: Sequence[Answer]) -> int:
    """Find the place of the answer that decides: the largest need of the worst verdict.

    The images run one after another, so that the largest need counts, and never the sum.

    Raises:
        ValueError: there are no answers.
    """
    verdict = worst(answer.verdict for answer in answers)
    among = [place for place, answer in enumerate(answers) if answer.verdict == verdict]
    return max(among, key=lambda place: answers[place].worst_need_bytes or answers[place].need_bytes or 0)


class Worst(NamedTuple):
    """The image that decides over a list on one GPU, and its answer there."""

    row: ImageRow
    answer: Answer

    @property
    def words(self) -> str:
        """Say the verdict and the image behind it with its need, without the GPU's name."""
        answer = self.answer
        need, worst_need, usable = answer.need_bytes, answer.worst_need_bytes, answer.card.usable_bytes
        said = f"{SIGNS[answer.verdict]} {answer.verdict}: {self.row.text}"
        if need is None:
            return f"{said} has no answer"
        reach = f", at worst {gib(worst_need)}," if worst_need is not None and need <= usable < worst_need else ""
        return f"{said} needs {gib(need)}{reach} of {gib(usable)}"


class Listed(NamedTuple):
    """Images that run one after another, and for each GPU an answer for each of them, in their order."""

    rows: tuple[ImageRow, ...]
    answers: tuple[tuple[Answer, ...], ...]

    @property
    def worst(self) -> list[Worst]:
        """List the image that decides on each GPU, in the GPUs' order."""
        places = ((deciding(of_card), of_card) for of_card in self.answers)
        return [Worst(self.rows[place], of_card[place]) for place, of_card in places]

    @property
    def verdict(self) -> Verdict:
        """Give the verdict that decides over every image and GPU."""
        return worst(one.answer.verdict for one in self.worst)

    @property
    def title(self) -> str:
        """Title them, as a heading."""
        many = f"{len(self.rows)} images, one after another" if len(self.rows) > 1 else "1 image"
        return f"Listed beside it: {many}. The worst on each GPU"


def answer_images(
    rows: Sequence[ImageRow],
    request: GenerationRequest,
    cards: Sequence[Card],
    basis: str = "best",
    *,
    library: Library | None = None,
    evidence: Evidence | None = None,
    on_next: Callable[[], None] = lambda: None,
) -> Listed:
    """Answer each image on each GPU, with all other settings of `request`.

    `on_next` is called before each answer; it may raise to stop.

    Raises:
        InvalidArgument: the request's task does not take one of the sizes.
    """
    each = [row.of(request) for row in rows]

    def answer(one: GenerationRequest, card: Card) -> Answer:
        on_next()
        return fit(one, card, basis, library=library, evidence=evidence)

    return Listed(tuple(rows), tuple(tuple(answer(one, card) for one in each) for card in cards))
