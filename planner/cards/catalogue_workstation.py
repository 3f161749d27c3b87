"""The rows of workstation cards, oldest first."""

from planner.cards.catalogue_rows import Row, older

_NO_REPORT = "context: no report of this card's was found, the range spans those of "
_TURING = ((0.11, 0.47), f"{_NO_REPORT}the T4 and RTX 30 and 40 cards")
_AMPERE = ((0.21, 0.47), f"{_NO_REPORT}A10, L4, and RTX 30 and 40 cards")
_BLACKWELL = ((0.31, 0.47), "context assumed as on RTX 30 and 40 cards")

_Rates = tuple[int, int | None]


def _row(
    name: str,
    memory: int,
    capability: tuple[int, int],
    context: tuple[tuple[float, float], str],
    rates: _Rates,
    *names: str,
    is_ecc: bool = True,
    **more,
) -> Row:
    rated = "bandwidth and dense float16 tensor rate" if rates[1] else "bandwidth"
    return Row(
        name=name,
        memory=memory,
        capability=capability,
        ecc="optional" if is_ecc else "off",
        context=context[0],
        context_source=context[1],
        rates=rates,
        rates_source=f"{rated}: NVIDIA data sheet",
        names=(*names, f"{name} {memory}GB"),
        **more,
    )


def _pro(number: int, memory: int, bandwidth: int, *names: str, **more) -> Row:
    """Make the row of an RTX PRO Blackwell card.

    No report says that its ECC is taken from its memory, so nothing is taken off for it.
    """
    name = f"RTX PRO {number}"
    short = f"PRO {number}"
    drivers = (f"NVIDIA {name} Blackwell", short, f"{short} Blackwell")
    return _row(name, memory, (12, 0), _BLACKWELL, (bandwidth, None), *drivers, *names, is_ecc=False, **more)


def _ada(number: int, memory: int, rates: _Rates) -> Row:
    name = f"RTX {number} Ada"
    return _row(name, memory, (8, 9), _AMPERE, rates, f"NVIDIA {name} Generation", f"{number} Ada")


def _ampere(number: int, memory: int, rates: _Rates) -> Row:
    return _row(f"RTX A{number}", memory, (8, 6), _AMPERE, rates, f"NVIDIA RTX A{number}", f"A{number}")


WORKSTATION: tuple[Row, ...] = (
    _row("Quadro RTX 4000", 8, (7, 5), _TURING, (416, 57), is_ecc=False, note="RTX 4000 alone means this card"),
    _row("Quadro RTX 5000", 16, (7, 5), _TURING, (448, 89), note="RTX 5000 alone means this card"),
    _row("Quadro RTX 6000", 24, (7, 5), _TURING, (672, 130), note="RTX 6000 alone means this card"),
    # Drivers have one name for both sizes of the A2000.
    _row("RTX A2000", 6, (8, 6), _AMPERE, (288, 31), "NVIDIA RTX A2000", "A2000"),
    Row(
        name="RTX A2000 12GB",
        memory=12,
        capability=(8, 6),
        ecc="optional",
        context=_AMPERE[0],
        context_source=_AMPERE[1],
        rates=(288, 31),
        names=("A2000 12GB", "NVIDIA RTX A2000 12GB"),
        shared_names=("NVIDIA RTX A2000",),
    ),
    _ampere(4000, 16, (448, 76)),
    _ampere(4500, 20, (640, 94)),
    _ampere(5000, 24, (768, 111)),
    _ampere(5500, 24, (768, 136)),
    _row(
        "RTX A6000",
        48,
        (8, 6),
        _AMPERE,
        (768, 154),
        "NVIDIA RTX A6000",
        "A6000",
        **older(44.5, 47.54),
        note="the high end is with ECC off",
    ),
    _ada(2000, 16, (224, None)),
    _ada(4000, 20, (360, None)),
    _ada(4500, 24, (432, 158)),
    _ada(5000, 32, (576, 261)),
    _ada(6000, 48, (960, 364)),
    _pro(4000, 24, 672),
    _pro(4500, 32, 896),
    _pro(5000, 48, 1344),
    _pro(
        6000,
        96,
        1792,
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        **older(94.97, 94.97),
        note="bandwidth of the Workstation Edition",
    ),
)
