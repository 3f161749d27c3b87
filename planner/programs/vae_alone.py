"""Assemble one half of the VAE alone, as benchmarks run it.

The VAE is loaded and warmed up, the cache is emptied, then the half is called once.
"""

from typing import NamedTuple

from planner.components import Half
from planner.programs.assemble import Assembly
from planner.programs.events import Events
from planner.programs.library import CallSize, Library, Op
from planner.programs.names import Layout
from planner.request import VAE_SCALE_FACTOR, GenerationRequest

STAGE_OF: dict[Half, str] = {"vae.encode": "vae_encoder", "vae.decode": "vae_decoder"}

# diffusers names the methods that tiling and slicing go through with an underscore.
_ROUTINE: dict[Half, str] = {"vae.encode": "vae._encode", "vae.decode": "vae._decode"}
_WARM_UP = CallSize(1, 64, 64)
# The smallest side there is: calls of any other size have plain numbers of bytes for sizes.
_SIDE = 64


class HalfAlone(NamedTuple):
    """Hold the whole history; the call itself is the events from `begin` until before `end`."""

    events: Events
    begin: int
    end: int


def half_alone(library: Library, half: Half, request: GenerationRequest) -> HalfAlone:
    """Assemble this half on one image of the request's size, tiled if the request is.

    The warm-up encodes 512x512, as the published benchmark does first of all: cuBLAS makes its workspace there. Its
    image is a tensor of its own making, and so planar, unlike one from PIL.

    Raises:
        NoProgram: no routine was compiled for it.
    """
    own = GenerationRequest(width=_SIDE, height=_SIDE, vae_tiling=request.vae_tiling)
    assembly = Assembly(library, own, "all", layout=Layout(is_planar=True))
    assembly.load("vae")
    _call(assembly, "vae.encode", _WARM_UP)
    begin, end = _call(assembly, half, CallSize(1, request.latent_height, request.latent_width))
    events = assembly.history.flat().at(own.latent_height, own.latent_width)
    return HalfAlone(events, begin, end)


def _call(assembly: Assembly, half: Half, size: CallSize) -> tuple[int, int]:
    history = assembly.history
    # A latent stands for three channels of 8 by 8 pixels, or for its own four.
    a_latent = 3 * VAE_SCALE_FACTOR**2 if half == "vae.encode" else 4
    given = history.birth((0, size.height * size.width * a_latent * 2), 0)
    history.event(Op.EMPTY_CACHE, 0)
    begin = len(history)
    [result] = assembly.call(_ROUTINE[half], size, assembly.layout)
    end = len(history)
    history.die([given, result])
    return begin, end
