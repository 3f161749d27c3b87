"""List what a dry run assumes, and up to where measured runs have confirmed it."""

from collections.abc import Mapping

from planner.replay.kernels import Capability
from planner.request import GenerationRequest

# Where measured whole pipelines of several images confirm the replay within 0.2 %: 512x512 with batches of 4 and 16 on
# 7.5, of 4 on 8.0, of 2, 8 and 32 on 8.9, and 256x256 with 8 on 8.0. The GPUs of 8.6 and 8.7 run the kernels of 8.0.
# Source: cache/history/reference_runs/pipelines.jsonl; tests/unit/accuracy/test_reference_errors.py holds the one to
# the other.
CONFIRMED_BATCHES = frozenset({(7, 5), (8, 0), (8, 6), (8, 7), (8, 9)})
MOST_CONFIRMED_BATCH = 32

# Up to this size measured runs confirm the replay on compute capability 7.5. The one larger run, img2img 1800x1200 on a
# T4 with torch 2.8, took 21 % more, in one allocation whose cause is unknown; a GPU of 8.9 took what is predicted.
CONFIRMED_PIXELS_75 = 512 * 512

# The relative difference between repeated runs of one public benchmark of the whole pipeline: on an A10G they gave
# 3.184 and 3.192 GiB.
RUN_TO_RUN = 0.0025


def assumptions(request: GenerationRequest, capability: Capability, *, has_large: bool = False) -> list[str]:
    """List what the dry run assumes of this request on this compute capability, in words.

    `has_large` says that a convolution of the request is a large one. Where anything is assumed, the allocated peak is
    a range: from kernels without workspace to the most that kernels of any of `REPLAYED_FRACTIONS` allocate.
    """
    # Reference runs confirm the workspace of float16 alone.
    dtype = request.dtype
    found = [] if dtype == "float16" else [_of_data_type(capability, dtype)]
    if has_large:
        found.append(
            "a convolution of 2^31 elements or more: such were seen to take no workspace on torch 2.0, and newer cuDNN "
            "may take it"
        )
    pixels = request.effective_width * request.effective_height
    if dtype == "float16" and capability == (7, 5) and pixels > CONFIRMED_PIXELS_75:
        found.append(
            "images above 512x512 on compute capability 7.5: the one reference run, img2img 1800x1200 on a T4, took "
            "21 % more than the dry run, and why is unknown; convolutions may take twice their workspace"
        )
    is_confirmed = dtype == "float16" and capability in CONFIRMED_BATCHES
    if request.batch > (MOST_CONFIRMED_BATCH if is_confirmed else 1):
        found.append(
            f"batch {request.batch}: behind its attention the VAE is channels_last, where convolutions are taken to "
            "transpose nothing; some cuDNN versions need less, others may transpose all the same"
        )
    if request.channels_last:
        found.append("channels_last: convolutions are taken to transpose nothing and so to need no workspace")
    if dtype == "float16" and capability < (7, 0):
        found.append(
            "no tensor cores: convolutions are taken to convert to float32 in their workspace, which holds where the "
            "VAE decoder peaks; the UNet's own kernels were seen to take more"
        )
    if dtype == "float16" and capability == (7, 0):
        found.append(
            "compute capability 7.0: kernels are taken to need what those of capability 7.5 need; the one reference "
            "run took 3.7 % less"
        )
    if capability >= (9, 0):
        version = ".".join(map(str, capability))
        found.append(f"compute capability {version}: kernels are taken to need what those of capability 8 need")
    return found


def _of_data_type(capability: Capability, dtype: str) -> str:
    """Say what is assumed of kernels for a data type other than float16."""
    if dtype == "bfloat16":
        return (
            "bfloat16: kernels are taken to need what those of float16 need; the one reference run peaks in eager "
            "attention, where no convolution runs"
        )
    if capability < (8, 0):
        return (
            "float32 before compute capability 8.0: convolutions are taken to need no workspace, because there is "
            "nothing to convert; no such run was measured, and they may hold input, filter and output once more"
        )
    return (
        "float32: convolutions are taken to run on tensor cores as TF32, torch's default, and to transpose numbers of "
        "4 bytes; the one reference run peaks in eager attention, where no convolution runs"
    )


_ATTENTION = {
    "sdpa": "fused attention as diffusers sets it (an eager processor needs more)",
    "xformers": "xformers' attention, whose kernels are taken to need what torch's fused ones do",
    "eager": "eager attention processors in UNet and VAE",
}
_ALLOCATOR = {"default": "torch's default CUDA allocator", "expandable": "expandable segments"}


def stack(versions: Mapping[str, str], request: GenerationRequest) -> tuple[str, ...]:
    """List what the dry run of this request assumes of the user's software, in words.

    `versions` are those that the programs were compiled with. Of 45 reference runs with the eager attention processor
    of 2022 that were out of memory, the dry run says ``fits`` of 34: right with fused attention, and wrong for such a
    stack. ``cudnn.benchmark`` takes the fastest plan, whatever its workspace.
    """
    releases = ", ".join(f"{name} {versions[name].partition('+')[0]}" for name in ("torch", "diffusers"))
    return (
        request.dtype,
        _ATTENTION[request.attention],
        "torch.backends.cudnn.benchmark off",
        f"{releases}, and {_ALLOCATOR[request.allocator]}",
    )
