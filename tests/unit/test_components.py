import pytest

from planner.components import SD_V15


@pytest.fixture(scope="module")
def modules():
    from planner.tracing.pipeline import component_modules

    return component_modules()


def test_published_counts_equal_those_of_the_real_modules(modules):
    counted = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    assert counted == dict(SD_V15.parameters)


def test_weights_are_two_bytes_a_parameter():
    assert SD_V15.weights_bytes("unet") == 1_719_041_928


def test_the_modules_hold_no_memory(modules):
    assert {p.device.type for module in modules.values() for p in module.parameters()} == {"meta"}


def test_the_byte_tokenizer_counts_as_clip_pads():
    from planner.tracing.pipeline import END_OF_TEXT, START_OF_TEXT, byte_tokenizer, prompt_of

    tokenizer = byte_tokenizer()
    for tokens in (2, 3, 20, 77):
        ids = tokenizer(prompt_of(tokens)).input_ids
        assert len(ids) == tokens
        assert (ids[0], ids[-1]) == (START_OF_TEXT, END_OF_TEXT)
    assert tokenizer(prompt_of(5), padding="max_length", max_length=77, return_tensors="pt").input_ids.shape == (1, 77)
