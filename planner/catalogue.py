"""The catalogue of cards, each number with its source.

Memory is what torch reports on Linux, as a range over the reports found: the low end decides until the attached card
says otherwise.
"""

from planner.card import Card
from planner.units import gib_to_bytes

_USABLE = "usable memory: total_memory as torch reports it on Linux, collected from public reports, lowest first"
_CONTEXT = "context: nvidia-smi minus torch's reserved bytes, collected from public reports"
_SHEET = "bandwidth and dense float16 tensor rate: NVIDIA data sheet"


def _card(
    name: str,
    usable: tuple[float, float],
    context: tuple[float, float],
    capability: tuple[int, int],
    rates: tuple[int, int],
    *,
    aliases: tuple[str, ...] = (),
    cloud: tuple[str, ...] = (),
    note: str = "",
) -> Card:
    return Card(
        name=name,
        usable_bytes=gib_to_bytes(usable[0]),
        usable_high_bytes=gib_to_bytes(usable[1]),
        context_low_bytes=gib_to_bytes(context[0]),
        context_bytes=gib_to_bytes(context[1]),
        compute_capability=capability,
        bandwidth_gb_s=rates[0],
        float16_tflops=rates[1],
        aliases=aliases,
        cloud=cloud,
        origin="catalogue",
        source="; ".join(part for part in (_USABLE, _CONTEXT, _SHEET, note) if part),
    )


_CONTEXT_8X = (0.21, 0.38)
_CONTEXT_RTX = (0.31, 0.47)
_NO_CONTEXT_REPORT = "no report of this card's context was found: the range spans those of the other server cards"
_RTX_RATE = "rate with float32 accumulation, twice the float32 shader rate, as for the RTX 3090 and 4090"

CATALOGUE: tuple[Card, ...] = (
    _card(
        "T4",
        (14.56, 14.76),
        (0.11, 0.18),
        (7, 5),
        (320, 65),
        aliases=("Tesla T4", "NVIDIA T4"),
        cloud=("AWS g4dn", "GCP n1 + T4", "Azure NCasT4_v3"),
    ),
    _card(
        "V100-16GB",
        (15.7, 15.7),
        (0.11, 0.53),
        (7, 0),
        (900, 125),
        aliases=("V100", "Tesla V100-SXM2-16GB", "Tesla V100-PCIE-16GB"),
        cloud=("AWS p3", "GCP n1 + V100", "Azure NCv3"),
        note=f"{_NO_CONTEXT_REPORT}; CUDA 13 builds of torch no longer run on compute capability 7.0",
    ),
    _card(
        "V100-32GB",
        (31.7, 31.7),
        (0.11, 0.53),
        (7, 0),
        (900, 125),
        aliases=("Tesla V100-SXM2-32GB", "Tesla V100-PCIE-32GB"),
        cloud=("AWS p3dn", "Azure NDv2"),
        note=f"{_NO_CONTEXT_REPORT}; CUDA 13 builds of torch no longer run on compute capability 7.0",
    ),
    _card(
        "A10",
        (22.03, 22.2),
        _CONTEXT_8X,
        (8, 6),
        (600, 125),
        aliases=("NVIDIA A10",),
        cloud=("Azure NVadsA10_v5",),
    ),
    _card(
        "A10G",
        (22.03, 22.2),
        _CONTEXT_8X,
        (8, 6),
        (600, 125),
        aliases=("NVIDIA A10G",),
        cloud=("AWS g5",),
        note="rates are the A10's",
    ),
    _card(
        "L4",
        (22.03, 22.2),
        _CONTEXT_8X,
        (8, 9),
        (300, 121),
        aliases=("NVIDIA L4",),
        cloud=("GCP g2", "AWS g6"),
    ),
    _card(
        "L40S",
        (44.34, 44.47),
        (0.21, 0.53),
        (8, 9),
        (864, 362),
        aliases=("NVIDIA L40S",),
        cloud=("AWS g6e",),
        note=_NO_CONTEXT_REPORT,
    ),
    _card(
        "A100-40GB",
        (39.38, 39.56),
        (0.53, 0.53),
        (8, 0),
        (1555, 312),
        aliases=("A100", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        cloud=("AWS p4d", "GCP a2-highgpu"),
    ),
    _card(
        "A100-80GB",
        (79.14, 79.3),
        (0.5, 0.5),
        (8, 0),
        (2039, 312),
        aliases=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        cloud=("AWS p4de", "Azure NC24ads_A100_v4"),
    ),
    _card(
        "H100-80GB",
        (79.10, 79.19),
        (0.5, 0.5),
        (9, 0),
        (3350, 989),
        aliases=("H100", "NVIDIA H100 80GB HBM3"),
        cloud=("AWS p5",),
        note="rates of the SXM card",
    ),
    _card(
        "H200",
        (139.7, 139.81),
        (0.65, 0.65),
        (9, 0),
        (4800, 989),
        aliases=("NVIDIA H200",),
        cloud=("AWS p5e",),
    ),
    _card(
        "RTX 3060",
        (11.62, 11.62),
        _CONTEXT_RTX,
        (8, 6),
        (360, 25),
        aliases=("RTX 3060-12GB", "RTX 3060 12GB", "NVIDIA GeForce RTX 3060"),
        note=_RTX_RATE,
    ),
    _card(
        "RTX 3090",
        (23.56, 23.56),
        _CONTEXT_RTX,
        (8, 6),
        (936, 71),
        aliases=("NVIDIA GeForce RTX 3090",),
    ),
    _card(
        "RTX 4060",
        (7.6, 7.6),
        _CONTEXT_RTX,
        (8, 9),
        (272, 30),
        aliases=("RTX 4060-8GB", "RTX 4060 8GB", "NVIDIA GeForce RTX 4060"),
        note=f"usable memory from few reports; {_RTX_RATE}",
    ),
    _card(
        "RTX 4090",
        (23.51, 23.51),
        _CONTEXT_RTX,
        (8, 9),
        (1008, 165),
        aliases=("NVIDIA GeForce RTX 4090",),
    ),
    _card(
        "RTX 5090",
        (31.36, 31.36),
        _CONTEXT_RTX,
        (12, 0),
        (1792, 209),
        aliases=("NVIDIA GeForce RTX 5090",),
        note=f"context assumed as on RTX 30 and 40; {_RTX_RATE}",
    ),
)
