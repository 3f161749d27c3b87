"""Tell which measured runs are alike, and how much one counts for another."""

from typing import Literal, NamedTuple

from planner.cards.lookup import family_of
from planner.components import Scope
from planner.request import OPTIONS, GenerationRequest

# How a run ended: unhindered, with allocator retries, or out of memory.
Kind = Literal["full", "limited", "out-of-memory"]

# The attention that pipelines use unless another processor is set.
ATTENTION = "sdpa"
# Runs that count less than this together correct nothing.
MIN_WEIGHT = 3.0
# The factor by which a run counts less that differs from the request in one of these.
OTHER_CUDNN = 0.5
OTHER_CAPABILITY = 0.5
OTHER_OPTIONS = 0.5
OTHER_VERSIONS = 0.5
# A run of one half of the VAE alone shows its kernels and not the pipeline around it.
OTHER_SCOPE = 0.5


class Traits(NamedTuple):
    """Describe a run or a request by what makes runs alike: the similarity key.

    Runs that differ in family, attention or kernels do not count for each other. `kernels` and `options` are of the
    request; None in `cudnn` or `versions` matches every other value.
    """

    family: str
    attention: str
    kernels: str
    capability: tuple[int, int]
    cudnn: int | None
    options: str
    versions: str | None
    scope: Scope = "pipeline"

    def weight(self, other: "Traits") -> float:
        """Compute how much a run with the traits `other` counts for this one, from 0 to 1."""
        if self[:3] != other[:3]:
            return 0.0
        weight = 1.0
        weight *= 1.0 if self.capability == other.capability else OTHER_CAPABILITY
        weight *= 1.0 if self.cudnn is None or self.cudnn == other.cudnn else OTHER_CUDNN
        weight *= 1.0 if self.options == other.options else OTHER_OPTIONS
        weight *= 1.0 if self.scope == other.scope else OTHER_SCOPE
        return weight * (OTHER_VERSIONS if self.is_stale(other) else 1.0)

    def is_stale(self, other: "Traits") -> bool:
        """Tell whether a run with the traits `other` was measured with other versions."""
        return self.versions is not None and self.versions != other.versions


def traits_of(
    request: GenerationRequest,
    capability: tuple[int, int],
    attention: str = ATTENTION,
    cudnn: int | None = None,
    versions: str | None = None,
    scope: Scope = "pipeline",
) -> Traits:
    """Give the traits of a request on a GPU of this compute capability."""
    changed = [field for field in OPTIONS if field.words(getattr(request, field.name))]
    if request.batch == 1:
        changed = [field for field in changed if field.name != "vae_slicing"]
    kernels = ["several images"] if request.batch > 1 else []
    kernels += [field.words(getattr(request, field.name)) for field in changed if field.evidence == "none"]
    options = [field.words(getattr(request, field.name)) for field in changed if field.evidence == "half"]
    named = ("+".join(words) or "plain" for words in (kernels, options))
    return Traits(family_of(capability), attention, next(named), capability, cudnn, next(named), versions, scope)
