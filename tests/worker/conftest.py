import sys

import pytest

from cache.jobs.queue import Jobs


@pytest.fixture
def jobs_with(store):
    """Make queues whose workers follow a script, and end every worker after the test."""
    opened = []

    def make(script: str, once=None, **options) -> Jobs:
        command = [sys.executable, "-m", "tests.worker.scripted", script, *([str(once)] if once else [])]
        jobs = Jobs(store, worker_command=lambda kind: command, **options)
        opened.append(jobs)
        return jobs

    yield make
    for jobs in opened:
        jobs.close()


@pytest.fixture(scope="module")
def small_pipeline():
    """Make a pipeline of the right kind with a few thousand parameters, so that its folder is small."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from planner.tracing.pipeline import SCHEDULER_CONFIG, byte_tokenizer

    torch.manual_seed(0)
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=49408, projection_dim=32, **text)),
        tokenizer=byte_tokenizer(),
        unet=UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            sample_size=64,
            **blocks,
        ),
        scheduler=PNDMScheduler(**SCHEDULER_CONFIG),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
