"""The command line in this process."""

import sys

import pytest

from garda import cli


def garda(*words: object) -> int:
    """Run a command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["garda", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    code = caught.value.code
    return code if isinstance(code, int) else 0
