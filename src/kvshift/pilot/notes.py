"""Notes: what a pilot has to say about itself, kept as data so that every language can say it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Note(BaseModel):
    """A sentence before it has words: those are `noted.KEY` in the report's texts (`report/notes.py`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    values: dict[str, int | float | str | dict[str, int]] = {}


def note(key: str, **values: int | float | str | dict[str, int]) -> Note:
    """A note with its values: counts, shares, seconds and bytes as plain numbers, names as they are."""
    return Note(key=key, values=values)
