"""Decide what memory a GPU's kernels take beside their tensors.

That is cuDNN's workspace, what attention keeps, and cuBLAS's workspace. Nothing is fitted to measurements; every rule
follows the libraries' sources.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from planner.units import MIB

# cuBLAS keeps one workspace a handle and stream, from the same allocator, from the first matrix product on.
# Source: aten/src/ATen/cuda/CublasHandlePool.cpp, getChosenWorkspaceSize: ":4096:2:16:8", or 32 MiB on newer GPUs.
CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
CUBLAS_BYTES_FROM_90 = 32 * MIB

# Memory-efficient attention keeps a float32 accumulator when a head is wider than its registers hold.
# Source: kernel_forward.h, kMaxK and kNeedsOutputAccumulatorBuffer.
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


@dataclass(frozen=True)
class KernelPolicy:
    """Say what a GPU's kernels take as workspace, by its compute capability.

    `convolution` names the plan that cuDNN prefers:

    - ``nhwc``: tensor cores work on channels_last, so an NCHW input, filter and output are each transposed in the
      workspace, channels padded to eights. An image's three channels are too few for them, and go without.
    - ``float32``: without tensor cores, input, filter and output are converted to float32 in the workspace.

    `workspace_fraction` is the part of that workspace that kernels take: 0 if each fell back to its last plan, 1 for
    the preferred plan, 2 for the cautious end. Between 1 and 2, convolutions that are channels_last already transpose
    all the same, those of `LARGE_CONVOLUTION_NUMEL` elements take their workspace as well, and with `may_double` all
    others take up to twice theirs.
    `are_large_like_others` gives large convolutions the workspace of all others.
    """

    convolution: Literal["nhwc", "float32"]
    has_flash_attention: bool
    cublas_bytes: int
    workspace_fraction: float = 1.0
    are_large_like_others: bool = False
    may_double: bool = False

    @classmethod
    def of(cls, capability: Capability) -> "KernelPolicy":
        """Give the policy of this compute capability."""
        return cls(
            convolution="nhwc" if capability >= (7, 0) else "float32",
            has_flash_attention=capability >= (8, 0),
            cublas_bytes=CUBLAS_BYTES_FROM_90 if capability >= (9, 0) else CUBLAS_BYTES,
            may_double=capability == (7, 5),
        )

    def convolution_bytes(self, convolutions: np.ndarray) -> np.ndarray:
        """Compute the workspace of each convolution's plan, from `Events.convolutions`.

        Shape:
            (convolutions,), int64.
        """
        x, x_padded, y, y_padded, weight, channels_last = convolutions.T
        taken, beyond = min(self.workspace_fraction, 1.0), max(self.workspace_fraction - 1.0, 0.0)
        is_large = is_large_convolution(convolutions) & (not self.are_large_like_others)
        if self.convolution == "float32":
            return (np.where(is_large, beyond, taken) * (4 * (x + y + weight))).astype(np.int64)
        # Three channels of an image become eight, and a channels_last tensor needs no transpose.
        is_image = 3 * x_padded == 8 * x
        share = np.where((channels_last != 0) | is_large, beyond, taken + beyond * self.may_double)
        return (np.where(is_image, 0, share) * (2 * (x_padded + y_padded + weight))).astype(np.int64)

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
        return np.where(is_flash, log_sum_exp, np.where(head_dim > WIDEST_HEAD_IN_REGISTERS, accumulator, 0))


def is_large_convolution(convolutions: np.ndarray) -> np.ndarray:
    """Tell which rows of `Events.convolutions` are large convolutions.

    They read or write `LARGE_CONVOLUTION_NUMEL` elements or more.

    Shape:
        (convolutions,), bool.
    """
    return (convolutions[:, 0] >= LARGE_CONVOLUTION_NUMEL) | (convolutions[:, 2] >= LARGE_CONVOLUTION_NUMEL)
