"""Puts a request's history together from compiled routines: weights, the pipeline call, and what it calls.

Tiles and slices of the VAE are assembled here, for their number depends on the size; everything else is as traced.
Of many equal calls in a row, such as the UNet's of each step, the first and the last are played in full, and those
between leave only their results: nothing else of them lives on, so they reach no peak that the last does not.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from planner.components import STAGES
from planner.programs.library import (
    EACH_IMAGE,
    LATENTS,
    MAX_TRACED_STEPS,
    TIMES_BATCH,
    Events,
    Flat,
    Library,
    Op,
    Routine,
    features,
)
from planner.programs.upsampling import copied_in_unet, copied_in_vae
from planner.request import VAE_SCALE_FACTOR, GenerationRequest

# diffusers 0.42.1, AutoencoderKL with sample_size 512: tiles of 64 by 64 latents, a quarter shared with the next.
TILE = 64
TILE_STRIDE = 48
HALVES = {"vae._encode", "vae._decode"}

LOAD_ORDER = ("vae", "text_encoder", "unet", "safety_checker")

# diffusers 0.42.1, model_cpu_offload_seq: before a component comes to the card, the one before it in this order leaves.
# The safety checker is excluded and stays.
OFFLOAD_ORDER = ("text_encoder", "unet", "vae")
COMPONENT_OF_STAGE = {"text_encoder": "text_encoder", "vae_encoder": "vae", "unet": "unet", "vae_decoder": "vae"}


def variant_of(routine: str, request: GenerationRequest) -> str:
    """The options of the request that change what the routine allocates."""
    options = {"unet": ("channels_last", "attention_slicing")}
    names = ("channels_last",) if routine.startswith("vae.") else options.get(routine, ())
    return "+".join(name for name in names if getattr(request, name)) or "plain"


# Which of many equal calls in a row are played in full: all, the first and the last, or the first, for a sketch.
Play = Literal["all", "ends", "first"]


class Layout(NamedTuple):
    """How the input of a VAE half lies in memory.

    A tile that is cut from a tensor is not contiguous. Images come from PIL by way of numpy, so they are channels_last,
    unless the caller made a planar tensor of them.
    """

    is_cut: bool = False
    is_planar: bool = False


def routine_name(routine: str, request: GenerationRequest, batch: int, height: int, width: int, layout: Layout) -> str:
    """The name under which a call of this batch and latent size was compiled: routine, variant, order of allocations.

    The order differs where a tensor is contiguous by chance or by origin. Transposed features are for one image, but
    not for several, in the VAE's linear layers and in sliced attention; a feature map of one pixel is in every memory
    format; a tile cut from an image is in none; latents drawn on the host are not channels_last, encoded ones may be.
    It also differs where upsamplers copy a channels_last input, which large batches and sizes make them do.
    """
    order = ["pixel" if is_pixel(routine, height, width) else "any"]
    of_vae = routine.startswith("vae.")
    if of_vae or (routine == "unet" and request.attention_slicing):
        order.append("one" if batch == 1 else "many")
    if of_vae and layout.is_cut:
        order.append("cut")
    if layout.is_planar and routine in ("vae._encode", "vae.encoder"):
        order.append("planar")
    if request.channels_last and (of_vae or routine == "unet"):
        order.append(request.task)
    if copied := copied_upsamplers(routine, request, batch, height, width):
        order.append(f"copied{''.join(map(str, copied))}")
    return "/".join((routine, variant_of(routine, request), *order))


def copied_upsamplers(
    routine: str, request: GenerationRequest, batch: int, latent_height: int, latent_width: int
) -> tuple[int, ...]:
    """Give the indices of the routine's upsamplers that copy their input, those whose input is channels_last.

    Without the option the UNet's feature maps never are, and the VAE decoder's are for several images.
    """
    if routine == "unet" and request.channels_last:
        return copied_in_unet(batch, latent_height, latent_width)
    if routine in ("vae._decode", "vae.decoder") and (request.channels_last or batch > 1):
        return copied_in_vae(batch, latent_height, latent_width)
    return ()


def is_pixel(routine: str, latent_height: int, latent_width: int) -> bool:
    """Whether the routine's smallest feature map is one pixel; the UNet halves the latent three times."""
    smallest = {"unet": VAE_SCALE_FACTOR}.get(routine, 1 if routine.startswith("vae.") else 0)
    return max(latent_height, latent_width) <= smallest


