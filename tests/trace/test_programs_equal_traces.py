"""Programs are what they claim to be: the history of a live trace, and of a real run, event for event."""

import gc
import itertools
import os
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings

from cache.worker.pipelines import modules_of
from cache.worker.rehearsal import bring_layers_as_copies
from planner.components import LIBRARIES, LOAD_ORDER, STAGES
from planner.programs.assemble import events_of
from planner.programs.files import SHIPPED, encode, shipped
from planner.programs.library import CallSize, Library, Op
from planner.programs.names import Layout
from planner.programs.upsampling import copied_in_vae
from planner.request import GenerationRequest
from planner.tracing.call_frames import CompileError, Frame, folded, kernel_of
from planner.tracing.compiler import SIZES, compile_library, fit_size, real_pipeline, routine_from
from planner.tracing.pipeline import call_arguments, component_modules
from planner.tracing.recorder import Attention, Birth, Convolution, Death, EmptyCache, Loaded, Stage
from planner.tracing.tracer import trace, trace_halves
from tests.conftest import ROOT
from tests.trace.real_storages import RealStorages, Transfers
from tests.trace.size_conditions import conditions
from tests.trace.small import small_pipeline, small_pipeline_on_meta
from tests.trace.straddling import straddling

# The img2img pipeline advises as many initial images as pictures; with several images per prompt it copies them, which
# is what a trace must see.
pytestmark = pytest.mark.filterwarnings("ignore:You have passed [0-9]+ text prompts:FutureWarning")


@pytest.fixture(autouse=True)
def quiet():
    """Libraries that say what they think of missing torchvision and of casts say it elsewhere."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()


def as_traced(events) -> list[tuple]:
    """A live trace in plain tuples, loops folded as programs fold them."""
    found, numbers = [], {}
    for event in folded(events):
        match event:
            case Birth(slot, size_bytes, module):
                numbers[slot] = len(numbers)
                found.append(("birth", size_bytes, module))
            case Death(slot):
                found.append(("death", numbers[slot]))
            case Convolution() | Attention():
                found.append((type(event).__name__.lower(), *kernel_of(event), event.module))
            case Stage(name):
                found.append(("stage", STAGES.index(name)))
            case EmptyCache():
                found.append(("empty cache",))
            case Loaded():
                found.append(("loaded",))
    return found


def as_programmed(library: Library, request: GenerationRequest) -> list[tuple]:
    """The program's history in the same tuples."""
    events = events_of(library, request, "all")
    found = []
    for kind, value, module_id in zip(
        events.kinds.tolist(), events.values.tolist(), events.module_ids.tolist(), strict=True
    ):
        module = events.modules[module_id]
        match Op(kind):
            case Op.BIRTH:
                found.append(("birth", value, module))
            case Op.DEATH:
                found.append(("death", value))
            case Op.CONVOLUTION:
                *sizes, channels_last = events.convolutions[value].tolist()
                found.append(("convolution", tuple(sizes), channels_last, module))
            case Op.ATTENTION:
                *sizes, head_dim = events.attentions[value].tolist()
                found.append(("attention", tuple(sizes), head_dim, module))
            case Op.STAGE:
                found.append(("stage", value))
            case Op.EMPTY_CACHE:
                found.append(("empty cache",))
            case Op.LOADED:
                found.append(("loaded",))
    return found


# A trace takes one to five seconds alone, at any size; the examples are the structures that differ.
# PLANNER_EXAMPLES=300 tries as many as before a release.
@pytest.mark.timeout(600)
@settings(max_examples=int(os.environ.get("PLANNER_EXAMPLES", "16")), deadline=None)
@given(straddling())
@example(GenerationRequest(steps=6))
@example(GenerationRequest(task="txt2img", width=64, height=64, batch=2, steps=1))
@example(GenerationRequest(width=776, height=392, batch=2, vae_tiling=True, vae_slicing=True, steps=1))
@example(GenerationRequest(width=776, height=776, vae_tiling=True, channels_last=True, steps=1))
@example(GenerationRequest(width=200, height=136, attention_slicing=True, guidance_scale=1.0, steps=1))
@example(GenerationRequest(task="txt2img", batch=3, width=232, height=104, offload="model", vae_slicing=True, steps=2))
@example(GenerationRequest(task="txt2img", width=1024, height=1024, batch=16, steps=1))
@example(GenerationRequest(task="txt2img", width=1024, height=1024, batch=17, steps=1))
@example(GenerationRequest(width=8192, height=8192, batch=128, steps=1))
@example(GenerationRequest(width=8192, height=8192, channels_last=True, attention_slicing=True, steps=1))
@example(GenerationRequest(task="txt2img", width=72, height=64, batch=63, steps=1))
@example(GenerationRequest(task="txt2img", width=72, height=64, batch=64, channels_last=True, steps=1))
@example(GenerationRequest(width=64, height=64, batch=32, channels_last=True, steps=1))
@example(GenerationRequest(width=776, height=392, batch=64, vae_tiling=True, guidance_scale=1.0, steps=1))
@example(GenerationRequest(width=8072, height=6552, batch=8, channels_last=True, steps=1))
@example(GenerationRequest(width=72, height=64, batch=2, controlnets=2, offload="model", steps=1))
def test_a_program_equals_a_live_trace(request_):
    live = as_traced(trace(request_))
    programmed = as_programmed(shipped(), request_)
    assert len(live) > 1000
    assert programmed == live


