"""Options that several commands share, and how they are read.

The cache is imported where an option needs it: a plan of catalogue GPUs needs none of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.cards.lookup import DEFAULT_CARDS, Card, card_named, described_card, shared_card
from planner.cli.output import say
from planner.errors import InvalidArgument
from planner.report.markdown import FORMATS
from planner.request import MAX_PROMPT_TOKENS, OFFLOADS, TASKS, GenerationRequest, parse_finite, parse_whole

if TYPE_CHECKING:
    from planner.calibration.evidence import Evidence
    from planner.programs.library import Library


def request_arguments() -> argparse.ArgumentParser:
    """Make the options of a request, as a parent of the parsers that take them."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("request")
    group.add_argument("--task", default="img2img", metavar="|".join(TASKS), help="pipeline to call (img2img)")
    group.add_argument("--width", default="512", help="pixels (512)")
    group.add_argument("--height", default="512", help="pixels (512)")
    group.add_argument("--batch", default="1", help="requests served together (1)")
    prompt = group.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="a prompt, of which only the number of tokens counts")
    prompt.add_argument(
        "--prompt-tokens",
        default=str(MAX_PROMPT_TOKENS),
        metavar="N",
        help="CLIP tokens of the prompt, start and end included (77)",
    )
    group.add_argument("--guidance-scale", default="7.5", metavar="X", help="above 1 doubles the UNet batch (7.5)")
    group.add_argument("--steps", default="50", help="denoising steps (50)")
    group.add_argument("--no-safety-checker", dest="safety_checker", action="store_false", help="load none")
    group.add_argument("--vae-tiling", action="store_true", help="pipe.vae.enable_tiling()")
    group.add_argument("--vae-slicing", action="store_true", help="pipe.vae.enable_slicing()")
    group.add_argument("--attention-slicing", action="store_true", help="pipe.enable_attention_slicing()")
    group.add_argument("--channels-last", action="store_true", help="UNet and VAE in torch.channels_last")
    group.add_argument(
        "--offload", default="none", metavar="|".join(OFFLOADS), help="model: enable_model_cpu_offload() (none)"
    )
    return parser


def json_argument() -> argparse.ArgumentParser:
    """Make the option ``--json``, as a parent of the parsers that take it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; sizes are bytes")
    return parser


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose GPUs."""
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="NAME",
        help="a card of the catalogue, a MIG slice such as 'A100-40GB 3g.20gb', or attached; repeatable "
        "(T4, A10, A100)",
    )
    parser.add_argument("--gpu-memory", metavar="SIZE", help="usable memory of a card not in the catalogue: 16GiB")
    parser.add_argument("--compute-capability", metavar="X.Y", help="its compute capability: 7.5")
    parser.add_argument("--workers", default="1", metavar="N", help="processes that share each card, evenly (1)")


def request_from(arguments: argparse.Namespace) -> GenerationRequest:
    """Read the request of the command line.

    Raises:
        InvalidArgument: a value breaks its rule.
    """
    tokens = parse_whole("prompt_tokens", arguments.prompt_tokens)
    if arguments.prompt is not None:
        from cache.tokens import count_tokens

        counted = count_tokens(arguments.prompt)
        tokens = min(counted, MAX_PROMPT_TOKENS)
        cut = f", cut to {MAX_PROMPT_TOKENS}" if counted > tokens else ""
        say(f"the prompt is {counted} tokens{cut}; the pipeline pads it to {MAX_PROMPT_TOKENS}")
    request = GenerationRequest(
        task=arguments.task,
        width=parse_whole("width", arguments.width),
        height=parse_whole("height", arguments.height),
        batch=parse_whole("batch", arguments.batch),
        prompt_tokens=tokens,
        guidance_scale=parse_finite("guidance_scale", arguments.guidance_scale),
        steps=parse_whole("steps", arguments.steps),
        safety_checker=arguments.safety_checker,
        vae_tiling=arguments.vae_tiling,
        vae_slicing=arguments.vae_slicing,
        attention_slicing=arguments.attention_slicing,
        channels_last=arguments.channels_last,
        offload=arguments.offload,
    )
    if request.is_rounded:
        size = f"{request.effective_width}x{request.effective_height}"
        say(f"img2img rounds {request.width}x{request.height} down to {size}")
    return request


def cards_from(arguments: argparse.Namespace) -> list[Card]:
    """Read the GPUs of the command line, each once, or the default ones.

    Raises:
        InvalidArgument: a value breaks its rule.
        UnknownCard: a name is not in the catalogue.
        NoGpu: the attached card is asked for, and there is none.
    """
    chosen = []
    for name in arguments.gpu or ():
        if name.casefold() == "attached":
            from cache.machine.attached import cards, cards_to_plan_on

            chosen += cards_to_plan_on(cards())
        else:
            chosen.append(card_named(name))
    if (arguments.gpu_memory is None) != (arguments.compute_capability is None):
        missing = "--gpu-memory" if arguments.gpu_memory is None else "--compute-capability"
        other = "--compute-capability" if missing == "--gpu-memory" else "--gpu-memory"
        example = "--gpu-memory 16GiB --compute-capability 7.5"
        raise InvalidArgument(missing, f"must be given with {other}", None, f"for example {example}")
    try:
        if arguments.gpu_memory is not None:
            chosen.append(described_card(arguments.gpu_memory, arguments.compute_capability))
        workers = parse_whole("workers", arguments.workers)
        # A card named twice, or by two of its names, is one card.
        cards = list(dict.fromkeys(chosen)) or [card_named(name) for name in DEFAULT_CARDS]
        return [shared_card(card, workers) for card in cards]
    except InvalidArgument as error:
        # As they were typed: nothing but the flag has this name.
        flag = f"--{error.argument.replace('_', '-')}"
        raise InvalidArgument(flag, error.rule, error.value, error.nearest) from None


def evidence_for(
    cards: Sequence[Card], library: Library | None, *, with_reference: bool
) -> tuple[Evidence | None, str | None]:
    """Gather the runs on GPUs like these, None where there are none, and what is wrong with the history, or None."""
    from cache.history.location import HistoryError, anything_measured

    try:
        if not anything_measured((card.compute_capability for card in cards), with_reference=with_reference):
            return None, None
    except HistoryError as error:
        return None, str(error)
    from cache.history.observations import gather

    return gather(library, with_reference=with_reference)


def format_from(arguments: argparse.Namespace) -> str:
    """Read how a command is to print: one of `FORMATS`; ``--json`` is short for ``--format json``."""
    chosen = arguments.format or ("json" if arguments.json else FORMATS[0])
    if chosen not in FORMATS:
        raise InvalidArgument("--format", f"must be one of {', '.join(FORMATS)}", chosen)
    if arguments.json and chosen != "json":
        raise InvalidArgument("--format", "must be json where --json is given", chosen, "leave one of them out")
    return chosen
