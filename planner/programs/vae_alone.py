"""One half of the VAE alone, as benchmarks of it run: loaded, warmed up, the cache emptied, then called once."""

from dataclasses import replace
from typing import NamedTuple

from planner.components import Half
from planner.programs.assemble import Flattening
from planner.programs.library import Events, Library, Op
from planner.request import GenerationRequest

STAGE_OF: dict[Half, str] = {"vae.encode": "vae_encoder", "vae.decode": "vae_decoder"}

# diffusers names the methods that tiling and slicing go through with an underscore.
_ROUTINE: dict[Half, str] = {"vae.encode": "vae._encode", "vae.decode": "vae._decode"}
_WARM_UP_LATENT = 64


class HalfAlone(NamedTuple):
    """The whole history, and the events from `begin` until before `end` that are the call itself."""

    events: Events
    begin: int
    end: int


def half_alone(library: Library, half: Half, request: GenerationRequest) -> HalfAlone:
    """The history of this half on one image of the request's size, tiled if the request is.

    The warm-up encodes 512x512, as the published benchmark does first of all: cuBLAS makes its workspace there. Its
    image is a tensor of its own making and so not channels_last, as one from PIL is.

    Raises:
        NoProgram: no routine was compiled for it.
    """
    # A request of a size that nothing here has, so that every call's sizes are plain numbers.
    history = Flattening(library, GenerationRequest(width=64, height=64), "all")
    history.layout = history.layout._replace(is_planar=True)
    history.load("vae")
    _call(history, "vae.encode", _WARM_UP_LATENT, _WARM_UP_LATENT)
    history.request = replace(history.request, vae_tiling=request.vae_tiling)
    begin, end = _call(history, half, request.latent_height, request.latent_width)
    return HalfAlone(history.flat().at(1, 8, 8), begin, end)


def _call(history: Flattening, half: Half, latent_height: int, latent_width: int) -> tuple[int, int]:
    # Three channels of 8 by 8 pixels to a latent, or its own four.
    a_latent = 3 * 64 if half == "vae.encode" else 4
    given = history.birth((0, latent_height * latent_width * a_latent * 2), 0)
    history.event(Op.EMPTY_CACHE, 0)
    begin = sum(map(len, history.ops))
    [result] = history.call(_ROUTINE[half], 1, latent_height, latent_width)
    end = sum(map(len, history.ops))
    for number in (result, given):
        history.event(Op.DEATH, number)
    return begin, end
