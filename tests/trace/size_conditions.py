"""Every branch on a shape that the traced code has: found by running traces and reading the source of what ran.

``python -m tests.trace.size_conditions`` prints them as tests/data/size_conditions.txt lists them.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from planner.request import GenerationRequest
from planner.tracing.tracer import trace_call
from tests.trace.small import small_pipeline_on_meta

LIBRARIES = ("diffusers", "transformers", "accelerate")
# What works on the host, on text, files and pixels, or builds modules: no allocation on the device is decided there.
ON_THE_HOST = re.compile(
    r"tokenization|feature_extraction|image_processing|image_transforms|image_utils|configuration_utils|"
    r"transformers/utils/|diffusers/utils/|pipeline_loading_utils"
)
# What a condition on a shape mentions. A plain name counts too: sizes are kept in such names.
MENTIONS = re.compile(
    r"\.(shape|size|ndim|dim|numel|nbytes|stride|is_contiguous|storage_offset)\b|\blen\(|\bbatch|height|width|"
    r"\b(h|w|n|b|seq_?len|target_length|sequence_length|dim|size|chunk_size|slice_size|max_size)\b|2 ?\*\* ?\d|pow\("
)

# The options of the bare pipeline once each; combinations run the same functions. What later options run is not listed:
# tests of all pairs hold their programs to live traces.
TRACED = (
    GenerationRequest(width=136, height=72, steps=6),
    GenerationRequest(task="txt2img", width=136, height=72, batch=2, steps=6, guidance_scale=1.0),
    GenerationRequest(width=776, height=136, batch=2, vae_tiling=True, vae_slicing=True, steps=1),
    GenerationRequest(width=136, height=72, attention_slicing=True, steps=1),
    GenerationRequest(width=136, height=72, offload="model", safety_checker=False, steps=1),
)


@contextmanager
def _recorded(found: set[CodeType]) -> Iterator[None]:
    def seen(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    sys.setprofile(seen)
    try:
        yield
    finally:
        sys.setprofile(None)


def traced_code() -> set[CodeType]:
    """Give the functions of the libraries that run while pipelines are traced."""
    found: set[CodeType] = set()
    for request in TRACED:
        pipeline = small_pipeline_on_meta(request)
        with _recorded(found):
            if request.attention_slicing:
                # A pipeline has its slices since it was built, where nothing was recorded.
                pipeline.enable_attention_slicing()
            trace_call(pipeline, request)
    # Of a function its source is read, with all the comprehensions in it.
    return {code for code in found if _library_of(code) and not code.co_name.startswith("<")}


def _library_of(code: CodeType) -> str | None:
    parts = Path(code.co_filename).parts
    return next((name for name in LIBRARIES if name in parts and "site-packages" in parts), None)


def _tests_in(code: CodeType) -> Iterator[str]:
    """Give the conditions of one function, those of functions inside it left to themselves."""
    # A function whose source cannot be read fails here: its conditions would go unseen.
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    for node in ast.walk(tree):
        match node:
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) | ast.Assert(test=test):
                yield ast.unparse(test)
            case ast.comprehension(ifs=tests):
                yield from map(ast.unparse, tests)
            case ast.Call(func=ast.Name(id="min" | "max")):
                yield ast.unparse(node)


def conditions() -> set[str]:
    """Give each condition as ``library/file: function: condition``."""
    found = set()
    for code in traced_code():
        path = Path(code.co_filename)
        library = _library_of(code)
        assert library
        place = "/".join(path.parts[path.parts.index(library) :])
        if ON_THE_HOST.search(place):
            continue
        for test in _tests_in(code):
            if MENTIONS.search(test):
                found.add(f"{place}: {code.co_qualname}: {test}")
    return found


if __name__ == "__main__":
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    print("\n".join(sorted(conditions())))
