"""Requests for Hypothesis: every size, batch and option that the rules allow."""

from hypothesis import strategies as st

from planner.request import MAX_BATCH, MAX_SIDE, MIN_SIDE, GenerationRequest

sides = st.integers(MIN_SIDE, MAX_SIDE)
multiples = st.integers(MIN_SIDE // 8, MAX_SIDE // 8).map(lambda latent: latent * 8)


def requests(**fixed) -> st.SearchStrategy[GenerationRequest]:
    options = {
        "task": st.sampled_from(["img2img", "txt2img"]),
        "width": multiples,
        "height": multiples,
        "batch": st.integers(1, MAX_BATCH),
        "prompt_tokens": st.integers(1, 77),
        "guidance_scale": st.floats(0, 100),
        "steps": st.integers(1, 1000),
        "safety_checker": st.booleans(),
        "vae_tiling": st.booleans(),
        "vae_slicing": st.booleans(),
        "attention_slicing": st.booleans(),
        "channels_last": st.booleans(),
        "offload": st.sampled_from(["none", "model"]),
    }
    return st.builds(GenerationRequest, **options | fixed)