# What changes allocations, with the values that differ in kind.
PAIRED = {
    "task": ["img2img", "txt2img", "inpaint"],
    "images_per_prompt": [1, 2],
    "dtype": ["float16", "bfloat16", "float32"],
    "controlnets": [0, 1, 3],
    "lora_rank": [0, 5],
    "ip_adapter": ["none", "base", "plus"],
    "attention": ["sdpa", "xformers", "eager"],
    "attention_slicing": [False, True],
    "memory_format": ["plain", "channels_last", "channels_last_unet"],
    "guidance_scale": [7.5, 1.0],
    "batch": [1, 2],
    "offload": ["none", "model"],
    "vae_tiling": [False, True],
    "vae_slicing": [False, True],
    "steps": [1, 3],
    "sides": [(208, 152), (64, 64), (136, 520)],
}


def paired() -> list[GenerationRequest]:
    """Requests in which every pair of values that may go together stands in one at least."""
    rng = random.Random(0)
    names = list(PAIRED)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(range(len(PAIRED[a])), range(len(PAIRED[b])))
        if not refused({a: PAIRED[a][x], b: PAIRED[b][y]})
    }
    found = []
    while missing:
        best: tuple[int, dict, set] = (0, {}, set())
        seed = rng.choice(sorted(missing))
        for _ in range(60):
            chosen = {name: rng.randrange(len(PAIRED[name])) for name in names} | dict(seed)
            if refused({name: PAIRED[name][index] for name, index in chosen.items()}):
                continue
            covered = missing & set(itertools.combinations(chosen.items(), 2))
            best = max(best, (len(covered), chosen, covered), key=lambda one: one[0])
        count, chosen, covered = best
        assert count, f"{seed} cannot be made a request"
        missing -= covered
        found.append(as_request({name: PAIRED[name][index] for name, index in chosen.items()}))
    return found


def refused(values: dict) -> bool:
    return values.get("ip_adapter", "none") != "none" and values.get("attention_slicing", False)


def as_request(values: dict) -> GenerationRequest:
    values = dict(values)
    memory_format, (width, height) = values.pop("memory_format"), values.pop("sides")
    if memory_format != "plain":
        values[memory_format] = True
    return GenerationRequest(**values, width=width, height=height, lora_text_encoder=values["lora_rank"] > 0)


@pytest.mark.timeout(900)
def test_programs_of_all_pairs_of_options_equal_live_traces():
    requests = paired()
    assert len(requests) < 40
    for request_ in requests:
        live = as_traced(trace(request_))
        assert as_programmed(shipped(), request_) == live, request_.describe()


def test_every_condition_on_a_shape_is_known():
    lines = (ROOT / "tests/data/size_conditions.txt").read_text().splitlines()
    known = {line.partition(" ")[2].strip() for line in lines if not line.startswith("#")}
    found = conditions()
    assert len(found) > 40
    assert found == known, "a condition on a shape is new or gone: see tests/data/size_conditions.txt"


@pytest.mark.parametrize(
    ("copied", "batch", "height", "width"),
    [
        ((), 2, 512, 256),
        ((2,), 2, 512, 257),
        ((2,), 2, 512, 512),
        ((1, 2), 2, 512, 513),
        ((0, 1, 2), 3, 1024, 1024),
        ((), 63, 8, 8),
        ((0, 1, 2), 64, 8, 8),
    ],
)
def test_the_decoder_copies_as_diffusers_does(copied, batch, height, width):
    pipeline = real_pipeline(GenerationRequest(batch=batch))
    events = trace_halves(pipeline, GenerationRequest(batch=batch), height, width, Layout())
    births = Counter(
        e.module for e in events if isinstance(e, Birth) and re.search(r"decoder.*upsamplers.0$", e.module)
    )
    # An upsampler makes its result, and one that copies makes a copy before. What follows it is contiguous already, so
    # those behind the first have nothing to copy.
    found = tuple(index for index in range(3) if births[f"vae.decoder.up_blocks.{index}.upsamplers.0"] == 2)
    assert copied_in_vae(batch, height, width) == copied
    assert found == copied[:1]


def test_the_shipped_programs_are_for_the_pinned_versions():
    pins = (ROOT / "requirements.txt").read_text()
    assert f"torch=={shipped().versions['torch']}" in pins
    assert set(shipped().versions) == set(LIBRARIES)


# It traces everything, for four to ten minutes.
@pytest.mark.timeout(1500)
def test_a_recompile_is_the_same_byte_for_byte():
    library = compile_library(shipped().versions)
    header, numbers = encode(library)
    assert header == SHIPPED.with_suffix(".json").read_text()
    assert numbers == SHIPPED.with_suffix(".bin").read_bytes()


