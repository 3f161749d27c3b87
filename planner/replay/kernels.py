"""Decide what memory a GPU's kernels take beside their tensors.

That is cuDNN's workspace, what attention keeps, and cuBLAS's workspace. Nothing is fitted to measurements; every rule
follows the libraries' sources.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from planner.errors import InvalidArgument, NoKernelRule
from planner.units import MIB

# cuBLAS keeps one workspace a handle and stream, from the same allocator, from the first matrix product on.
# Source: aten/src/ATen/cuda/CublasHandlePool.cpp, getChosenWorkspaceSize: ":4096:2:16:8", or 32 MiB on newer GPUs.
CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
CUBLAS_BYTES_FROM_90 = 32 * MIB

# Memory-efficient attention keeps a float32 accumulator when a head is wider than its registers hold, and its output is
# not float32 itself.
# Source: kernel_forward.h of PyTorch 2.13, kKeepOutputInRF and kNeedsOutputAccumulatorBuffer.
WIDEST_HEAD_IN_REGISTERS = 128
# Flash attention takes heads up to this width; the VAE's single head of 512 is beyond it.
WIDEST_FLASH_HEAD = 256

# Convolutions whose input or output has this many elements were seen to take no workspace on torch 2.0: with that rule
# VAE decode of 32 images of 512x512 is right to 512 bytes. cuDNN 9.3 and newer index beyond 2^31 and may take theirs.
# Source: the peaks of huggingface/open-muse's benchmark; aten/src/ATen/native/Convolution.cpp, use_cudnn.
LARGE_CONVOLUTION_NUMEL = 2**31

# The workspace fractions at which reserved peaks are replayed. They lie close together, for a reserved peak leaps: a
# workspace a little smaller than the preferred one may no longer fit the blocks that tensors have left.
REPLAYED_FRACTIONS = (*(tenth / 10 for tenth in range(10)), 0.95, 1.0, 2.0)

Capability = tuple[int, int]

Convolution = Literal["nhwc", "float32", "plain"]

# The bytes of one number, of the data types that a pipeline can run in.
ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
FLOAT32_BYTES = ELEMENT_BYTES["float32"]


@dataclass(frozen=True)
class KernelPolicy:
    """Say what a GPU's kernels take as workspace, by its compute capability.

    `convolution` names the plan that cuDNN prefers:

    - ``nhwc``: tensor cores work on channels_last, so an NCHW input, filter and output are each transposed in the
      workspace, channels padded to eights. An image's three channels are too few for them, and go without.
    - ``float32``: without tensor cores, input, filter and output are converted to float32 in the workspace.
    - ``plain``: kernels read float32 tensors as they lie, and need no workspace. At the cautious end it holds each
      of them once.

    `element_bytes` is the size of one number. Tensor cores for TF32 take float32 tensors, channels padded to fours.
    `workspace_fraction` is the part of that workspace that kernels take: 0 if each fell back to its last plan, 1 for
    the preferred plan, 2 for the cautious end. Between 1 and 2, convolutions that are channels_last already transpose
    all the same, those of `LARGE_CONVOLUTION_NUMEL` elements take their workspace as well, and with `may_double` all
    others take up to twice theirs.
    `are_large_like_others` gives large convolutions the workspace of all others.
    """

    convolution: Convolution
    has_flash_attention: bool
    cublas_bytes: int
    workspace_fraction: float = 1.0
    are_large_like_others: bool = False
    may_double: bool = False
    element_bytes: int = 2

    @classmethod
    def of(cls, capability: Capability, dtype: str = "float16") -> "KernelPolicy":
        """Give the policy of this compute capability for a pipeline in this data type.

        Raises:
            InvalidArgument: `dtype` is none of `ELEMENT_BYTES`.
            NoKernelRule: torch runs this data type on such GPUs by kernels that no rule here covers.
        """
        convolution = preferred_convolution(capability, dtype)
        return cls(
            convolution=convolution,
            # Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, use_flash_attention: no float32.
            has_flash_attention=capability >= (8, 0) and dtype != "float32",
            cublas_bytes=CUBLAS_BYTES_FROM_90 if capability >= (9, 0) else CUBLAS_BYTES,
            may_double=capability == (7, 5) and convolution == "nhwc",
            element_bytes=ELEMENT_BYTES[dtype],
        )

    def convolution_bytes(self, convolutions: np.ndarray) -> np.ndarray:
        """Compute the workspace of each convolution's plan, from `Events.convolutions`.

        Shape:
            (convolutions,), int64.
        """
        x, x_padded, y, y_padded, weight, channels_last = convolutions.T
        taken, beyond = min(self.workspace_fraction, 1.0), max(self.workspace_fraction - 1.0, 0.0)
        is_large = is_large_convolution(convolutions) & (not self.are_large_like_others)
        if self.convolution == "plain":
            return (beyond * self.element_bytes * (x + y + weight)).astype(np.int64)
        if self.convolution == "float32":
            return (np.where(is_large, beyond, taken) * (4 * (x + y + weight))).astype(np.int64)
        # Three channels of an image become eight, and a channels_last tensor needs no transpose.
        is_image = 3 * x_padded == 8 * x
        share = np.where((channels_last != 0) | is_large, beyond, taken + beyond * self.may_double)
        if self.element_bytes == FLOAT32_BYTES:
            x_padded, y_padded = _padded_to_fours(x, x_padded), _padded_to_fours(y, y_padded)
        return (np.where(is_image, 0, share) * (self.element_bytes * (x_padded + y_padded + weight))).astype(np.int64)

    def without_workspace(self) -> "KernelPolicy":
        """Give the same policy with every convolution on a plan without workspace."""
        return replace(self, workspace_fraction=0.0)

    def attention_bytes(self, attentions: np.ndarray) -> np.ndarray:
        """Compute the bytes that each of `Events.attentions` takes beside its output.

        Shape:
            (calls,), int64.
        """
        log_sum_exp, accumulator, head_dim = attentions.T
        is_flash = self.has_flash_attention & (head_dim <= WIDEST_FLASH_HEAD)
        is_kept = (head_dim > WIDEST_HEAD_IN_REGISTERS) & (self.element_bytes != FLOAT32_BYTES)
        return np.where(is_flash, log_sum_exp, np.where(is_kept, accumulator, 0))


def preferred_convolution(capability: Capability, dtype: str) -> Convolution:
    """Name the plan that cuDNN prefers for this data type on this compute capability.

    float16 on tensor cores is measured. bfloat16 has the same size, and from 8.0 on tensor cores of its own. float32
    runs on tensor cores as TF32 from 8.0 on, for ``torch.backends.cudnn.allow_tf32`` is True unless it is set; before,
    there is nothing to convert. No measured run confirms the rules for float32: the one published run peaks in eager
    attention, where no convolution runs.

    Before 8.0 torch runs bfloat16 convolutions without cuDNN, with the columns of a whole image in memory, and
    attention without a fused kernel, with all its scores in memory. The programs have the size of neither.
    Source: ``CUDAHooks::supportsBFloat16ConvolutionWithCuDNNv8``; ``sdp_utils.cpp``, ``use_mem_efficient_attention``.

    Raises:
        InvalidArgument: `dtype` is none of `ELEMENT_BYTES`.
        NoKernelRule: it is bfloat16 before compute capability 8.0.
    """
    if dtype not in ELEMENT_BYTES:
        raise InvalidArgument("dtype", f"must be one of {', '.join(ELEMENT_BYTES)}", dtype)
    if dtype == "float32":
        return "nhwc" if capability >= (8, 0) else "plain"
    if dtype == "bfloat16" and capability < (8, 0):
        version = ".".join(map(str, capability))
        raise NoKernelRule(
            f"compute capability {version} has no dry run in bfloat16: before 8.0 torch runs its convolutions without "
            "cuDNN and its attention without a fused kernel - choose float16"
        )
    return "nhwc" if capability >= (7, 0) else "float32"


def _padded_to_fours(numel: np.ndarray, padded_to_eights: np.ndarray) -> np.ndarray:
    """Compute the elements with channels padded to fours, from those without padding and with eights.

    The channels in Stable Diffusion v1.5 are 3 and 4, of inpainting 9, and multiples of eight.
    """
    twelve = np.where(9 * padded_to_eights == 16 * numel, padded_to_eights // 4 * 3, padded_to_eights)
    return np.where(padded_to_eights >= 2 * numel, padded_to_eights // 2, twelve)


def is_large_convolution(convolutions: np.ndarray) -> np.ndarray:
    """Tell which rows of `Events.convolutions` are large convolutions.

    They read or write `LARGE_CONVOLUTION_NUMEL` elements or more.

    Shape:
        (convolutions,), bool.
    """
    return (convolutions[:, 0] >= LARGE_CONVOLUTION_NUMEL) | (convolutions[:, 2] >= LARGE_CONVOLUTION_NUMEL)
