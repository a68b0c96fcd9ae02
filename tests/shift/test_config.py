"""Every rule of `KVShiftConfig`, and its way to JSON and back."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import get_args

import pytest

from kvshift.errors import UsageError
from kvshift.shift import KVShiftConfig
from kvshift.shift.config import Init

REFUSED = {
    "window": [1, 5, 0, -2, 2.0, "2", True, None],
    "shift_keys": [1, "yes", None],
    "shift_values": [0, "no"],
    "shift_queries": [1, None],
    "per_channel": [2, "heads"],
    "constraint": ["soft", None, "", 1, []],
    "init": ["random", None, 0, {}],
    "lr_multiplier": [-1, 1000.5, float("nan"), float("inf"), -float("inf"), "10", True, 10**400],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in REFUSED.items() for value in values]
)
def test_bad_values_are_refused_by_name(field, value) -> None:
    with pytest.raises(UsageError, match=rf"KVShiftConfig\.{field} is .*; expected "):
        KVShiftConfig(**{field: value})


def test_every_field_has_a_rule() -> None:
    assert set(REFUSED) == {field.name for field in dataclasses.fields(KVShiftConfig)}


@pytest.mark.parametrize(
    "contradiction",
    [
        {"shift_keys": False, "shift_values": False},
        {"constraint": "gate", "window": 3, "init": "paper"},
        {"constraint": "gate", "init": "identity"},
        {"constraint": "gate", "init": "structured"},
    ],
)
def test_contradictions_are_refused(contradiction) -> None:
    with pytest.raises(UsageError, match="expected"):
        KVShiftConfig(**contradiction)


def test_every_other_combination_is_taken_and_survives_json() -> None:
    taken = 0
    for window, keys, values, queries, channel, constraint, init in itertools.product(
        (2, 3, 4), *[(True, False)] * 4, ("free", "gate", "clamp"), get_args(Init)
    ):
        if not (keys or values or queries) or (constraint == "gate" and (window, init) != (2, "paper")):
            continue
        config = KVShiftConfig(
            window=window,
            shift_keys=keys,
            shift_values=values,
            shift_queries=queries,
            per_channel=channel,
            constraint=constraint,
            init=init,
            lr_multiplier=0.5,
        )
        assert KVShiftConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        taken += 1
    assert taken == 14 * (3 * 2 * len(get_args(Init)) + 1)


def test_the_default_is_the_papers_mechanism() -> None:
    config = KVShiftConfig()
    assert (config.window, config.shift_keys, config.shift_values) == (2, True, True)
    assert (config.shift_queries, config.per_channel, config.constraint) == (False, False, "free")


def test_written_with_its_layout() -> None:
    assert KVShiftConfig().to_dict()["version"] == 1
    values = {"init": "paper", "version": 1}
    assert KVShiftConfig.from_dict(values) == KVShiftConfig(init="paper")
    assert values == {"init": "paper", "version": 1}  # the caller's dictionary is left alone


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Unknown KV shift setting 'windows'; known are .*window"):
        KVShiftConfig.from_dict({"windows": 2})


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_layout_is_refused(version) -> None:
    with pytest.raises(UsageError, match=r"layout .* reads 1\. Upgrade kvshift"):
        KVShiftConfig.from_dict({"version": version})


def test_a_bad_value_in_a_file_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"KVShiftConfig\.window is 9"):
        KVShiftConfig.from_dict({"window": 9})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KVShiftConfig().window = 3
