"""Where a ModelSpec comes from: local files now, read without executing anything in them."""

from __future__ import annotations

from memplan.models.resolve import resolve

__all__ = ["resolve"]
