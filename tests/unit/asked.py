"""What a command line asks for, read by the options of the terminal and answered by nobody."""

from collections.abc import Sequence

import click

from planner.cli.arguments import plan_options, request_options
from planner.plan import Plan
from planner.request import GenerationRequest


def plan_asked(argv: Sequence[str]) -> Plan:
    """Read the plan that the options of ``fit`` stand for."""
    found: list[Plan] = []

    @click.command()
    @request_options
    @plan_options("gpu_memory", "compute_capability", "workers", "basis", "published")
    def command(plan: Plan) -> int:
        found.append(plan)
        return 0

    command.main(list(argv), standalone_mode=False)
    return found[0]


def request_asked(argv: Sequence[str]) -> GenerationRequest:
    """Read the request that the options of ``verify`` stand for."""
    found: list[GenerationRequest] = []

    @click.command()
    @request_options
    def command(request: GenerationRequest) -> int:
        found.append(request)
        return 0

    command.main(list(argv), standalone_mode=False)
    return found[0]
