"""Assemble the history of a request from compiled routines.

It begins with the weights, and goes on with the pipeline call and the calls inside it. Of many equal calls in a row,
such as the UNet's of each step, the first and the last are played in full, and those between leave only their results.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from planner.components import COMPONENT_OF_STAGE, LOAD_ORDER, OFFLOAD_ORDER, STAGES, VAE_TILE
from planner.programs.events import Events, Flat, FlatBuilder, Piece, Play, joined, played_in_full
from planner.programs.library import (
    AREAS,
    BYTES,
    EACH_IMAGE,
    EACH_NET,
    EACH_PROMPT,
    IS_BUFFER,
    MODULE,
    ONE_IMAGE,
    OWNER,
    CallSize,
    Library,
    Op,
    Routine,
    areas,
)
from planner.programs.names import Layout, copied_upsamplers, is_pixel, pipeline_name, routine_name, weights_name
from planner.programs.vae_tiles import HALVES, VaeHalves
from planner.request import VAE_SCALE_FACTOR, GenerationRequest


def components_of(request: GenerationRequest) -> tuple[str, ...]:
    """List the components that this request loads, in `LOAD_ORDER`."""
    optional = {
        "safety_checker": request.safety_checker,
        "image_encoder": request.ip_adapter != "none",
        "controlnet": request.controlnets > 0,
    }
    return tuple(name for name in LOAD_ORDER if optional.get(name, True))


def offload_order(request: GenerationRequest) -> list[str]:
    """List the components that evict one another under model offload, in their order.

    The img2img pipeline with ControlNets leaves the image encoder out: it comes and stays.
    Source: diffusers 0.42.1, ``model_cpu_offload_seq`` of each pipeline.
    """
    left_out = ("image_encoder",) if request.controlnets and request.task == "img2img" else ()
    return [name for name in OFFLOAD_ORDER if name in components_of(request) and name not in left_out]


class Assembly:
    """Put the history of one request together, in `history`.

    `play` says which of many equal calls in a row are played in full, `layout` how images given to the VAE lie in
    memory.
    """

    def __init__(
        self, library: Library, request: GenerationRequest, play: Play = "ends", *, layout: Layout | None = None
    ):
        self.library, self.request, self.play = library, request, play
        self.size = CallSize(
            request.images, request.latent_height, request.latent_width, request.batch, request.lora_rank
        )
        self.layout = layout or Layout()
        self.history = FlatBuilder(library.modules, self._owned() if request.offload == "sequential" else None)
        self._vae = VaeHalves(self.history, request, play, self.layout, self._untiled_half)
        self._on_gpu: dict[str, list[int]] = {}
        self._pieces: dict[tuple, tuple[Piece, list[int]]] = {}
        self._left: dict[tuple, list[tuple[tuple[int, int], int]]] = {}
        self._moved = offload_order(request)

    def load(self, component: str) -> None:
        """Load the component's weights onto the GPU."""
        rows = np.tile(self._weights(component), (self._copies(component), 1))
        self._on_gpu[component] = self.history.load(rows[:, [BYTES, MODULE]])

    def load_buffers(self, component: str) -> None:
        """Load what of the component sequential offload keeps on the GPU: its buffers."""
        rows = np.tile(self._weights(component), (self._copies(component), 1))
        self.history.load(rows[rows[:, IS_BUFFER] != 0][:, [BYTES, MODULE]])

    def _copies(self, component: str) -> int:
        return self.request.controlnets if component == "controlnet" else 1

    def _weights(self, component: str) -> np.ndarray:
        name, request = weights_name(component, self.request), self.request
        return self.library.weights_of(name, element_bytes=request.element_bytes, rank=request.lora_rank)

    def _owned(self) -> dict[str, list[tuple[int, int]]]:
        """Give the parameters that sequential offload moves: (bytes, module) by the path of the owner."""
        owned: dict[str, list[tuple[int, int]]] = {}
        for component in components_of(self.request):
            if component == "safety_checker":
                continue
            rows = self._weights(component)
            moved = rows[rows[:, IS_BUFFER] == 0][:, [BYTES, MODULE, OWNER]].tolist()
            several = self._copies(component) > 1
            for index in range(self._copies(component)):
                root = f"{component}.nets.{index}" if several else component
                for size, module, owner in moved:
                    path = self.library.modules[owner].replace(component, root, 1)
                    owned.setdefault(path, []).append((size, module))
        return owned

    def bring(self, component: str) -> None:
        """Evict one component and load this one, as accelerate's hook does under model offload."""
        place = self._moved.index(component) if component in self._moved else 0
        before = self._on_gpu.pop(self._moved[place - 1], None) if place else None
        if before is not None:
            self.history.die(before[::-1])
            self.history.event(Op.EMPTY_CACHE, 0)
        if component not in self._on_gpu:
            self.load(component)

    def call_pipeline(self) -> None:
        """Play the request's pipeline call."""
        routine = self.library.routine(pipeline_name(self.request))
        self._with_calls(routine, self.size, self.layout)

    def call(self, name: str, size: CallSize, layout: Layout, *, full: bool = True, path: str = "") -> list[int]:
        """Play a routine, and return the numbers of the storages that it leaves.

        It is a call of the module at `path`.

        Raises:
            NoProgram: it was not compiled.
        """
        if name in HALVES:
            return [self._vae.call(name, size)]
        compiled = routine_name(name, self.request, size.batch, size.height, size.width, layout)
        return self._routine(compiled, size, layout, full=full, path=path)

    def _untiled_half(self, name: str, size: CallSize, layout: Layout) -> int:
        compiled = routine_name(name, self.request, size.batch, size.height, size.width, layout)
        # The halves are methods of the VAE.
        [number] = self._routine(compiled, size, layout, path="vae")
        return number

    def _routine(
        self, compiled: str, size: CallSize, layout: Layout, *, full: bool = True, path: str = ""
    ) -> list[int]:
        routine = self.library.routine(compiled)
        key = compiled, size, layout, path
        if full and routine.calls:
            # A call that was played before is played again from what it appended then.
            if key in self._pieces:
                return self.history.again(*self._pieces[key])
            begin = self.history.place()
            results = self._with_calls(routine, size, layout, path)
            if self.request.offload != "sequential":
                self._pieces[key] = self.history.since(begin, results)
            return results
        if full:
            return self.history.routine(routine, self._symbolic(routine.sizes, size), path)
        if key not in self._left:
            self._left[key] = self._left_by(routine, size, layout, path)
        return [self.history.birth(symbolic, module) for symbolic, module in self._left[key]]

    def _left_by(
        self, routine: Routine, size: CallSize, layout: Layout, path: str
    ) -> list[tuple[tuple[int, int], int]]:
        """Give the symbolic size and the module of each storage that the routine leaves, without playing it."""
        history, sizes = self.history, self._symbolic(routine.sizes, size).tolist()
        made: list[tuple[tuple[int, int], int]] = []
        for (op, value, _), here in zip(routine.ops.tolist(), history.modules_of(routine, path), strict=True):
            if op == Op.BIRTH:
                made.append((tuple(sizes[value]), here))
            elif op == Op.CALL:
                call = routine.calls[value]
                on = size._replace(batch=_batch_of(call.batch_factor, size))
                name = routine_name(call.routine, self.request, on.batch, on.height, on.width, layout)
                made += self._left_by(self.library.routine(name), on, layout, history.path(here))
        return [made[index] for index in routine.results]

    def _with_calls(self, routine: Routine, size: CallSize, layout: Layout, path: str = "") -> list[int]:
        """Play a routine that calls others, and return the numbers of the storages that it leaves."""
        history, sizes = self.history, self._symbolic(routine.sizes, size).tolist()
        arrays = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        # One number in the routine may stand for several storages here: one for each image.
        numbers: list[list[int]] = []
        full = played_in_full([(call.routine, module) for call, module in routine.called], self.play)
        for (op, value, _), here in zip(routine.ops.tolist(), history.modules_of(routine, path), strict=True):
            if op == Op.BIRTH:
                numbers.append([history.birth(tuple(sizes[value]), here)])
            elif op == Op.DEATH:
                history.die(numbers[value])
            elif op == Op.CALL:
                call, in_full = routine.calls[value], next(full)
                called = history.path(here)
                if call.batch_factor == EACH_IMAGE:
                    one = size._replace(batch=1)
                    numbers.append(
                        [n for _ in range(size.batch) for n in self.call(call.routine, one, layout, path=called)]
                    )
                elif call.batch_factor == EACH_NET:
                    nets = range(self.request.controlnets)
                    made = [n for _ in nets for n in self.call(call.routine, size, layout, path=called)]
                    # The loop's own variable holds the last image until the list of all is gone.
                    numbers.append([made[-1], *made[:-1]])
                else:
                    on = size._replace(batch=_batch_of(call.batch_factor, size))
                    numbers += [[n] for n in self.call(call.routine, on, layout, full=in_full, path=called)]
            elif op in (Op.CONVOLUTION, Op.ATTENTION):
                history.kernel(Op(op), value, here, routine, arrays)
            elif op in (Op.ENTER, Op.LEAVE):
                history.step(Op(op), here)
            else:
                if op == Op.RETURNED:
                    history.die(self._vae.slices)
                history.event(Op(op), value, here)
                if op == Op.STAGE:
                    self._begin_stage(STAGES[value])
        return [number for index in routine.results for number in numbers[index]]

    def _begin_stage(self, stage: str) -> None:
        component = COMPONENT_OF_STAGE[stage]
        if self.request.offload == "model" and component != "safety_checker":
            self.bring(component)

    def _symbolic(self, sizes: np.ndarray, size: CallSize) -> np.ndarray:
        """Express a routine's sizes at this call in areas of the request's own size.

        Shape:
            (sizes, 2), int64: index in `AREAS` and coefficient.
        """
        multiplier, area = np.divmod(sizes[..., 0], len(AREAS))
        coefficient = sizes[..., 1].astype(np.int64) * size.multipliers()[multiplier]
        if (size.height, size.width) != (self.size.height, self.size.width):
            # A tile has a size of its own: its sizes become plain numbers of bytes.
            return np.stack([np.zeros_like(area), coefficient * areas(size.height, size.width)[area]], axis=-1)
        return np.stack([area, coefficient], axis=-1)


