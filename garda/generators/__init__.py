"""Generators stand in for images that are gone: they draw an anatomy as any domain's scanner would show it."""

from garda.generators.base import Anatomy, Generator
from garda.generators.families import GeneratorSettings
from garda.generators.recipe import Recipe

__all__ = ["Anatomy", "Generator", "GeneratorSettings", "Recipe"]
