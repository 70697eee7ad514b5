"""Stand-ins for what a test has not got: GPUs, a machine full of processes, hours of time.

    from memplan.testing import FakeGpu, FakeNvml

    nvml = FakeNvml.build(tmp_path)              # compiles a libnvidia-ml.so.1 of our own
    nvml.gpus = [FakeGpu(uuid="GPU-a", used=2**30)]
    nvml.write()
    subprocess.run(["gpustat"], env={**os.environ, **nvml.environment})
    nvml.gpus[0].used = 2 * 2**30                # a process that runs sees it at its next call
    nvml.write()

Nothing here is needed to plan or to measure.
"""

from memplan.testing.clock import ManualClock
from memplan.testing.nvml import FakeGpu, FakeNvml, Fault, NoCompilerError
from memplan.testing.proc import FakeProc

__all__ = ["FakeGpu", "FakeNvml", "FakeProc", "Fault", "ManualClock", "NoCompilerError"]
