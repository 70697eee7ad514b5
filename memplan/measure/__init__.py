"""Measuring from inside a program: phases, allocator counters, sums over live tensors.

    from memplan import measure

    with measure.track("load") as load:
        model = AutoModelForCausalLM.from_pretrained(...)
        load.watch(model=model)
    with measure.track("forward", model=model, optimizer=optimizer):
        loss = model(**batch).loss

Under `memplan run` each phase is stored with the run; elsewhere it is only returned, unless

    measure.attach()

was called: then a thread sends them, and the allocator's counters ten times a second, to the daemon
as soon as there is one. torch is never imported from here: its counters are read where the program
itself has imported it. Nothing of the program's state is changed: no peak is reset, no cache
emptied. The program never waits for any of it.
"""

from memplan.measure.agent import attach, detach, quiet, workload
from memplan.measure.counters import process_counters, tensor_counters, torch_counters
from memplan.measure.track import Tracked, track
from memplan.measure.trainer import accelerate_tracker, trainer_callback

__all__ = [
    "Tracked",
    "accelerate_tracker",
    "attach",
    "detach",
    "process_counters",
    "quiet",
    "tensor_counters",
    "torch_counters",
    "track",
    "trainer_callback",
    "workload",
]
