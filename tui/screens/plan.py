"""Plan: a stored plan, and what it would be with other choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from memplan_tui.keys import bindings, key_name, mark, of_screen
from memplan_tui.lines import Line
from memplan_tui.messages import Snapshot
from memplan_tui.page import Page
from memplan_tui.text import tr
from memplan_tui.views.plan import Choice, plan_screen
from memplan_tui.views.words import Look
from textual import work

from memplan.errors import MemplanError
from memplan.types import Plan

__all__ = ["PlanScreen", "Planner"]


class Planner(Protocol):
    """Makes a stored plan anew with other choices; the command line brings one."""

    def choices(self, plan: Plan) -> Mapping[str, Sequence[str]]:
        """Return each option that can be changed with its values, the plan's own among them."""
        ...

    def current(self, plan: Plan) -> Mapping[str, str]:
        """Return the value of each option in a plan."""
        ...

    def replan(self, plan: Plan, changes: Mapping[str, str]) -> Plan:
        """Return the plan with other values, by the instant formulas. Raises MemplanError."""
        ...

    def prepare(self, plan: Plan) -> None:
        """Read what later answers need, so that they come at once."""
        ...


class PlanScreen(Page):
    """Parts, placement, what-if."""

    NAME = "plan"
    NEED = "plan"
    TITLE_WORD = mark("Plan")
    BINDINGS = [*bindings("plan")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._changes: dict[str, str] = {}
        self._good: dict[str, str] = {}
        self._made: Plan | None = None
        self._stored: Plan | None = None
        self._error = ""

    def about(self, snapshot: Snapshot) -> str:
        """Return the plan's id."""
        plan = snapshot.plan
        return tr("plan") + f" {plan.id}" if plan is not None else ""

    def body(self, snapshot: Snapshot, look: Look, width: int, height: int) -> list[Line]:
        """Return the plan, changed or as stored."""
        plan = snapshot.plan
        assert plan is not None
        if self._stored is None or self._stored.id != plan.id:
            self._stored = plan
            self._forget()
            if self.memplan.planner is not None:
                self._prepare(plan)
        shown = self._made or plan
        before = plan if self._made is not None else None
        choices = self._shown_choices(plan)
        return plan_screen(shown, before, choices, look, width, height, error=self._error)

    def _shown_choices(self, plan: Plan) -> list[Choice]:
        planner = self.memplan.planner
        if planner is None:
            return []
        now = dict(planner.current(plan))
        keys = {k.id: k for k in of_screen("plan")}
        return [
            Choice(
                option=option,
                key=key_name(keys[f"plan.{_KEY_OF.get(option, option)}"], self.memplan.moved),
                value=self._changes.get(option, value),
                changed=option in self._changes,
            )
            for option, value in now.items()
        ]

    @work(thread=True, exclusive=True, group="prepare", exit_on_error=False)
    def _prepare(self, plan: Plan) -> None:
        planner = self.memplan.planner
        if planner is not None:
            planner.prepare(plan)

    def action_change(self, option: str, step: int) -> None:
        """Plan with another value of an option; the screen moves at once."""
        plan, planner = self._stored, self.memplan.planner
        if plan is None:
            return
        if planner is None:
            self._error = tr("Nothing here can plan: start memplan tui from the command line.")
            self.show()
            return
        now = planner.current(plan)
        name = "seq" if option == "context" and "seq" in now else option
        values = list(planner.choices(plan).get(name, ()))
        if not values:
            self._error = tr("Not to be chosen in this plan: {option}").format(option=option)
            self.show()
            return
        value = self._changes.get(name, now[name])
        place = values.index(value) if value in values else 0
        self._set(plan, planner, name, values[(place + step) % len(values)])

    def _set(self, plan: Plan, planner: Planner, name: str, value: str) -> None:
        """Show the new value at once, and its plan as soon as it is made."""
        changes = {**self._changes, name: value}
        self._changes = {k: v for k, v in changes.items() if v != planner.current(plan)[k]}
        self._error = ""
        self._replan(plan, planner, dict(self._changes))
        self.show()

    @work(thread=True, exclusive=True, group="whatif")
    def _replan(self, plan: Plan, planner: Planner, changes: dict[str, str]) -> None:
        """Plan in a thread, so that the screen answers while many ranks are reckoned."""
        made: Plan | None = None
        problem = ""
        try:
            made = planner.replan(plan, changes) if changes else None
        except MemplanError as error:
            problem = tr("Cannot plan that: {why}").format(why=error)
        self.app.call_from_thread(self._answer, changes, made, problem)

    def _answer(self, changes: dict[str, str], made: Plan | None, problem: str) -> None:
        if changes != self._changes:
            return  # another key was pressed meanwhile
        if problem:
            self._changes, self._error = self._good, problem
        else:
            self._made, self._good = made, changes
        self.show()

    def action_reset(self) -> None:
        """Show the plan as stored."""
        self._forget()
        self.show()

    def _forget(self) -> None:
        self._changes, self._good, self._made, self._error = {}, {}, None, ""

    def action_other(self, step: int) -> None:
        """Show another stored plan."""
        self.memplan.step_plan(step)


_KEY_OF = {"seq": "context"}
"""Options whose key bears another name."""