def pipeline_name(request: GenerationRequest) -> str:
    """The name of the routine that is this request's pipeline call."""
    parts = [
        request.task,
        "guided" if request.unet_batch > request.batch else "unguided",
        "checked" if request.safety_checker else "unchecked",
        f"steps{min(request.steps, MAX_TRACED_STEPS)}",
    ]
    return "/".join(parts)


def representative(request: GenerationRequest) -> GenerationRequest:
    """Give a request with the same order of allocations: one for all sizes, unless tiles or copies differ."""
    side = VAE_SCALE_FACTOR * (VAE_SCALE_FACTOR if is_pixel("unet", *size_of(request)) else TILE)
    # A request whose upsamplers copy stands for itself.
    has_own = _is_tiled(request) or _copies(request)
    size = {} if has_own else {"width": side, "height": side}
    plain = {"prompt_tokens": 1, "steps": min(request.steps, MAX_TRACED_STEPS)}
    guidance_scale = 7.5 if request.unet_batch > request.batch else 1.0
    return replace(request.canonical(), guidance_scale=guidance_scale, **plain, **size)


def size_of(request: GenerationRequest) -> tuple[int, int]:
    """Latent height and width."""
    return request.latent_height, request.latent_width


def _copies(request: GenerationRequest) -> bool:
    size = size_of(request)
    of_vae = copied_upsamplers("vae.decoder", request, 1 if request.vae_slicing else request.batch, *size)
    return bool(of_vae or copied_upsamplers("unet", request, request.unet_batch, *size))


def _is_tiled(request: GenerationRequest) -> bool:
    return request.vae_tiling and max(size_of(request)) > TILE