def _batch_of(factor: int, size: CallSize) -> int:
    """Give the batch that a call of this factor runs on."""
    return {EACH_PROMPT: size.prompts, ONE_IMAGE: 1}.get(factor, size.batch * factor)


@lru_cache(maxsize=64)
def flat_of(library: Library, request: GenerationRequest, play: Play = "ends") -> Flat:
    """Assemble the symbolic history of one call, of a request that is given in its `history_form`.

    Raises:
        NoProgram: no routine was compiled for what the request asks for.
    """
    assembly = Assembly(library, request, play)
    for component in components_of(request):
        # Offload leaves only the safety checker on the GPU between calls, and sequential offload the buffers.
        if request.offload == "none" or component == "safety_checker":
            assembly.load(component)
        elif request.offload == "sequential":
            assembly.load_buffers(component)
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
    of_vae = copied_upsamplers("vae.decoder", form, 1 if form.vae_slicing else form.images, *size)
    if form.is_tiled or of_vae or copied_upsamplers("unet", form, form.unet_batch, *size):
        return form
    side = VAE_SCALE_FACTOR * (VAE_SCALE_FACTOR if is_pixel("unet", *size) else VAE_TILE)
    return replace(form, width=side, height=side)


def events_of(library: Library, request: GenerationRequest, play: Play = "ends") -> Events:
    """Assemble the request's whole history in bytes: weights, then the call or the two calls of hires fix.

    Raises:
        NoProgram: no routine was compiled for what the request asks for.
    """
    if len(request.passes()) == 1:
        return _events_of_pass(library, request, play)
    return _both_passes(library, request, play)


def _events_of_pass(library: Library, request: GenerationRequest, play: Play) -> Events:
    return flat_of(library, history_form(request), play).at(request.latent_height, request.latent_width)


@lru_cache(maxsize=4)
def _both_passes(library: Library, request: GenerationRequest, play: Play) -> Events:
    # Joining takes longer than a replay, and the same events are replayed with kernels of many kinds.
    return joined(*(_events_of_pass(library, one, play) for one in request.passes()))
