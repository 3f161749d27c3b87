"""Assemble the history of a request from compiled routines.

It begins with the weights, and goes on with the pipeline call and the calls inside it. Of many equal calls in a row,
such as the UNet's of each step, the first and the last are played in full, and those between leave only their results.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from planner.components import COMPONENT_OF_STAGE, LOAD_ORDER, OFFLOAD_ORDER, STAGES, VAE_TILE
from planner.programs.events import Events, Flat, FlatBuilder, Play, played_in_full
from planner.programs.library import EACH_IMAGE, TIMES_BATCH, CallSize, Library, Op, Routine, evaluated, features
from planner.programs.names import Layout, copied_upsamplers, is_pixel, pipeline_name, routine_name
from planner.programs.vae_tiles import HALVES, VaeHalves
from planner.request import VAE_SCALE_FACTOR, GenerationRequest


class Assembly:
    """Put the history of one request together, in `history`.

    `play` says which of many equal calls in a row are played in full, `layout` how images given to the VAE lie in
    memory.
    """

    def __init__(
        self, library: Library, request: GenerationRequest, play: Play = "ends", *, layout: Layout | None = None
    ):
        self.library, self.request, self.play = library, request, play
        self.size = CallSize(request.batch, request.latent_height, request.latent_width)
        self.layout = layout or Layout()
        self.history = FlatBuilder(library.modules)
        self._vae = VaeHalves(self.history, request, play, self.layout, self._untiled_half)
        self._on_gpu: dict[str, list[int]] = {}

    def load(self, component: str) -> None:
        """Load the component's weights onto the GPU."""
        self._on_gpu[component] = self.history.load(self.library.weights[component])

    def bring(self, component: str) -> None:
        """Evict one component and load this one, as accelerate's hook does under model offload."""
        place = OFFLOAD_ORDER.index(component)
        before = self._on_gpu.pop(OFFLOAD_ORDER[place - 1], None) if place else None
        if before is not None:
            self.history.die(before[::-1])
            self.history.event(Op.EMPTY_CACHE, 0)
        if component not in self._on_gpu:
            self.load(component)

    def call_pipeline(self) -> None:
        """Play the request's pipeline call."""
        routine = self.library.routine(pipeline_name(self.request))
        self._with_calls(routine, self.size, self.layout)

    def call(self, name: str, size: CallSize, layout: Layout, *, full: bool = True) -> list[int]:
        """Play a routine, and return the numbers of the storages that it leaves.

        Raises:
            NoProgram: it was not compiled.
        """
        if name in HALVES:
            return [self._vae.call(name, size)]
        return self._routine(routine_name(name, self.request, *size, layout), size, layout, full=full)

    def _untiled_half(self, name: str, size: CallSize, layout: Layout) -> int:
        [number] = self._routine(routine_name(name, self.request, *size, layout), size, layout)
        return number

    def _routine(self, compiled: str, size: CallSize, layout: Layout, *, full: bool = True) -> list[int]:
        routine = self.library.routine(compiled)
        if routine.calls:
            return self._with_calls(routine, size, layout)
        sizes = self._symbolic(routine.sizes, size)
        if full:
            return self.history.routine(routine, sizes)
        births = routine.ops[routine.ops[:, 0] == Op.BIRTH][routine.results]
        return [self.history.birth(tuple(sizes[index]), int(module)) for _, index, module in births]

    def _with_calls(self, routine: Routine, size: CallSize, layout: Layout) -> list[int]:
        """Play a routine that calls others, and return the numbers of the storages that it leaves."""
        history, sizes = self.history, self._symbolic(routine.sizes, size)
        # One number in the routine may stand for several storages here: one for each image.
        numbers: list[list[int]] = []
        full = played_in_full(routine.called, self.play)
        for op, value, module in routine.ops.tolist():
            if op == Op.BIRTH:
                numbers.append([history.birth(tuple(sizes[value]), module)])
            elif op == Op.DEATH:
                history.die(numbers[value])
            elif op == Op.CALL:
                call, in_full = routine.calls[value], next(full)
                if call.batch_factor == EACH_IMAGE:
                    one = size._replace(batch=1)
                    numbers.append([n for _ in range(size.batch) for n in self.call(call.routine, one, layout)])
                else:
                    on = size._replace(batch=size.batch * call.batch_factor)
                    numbers += [[number] for number in self.call(call.routine, on, layout, full=in_full)]
            elif op in (Op.CONVOLUTION, Op.ATTENTION):
                history.kernel(Op(op), value, module, routine, sizes)
            else:
                if op == Op.RETURNED:
                    history.die(self._vae.slices)
                history.event(Op(op), value, module)
                if op == Op.STAGE:
                    self._begin_stage(STAGES[value])
        return [number for index in routine.results for number in numbers[index]]

    def _begin_stage(self, stage: str) -> None:
        component = COMPONENT_OF_STAGE[stage]
        if self.request.offload == "model" and component in OFFLOAD_ORDER:
            self.bring(component)

    def _symbolic(self, sizes: np.ndarray, size: CallSize) -> np.ndarray:
        """Express a routine's sizes at this call in features of the request's own batch and size.

        Shape:
            (sizes, 2), int64: feature and coefficient.
        """
        if (size.height, size.width) != (self.size.height, self.size.width):
            # A tile has a size of its own: its sizes become plain numbers of bytes.
            values = evaluated(sizes, features(*size))
            return np.stack([np.zeros_like(values), values], axis=-1)
        feature, coefficient = sizes[..., 0], sizes[..., 1].astype(np.int64)
        factor, rest = divmod(size.batch, self.size.batch)
        # Of a part of the batch, such as a slice, the number of images is a plain factor.
        times = size.batch if rest else factor
        coefficient = np.where(feature >= TIMES_BATCH, coefficient * times, coefficient)
        return np.stack([feature % TIMES_BATCH if rest else feature, coefficient], axis=-1)


