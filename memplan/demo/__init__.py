"""The demo's pieces: a small real model, and the two programs that are measured.

`memplan.cli.demo` runs `python -m memplan.demo.generate` and `python -m memplan.demo.train` under
the sampler, the way a user's own programs are run.
"""