def test_the_shipped_weights_are_those_of_the_real_modules():
    from planner.tracing.pipeline import component_modules

    for name, module in component_modules().items():
        tensors = itertools.chain(module.parameters(), module.buffers())
        # Indices keep their eight bytes in float16 pipelines.
        counted = sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in tensors)
        assert shipped().weights_bytes(name) == counted


# A real run


# Options that are independent share a run. Attention in slices is left out, whose equal passes programs fold.
REAL = [
    GenerationRequest.from_dict({"width": 200, "height": 136, "steps": 1, "dtype": "float32"} | changes)
    for changes in (
        {"steps": 2},
        {"task": "txt2img", "width": 264, "height": 96, "batch": 2, "steps": 2},
        {"width": 136, "height": 232, "batch": 3, "guidance_scale": 1.0, "safety_checker": False, "steps": 2},
        {"task": "inpaint", "batch": 2, "images_per_prompt": 2, "channels_last_unet": True},
        {"task": "txt2img", "controlnets": 2, "ip_adapter": "plus", "images_per_prompt": 3},
        {"lora_rank": 5, "lora_text_encoder": True, "attention": "eager"},
        {"task": "txt2img", "hires": 1.5},
        {"task": "inpaint", "controlnets": 1, "ip_adapter": "base", "lora_rank": 4, "offload": "sequential"},
    )
]


def at_several_sizes(request: GenerationRequest) -> list[GenerationRequest]:
    """The requests from which the compiler tells every size of this one apart, and those that list its weights."""
    found = []
    for one in request.passes():
        for size, images, rank in zip(SIZES, (2, 3, 4), (7, 11, 13), strict=True):
            values = {"height": 8 * size[1], "width": 8 * size[2], "offload": "none"}
            values |= {"images_per_prompt": images} if one.images_per_prompt > 1 else {}
            values |= {"lora_rank": rank} if one.lora_rank else {}
            found += [replace(one, **values | {"batch": batch}) for batch in (size[0], 1)]
        weights = {"dtype": "float16", "controlnets": min(one.controlnets, 1), "lora_rank": min(one.lora_rank, 1)}
        found.append(replace(found[-1], **weights))
    return found


@pytest.fixture(scope="module")
def small_library() -> Library:
    """Programs of the small pipeline, compiled as the real ones are."""
    wanted = dict.fromkeys(one for request in REAL for one in at_several_sizes(request))
    return compile_library({}, requests=list(wanted), make_pipeline=small_pipeline_on_meta)


def load(storages: RealStorages, module: torch.nn.Module, *, buffers_only: bool = False) -> None:
    for child in module.children():
        load(storages, child, buffers_only=buffers_only)
    for tensor in (*([] if buffers_only else module._parameters.values()), *module._buffers.values()):
        if tensor is not None:
            storages.count(tensor.data)


def called(request: GenerationRequest) -> tuple[list[int], int]:
    """Run the small pipeline for real; give the births and deaths on the card in bytes, and how many pictures."""
    pipeline, storages = small_pipeline(request), RealStorages()
    is_sequential = request.offload == "sequential"
    if is_sequential:
        pipeline.enable_sequential_cpu_offload(device="cpu")
        bring_layers_as_copies(modules_of(pipeline))
    for name, module in modules_of(pipeline).items():
        load(storages, module, buffers_only=is_sequential and name != "safety_checker")
    gc.disable()
    try:
        with torch.no_grad(), Transfers(storages), storages:
            pictures = pipeline(**call_arguments(request)).images
        return list(storages.deltas), len(pictures)
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")
@pytest.mark.parametrize("request_", REAL, ids=GenerationRequest.describe)
def test_a_real_run_on_the_cpu_equals_the_program_event_for_event(small_library, request_):
    real: list[int] = []
    for one in request_.passes():
        deltas, pictures = called(one)
        assert pictures == one.images
        real += deltas
    events = [events_of(small_library, one, "all") for one in request_.passes()]
    predicted = [
        size for each in events for size in each.deltas()[(each.kinds == Op.BIRTH) | (each.kinds == Op.DEATH)].tolist()
    ]
    assert len(real) > 3000
    assert predicted == real


def test_an_order_that_changes_with_the_size_is_refused():
    made = (9, [(Op.BIRTH, 81, "a")]), (10, [(Op.DEATH, 0, "")])
    frames = [Frame("x", CallSize(1, 9, width), ops=ops) for width, ops in made]
    with pytest.raises(CompileError, match="order of events"):
        routine_from("x", frames, lambda _: 0)


def test_a_size_that_no_feature_explains_is_refused():
    at = [CallSize(1, 9, 11), CallSize(1, 13, 10)]
    assert fit_size((2 * 99, 2 * 130), at, one_size=False) == (1, 2)
    with pytest.raises(CompileError, match="no whole multiple"):
        fit_size((99, 131), at, one_size=False)


def test_weights_are_shipped_of_every_component_and_built_in_load_order():
    assert {name.partition("/")[0] for name in shipped().weights} == set(LOAD_ORDER)
    assert tuple(component_modules(GenerationRequest(controlnets=1, ip_adapter="base"))) == LOAD_ORDER
