"""The rows of GeForce and Titan cards: desktop cards first, and within each kind the oldest first."""

from planner.cards.catalogue_rows import Row, collected, older

_REPORTED = "context: nvidia-smi minus torch's reserved bytes on RTX 30 and 40 cards, collected from public reports"
_SPANNED = "context: no report of this card's was found, the range spans those of the T4 and RTX 30 and 40 cards"
_SHEET = "bandwidth and dense float16 tensor rate: NVIDIA data sheet"
_DOUBLED = "rate with float32 accumulation, twice the float32 shader rate, as for the RTX 3090 and 4090"
_TURING = "rate with float32 accumulation, four times the float32 shader rate"
_NO_TENSOR_CORES = "bandwidth: NVIDIA data sheet; it has no tensor cores, so no tensor rate"
_LAPTOP = "no tensor rate, which depends on the laptop's power limit"
# Each compute capability has a range of contexts in GiB, the source of the range, and a note about the rates.
_OF: dict[tuple[int, int], tuple[tuple[float, float], str, str]] = {
    (6, 1): ((0.11, 0.47), _SPANNED, ""),
    (7, 0): ((0.11, 0.53), "context: no report of this card's was found, the range spans those of server cards", ""),
    (7, 5): ((0.11, 0.47), _SPANNED, _TURING),
    (8, 6): ((0.31, 0.47), _REPORTED, _DOUBLED),
    (8, 9): ((0.31, 0.47), _REPORTED, _DOUBLED),
    (12, 0): ((0.31, 0.47), "context assumed as on RTX 30 and 40 cards", _DOUBLED),
}


def _row(
    name: str,
    memory: int,
    capability: tuple[int, int],
    rates: tuple[int | None, int | None],
    note: str = "",
    *,
    sizes: tuple[int, ...] = (),
    **more,
) -> Row:
    """Make the row of a card under all its names.

    The plain name of a card that is sold in several `sizes`, in GB, means the first of them.
    """
    context, context_source, rated = _OF[capability]
    short = name.removeprefix("RTX ").removeprefix("GTX ")
    brand = "NVIDIA " if name.startswith("TITAN") else "NVIDIA GeForce "
    driver = f"{brand}{name} GPU" if name.endswith(" Laptop") else f"{brand}{name}"
    plain = [driver, short] if short != name else [driver]
    if name.endswith(" Laptop"):
        # Drivers call it "Laptop GPU"; Linux tools and people call it "Mobile".
        plain += [f"{name.removesuffix(' Laptop')} Mobile", f"{short.removesuffix(' Laptop')} Mobile"]
    sized = [f"{name} {memory}GB", *(f"{each} {memory}GB" for each in plain)]
    is_plain = not sizes or memory == sizes[0]
    own, shared = ([*plain, *sized], []) if is_plain else (sized, plain)
    named = f"{name} {memory}GB" if sizes else name
    sources = {
        (False, False): "no rates: they differ from laptop to laptop",
        (True, False): _NO_TENSOR_CORES if capability[0] < 7 else f"bandwidth: NVIDIA data sheet; {_LAPTOP}",
        (True, True): f"{_SHEET}; {rated}" if rated and not name.startswith("TITAN") else _SHEET,
    }
    return Row(
        name=named,
        memory=memory,
        capability=capability,
        context=context,
        context_source=context_source,
        rates=rates,
        rates_source=sources[rates[0] is not None, rates[1] is not None],
        names=tuple(dict.fromkeys(each for each in ([name, *own] if is_plain else own) if each != named)),
        shared_names=tuple(dict.fromkeys([name, *shared])) if not is_plain else (),
        note=note,
        **more,
    )


def _laptop(number: str, memory: int, capability: tuple[int, int], bandwidth: int | None = None, **more) -> Row:
    return _row(f"RTX {number} Laptop", memory, capability, (bandwidth, None), is_laptop=True, **more)


_FEW = "usable memory from few reports"

