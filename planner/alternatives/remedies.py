"""Search the changes that make a request fit a GPU, by the dry run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice

from planner.alternatives.changes import (
    LAST_RESORTS,
    Change,
    settings_for,
    to_batch,
    to_card,
    to_near_size,
    to_size,
    to_workers,
    why_inert,
)
from planner.alternatives.effects import Effect, effect_of, remark
from planner.alternatives.search import may_run, next_card
from planner.alternatives.sizes import fits, largest_size, ratio_of, smaller_batch, smaller_size
from planner.answer import Answer, Verdict
from planner.cards.lookup import Card, shared_card
from planner.errors import NoProgram
from planner.fit import fit
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.request import MIN_SIDE, VAE_SCALE_FACTOR, GenerationRequest

_ORDER: tuple[Effect, ...] = ("fits", "tight", "saves", "nothing")
# Further combinations would repeat one another.
_MOST_COMBINATIONS = 2
_LARGEST_COMBINATION = 3
# All pairs of ten settings are fewer. Of more, the cheapest are tried, for each takes a dry run.
_MOST_TRIED = 48


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Hold one change, or several at once, and the dry run's answer. Sizes in bytes.

    `request` is the changed request and `answer` its answer, on another GPU or another share of it where that is the
    change. `changes` are the fields that differ. `need_change_bytes` is the new need less the old one: negative where
    memory is saved; `minimum_change_bytes` likewise. `touches_peak` says whether it moves the stage that peaked, and
    `remark` says in words what it does.
    """

    keys: tuple[str, ...]
    title: str
    request: GenerationRequest
    answer: Answer
    changes: tuple[tuple[str, object], ...]
    effect: Effect
    touches_peak: bool
    need_change_bytes: int
    minimum_change_bytes: int
    remark: str
    cost: str
    code: tuple[str, ...]
    rank: float


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """Hold the answer to the unchanged request, and its remedies in the order to try."""

    request: GenerationRequest
    base: Answer
    found: tuple[Remedy, ...]

    @property
    def useful(self) -> tuple[Remedy, ...]:
        """List the remedies that make it fit or run, or that save memory."""
        return tuple(remedy for remedy in self.found if remedy.effect != "nothing")

    @property
    def useless(self) -> tuple[Remedy, ...]:
        """List the remedies that save nothing here, which is worth knowing too."""
        return tuple(remedy for remedy in self.found if remedy.effect == "nothing")


def remedies(request: GenerationRequest, card: Card, library: Library | None = None) -> Remedies:
    """Try every change of this request that may make it fit this GPU, by the dry run.

    Settings are tried one by one and, where no single one is enough, two and then three together. Where the request
    does not fit, a smaller batch, a smaller size, fewer workers on a shared GPU and a larger GPU are tried as well. A
    setting that is on already is not suggested.

    Raises:
        NoProgram: there is no dry run of the request.
    """
    return _Search(request, card, library or shipped()).all()


def _joined(titles: list[str]) -> str:
    """Join titles into one, with small first letters except in names such as VAE."""
    first, *others = titles
    others = [title if title[:2].isupper() else title[:1].lower() + title[1:] for title in others]
    return " and ".join([", ".join([first, *others[:-1]]), *others[-1:]])


def _contradict(changes: Iterable[Change]) -> bool:
    """Tell whether two of these changes set the same field."""
    names = [name for change in changes for name, _ in change.fields]
    return len(set(names)) < len(names)


