"""Measuring from inside a program: phases, allocator counters, sums over live tensors.

    from memplan import measure

    with measure.track("load") as load:
        model = AutoModelForCausalLM.from_pretrained(...)
        load.watch(model=model)
    with measure.track("forward", model=model, optimizer=optimizer):
        loss = model(**batch).loss

Under `memplan run` each phase is stored with the run; elsewhere it is only returned. torch is never
imported from here: its counters are read where the program itself has imported it. Nothing of the
program's state is changed: no peak is reset, no cache emptied.
"""

from memplan.measure.counters import process_counters, tensor_counters, torch_counters
from memplan.measure.track import Tracked, track
from memplan.measure.trainer import trainer_callback

__all__ = [
    "Tracked",
    "process_counters",
    "tensor_counters",
    "torch_counters",
    "track",
    "trainer_callback",
]
