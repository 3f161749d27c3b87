"""The script of a plan: run with the real pipeline classes, it makes the planned call."""

import inspect
import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from PIL import Image

from planner.components import MODEL_ID, MODEL_REVISION
from planner.report.script import INPAINT_MODEL_ID, IP_ADAPTER_FILES, LORA_FILE, snippet
from planner.request import FIELDS, GenerationRequest
from tests.unit.strategies import requests

TXT2IMG = {"task": "txt2img", "batch": 2}
REQUESTS = [
    GenerationRequest(),
    GenerationRequest(task="txt2img", width=768, batch=2, vae_slicing=True, safety_checker=False),
    GenerationRequest(batch=3, steps=1, guidance_scale=1, vae_tiling=True, attention_slicing=True),
    GenerationRequest(width=500, height=700, channels_last=True, offload="model"),
    GenerationRequest(task="inpaint", width=500, height=700, batch=2, images_per_prompt=3, offload="sequential"),
    GenerationRequest(batch=2, controlnets=1, dtype="bfloat16", channels_last_unet=True),
    GenerationRequest(task="inpaint", controlnets=3, dtype="float32", allocator="expandable"),
    GenerationRequest(**TXT2IMG, controlnets=2, ip_adapter="base", attention="eager"),
    GenerationRequest(**TXT2IMG, attention="xformers", ip_adapter="plus", lora_rank=8, lora_text_encoder=True),
    GenerationRequest(**TXT2IMG, lora_rank=4, images_per_prompt=2, hires=1.5),
    GenerationRequest(**TXT2IMG, controlnets=1, hires=2, offload="model", safety_checker=False, ip_adapter="base"),
]


@given(request=requests())
def test_it_compiles_and_names_what_was_planned(request):
    text = snippet(request)
    compile(text, "plan.py", "exec")
    assert text.startswith(f"# {request.describe()}\n")
    assert max(map(len, text.splitlines()[1:])) <= 120


def test_the_requests_below_have_every_value_of_every_choice_and_every_option():
    for field in FIELDS:
        if field.group is None:
            continue
        values = {getattr(request, field.name) for request in REQUESTS}
        assert values >= set(getattr(field, "choices", ())) and len(values) > 1, field.name


class Pipelines:
    """The real pipeline classes without weights: what a script loads, switches on and calls is kept."""

    def __init__(self, request, monkeypatch):
        import diffusers
        import torch

        from planner.tracing import pipeline as real

        self.request, self.real, self.diffusers = request, real, diffusers
        self.loaded, self.calls, self.moved = {}, [], []
        # What the script has to switch on by itself is left out of the pipeline that it loads.
        bare = {"attention", "ip_adapter", "lora_rank", "lora_text_encoder", "attention_slicing"}
        values = request.to_dict()
        plain = {f.name: f.default if f.name in bare else values[f.name] for f in FIELDS}
        self.plain = GenerationRequest.from_dict(plain)
        self.modules = real.component_modules(self.plain)
        base = diffusers.DiffusionPipeline
        for task in {one.task for one in request.passes()}:
            one = getattr(diffusers, GenerationRequest(task=task, controlnets=request.controlnets).class_name)
            monkeypatch.setattr(one, "__call__", self.call_of(one))
        first = real.pipeline_class(request)
        monkeypatch.setattr(first, "from_pretrained", classmethod(self.from_pretrained))
        monkeypatch.setattr(diffusers.ControlNetModel, "from_pretrained", classmethod(self.net))
        monkeypatch.setattr(base, "to", lambda pipe, device: self.moved.append(device))
        for kind in ("model", "sequential"):
            name = f"enable_{kind}_cpu_offload"
            assert callable(getattr(base, name))
            monkeypatch.setattr(base, name, lambda pipe, kind=kind: self.moved.append(kind))
        xformers = "enable_xformers_memory_efficient_attention"
        assert callable(getattr(base, xformers))
        # The package is not installed; what diffusers would set is set.
        monkeypatch.setattr(base, xformers, lambda pipe: real._set_attention(pipe.components, request))
        monkeypatch.setattr(first, "load_ip_adapter", self.load_ip_adapter(first.load_ip_adapter))
        monkeypatch.setattr(first, "load_lora_weights", self.load_lora(first.load_lora_weights))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**30)

    def from_pretrained(self, cls, name, **options):
        self.loaded.update(options, name=name, cls=cls)
        return self.real.assemble(self.modules, self.plain)

    def net(self, cls, name, **options):
        self.loaded.setdefault("nets", []).append((name, options["torch_dtype"]))
        nets = self.modules["controlnet"]
        return nets if self.request.controlnets == 1 else nets.nets[len(self.loaded["nets"]) - 1]

    def load_ip_adapter(self, real):
        def load(pipe, *given, **options):
            inspect.signature(real).bind(pipe, *given, **options)
            self.loaded["ip"] = options["weight_name"]
            encoder = self.real.component_modules(self.request)["image_encoder"]
            pipe.register_modules(image_encoder=encoder)
            self.real._load_ip_adapter(pipe.components, self.request)

        return load

    def load_lora(self, real):
        def load(pipe, *given):
            inspect.signature(real).bind(pipe, *given)
            [self.loaded["lora"]] = given
            self.real._load_lora(pipe.components, self.request)

        return load

    def call_of(self, cls):
        accepted = inspect.signature(cls.__call__).parameters

        def call(pipe, **arguments):
            assert arguments.keys() <= accepted.keys()
            self.calls.append((pipe, arguments))
            images = len(arguments["prompt"]) * arguments.get("num_images_per_prompt", 1)
            return SimpleNamespace(images=[Image.new("RGB", (64, 64))] * images)

        return call


