from types import SimpleNamespace

import pynvml
import pytest

from cache.doctor import checks
from cache.machine.attached import cards, usable_card, why_not_usable
from planner.calibration.runs import model_of
from planner.cards.lookup import card_named
from planner.errors import InvalidArgument, NoGpu


def test_a_card_is_read_without_cuda(nvml):
    nvml.processes = [SimpleNamespace(pid=1, usedGpuMemory=500), SimpleNamespace(pid=2**22 + 1, usedGpuMemory=None)]
    (card,) = cards()
    assert (card.name, card.driver, card.compute_capability, card.mig) == ("Tesla T4", "580.65.06", (7, 5), False)
    assert card.total_bytes == 16_106_127_360 - 471_465_984
    assert card.used_bytes == card.total_bytes - 14_000_000_000
    assert [(holder.pid, holder.used_bytes) for holder in card.holders] == [(1, 500), (2**22 + 1, None)]
    assert card.holders[1].name == "another container or user"
    assert card.uuid not in card.uuid_hash and len(card.uuid_hash) == 16


def test_usable_is_free_memory_and_the_context_is_the_catalogues(nvml):
    (card,) = cards()
    plan = card.as_card()
    assert plan.usable_bytes == 14_000_000_000
    assert plan.context_bytes == card_named("T4").context_bytes


@pytest.mark.parametrize(
    ("name", "capability", "model"),
    [
        ("Tesla T4", (7, 5), "T4"),
        ("NVIDIA A10", (8, 6), "A10"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "H100-80GB"),
        ("GeForce RTX 2080 Ti", (7, 5), "RTX 2080 Ti"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", (8, 9), "RTX 4070 Laptop"),
        ("NVIDIA GeForce RTX 4060 Ti", (8, 9), "RTX 4060 Ti 16GB"),
        ("Tesla V100-SXM2-16GB", (7, 0), "V100-16GB"),
    ],
)
def test_the_drivers_name_finds_the_catalogue_card(nvml, name, capability, model):
    nvml.name, nvml.capability = name, capability
    card = cards()[0].as_card()
    assert (card.model, card.context_bytes) == (model, card_named(model).context_bytes)
    assert card.notes == card_named(model).notes
    # The driver's memory, 14.56 GiB, is that of the run too.
    assert model_of(name, cards()[0].total_bytes) == model


def test_a_card_outside_the_catalogue_is_described(nvml):
    nvml.name = "NVIDIA Unheard Of"
    plan = cards()[0].as_card()
    assert plan.compute_capability == (7, 5)
    assert plan.usable_bytes == 14_000_000_000


def test_the_freest_card_is_the_default(nvml, cuda_build):
    nvml.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    assert usable_card().index == 1
    assert usable_card("0").index == 0
    assert usable_card("GPU-11111111-aaaa").index == 0
    with pytest.raises(InvalidArgument, match="device must be an attached GPU's index or UUID, or cpu, got '7'"):
        usable_card("7")


def test_cuda_visible_devices_is_obeyed(nvml, cuda_build, monkeypatch):
    nvml.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert usable_card().index == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2222")
    assert usable_card().index == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NoGpu, match="CUDA_VISIBLE_DEVICES hides every GPU"):
        usable_card()


def test_a_card_that_torch_cannot_use_is_skipped(nvml, cuda_build, monkeypatch):
    nvml.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda handle: (7, 5) if handle == 0 else (7, 0))
    assert usable_card().index == 0
    with pytest.raises(NoGpu, match=r"compute capability 7\.0"):
        usable_card("1")


def test_a_lost_card_does_not_hide_the_others(nvml, cuda_build, monkeypatch):
    nvml.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]

    def lost(handle):
        if handle == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return nvml.uuids[handle]

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lost)
    assert [card.index for card in cards()] == [1]
    nvml.uuids = nvml.uuids[:1]
    with pytest.raises(NoGpu, match="does not answer"):
        cards()


def test_a_driver_without_a_process_list_still_shows_its_card(nvml, monkeypatch):
    def mismatch(handle):
        raise pynvml.NVMLLibraryMismatchError("nvmlDeviceGetComputeRunningProcesses_v3")

    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", mismatch)
    assert cards()[0].holders == ()


def test_mig_instances_stand_for_their_card(nvml, cuda_build, monkeypatch):
    nvml.uuids.append("MIG-33333333-cccc")
    nvml.free[1] = 4_000_000_000
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", lambda handle: (pynvml.NVML_DEVICE_MIG_ENABLE, 1))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", lambda handle: 7)

    def instance(handle, index):
        if index:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return 1

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", instance)
    (card,) = cards()
    assert (card.uuid, card.free_bytes, card.mig) == ("MIG-33333333-cccc", 4_000_000_000, True)
    assert usable_card("MIG-3333").uuid == card.uuid
    with pytest.raises(InvalidArgument, match="device must be an attached GPU's index or UUID"):
        usable_card("0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-33333333-cccc")
    assert usable_card().uuid == card.uuid


def test_memory_of_our_own_worker_counts_as_free(nvml):
    nvml.processes = [SimpleNamespace(pid=77, usedGpuMemory=1000), SimpleNamespace(pid=78, usedGpuMemory=500)]
    (card,) = cards()
    assert card.as_card(own_pid=77).usable_bytes == 14_000_000_000 + 1000
    assert card.as_card().usable_bytes == 14_000_000_000


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver is on this machine"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "no NVIDIA driver is on this machine"),
        (pynvml.NVML_ERROR_UNKNOWN, "the NVIDIA driver does not answer"),
    ],
)
def test_a_missing_driver_gives_the_reason(nvml, error, reason):
    nvml.error = error
    with pytest.raises(NoGpu) as caught:
        cards()
    assert reason in caught.value.reason
    assert "python -m planner verify" in caught.value.advice


def test_a_driver_without_cards_is_an_error(nvml):
    nvml.uuids = []
    with pytest.raises(NoGpu, match="lists no GPU"):
        cards()


def test_a_cpu_build_of_torch_is_named(nvml, monkeypatch):
    monkeypatch.setattr("cache.machine.attached.torch_cuda", lambda: None)
    with pytest.raises(NoGpu, match="Tesla T4: the installed torch is a CPU build - install the CUDA build"):
        usable_card()


def test_an_old_driver_is_named(nvml, cuda_build):
    nvml.driver = "550.54.15"
    problem = why_not_usable(cards()[0])
    assert str(problem) == ("Tesla T4: driver 550.54.15 is too old for torch's CUDA 13.0 - install driver 580 or newer")


def test_an_old_card_is_named(nvml, cuda_build):
    nvml.name, nvml.capability = "Tesla V100-SXM2-16GB", (7, 0)
    assert "compute capability 7.0, torch's CUDA 13.0 needs 7.5 - use a newer GPU" in str(why_not_usable(cards()[0]))


def test_a_usable_card_has_no_problem(nvml, cuda_build):
    assert why_not_usable(cards()[0]) is None


def test_doctor_shows_who_holds_the_card(nvml, cuda_build):
    nvml.processes = [SimpleNamespace(pid=2**22 + 1, usedGpuMemory=None)]
    gpu = next(check for check in checks() if check.name == "GPU 0")
    assert gpu.state == "ok"
    assert "13.04 GiB free of 14.56 GiB" in gpu.found
    assert f"held by another container or user ({2**22 + 1})" in gpu.found
