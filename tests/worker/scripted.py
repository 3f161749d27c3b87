"""Run a real worker process with a scripted backend: ``python -m tests.worker.scripted SCRIPT [FILE]``.

The script says what happens in each job. With FILE it happens only once, so that the next worker runs normally.
`then-hang-in:PHASE` serves one job and hangs in the second; after `cpu:` it reports only what a CPU does.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.allocations import CUDA, STORAGES, Convolution, Recording
from cache.records import Measured, StageMeasure
from cache.worker.backend import DeviceFull
from cache.worker.serve import serve

PHASES = ("loading", "warm-up", "text_encoder", "vae_encoder", "unet", "vae_decoder", "safety_checker", "reading back")
GOOD = Measured(
    outcome="ok",
    peak_allocated_bytes=1000,
    peak_reserved_bytes=2000,
    num_alloc_retries=0,
    stages=(
        StageMeasure(stage="unet", peak_allocated_bytes=1000, peak_reserved_bytes=2000, device_bytes=3000, seconds=0.1),
    ),
)


REHEARSED = replace(
    GOOD,
    peak_reserved_bytes=None,
    num_alloc_retries=None,
    stages=(replace(GOOD.stages[0], peak_reserved_bytes=None),),
)
# One convolution that took 5 MiB.
RECORDING = Recording(
    of=CUDA,
    sizes=(6 << 20, 5 << 20),
    modules=("vae.decoder.conv_in",) * 2,
    convolutions=(
        Convolution(
            module="vae.decoder.conv_in",
            input_shape=(1, 4, 64, 64),
            weight_shape=(512, 4, 3, 3),
            output_shape=(1, 512, 64, 64),
            dtype="float16",
            channels_last=False,
            workspaces=(5 << 20,),
        ),
    ),
)


class Scripted:
    def __init__(self, script: str, once: Path | None):
        self.is_cpu = script.startswith("cpu:")
        self.script, self.once, self.served = script.removeprefix("cpu:"), once, 0

    def environment(self) -> dict[str, Any]:
        return {} if self.is_cpu else {"cuda": "13.0", "cudnn": "91002", "compute_capability": "7.5"}

    def measure(self, job: dict[str, Any], report) -> Measured:
        script = self.script
        if self.once is not None:
            if self.once.exists():
                script = "good"
            self.once.touch()
        if script.startswith("then-"):
            script = script.removeprefix("then-") if self.served else "good"
        self.served += 1
        if script.startswith("hang-in:"):
            return self.hang_in(script.partition(":")[2], report)
        for phase in PHASES:
            report(phase)
            if phase == "unet":
                report(phase, step=1, of=2)
                report(phase, step=2, of=2)
                getattr(self, script.replace("-", "_"))()
        if job.get("record_to"):
            recording = replace(RECORDING, of=STORAGES) if self.is_cpu else RECORDING
            Path(job["record_to"]).write_text(recording.to_json())
        if script == "out-of-memory":
            return Measured(outcome="out-of-memory", reason="CUDA out of memory", ended_in="unet")
        # What it was told of a capacity, where the parent sees it.
        good = REHEARSED if self.is_cpu else replace(GOOD, free_before_bytes=job["emulated_bytes"])
        return replace(good, num_alloc_retries=3) if script == "retries" else good

    def hang_in(self, wanted: str, report) -> Measured:
        for phase in PHASES:
            report(phase)
            if phase == wanted:
                time.sleep(3600)
        raise AssertionError(f"no phase {wanted}")

    def good(self) -> None:
        print("a library prints to stdout, which must not harm the protocol")

    def out_of_memory(self) -> None:
        pass

    def retries(self) -> None:
        pass

    def child(self) -> None:
        subprocess.run(["sleep", "3600"], check=False)

    def hang(self) -> None:
        time.sleep(3600)

    def raises(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def says_allocator(self) -> None:
        raise RuntimeError(f"PYTORCH_ALLOC_CONF={os.environ.get('PYTORCH_ALLOC_CONF')}")

    def exits(self) -> None:
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)

    def segfault(self) -> None:
        ctypes.string_at(0)

    def killed(self) -> None:
        os.kill(os.getpid(), 9)

    def garbage(self) -> None:
        self._write(b"Segmentation fault (core dumped)\n")

    def wrong_message(self) -> None:
        self._write(b'{"type": "surprise"}\n')

    def endless_line(self) -> None:
        self._write(b"x" * (3 << 20))

    def bad_result(self) -> None:
        self._write(b'{"type": "result", "measured": {"outcome": "ok", "surprise": 1, "stages": []}}\n')
        time.sleep(3600)

    def wrong_outcome(self) -> None:
        self._write(b'{"type": "result", "measured": {"outcome": "splendid", "stages": []}}\n')
        time.sleep(3600)

    def wrong_step(self) -> None:
        self._write(b'{"type": "progress", "phase": "unet", "step": "two", "of": null}\n')

    def wrong_facts(self) -> None:
        self._write(b'{"type": "facts", "counts": {"unet": 5}}\n')

    def closes_its_pipe(self) -> None:
        os.close(3)
        time.sleep(3600)

    def flood(self) -> None:
        while True:
            self._write(b'{"type": "progress", "phase": "unet", "step": 2, "of": 2}\n' * 100)

    def ignores_sigterm(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)

    def twice(self) -> None:
        self._write(b'{"type": "result", "measured": {"outcome": "ok", "stages": []}}\n')

    def _write(self, data: bytes) -> None:
        # The private copy of stdout is the lowest descriptor after the standard three.
        os.write(3, data)


if __name__ == "__main__":
    once = Path(sys.argv[2]) if len(sys.argv) > 2 else None

    def make() -> Scripted:
        if sys.argv[1] == "device-full":
            raise DeviceFull("CUDA error: out of memory")
        return Scripted(sys.argv[1], once)

    serve(make)