@pytest.mark.parametrize("request_", REQUESTS, ids=GenerationRequest.describe)
def test_it_makes_the_call_that_the_planner_traces_and_the_worker_measures(request_, monkeypatch, tmp_path, capsys):
    import torch

    pipelines = Pipelines(request_, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    exec(compile(snippet(request_), "plan.py", "exec"), {})

    is_expandable = request_.allocator == "expandable"
    assert os.environ.pop("PYTORCH_ALLOC_CONF", None) == ("expandable_segments:True" if is_expandable else None)
    check_loading(pipelines, request_)
    passes = request_.passes()
    assert len(pipelines.calls) == len(passes)
    where = "cuda" if request_.offload == "none" else request_.offload
    assert pipelines.moved[:1] == [where] and set(pipelines.moved) == {where}
    for (pipe, called), one in zip(pipelines.calls, passes, strict=True):
        assert type(pipe) is pipelines.real.pipeline_class(one)
        check_call(called, pipelines.real.call_arguments(one), one)
        check_options(pipe, one, pipelines.real)
    pipe = pipelines.calls[0][0]
    for module, in_rows in ((pipe.unet, request_.is_unet_in_rows), (pipe.vae, request_.channels_last)):
        filters = [p for p in module.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
        assert {p.is_contiguous(memory_format=torch.channels_last) for p in filters} == {in_rows}
    assert capsys.readouterr().out == "3.00 GiB reserved at the peak\n"
    assert len(list(tmp_path.glob("image-*.png"))) == request_.images


def check_loading(pipelines, request):
    import torch

    loaded, dtype = pipelines.loaded, getattr(torch, request.dtype)
    if request.task == "inpaint":
        assert (loaded["name"], loaded.get("revision")) == (INPAINT_MODEL_ID, None)
    else:
        assert (loaded["name"], loaded["revision"]) == (MODEL_ID, MODEL_REVISION)
    assert loaded["dtype"] == dtype and loaded.get("variant") == ("fp16" if request.dtype == "float16" else None)
    assert loaded["cls"] is pipelines.real.pipeline_class(request) and loaded["use_safetensors"] is True
    assert ("safety_checker" in loaded) != request.safety_checker
    nets = loaded.get("nets", [])
    assert len({name for name, _ in nets}) == request.controlnets and {of for _, of in nets} <= {dtype}
    assert loaded.get("ip") == IP_ADAPTER_FILES.get(request.ip_adapter)
    assert loaded.get("lora") == (LORA_FILE if request.lora_rank else None)


def check_call(called, planned, request):
    if request.images_per_prompt == 1:
        del planned["num_images_per_prompt"]
    assert called.keys() == planned.keys()
    pictures = {"image", "mask_image", "control_image", "ip_adapter_image"}
    for name in called.keys() - {"prompt", "generator"} - pictures:
        assert called[name] == planned[name], name
    assert len(called["prompt"]) == request.batch
    assert called["generator"].device == planned["generator"].device
    for name in (called.keys() & pictures) - {"ip_adapter_image"}:
        assert [image.size for image in called[name]] == [image.size for image in planned[name]], name
        assert {image.mode for image in called[name]} == {"L" if name == "mask_image" else "RGB"}


def check_options(pipe, request, real):
    ours = real.assemble(real.component_modules(request), request)
    real.apply_options(ours, request)
    assert (pipe.vae.use_tiling, pipe.vae.use_slicing) == (ours.vae.use_tiling, ours.vae.use_slicing)
    assert (pipe.safety_checker is not None) == request.safety_checker
    for name in ("unet", "vae", "text_encoder", "image_encoder", "controlnet"):
        theirs, mine = getattr(pipe, name, None), getattr(ours, name, None)
        assert shapes(theirs) == shapes(mine), name
        assert processors(theirs) == processors(mine), name


def shapes(module) -> dict:
    return {} if module is None else {name: tuple(each.shape) for name, each in module.named_parameters()}


def processors(module) -> set[str]:
    found = getattr(module, "nets", [module])
    return {type(processor).__name__ for one in found for processor in getattr(one, "attn_processors", {}).values()}
