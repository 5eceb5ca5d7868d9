"""Generators stand in for images that are gone: they draw an anatomy as any domain's scanner would show it."""

from garda.generators.base import Anatomy, Generator
from garda.generators.style import StyleGenerator

GENERATORS: dict[str, type[Generator]] = {"style": StyleGenerator}

__all__ = ["GENERATORS", "Anatomy", "Generator", "StyleGenerator"]
