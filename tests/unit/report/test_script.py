"""The script of a plan: run with the real pipeline classes, it makes the planned call."""

import inspect
from types import SimpleNamespace

import pytest
from hypothesis import given

from planner.components import MODEL_ID, MODEL_REVISION
from planner.report.script import snippet
from planner.request import GenerationRequest
from tests.unit.strategies import requests

REQUESTS = [
    GenerationRequest(),
    GenerationRequest(task="txt2img", width=768, batch=2, vae_slicing=True, safety_checker=False),
    GenerationRequest(batch=3, steps=1, guidance_scale=1, vae_tiling=True, attention_slicing=True),
    GenerationRequest(width=500, height=700, channels_last=True, offload="model"),
]


@given(request=requests())
def test_it_compiles_and_names_what_was_planned(request):
    text = snippet(request)
    compile(text, "plan.py", "exec")
    assert text.startswith(f"# {request.describe()}\n")
    assert max(map(len, text.splitlines()[1:])) <= 120


@pytest.mark.parametrize("request_", REQUESTS, ids=GenerationRequest.describe)
def test_it_makes_the_call_that_the_planner_traces_and_the_worker_measures(request_, monkeypatch, tmp_path, capsys):
    import torch
    from diffusers import DiffusionPipeline

    from planner.tracing.pipeline import PIPELINES, apply_options, assemble, call_arguments, component_modules

    pipeline_class = PIPELINES[request_.task]
    loaded, called, moved = {}, {}, []

    def from_pretrained(cls, name, **options):
        loaded.update(options, name=name, task=cls)
        return assemble(component_modules(safety_checker="safety_checker" not in options), request_.task)

    def call(self, **arguments):
        called.update(arguments, pipe=self)
        return SimpleNamespace(images=[])

    accepted = inspect.signature(pipeline_class.__call__).parameters
    monkeypatch.setattr(pipeline_class, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(pipeline_class, "__call__", call)
    monkeypatch.setattr(DiffusionPipeline, "to", lambda self, device: moved.append(device))
    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload", lambda self: moved.append("offload"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**30)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet(request_), "plan.py", "exec"), {})

    assert (loaded["name"], loaded["revision"], loaded["dtype"]) == (MODEL_ID, MODEL_REVISION, torch.float16)
    assert loaded["task"] is pipeline_class and loaded["use_safetensors"] is True
    assert moved == ["offload" if request_.offload == "model" else "cuda"]
    pipe = called.pop("pipe")
    assert (pipe.safety_checker is not None) == request_.safety_checker
    assert called.keys() <= accepted.keys()
    planned = call_arguments(request_)
    assert called.keys() == planned.keys()
    for name in called.keys() - {"prompt", "generator", "image"}:
        assert called[name] == planned[name], name
    assert len(called["prompt"]) == request_.batch
    assert called["generator"].device == planned["generator"].device
    if request_.task == "img2img":
        assert [image.size for image in called["image"]] == [image.size for image in planned["image"]]
        assert {image.mode for image in called["image"]} == {"RGB"}
    ours = assemble(component_modules(safety_checker=request_.safety_checker), request_.task)
    apply_options(ours, request_)
    for theirs, mine in ((pipe.vae.use_tiling, ours.vae.use_tiling), (pipe.vae.use_slicing, ours.vae.use_slicing)):
        assert theirs == mine
    assert processors(pipe) == processors(ours)
    for module in (pipe.unet, pipe.vae):
        filters = [p for p in module.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
        is_last = {p.is_contiguous(memory_format=torch.channels_last) for p in filters}
        assert is_last == {request_.channels_last}
    assert capsys.readouterr().out == "3.00 GiB reserved at the peak\n"


def processors(pipe) -> set[str]:
    return {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}
