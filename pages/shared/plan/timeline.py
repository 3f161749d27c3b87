"""Draw memory over time on one GPU: where it peaks, where it runs out, and what stays after the call."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.shared.frame.escape import sentence
from pages.shared.plan.memory import PartRow, part_rows
from pages.shared.plan.timeline_chart import is_far, peak_bar, stage_name, timeline_chart
from pages.shared.plan.verdicts import Answered
from planner.answer import Answer
from planner.errors import NoProgram
from planner.programs.library import Library
from planner.replay.timeline import Timeline, timeline_of
from planner.request import GenerationRequest
from planner.units import gib, gib_value


def where(module: str) -> str:
    """Return the module as text: `vae.decoder.conv_in`, or the pipeline's own code."""
    return "the pipeline's own code" if module == "pipeline" else f"`{module}`"


def _in(stage: str) -> str:
    return "while the weights are loaded" if stage == "loading" else f"in the {_inside(stage)}"


def _inside(stage: str) -> str:
    name = stage_name(stage)
    return name if name.startswith(("UNet", "VAE", "ControlNet")) else name[:1].lower() + name[1:]


_AT = {
    "convolution": "a convolution of",
    "attention": "an attention call of",
    "matrix product": "a matrix product of",
    "new tensor": "a new tensor of",
}


def peak_sentence(timeline: Timeline) -> str:
    """Say where the peak comes from."""
    until = "" if timeline.failed is None else " before memory ran out"
    at = _AT.get(timeline.operation, f"the {timeline.operation} of")
    text = (
        f"The peak of {gib(timeline.run.peak_allocated_bytes)} allocated{until} comes {_in(timeline.peak_stage)}, "
        f"at {at} {where(timeline.module)}"
    )
    kernel = [part.size_bytes for part in timeline.parts if part.name == "of the running kernel"]
    if kernel:
        owner = {"convolution": "convolution", "attention": "attention call"}.get(timeline.operation, "kernel")
        text += f"; {gib(kernel[0])} of it is that {owner}'s workspace"
    return f"{text}."


def pass_sentence(request: GenerationRequest, answer: Answer) -> str | None:
    """Say which pass of hires fix allocates most; None for a single call."""
    if answer.peak_pass is None:
        return None
    one = request.passes()[answer.peak_pass - 1]
    which = ("first", "second")[answer.peak_pass - 1]
    return f"Of the two passes the {which} allocates most: {one.task} at {one.width}×{one.height}."


def failure_sentence(timeline: Timeline, answer: Answer, capacity_bytes: int) -> str | None:
    """Say where memory ran out, and for what; None if it did not."""
    failed = timeline.failed
    if failed is None:
        return None
    what = {"attention": "an attention call's workspace", "matrix product": "cuBLAS's workspace"}.get(
        failed.operation, "a new tensor"
    )
    text = (
        f"Out of memory {_in(failed.stage)}: {what} of {gib(failed.size_bytes)}, of {where(failed.module)}, "
        f"did not fit into {gib(capacity_bytes)}."
    )
    if answer.verdict == "tight":
        most = answer.card.usable_high_bytes - answer.card.context_low_bytes
        text += f" It is still tight and not no: some of these GPUs have {gib(most)} for a process, which is enough."
    return text


def trouble_sentence(timeline: Timeline) -> str | None:
    """Say what the allocator and cuDNN had to do to go on; None if nothing."""
    run, texts = timeline.run, []
    if run.num_alloc_retries:
        times = "once" if run.num_alloc_retries == 1 else f"{run.num_alloc_retries} times"
        texts.append(
            f"The allocator ran out of memory {times}, freed its unused segments and tried again. Each retry stalls "
            "the GPU."
        )
    if run.fallbacks:
        shapes = "1 shape" if run.fallbacks == 1 else f"{run.fallbacks} shapes"
        texts.append(
            f"The preferred workspace did not fit for {shapes} of convolution, which ran with a slower kernel that "
            "needs none."
        )
    return " ".join(texts) or None