class Flattening:
    """Grows the flat history."""

    def __init__(self, library: Library, request: GenerationRequest, play: Play = "ends"):
        self.library, self.request, self.play = library, request, play
        self.batch, self.height, self.width = request.batch, request.latent_height, request.latent_width
        self.ops: list[np.ndarray] = []
        self.births: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.kernels: dict[Op, list[np.ndarray]] = {Op.CONVOLUTION: [], Op.ATTENTION: []}
        self.counts = {Op.BIRTH: 0, Op.CONVOLUTION: 0, Op.ATTENTION: 0}
        self.layout = Layout()
        self._until_return: list[int] = []
        self._on_card: dict[str, np.ndarray] = {}
        self._modules = {name: index for index, name in enumerate(library.modules)}

    def module(self, name: str) -> int:
        """The number of this module."""
        return self._modules.setdefault(name, len(self._modules))

    # Single events

    def birth(self, size: tuple[int, int], module: int) -> int:
        """A storage is made; returns its number."""
        number = self.counts[Op.BIRTH]
        self.ops.append(np.array([[Op.BIRTH, number, module]], dtype=np.int64))
        self.births.append(np.array([size], dtype=np.int64))
        self.counts[Op.BIRTH] += 1
        return number

    def event(self, op: Op, value: int, module: int = 0) -> None:
        """Anything else happens."""
        self.ops.append(np.array([[op, value, module]], dtype=np.int64))

    def load(self, component: str) -> None:
        """The component's weights come to the card."""
        tensors = np.array(self.library.weights[component], dtype=np.int64).reshape(-1, 2)
        first, count = self.counts[Op.BIRTH], len(tensors)
        numbers = np.arange(first, first + count)
        self.ops.append(np.stack([np.full(count, Op.BIRTH), numbers, tensors[:, 1]], axis=1))
        self.births.append(np.stack([np.zeros(count, dtype=np.int64), tensors[:, 0]], axis=1))
        self.counts[Op.BIRTH] += count
        self._on_card[component] = numbers
        self.weights.append(numbers)

    def bring(self, component: str) -> None:
        """What accelerate's hook does before a component under model offload runs."""
        place = OFFLOAD_ORDER.index(component)
        before = self._on_card.pop(OFFLOAD_ORDER[place - 1], None) if place else None
        if before is not None:
            self._die(before.tolist()[::-1])
            self.event(Op.EMPTY_CACHE, 0)
        if component not in self._on_card:
            self.load(component)

    # Calls

    def call_pipeline(self) -> None:
        """Play the request's pipeline call."""
        routine = self.library.routine(pipeline_name(self.request))
        self._with_calls(routine, self.batch, self.height, self.width)

    def call(self, name: str, batch: int, height: int, width: int, *, full: bool = True) -> list[int]:
        """Play a routine, and return the numbers of what it leaves."""
        if name in HALVES:
            return self._half(name, batch, height, width)
        compiled = routine_name(name, self.request, batch, height, width, self.layout)
        return self._routine(compiled, batch, height, width, full)

    def _symbolic(self, sizes: np.ndarray, batch: int, height: int, width: int) -> np.ndarray:
        """A routine's sizes in terms of the request's own batch and size."""
        if (height, width) != (self.height, self.width):
            # A tile has a size of its own: a plain number of bytes.
            values = features(batch, height, width)[sizes[..., 0]] * sizes[..., 1]
            return np.stack([np.zeros_like(values), values], axis=-1)
        sizes = sizes.astype(np.int64)
        factor, rest = divmod(batch, self.batch)
        if rest:
            # A slice of the batch: the batch is a plain factor.
            coefficient = np.where(sizes[..., 0] >= TIMES_BATCH, sizes[..., 1] * batch, sizes[..., 1])
            return np.stack([sizes[..., 0] % TIMES_BATCH, coefficient], axis=-1)
        coefficient = np.where(sizes[..., 0] >= TIMES_BATCH, sizes[..., 1] * factor, sizes[..., 1])
        return np.stack([sizes[..., 0], coefficient], axis=-1)

    def _routine(self, name: str, batch: int, height: int, width: int, full: bool) -> list[int]:
        routine = self.library.routine(name)
        if routine.calls:
            return self._with_calls(routine, batch, height, width)
        sizes = self._symbolic(routine.sizes, batch, height, width)
        born = routine.ops[:, 0] == Op.BIRTH
        first = self.counts[Op.BIRTH]
        if not full:
            kept = routine.ops[born][routine.results]
            return [self.birth(tuple(sizes[row[1]]), int(row[2])) for row in kept]
        ops = routine.ops.astype(np.int64)
        count = int(born.sum())
        self.births.append(sizes[ops[born, 1]])
        ops[born, 1] = np.arange(first, first + count)
        ops[ops[:, 0] == Op.DEATH, 1] += first
        self._add_kernels(ops, routine, sizes)
        self.ops.append(ops)
        self.counts[Op.BIRTH] += count
        return [first + int(index) for index in routine.results]

    def _add_kernels(self, ops: np.ndarray, routine: Routine, sizes: np.ndarray) -> None:
        for op, width in ((Op.CONVOLUTION, 5), (Op.ATTENTION, 2)):
            rows = ops[:, 0] == op
            count = int(rows.sum())
            if not count:
                continue
            kernels = routine.kernels[ops[rows, 1]]
            last = np.stack([np.zeros(count, dtype=np.int64), kernels[:, width].astype(np.int64)], axis=-1)
            self.kernels[op].append(np.concatenate([sizes[kernels[:, :width]], last[:, None, :]], axis=1))
            ops[rows, 1] = np.arange(self.counts[op], self.counts[op] + count)
            self.counts[op] += count

    def _with_calls(self, routine: Routine, batch: int, height: int, width: int) -> list[int]:
        """A routine that calls others, event by event."""
        sizes = self._symbolic(routine.sizes, batch, height, width)
        # What has one number in the routine may be several here: one for each image.
        numbers: list[list[int]] = []
        calls = [routine.calls[index] for index in routine.ops[routine.ops[:, 0] == Op.CALL, 1]]
        full = self._played_in_full(calls)
        for op, value, module in routine.ops.tolist():
            if op == Op.BIRTH:
                numbers.append([self.birth(tuple(sizes[value]), module)])
            elif op == Op.DEATH:
                self._die(numbers[value])
            elif op == Op.CALL:
                call, in_full = routine.calls[value], next(full)
                if call.batch_factor == EACH_IMAGE:
                    numbers.append([n for _ in range(batch) for n in self.call(call.routine, 1, height, width)])
                else:
                    left = self.call(call.routine, batch * call.batch_factor, height, width, full=in_full)
                    numbers += [[number] for number in left]
            elif op in (Op.CONVOLUTION, Op.ATTENTION):
                one = np.array([[op, value, module]], dtype=np.int64)
                self._add_kernels(one, routine, sizes)
                self.ops.append(one)
            else:
                if op == Op.RETURNED:
                    self._die(self._until_return)
                self.event(Op(op), value, module)
                if op == Op.STAGE and self.request.offload == "model" and STAGES[value] in COMPONENT_OF_STAGE:
                    self.bring(COMPONENT_OF_STAGE[STAGES[value]])
        return [number for index in routine.results for number in numbers[index]]

    def _die(self, numbers: list[int]) -> None:
        """The end of a list: Python frees it from its last item on."""
        while numbers:
            self.event(Op.DEATH, numbers.pop())

    def _played_in_full(self, calls: Sequence[Hashable]) -> Iterator[bool]:
        """For each call in a row whether it is played in full, by kind of call and `play`."""
        first = {call: index for index, call in reversed(list(enumerate(calls)))}
        last = {call: index for index, call in enumerate(calls)} if self.play == "ends" else first
        played = {*first.values(), *last.values()}
        return iter([self.play == "all" or index in played for index in range(len(calls))])

    def flat(self) -> Flat:
        """What was played so far."""
        empty = {Op.CONVOLUTION: np.zeros((0, 6, 2), np.int64), Op.ATTENTION: np.zeros((0, 3, 2), np.int64)}
        kernels = {op: np.concatenate([empty[op], *found]) for op, found in self.kernels.items()}
        return Flat(
            ops=np.concatenate(self.ops),
            births=np.concatenate(self.births),
            is_weight=np.isin(np.arange(self.counts[Op.BIRTH]), np.concatenate(self.weights)),
            convolutions=kernels[Op.CONVOLUTION],
            attentions=kernels[Op.ATTENTION],
            modules=tuple(self._modules),
        )

    # The VAE's slices and tiles: diffusers 0.42.1, AutoencoderKL.encode, decode, _tiled_encode, tiled_decode.

    def _half(self, name: str, batch: int, height: int, width: int) -> list[int]:
        if not (self.request.vae_slicing and batch > 1):
            return [self._part(name, batch, height, width)]
        full = self._played_in_full([None] * batch)
        slices = [self._part(name, 1, height, width, full=next(full)) for _ in range(batch)]
        whole = self.birth(self._output(name, batch, height, width), self.module(""))
        # The list of slices lives until ``encode`` or ``decode`` returns.
        self._until_return += slices
        return [whole]

    def _part(self, name: str, batch: int, height: int, width: int, *, full: bool = True) -> int:
        """A half on the whole batch or on one image of it."""
        if not full:
            return self.birth(self._output(name, batch, height, width), self.module("vae"))
        if self.request.vae_tiling and max(height, width) > TILE:
            return self._tiled(name, batch, height, width)
        return self._untiled(name, batch, height, width)

    def _untiled(self, name: str, batch: int, height: int, width: int) -> int:
        compiled = routine_name(name, self.request, batch, height, width, self.layout)
        [number] = self._routine(compiled, batch, height, width, True)
        return number

    def _output(self, name: str, batch: int, height: int, width: int) -> tuple[int, int]:
        """The size of a VAE half's output: 8 channels of moments a latent, or 3 of 8 by 8 pixels, in float16."""
        a_latent = 8 if name == "vae._encode" else 3 * VAE_SCALE_FACTOR**2
        if (height, width) == (self.height, self.width):
            return LATENTS, batch * a_latent * 2
        return 0, batch * height * width * a_latent * 2

    def _tiled(self, name: str, batch: int, height: int, width: int) -> int:
        module = self.module("vae")
        # A line of pixels, or of moments, across a latent.
        across = 8 if name == "vae._encode" else 3 * VAE_SCALE_FACTOR
        rows = [min(TILE, height - top) for top in range(0, height, TILE_STRIDE)]
        columns = [min(TILE, width - left) for left in range(0, width, TILE_STRIDE)]
        full = self._played_in_full([(tile_height, tile_width) for tile_height in rows for tile_width in columns])
        tiles = [
            [self._tile(name, batch, tile_height, tile_width, full=next(full)) for tile_width in columns]
            for tile_height in rows
        ]
        result_rows = []
        for row, tile_height in enumerate(rows):
            for column, tile_width in enumerate(columns):
                if row > 0:
                    self._blend(batch * tile_width * across * 2, module)
                if column > 0:
                    self._blend(batch * tile_height * across * 2, module)
            size = self._output(name, batch, min(tile_height, TILE_STRIDE), self._kept(columns))
            result_rows.append(self.birth(size, module))
        whole = self.birth(self._output(name, batch, self._kept(rows), self._kept(columns)), module)
        # The order in which Python frees the locals of the method: the last row is held twice.
        *before, last = tiles
        self._die([*last, *result_rows, *(number for row in before for number in row)])
        return whole

    def _tile(self, name: str, batch: int, height: int, width: int, *, full: bool) -> int:
        if not full:
            return self.birth(self._output(name, batch, height, width), self.module("vae"))
        # In channels_last whole rows of one image lie together, as do parts of a single row.
        encodes = name == "vae._encode"
        encoded = self.request.channels_last and self.request.task == "img2img"
        in_rows = not self.layout.is_planar if encodes else encoded
        together = width == self.width or (height == 1 < width and not encodes)
        whole, self.layout = self.layout, self.layout._replace(is_cut=not (in_rows and batch == 1 and together))
        number = self._untiled(name, batch, height, width)
        self.layout = whole
        return number

    @staticmethod
    def _kept(sides: list[int]) -> int:
        return sum(min(side, TILE_STRIDE) for side in sides)

    def _blend(self, line_bytes: int, module: int) -> None:
        """One pass of a blend: two scaled lines and their sum. The next passes find what this one has freed."""
        numbers = [self.birth((0, line_bytes), module) for _ in range(3)]
        for number in numbers:
            self.event(Op.DEATH, number, module)


@lru_cache(maxsize=64)
def _flat(library: Library, request: GenerationRequest, play: Play) -> Flat:
    flattening = Flattening(library, request, play)
    for component in LOAD_ORDER:
        is_loaded = component != "safety_checker" or request.safety_checker
        # Model offload leaves only the safety checker on the card between calls.
        if is_loaded and (request.offload == "none" or component == "safety_checker"):
            flattening.load(component)
    flattening.event(Op.LOADED, 0)
    flattening.call_pipeline()
    return flattening.flat()


def events_of(library: Library, request: GenerationRequest, play: Play = "ends") -> Events:
    """The request's whole history with its sizes put in: weights, then the call.

    Raises:
        NoProgram: no routine was compiled for what the request asks for.
    """
    flat = _flat(library, representative(request), play)
    return flat.at(request.batch, request.latent_height, request.latent_width)
