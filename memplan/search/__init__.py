"""What to change so that a model fits: choices, their costs, the order in which they are offered.

Pure: how one command line is planned is injected (`ask.Planner`), and so is who answers many
questions at once (`ask.Asker`).
"""
