"""The workspace of a convolution, read from torch's history of allocations and compared with the prediction."""

import json

import pytest
import torch

from cache.allocations import CUDA, STORAGES, Convolution, Recording, compared, convolution_rows, grouped, predicted
from cache.worker.recording import Recorder
from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest

TURING = KernelPolicy.of((7, 5))
MIB = 2**20


class FakeHistory:
    """Stand in for a device; the test writes its history as modules run."""

    history_of = CUDA

    def __init__(self, before: int = 0):
        self.trace = [{"action": "alloc", "addr": index, "size": 9 * MIB} for index in range(before)]
        self.made, self.made_before = before, 0
        self.is_on = False

    def begin_history(self):
        self.made_before, self.is_on = self.made, True

    def allocations(self):
        return self.made - self.made_before

    def end_history(self):
        self.is_on = False
        return self.trace

    def alloc(self, size: int) -> int:
        assert self.is_on
        self.made += 1
        # A segment that is asked for stands before the allocation it is for.
        self.trace.append({"action": "segment_alloc", "addr": 10_000 + self.made, "size": 2 * size})
        self.trace.append({"action": "alloc", "addr": self.made, "size": size})
        return self.made

    def free(self, address: int) -> None:
        self.trace.append({"action": "free_requested", "addr": address, "size": 0})
        self.trace.append({"action": "free_completed", "addr": address, "size": 0})

    def refuse(self, size: int) -> None:
        self.trace.append({"action": "oom", "device_free": 0, "addr": 0, "size": size})


class Allocating(torch.nn.Conv2d):
    """Add to the history what CUDA would add, by a script."""

    def __init__(self, device: FakeHistory, script: str):
        super().__init__(3, 8, 3, padding=1, dtype=torch.float32)
        self.device, self.script = device, script

    def forward(self, image):
        device = self.device
        copy = device.alloc(5 * MIB) if "copy" in self.script else None
        device.alloc(4 * MIB)
        if "refused" in self.script:
            device.refuse(64 * MIB)
        if "workspace" in self.script:
            device.free(device.alloc(32 * MIB))
        if copy:
            device.free(copy)
        return super().forward(image)


class Broken(torch.nn.Module):
    def forward(self, image):
        raise RuntimeError("CUDA error: out of memory")


def record(module: torch.nn.Module, device: FakeHistory, times: int = 1) -> Recording:
    recorder = Recorder(device)
    with recorder.watching({"unet": module}), torch.no_grad():
        for _ in range(times):
            module(torch.zeros(2, 3, 16, 16))
    assert not device.is_on
    return recorder.recording


@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize(
    ("script", "workspaces", "copies", "refused"),
    [
        ("plain", (), (), ()),
        ("workspace", (32 * MIB,), (), ()),
        ("copy, workspace", (32 * MIB,), (5 * MIB,), ()),
        ("copy, refused", (), (5 * MIB,), (64 * MIB,)),
    ],
)
def test_a_workspace_is_told_from_a_copy_by_its_free(before, script, workspaces, copies, refused):
    device = FakeHistory(before)
    (one,) = record(Allocating(device, script), device).convolutions
    assert (one.workspaces, one.copies, one.refused) == (workspaces, copies, refused)
    assert (one.module, one.calls, one.dtype) == ("unet", 1, "float32")
    assert (one.input_shape, one.weight_shape, one.output_shape) == ((2, 3, 16, 16), (8, 3, 3, 3), (2, 8, 16, 16))


def test_allocations_belong_to_the_innermost_module():
    device = FakeHistory()
    inner = Allocating(device, "workspace")

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = inner

        def forward(self, image):
            device.alloc(2 * MIB)
            self.first(image)
            device.alloc(3 * MIB)
            device.alloc(512)

    found = record(Outer(), device, times=2)
    assert found.sizes == (2 * MIB, 4 * MIB, 32 * MIB, 3 * MIB) * 2
    assert found.modules == ("unet", "unet.first", "unet.first", "unet") * 2
    assert [(one.calls, one.workspace_bytes) for one in found.convolutions] == [(2, 32 * MIB)]
    assert not inner._forward_hooks and not inner._forward_pre_hooks