GEFORCE: tuple[Row, ...] = (
    Row(
        name="GTX 1060 6GB",
        memory=6,
        capability=(6, 1),
        **older(5.92, 5.94),
        context=(0.11, 0.47),
        context_source=_SPANNED,
        rates=(192, None),
        rates_source=_NO_TENSOR_CORES,
        names=("NVIDIA GeForce GTX 1060 6GB", "1060 6GB"),
    ),
    _row("GTX 1070", 8, (6, 1), (256, None), **older(7.92, 7.93)),
    _row("GTX 1070 Ti", 8, (6, 1), (256, None)),
    _row("GTX 1080", 8, (6, 1), (320, None), **older(7.91, 7.94)),
    _row("GTX 1080 Ti", 11, (6, 1), (484, None), **older(10.91, 10.92)),
    _row("TITAN Xp", 12, (6, 1), (547, None), **older(11.90, 11.91)),
    _row("TITAN V", 12, (7, 0), (652, 110), **older(11.75, 11.78)),
    _row("TITAN RTX", 24, (7, 5), (672, 130), **older(23.62, 23.65)),
    _row("RTX 2060", 6, (7, 5), (336, 25), sizes=(6, 12), **older(5.76, 5.80)),
    _row("RTX 2060", 12, (7, 5), (336, 28), sizes=(6, 12)),
    _row("RTX 2060 Super", 8, (7, 5), (448, 28), **older(7.76, 7.80)),
    _row("RTX 2070", 8, (7, 5), (448, 29), **older(7.76, 7.80)),
    _row("RTX 2070 Super", 8, (7, 5), (448, 36), **older(7.76, 7.80)),
    _row("RTX 2080", 8, (7, 5), (448, 40), **older(7.76, 7.80)),
    _row("RTX 2080 Super", 8, (7, 5), (496, 44), **older(7.76, 7.80)),
    _row("RTX 2080 Ti", 11, (7, 5), (616, 53), **older(10.75, 10.76)),
    _row("RTX 3050", 6, (8, 6), (168, 13), sizes=(6, 8)),
    _row("RTX 3050", 8, (8, 6), (224, 18), sizes=(6, 8)),
    _row("RTX 3060", 12, (8, 6), (360, 25), **collected(11.62, 11.77)),
    _row("RTX 3060 Ti", 8, (8, 6), (448, 32), **older(7.78, 7.80)),
    _row("RTX 3070", 8, (8, 6), (448, 40), **older(7.78, 7.80)),
    _row("RTX 3070 Ti", 8, (8, 6), (608, 43), **older(7.78, 7.80)),
    _row("RTX 3080", 10, (8, 6), (760, 59), sizes=(10, 12), **older(9.77, 9.78)),
    _row("RTX 3080", 12, (8, 6), (912, 61), sizes=(10, 12), **older(11.76, 11.77)),
    _row("RTX 3080 Ti", 12, (8, 6), (912, 68), **older(11.75, 11.77)),
    _row("RTX 3090", 24, (8, 6), (936, 71), **collected(23.56, 23.70)),
    _row("RTX 3090 Ti", 24, (8, 6), (1008, 79), **older(23.68, 23.69)),
    _row("RTX 4060", 8, (8, 9), (272, 30), _FEW, **collected(7.6, 7.75)),
    _row("RTX 4060 Ti", 8, (8, 9), (288, 44), sizes=(8, 16)),
    _row("RTX 4060 Ti", 16, (8, 9), (288, 44), sizes=(8, 16), **older(15.69, 15.71)),
    _row("RTX 4070", 12, (8, 9), (504, 58), **older(11.71, 11.73)),
    _row("RTX 4070 Super", 12, (8, 9), (504, 70), **older(11.71, 11.73)),
    _row("RTX 4070 Ti", 12, (8, 9), (504, 80), **older(11.71, 11.73)),
    _row("RTX 4070 Ti Super", 16, (8, 9), (672, 88), **older(15.69, 15.71)),
    _row("RTX 4080", 16, (8, 9), (716, 97), **older(15.69, 15.71)),
    _row("RTX 4080 Super", 16, (8, 9), (736, 104), **older(15.69, 15.71)),
    _row("RTX 4090", 24, (8, 9), (1008, 165), **collected(23.51, 23.65)),
    _row("RTX 5050", 8, (12, 0), (320, 26)),
    _row("RTX 5060", 8, (12, 0), (448, 38)),
    _row("RTX 5060 Ti", 8, (12, 0), (448, 47), sizes=(8, 16)),
    _row("RTX 5060 Ti", 16, (12, 0), (448, 47), sizes=(8, 16)),
    _row("RTX 5070", 12, (12, 0), (672, 61)),
    _row("RTX 5070 Ti", 16, (12, 0), (896, 87), _FEW, usable=(15.45, 15.48)),
    _row("RTX 5080", 16, (12, 0), (960, 112), _FEW, usable=(15.45, 15.48)),
    _row("RTX 5090", 32, (12, 0), (1792, 209), **collected(31.36, 31.37)),
    _laptop("3050", 4, (8, 6)),
    _laptop("3050 Ti", 4, (8, 6)),
    _laptop("3060", 6, (8, 6), 336),
    _laptop("3070", 8, (8, 6), 448),
    _laptop("3070 Ti", 8, (8, 6), 448),
    _laptop("3080", 8, (8, 6), 448, sizes=(8, 16)),
    _laptop("3080", 16, (8, 6), 448, sizes=(8, 16)),
    _laptop("3080 Ti", 16, (8, 6), 512),
    _laptop("4050", 6, (8, 9)),
    _laptop("4060", 8, (8, 9), 256),
    _laptop("4070", 8, (8, 9), 256),
    _laptop("4080", 12, (8, 9), 432),
    _laptop("4090", 16, (8, 9), 576),
    _laptop("5050", 8, (12, 0)),
    _laptop("5060", 8, (12, 0)),
    _laptop("5070", 8, (12, 0)),
    _laptop("5070 Ti", 12, (12, 0), 672),
    _laptop("5080", 16, (12, 0), 896),
    _laptop("5090", 24, (12, 0), 896),
)
