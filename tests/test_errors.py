"""memplan.errors."""

from __future__ import annotations

import re

from memplan import errors


def test_the_tree_in_the_module_text_is_the_tree_of_classes():
    """Each class is drawn under its parent."""
    text = errors.__doc__ or ""
    drawn: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := re.match(r"^([ |+-]*)(\w+Error)\b", line):
            depth = len(match[1])
            while stack and stack[-1][0] >= depth:
                stack.pop()
            drawn[match[2]] = stack[-1][1] if stack else ""
            stack.append((depth, match[2]))
    assert set(drawn) == set(errors.__all__)
    for name, parent in drawn.items():
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert not parent or parent in bases


def test_every_error_ends_the_program_with_2_and_can_carry_a_hint():
    """Findings are exit code 1 and no errors."""
    for name in errors.__all__:
        error = getattr(errors, name)("what", hint="do this")
        assert error.exit_code == 2
        assert error.hint == "do this"
        assert str(error) == "what"
