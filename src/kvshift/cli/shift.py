"""The options that say which shift: the same in every command that takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvshift.cli.values import one_of, whole

if TYPE_CHECKING:
    from kvshift.shift import KVShiftConfig

_PANEL = "The shift"


def option(*names: str, help: str) -> Any:
    """An option in the shift's part of the help."""
    return typer.Option(*names, rich_help_panel=_PANEL, help=help)


Window = Annotated[int, option(help="Taps a head: 2, 3 or 4.")]
Keys = Annotated[bool, option(help="Shift the keys.")]
Values = Annotated[bool, option("--values/--no-values", help="Shift the values.")]
Queries = Annotated[bool, option(help="Shift the queries too.")]
PerChannel = Annotated[bool, option("--per-channel", help="Taps for each channel, not each head.")]
Constraint = Annotated[str, option(help="Of the taps: free, gate or clamp.")]


def shift_config(
    *,
    window: int,
    keys: bool,
    values: bool,
    queries: bool,
    per_channel: bool,
    constraint: str = "free",
    init: str | None = None,
) -> KVShiftConfig:
    """The shift that was typed; without a start, the one that its constraint begins with.

    Raises:
        UsageError: names the option that is impossible, or says what contradicts what.
    """
    whole("--window", window, 2, 4)
    one_of("--constraint", constraint, ("free", "gate", "clamp"))
    one_of("--init", init, ("identity", "structured", "paper"))

    from kvshift.shift import KVShiftConfig

    return KVShiftConfig(
        window=window,
        shift_keys=keys,
        shift_values=values,
        shift_queries=queries,
        per_channel=per_channel,
        constraint=constraint,  # type: ignore[arg-type]
        init=init or ("paper" if constraint == "gate" else "structured"),  # type: ignore[arg-type]
    )
