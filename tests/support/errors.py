"""What errors say."""

from collections.abc import Callable
from typing import Any

import pytest


def told(kind: type[BaseException] | tuple[type[BaseException], ...], call: Callable, *given: Any, **named: Any) -> str:
    """The words of the error that a call must end with."""
    with pytest.raises(kind) as caught:
        call(*given, **named)
    return str(caught.value)
