"""memplan: know how much memory a language model takes before you spend it, then prove it."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