class _Search:
    """Search the remedies of one request on one GPU."""

    def __init__(self, request: GenerationRequest, card: Card, library: Library):
        self.request, self.card, self.library = request, card, library
        self.base = fit(request, card, "dry-run", library=library)
        if self.base.need_bytes is None:
            raise NoProgram(self.base.reason or "there is no dry run of this request")

    def all(self) -> Remedies:
        """Search all remedies, and sort them."""
        settings = list(settings_for(self.request))
        found = list(self._each(settings))
        if self.base.verdict != "fits":
            if all(remedy.effect != "fits" for remedy in found):
                found += self._combined(settings, found)
            found += self._each(self._smaller())
            found += self._fewer_workers()
            found += self._larger_card()
        sized = [remedy.request for remedy in found if remedy.keys == ("size",)]
        found += [remedy for remedy in self._near_size() if remedy.request not in sized]
        found.sort(key=lambda remedy: (_ORDER.index(remedy.effect), remedy.rank))
        return Remedies(request=self.request, base=self.base, found=tuple(found))

    def _each(self, changes: Iterable[Change]) -> Iterator[Remedy]:
        for change in changes:
            inert = why_inert(change, self.request)
            # A change that moves no memory needs no dry run of its own.
            answer = self.base if inert else self._fit(change.of(self.request))
            if answer.need_bytes is not None:
                yield self._remedy((change,), answer, inert)

    def _fit(self, request: GenerationRequest) -> Answer:
        return fit(request, self.card, "dry-run", library=self.library)

    def _smaller(self) -> Iterator[Change]:
        if self.request.batch > 1:
            # Where not even one image fits, a batch of one comes nearest.
            yield to_batch(self.request, smaller_batch(self.request, self.card, self.library) or 1)
        if size := smaller_size(self.request, self.card, self.library):
            most = largest_size(self.request, self.card, ratio_of(self.request), self.library)
            yield to_size(self.request, size.width, size.height, None if most == size else str(most))

    def _near_size(self) -> Iterator[Remedy]:
        """Find the nearest size, at most two steps away, that needs less than its pixels explain.

        A larger size counts where it saves anything, a smaller one where it saves twice its share of the need, or makes
        the request fit or run.
        """
        request, base = self.request, self.base
        width, height = request.effective_width, request.effective_height
        found = []
        for step in (1, -1, 2, -2):
            near = width + step * VAE_SCALE_FACTOR, height + step * VAE_SCALE_FACTOR
            if min(near) < MIN_SIDE or max(near) > request.most_side:
                continue
            change = to_near_size(request, *near)
            remedy = self._remedy((change,), self._fit(change.of(request)), None)
            share = 1 - near[0] * near[1] / (width * height)
            is_explained = step < 0 and -remedy.need_change_bytes <= 2 * share * (base.need_bytes or 0)
            if remedy.effect in ("fits", "tight") or (remedy.effect == "saves" and not is_explained):
                found.append(remedy)
        yield from sorted(found, key=lambda remedy: _ORDER.index(remedy.effect))[:1]

    def _fewer_workers(self) -> Iterator[Remedy]:
        """Find the most workers with which the request fits a shared GPU.

        Where it never fits, those with which it runs count.
        """
        sharing = self.card.workers
        shares = [shared_card(self.card, workers) for workers in range(sharing - 1, 0, -1)]
        answers = [fit(self.request, share, "dry-run", library=self.library) for share in shares]
        better: tuple[Verdict, ...] = ("fits", "tight") if self.base.verdict == "no" else ("fits",)
        for verdict in better:
            if answer := next((answer for answer in answers if answer.verdict == verdict), None):
                yield self._remedy((to_workers(answer.card.workers, sharing),), answer, None)
                return

    def _larger_card(self) -> Iterator[Remedy]:
        if other := next_card(self.request, self.card, self.library):
            yield self._remedy((to_card(other),), fit(self.request, other, "dry-run", library=self.library), None)

    def _combined(self, settings: list[Change], singles: list[Remedy]) -> list[Remedy]:
        """Find the first few smallest combinations that fit, of the `_MOST_TRIED` cheapest of each count.

        Where none fits and no single setting runs, one that runs is given.
        """
        moving = [
            change for change in settings if change.key not in LAST_RESORTS and not why_inert(change, self.request)
        ]
        if any(change.key == "channels_last" for change in moving):
            # It has the UNet in it, so that only one of the two is combined.
            moving = [change for change in moving if change.key != "channels_last_unet"]
        gentle = [change for change in moving if change.key != "attention_slicing"]
        # Where the tensors alone are too large with every setting on, no combination needs to be tried.
        if not any(may_run(self._with(changes), self.card, self.library) for changes in (moving, gentle)):
            return []
        runs_none = self.base.verdict == "no" and all(single.answer.verdict == "no" for single in singles)
        for count in range(2, _LARGEST_COMBINATION + 1):
            allowed = (changes for changes in combinations(moving, count) if not _contradict(changes))
            cheapest = sorted(allowed, key=self._rank)[:_MOST_TRIED]
            tried = [(changes, self._with(changes)) for changes in cheapest]
            enough = list(islice((c for c in tried if fits(c[1], self.card, self.library)), _MOST_COMBINATIONS))
            if not enough and runs_none:
                likely = (pair for pair in tried if may_run(pair[1], self.card, self.library))
                enough = list(islice((pair for pair in likely if self._fit(pair[1]).verdict == "tight"), 1))
            if enough:
                return [self._remedy(changes, self._fit(request), None) for changes, request in enough]
        return []

    def _with(self, changes: Iterable[Change]) -> GenerationRequest:
        request = self.request
        for change in changes:
            request = change.of(request)
        return request

    @staticmethod
    def _rank(changes: tuple[Change, ...]) -> float:
        # A combination ranks with its costliest part, and a little after it for every other part.
        dearest = max(change.rank for change in changes)
        return dearest + sum(change.rank for change in changes if change.rank != dearest) / 100

    def _remedy(self, changes: tuple[Change, ...], answer: Answer, inert: str | None) -> Remedy:
        base = self.base
        effect = effect_of(base, answer)
        touches = not inert and any(base.peak_stage in change.touches for change in changes)
        return Remedy(
            keys=tuple(change.key for change in changes),
            title=_joined([change.title for change in changes]),
            request=self._with(changes),
            answer=answer,
            changes=tuple(field for change in changes for field in change.fields),
            effect=effect,
            touches_peak=touches,
            need_change_bytes=(answer.need_bytes or 0) - (base.need_bytes or 0),
            minimum_change_bytes=(answer.minimum_bytes or 0) - (base.minimum_bytes or 0),
            remark=inert or remark(base, answer, effect, touches=touches, why=changes[0].raises),
            cost=" ".join(change.cost for change in changes),
            code=tuple(line for change in changes for line in change.code),
            rank=self._rank(changes),
        )
