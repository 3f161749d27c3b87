"""What every test shares: a history of its own, and cards that are not there."""

import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from cache.history.schema import SET, STEPS
from cache.history.store import Store
from cache.records import Environment, Measured, StageMeasure

ROOT = Path(__file__).parents[1]


def pytest_report_header() -> str:
    return f"sqlite {sqlite3.sqlite_version}"


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch) -> Path:
    """No test touches the user's history."""
    path = tmp_path / "planner.db"
    monkeypatch.setenv("PLANNER_DB", str(path))
    monkeypatch.setenv("PLANNER_STATE", str(tmp_path.parent / f"{tmp_path.name}-state"))
    return path


@pytest.fixture(autouse=True)
def no_compile_on_the_side(monkeypatch, request) -> None:
    """Where other versions are installed than the shipped programs are for, each page would begin to compile."""
    if request.path.parent.name != "worker":
        monkeypatch.setattr("cache.programs.repair_in_background", lambda: False)


@pytest.fixture
def store(own_history) -> Store:
    return Store(own_history)


@pytest.fixture
def environment() -> Environment:
    return make_environment()


def damage(path: Path) -> None:
    """Leave of a history only what says that it was one: the row of its schema's first step."""
    for part in path.parent.glob(f"{path.name}*"):
        part.unlink()
    path.write_bytes(b"not a database at all " * 1000 + f"{SET}{STEPS[0]}".encode())


def make_environment(**changes) -> Environment:
    values = {
        "device_kind": "cuda",
        "card": "Tesla T4",
        "uuid_hash": "0123456789abcdef",
        "total_bytes": 15_634_661_376,
        "compute_capability": "7.5",
        "mig": False,
        "driver": "580.65.06",
        "cuda": "13.0",
        "cudnn": "91002",
        "torch": "2.13.0",
        "diffusers": "0.42.1",
        "transformers": "5.23.0",
        "accelerate": "1.15.0",
        "python": "3.11.7",
        "dtype": "float16",
        "attention": "sdpa",
        "allocator_settings": "",
        "weights": "synthetic",
        "method": 1,
    }
    return Environment(**values | changes)


def make_measured(**changes) -> Measured:
    values = {
        "outcome": "ok",
        "weights_bytes": 2_740_000_000,
        "peak_allocated_bytes": 3_500_000_000,
        "peak_reserved_bytes": 4_000_000_000,
        "peak_device_bytes": 4_200_000_000,
        "context_bytes": 200_000_000,
        "num_alloc_retries": 0,
        "total_seconds": 12.5,
        "seconds_per_step": 0.2,
        "stages": (
            StageMeasure(
                stage="unet",
                peak_allocated_bytes=3_100_000_000,
                peak_reserved_bytes=3_300_000_000,
                device_bytes=3_500_000_000,
                seconds=10.0,
            ),
            StageMeasure(
                stage="vae_decoder",
                peak_allocated_bytes=3_500_000_000,
                peak_reserved_bytes=4_000_000_000,
                device_bytes=4_200_000_000,
                seconds=0.5,
            ),
        ),
    }
    return Measured(**values | changes)


class FakeNvml:
    """Stands in for the driver: one T4 unless told otherwise."""

    def __init__(self, monkeypatch):
        self.driver, self.name, self.capability = "580.65.06", "Tesla T4", (7, 5)
        self.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"][:1]
        self.free = {0: 14_000_000_000, 1: 15_000_000_000}
        self.processes: list = []
        self.error: int | None = None
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(self, name))

    def nvmlInit(self):
        if self.error is not None:
            raise pynvml.NVMLError(self.error)

    def nvmlShutdown(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return self.driver

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        return SimpleNamespace(total=16_106_127_360, reserved=471_465_984, free=self.free[handle], used=0)

    def nvmlDeviceGetMigMode(self, handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetUUID(self, handle):
        return self.uuids[handle]

    def nvmlDeviceGetName(self, handle):
        return self.name

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return self.capability

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.processes

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def nvml(monkeypatch) -> FakeNvml:
    return FakeNvml(monkeypatch)


@pytest.fixture
def no_driver(nvml) -> FakeNvml:
    nvml.error = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    return nvml


@pytest.fixture
def cuda_build(monkeypatch) -> None:
    """The installed torch reads as a CUDA 13 build."""
    monkeypatch.setattr("cache.machine.attached.torch_cuda", lambda: "13.0")
