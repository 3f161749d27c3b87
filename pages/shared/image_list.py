"""Images that run one after another, as text in an address, and which of them decides. Nothing here draws."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from planner.answer import Answer, worst
from planner.errors import InvalidArgument
from planner.request import GenerationRequest

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
        """As a person reads it."""
        return f"{self.width}×{self.height}" + (f", {self.count} at once" if self.count > 1 else "")


def parse_images(text: str) -> list[ImageRow]:
    """The images that `text` lists, as `images_text` writes them; none for an empty one.

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
        # img2img takes every size within the limits: the plan's own task is asked where the image is listed.
        GenerationRequest(width=row.width, height=row.height, batch=row.count)
        rows.append(row)
    return rows


def images_text(rows: Iterable[ImageRow]) -> str:
    """The images as an address holds them: ``1024x768*2,512x512``."""
    return ",".join(f"{row.width}x{row.height}" + (f"*{row.count}" if row.count > 1 else "") for row in rows)


def deciding(answers: Sequence[Answer]) -> int:
    """The place of the answer that decides for one card: of those with the worst verdict, the one with most need.

    The images run one after another, so that the largest need counts, and never the sum.

    Raises:
        ValueError: there are no answers.
    """
    verdict = worst(answer.verdict for answer in answers)
    among = [place for place, answer in enumerate(answers) if answer.verdict == verdict]
    return max(among, key=lambda place: answers[place].worst_need_bytes or answers[place].need_bytes or 0)
