"""Where every byte goes: units of a model, the solver, device maps. Entry: `plan.make_plan`."""
