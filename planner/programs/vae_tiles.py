"""Assemble the VAE's slices and tiles.

Their number depends on the size, so a trace cannot hold them for all sizes.

Source: diffusers 0.42.1, ``AutoencoderKL.encode``, ``decode``, ``_tiled_encode`` and ``tiled_decode``.
"""

from collections.abc import Callable

from planner.components import VAE_TILE, VAE_TILE_STRIDE
from planner.programs.events import FlatBuilder, Play, played_in_full
from planner.programs.library import LATENTS, CallSize, Op
from planner.programs.names import Layout, are_latents_in_rows
from planner.request import VAE_SCALE_FACTOR, GenerationRequest

# The methods of AutoencoderKL that slicing and tiling go through.
HALVES = ("vae._encode", "vae._decode")


# Plays a half's routine on one input of this layout, and returns the number of the storage that it leaves.
PlayUntiled = Callable[[str, CallSize, Layout], int]


class VaeHalves:
    """Play a half of the VAE on a batch, in slices and tiles where these are on.

    Slicing goes image by image, tiling tile by tile. `layout` says how the images given to the encoder lie in memory.
    `slices` are the numbers of the storages that live until ``encode`` or ``decode`` returns.
    """

    def __init__(
        self,
        history: FlatBuilder,
        request: GenerationRequest,
        play: Play,
        layout: Layout,
        play_untiled: PlayUntiled,
    ):
        self.history, self.request, self.play, self.layout = history, request, play, layout
        self.slices: list[int] = []
        self._play_untiled = play_untiled

    def call(self, name: str, size: CallSize) -> int:
        """Play a half on the whole batch, and return the number of its output."""
        if not (self.request.vae_slicing and size.batch > 1):
            return self._part(name, size)
        full = played_in_full([None] * size.batch, self.play)
        one = size._replace(batch=1)
        slices = [self._part(name, one, full=next(full)) for _ in range(size.batch)]
        whole = self.history.birth(self._output(name, size), self.history.module(""))
        self.slices += slices
        return whole

    def _part(self, name: str, size: CallSize, *, full: bool = True) -> int:
        """Play a half on the whole batch or on one image of it."""
        if not full:
            return self.history.birth(self._output(name, size), self.history.module("vae"))
        if self.request.vae_tiling and max(size.height, size.width) > VAE_TILE:
            return self._tiled(name, size)
        return self._play_untiled(name, size, self.layout)

    def _output(self, name: str, size: CallSize) -> tuple[int, int]:
        """Give the symbolic size of a half's output, from its latents.

        The encoder makes 8 channels of moments of each latent, the decoder 3 channels of 8 by 8 pixels.
        """
        a_latent = 8 if name == "vae._encode" else 3 * VAE_SCALE_FACTOR**2
        if (size.height, size.width) == (self.request.latent_height, self.request.latent_width):
            return LATENTS, size.batch * a_latent * self.request.element_bytes
        return 0, size.batch * size.height * size.width * a_latent * self.request.element_bytes

    def _tiled(self, name: str, size: CallSize) -> int:
        """Play a half tile by tile, blend the tiles, and put them together."""
        history, batch = self.history, size.batch
        module = history.module("vae")
        # The elements across one latent of a line that is blended: moments, or pixels of three channels.
        across = 8 if name == "vae._encode" else 3 * VAE_SCALE_FACTOR
        rows = [min(VAE_TILE, size.height - top) for top in range(0, size.height, VAE_TILE_STRIDE)]
        columns = [min(VAE_TILE, size.width - left) for left in range(0, size.width, VAE_TILE_STRIDE)]
        full = played_in_full([(height, width) for height in rows for width in columns], self.play)
        tiles = [[self._tile(name, CallSize(batch, height, width), next(full)) for width in columns] for height in rows]
        joined_rows = []
        for row, height in enumerate(rows):
            for column, width in enumerate(columns):
                if row > 0:
                    self._blend(batch * width * across * self.request.element_bytes, module)
                if column > 0:
                    self._blend(batch * height * across * self.request.element_bytes, module)
            joined = CallSize(batch, min(height, VAE_TILE_STRIDE), _kept(columns))
            joined_rows.append(history.birth(self._output(name, joined), module))
        whole = history.birth(self._output(name, CallSize(batch, _kept(rows), _kept(columns))), module)
        # Python frees the locals of the method in this order: the last row of tiles is held twice.
        *before, last = tiles
        history.die([*last, *joined_rows, *(number for row in before for number in row)])
        return whole

    def _tile(self, name: str, size: CallSize, full: bool) -> int:
        """Play a half on one tile, and find out whether the tile is contiguous."""
        if not full:
            return self.history.birth(self._output(name, size), self.history.module("vae"))
        # In channels_last, whole rows of one image lie together, and so does a part of a single row.
        encodes = name == "vae._encode"
        in_rows = not self.layout.is_planar if encodes else are_latents_in_rows(self.request)
        together = size.width == self.request.latent_width or (size.height == 1 < size.width and not encodes)
        is_cut = not (in_rows and size.batch == 1 and together)
        return self._play_untiled(name, size, self.layout._replace(is_cut=is_cut))

    def _blend(self, line_bytes: int, module: int) -> None:
        """Play one pass of a blend: two scaled lines and their sum.

        Further passes reuse the memory that this pass frees.
        """
        numbers = [self.history.birth((0, line_bytes), module) for _ in range(3)]
        for number in numbers:
            self.history.event(Op.DEATH, number, module)


def _kept(sides: list[int]) -> int:
    """Add up the sides of tiles less what they share with the next."""
    return sum(min(side, VAE_TILE_STRIDE) for side in sides)
