"""Find the upsamplers that copy their input.

This is the one branch on a size in the modules of SD v1.5 that moves allocations. diffusers 0.42.1,
``Upsample2D.forward``, makes its input contiguous where its batch is 64 or more, or where ``numel * scale_factor > 2 **
31``. A channels_last feature map is copied then, and the convolution behind the copy is in PyTorch's default layout.
``tests/data/size_conditions.txt`` lists every other branch on a size, and why it needs no program of its own.
"""

from planner.request import VAE_SCALE_FACTOR

# Beyond these, nearest-neighbour kernels for channels_last fail, so Upsample2D copies.
COPIED_FROM_BATCH = 64
COPIED_ABOVE_NUMEL = 2**31

# Channels of each upsampler's input, and how many times the latent has been halved (UNet) or doubled (VAE) there.
# Source: block_out_channels of both configurations, in `planner.tracing.pipeline`.
UNET_UPSAMPLERS = ((1280, 8), (1280, 4), (640, 2))
VAE_UPSAMPLERS = ((512, 1), (512, 2), (256, 4))


def copied_in_vae(batch: int, latent_height: int, latent_width: int) -> tuple[int, ...]:
    """Give the indices of the VAE decoder's upsamplers that copy a channels_last input."""
    numels = [batch * channels * latent_height * latent_width * scale**2 for channels, scale in VAE_UPSAMPLERS]
    return _copied(batch, [2 * numel for numel in numels])


def copied_in_unet(batch: int, latent_height: int, latent_width: int) -> tuple[int, ...]:
    """Give the indices of the UNet's upsamplers that copy a channels_last input.

    `batch` is the UNet's own. A latent that cannot be halved three times is upsampled to the size of the skip
    connection, by less than two.
    """
    weighed = []
    for channels, halved in UNET_UPSAMPLERS:
        height, width = -(-latent_height // halved), -(-latent_width // halved)
        scale: float = 2
        if latent_height % VAE_SCALE_FACTOR or latent_width % VAE_SCALE_FACTOR:
            wanted = -(-latent_height // (halved // 2)), -(-latent_width // (halved // 2))
            scale = max(wanted[0] / height, wanted[1] / width)
        weighed.append(batch * channels * height * width * scale)
    return _copied(batch, weighed)


def _copied(batch: int, weighed: list[float] | list[int]) -> tuple[int, ...]:
    return tuple(
        index for index, numel in enumerate(weighed) if batch >= COPIED_FROM_BATCH or numel > COPIED_ABOVE_NUMEL
    )