def test_a_run_that_breaks_off_is_recorded_until_then():
    device = FakeHistory()
    recorder = Recorder(device)
    modules = torch.nn.Sequential(Allocating(device, "workspace"), Broken())
    with pytest.raises(RuntimeError, match="out of memory"), recorder.watching({"vae": modules}):
        modules(torch.zeros(1, 3, 8, 8))
    assert [one.module for one in recorder.recording.convolutions] == ["vae.0"]
    assert not device.is_on


def test_a_history_that_lost_entries_is_refused():
    device = FakeHistory()
    with pytest.raises(RuntimeError, match="has 1 of the 2 allocations"), Recorder(device).watching({}):
        device.alloc(MIB)
        device.alloc(MIB)
        del device.trace[:2]


def test_a_recording_survives_a_round_trip(tmp_path):
    device = FakeHistory()
    found = record(Allocating(device, "copy, workspace"), device)
    path = tmp_path / "recording.json"
    path.write_text(found.to_json())
    assert Recording.read(path) == found
    path.write_text(json.dumps({"of": "cuda"}))
    with pytest.raises(ValueError, match="is no recording"):
        Recording.read(path)


def convolution(**changes) -> Convolution:
    values = {
        "module": "vae.decoder.conv_in",
        "input_shape": (1, 4, 150, 225),
        "weight_shape": (512, 4, 3, 3),
        "output_shape": (1, 512, 150, 225),
        "dtype": "float16",
        "channels_last": False,
    }
    return Convolution(**values | changes)


def test_the_prediction_is_for_the_shapes_and_layout_that_ran():
    pixels = 150 * 225
    taken = convolution(workspaces=(1000,))
    last = convolution(channels_last=True)
    rows = convolution_rows(Recording(of=CUDA, sizes=(), modules=(), convolutions=(last, taken)), TURING)
    # Four channels are padded to eight; what is channels_last transposes nothing. The worst comes first.
    assert [(row["predicted_bytes"], row["workspace_bytes"]) for row in rows] == [
        (2 * (8 * pixels + 512 * pixels + 512 * 4 * 9), 1000),
        (0, 0),
    ]


def test_every_convolution_of_the_program_is_the_row_of_its_shapes():
    """Compare with the shapes of the first UNet convolution, worked out by hand."""
    events = events_of(shipped(), GenerationRequest(task="txt2img", width=512, height=768, steps=1), "all")
    shapes = {"input_shape": (2, 4, 96, 64), "weight_shape": (320, 4, 3, 3), "output_shape": (2, 320, 96, 64)}
    assert convolution(**shapes).row().tolist()[0] in events.convolutions.tolist()


def test_calls_are_equal_only_with_equal_workspaces():
    calls = [convolution(), convolution(workspaces=(5,)), convolution()]
    assert [(one.workspaces, one.calls) for one in grouped(calls)] == [((), 2), ((5,), 1)]


def made_like_the_program(request: GenerationRequest, policy: KernelPolicy | None) -> list[tuple[int, str]]:
    return predicted(events_of(shipped(), request, "all"), policy, has_handle=True)


@pytest.mark.parametrize(("of", "policy"), [(CUDA, TURING), (STORAGES, None)])
def test_differences_name_their_module(of, policy):
    request = GenerationRequest(width=256, height=256, steps=2)
    made = made_like_the_program(request, policy)
    unlike = max(range(len(made)), key=lambda index: made[index][0])
    lost = made.pop(unlike)
    made.append((4100 * MIB, "vae.decoder.conv_in"))
    sizes, modules = zip(*made, strict=True)
    found = compared(Recording(of=of, sizes=sizes, modules=modules), shipped(), request, policy)
    assert found["only_real"] == [{"size_bytes": 4100 * MIB, "count": 1, "modules": ["vae.decoder.conv_in"]}]
    assert found["only_predicted"] == [{"size_bytes": lost[0], "count": 1, "modules": [lost[1]]}]
    assert found["matched"] == len(made) - 1 and found["share"] == found["matched"] / len(made)
    assert (found["predicted_reserved_bytes"] is None) == (of == STORAGES)