def timeline_view(request: GenerationRequest, one: Answered, library: Library | None) -> None:
    """Draw the dry run of this request on one GPU, from loading to the last stage."""
    card, dry_run = one.answer.card, one.dry_run
    st.header(f"Memory over time on {card.name}", anchor=False)
    if library is None:
        st.info("The dry run needs memory programs, which are not there yet.", icon=":material/info:")
        return
    try:
        timeline = timeline_of(request, card, library)
    except NoProgram as error:
        st.info(f"There is no dry run to draw: {sentence(str(error))}", icon=":material/info:")
        return
    capacity = max(0, card.usable_bytes - card.context_bytes)
    if failure := failure_sentence(timeline, dry_run, capacity):
        st.error(failure, icon=":material/error:")
    st.markdown(peak_sentence(timeline))
    if of_passes := pass_sentence(request, dry_run):
        st.markdown(of_passes)
    if trouble := trouble_sentence(timeline):
        st.markdown(trouble)
    timeline_chart(timeline, card.name, capacity)
    beyond = f" Available: {gib(capacity)}, beyond the top of the chart." if is_far(timeline, capacity) else ""
    st.caption(
        "Dry run, not a measurement. The horizontal axis counts allocations and releases, not time; of the UNet's "
        f"repeated steps, only the first and the last are shown. ◆ is the peak.{beyond}"
    )
    rows = part_rows(timeline.parts)
    held = sum(row.size_bytes for row in rows)
    st.markdown(
        f"**At the peak** {gib(held)} of the GPU are in use: torch's reserved memory and the CUDA context. "
        f"{_need_words(dry_run, held)}"
    )
    peak_bar(rows)
    _table(rows)


def _need_words(dry_run: Answer, held_bytes: int) -> str:
    """Explain why the need differs from what is in use on this GPU."""
    need, usable = dry_run.need_bytes, dry_run.card.usable_bytes
    if need is None or need <= usable:
        return ""
    return (
        f"With room to spare, the request would take {gib(need)}, its need. This GPU has {gib(usable)}, so the "
        f"allocator freed unused segments and used kernels with less workspace, and held {gib(held_bytes)}."
    )


def _table(rows: Sequence[PartRow]) -> None:
    number = st.column_config.NumberColumn
    # Together, the columns fit the width of a phone.
    st.dataframe(
        [
            {"Kind": row.kind, "Part": row.name, "GiB": gib_value(row.size_bytes), "Share": row.share * 100}
            for row in rows
        ],
        hide_index=True,
        height="content",
        alt="Parts of the memory in use at the peak, by kind",
        column_config={
            "Kind": st.column_config.TextColumn(
                "Kind",
                width=78,
                help="Weights: parameters of the loaded components. Tensors: inputs and results of modules. Workspace: "
                "scratch memory of a kernel. Allocator: rounding, and reserved memory that is unused. Context: memory "
                "of CUDA outside torch.",
            ),
            "Part": st.column_config.TextColumn(
                "Part", width=174, help="The component, or the block of modules that allocated it."
            ),
            "GiB": number("GiB", width=50, format="%.2f", help="Its memory at the peak."),
            "Share": number("Share", width=54, format="%.0f %%", help="Its share of all memory in use at the peak."),
        },
    )


def _after_row(answer: Answer) -> dict[str, str]:
    after, copies = answer.after_call, answer.copies
    sizes = {
        "Allocated": after and after.allocated_bytes,
        "Cached": after and after.cached_bytes,
        "Releasable": after and after.releasable_bytes,
        "Context": after and after.context_bytes,
        "Stays": after and after.total_bytes,
    }
    row = {"GPU": answer.card.name} | {
        name: "–" if size is None else f"{gib_value(size):.2f}" for name, size in sizes.items()
    }
    counts = (None, None) if copies is None else copies
    names = ("Copies", "By MPS")
    return row | {name: "–" if count is None else f"{count}" for name, count in zip(names, counts, strict=True)}


def after_view(answers: Sequence[Answer]) -> None:
    """Draw a row for each GPU: the memory between two calls, and the copies that fit the whole GPU."""
    st.header("After the call, and beside others", anchor=False)
    text = st.column_config.TextColumn
    st.dataframe(
        [_after_row(answer) for answer in answers],
        hide_index=True,
        alt="What stays on each GPU after the call, and how many copies of the request fit it",
        column_config={
            "GPU": text("GPU", width=96, pinned=True),
            "Allocated": text("Allocated", width=74, help="Weights, cuBLAS's workspace and what the scheduler keeps."),
            "Cached": text("Cached", width=62, help="Reserved by the allocator beyond what is allocated."),
            "Releasable": text("Releasable", width=82, help="What of the cache torch.cuda.empty_cache() gives back."),
            "Stays": text(
                "Stays", width=54, help="What other processes cannot use: allocated, cached and the CUDA context."
            ),
            "Context": text("Context", width=64),
            "Copies": text(
                "Copies", width=58, help="Processes that fit the whole GPU at their worst need, each with a context."
            ),
            "By MPS": text(
                "By MPS",
                width=62,
                help="Copies with one CUDA context for all, as NVIDIA's MPS keeps it in its server. An estimate: what "
                "a client of MPS takes for itself was not measured.",
            ),
        },
    )
    st.caption(
        "Sizes are in GiB. Between two calls a process keeps its weights and the allocator's cache; – where no dry run "
        "answers, where the request does not fit, or with offload. Copies are processes that fit the GPU side by side; "
        "by MPS, with one CUDA context for all, which is an estimate."
    )
