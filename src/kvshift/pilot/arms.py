"""The sides of a comparison: which there are, and what a user may change of them."""

from __future__ import annotations

from typing import Any

from kvshift.errors import UsageError
from kvshift.pilot.settings import Arm, PilotSettings
from kvshift.shift import KVShiftConfig

AGAIN_SEED_OFFSET = 1_000_003
ARMS: dict[str, dict[str, Any] | None] = {
    "vanilla": None,
    "vanilla-again": None,  # the same model on other seeds: what chance alone does
    "kvshift": {},
    "paper": {"init": "paper", "lr_multiplier": 1.0},
    "keys-only": {"shift_values": False},
    "values-only": {"shift_keys": False},
    "qkv": {"shift_queries": True},
    "gate": {"constraint": "gate", "init": "paper"},
    "clamp": {"constraint": "clamp"},
    "window3": {"window": 3},
    "window4": {"window": 4},
    "per-channel": {"per_channel": True},
}
"""Names of arms, each with what it changes of the default `KVShiftConfig`; None trains the vanilla model."""


def arms_of(settings: PilotSettings) -> tuple[Arm, Arm]:
    """The two arms of a pilot, the baseline first, with the asked start and multiplier.

    Raises:
        UsageError: an unknown name, the same arm twice, or a start or multiplier that no arm can take.
    """
    first, second = (_arm(name, settings) for name in settings.arms)
    if first.name == second.name:
        raise UsageError(
            f"--arms {first.name},{second.name} compares an arm with itself; "
            "for that use vanilla,vanilla-again, which differ in their seeds."
        )
    for option, value in (("--start", settings.start), ("--multiplier", settings.multiplier)):
        if value is not None and not any(map(can_be_changed, settings.arms)):
            raise UsageError(
                f"{option} {value} would change neither {first.name} nor {second.name}. Drop it, or compare "
                "another arm, such as kvshift."
            )
    return first, second


def _arm(name: str, settings: PilotSettings) -> Arm:
    if name not in ARMS:
        raise UsageError(f"{name!r} is not an arm; known are {', '.join(ARMS)}.")
    preset = ARMS[name]
    if preset is None:
        return Arm(name=name, shift=None, seed_offset=AGAIN_SEED_OFFSET if name == "vanilla-again" else 0)
    changes = dict(preset)
    if settings.start is not None and can_be_changed(name):
        changes["init"] = settings.start
    if settings.multiplier is not None and can_be_changed(name):
        changes["lr_multiplier"] = settings.multiplier
    try:
        return Arm(name=name, shift=KVShiftConfig(**changes).to_dict())
    except UsageError as error:
        raise UsageError(f"--start {settings.start} does not suit the arm {name!r}: {error}") from None


def can_be_changed(name: str) -> bool:
    """Whether `--start` and `--multiplier` reach an arm: the paper's own are part of what it is."""
    return ARMS.get(name) is not None and name != "paper"