@lru_cache(maxsize=64)
def _flat(library: Library, request: GenerationRequest, play: Play) -> Flat:
    assembly = Assembly(library, request, play)
    for component in LOAD_ORDER:
        is_loaded = component != "safety_checker" or request.safety_checker
        # Model offload leaves only the safety checker on the GPU between calls.
        if is_loaded and (request.offload == "none" or component not in OFFLOAD_ORDER):
            assembly.load(component)
    assembly.history.event(Op.LOADED, 0)
    assembly.call_pipeline()
    return assembly.history.flat()


def history_form(request: GenerationRequest) -> GenerationRequest:
    """Give the request whose symbolic history serves this one.

    It is the same for all sizes, unless tiles or copies differ. The number of tiles and the upsamplers that copy depend
    on the size, so a request with either keeps its own.
    """
    form = request.allocation_form()
    size = form.latent_height, form.latent_width
    of_vae = copied_upsamplers("vae.decoder", form, 1 if form.vae_slicing else form.batch, *size)
    if form.is_tiled or of_vae or copied_upsamplers("unet", form, form.unet_batch, *size):
        return form
    side = VAE_SCALE_FACTOR * (VAE_SCALE_FACTOR if is_pixel("unet", *size) else VAE_TILE)
    return replace(form, width=side, height=side)


def flat_of(library: Library, form: GenerationRequest, play: Play = "ends") -> Flat:
    """Assemble the symbolic history of a request that is given in its `history_form`.

    Raises:
        NoProgram: no routine was compiled for what the request asks for.
    """
    return _flat(library, form, play)


def events_of(library: Library, request: GenerationRequest, play: Play = "ends") -> Events:
    """Assemble the request's whole history in bytes: weights, then the call.

    Raises:
        NoProgram: no routine was compiled for what the request asks for.
    """
    flat = _flat(library, history_form(request), play)
    return flat.at(request.batch, request.latent_height, request.latent_width)
