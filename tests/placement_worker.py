"""Loads a checkpoint by a device_map under a memory limit, runs it once, and says what it held.

    python placement_worker.py JOB.json

JOB: {"folder", "map", "offload", "limit" (bytes or null), "logits" (file), "decoder"}. Before the
limit holds, a model of the same class with almost no weights has run, so that libraries are loaded.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import time
from pathlib import Path

from limits import limit


def main() -> None:
    """Run the job and print the peak of anonymous memory above where it began."""
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    run(torch, load(transformers, torch, {**job, "folder": job["small"], "map": {"": "cpu"}}), job)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or the freed warm-up would be used again, uncounted
    held = limit(f"memplan-{Path(sys.argv[1]).stem}", job["limit"]) if job["limit"] else None
    if held:
        held.join()
    watch = Watch()
    model = load(transformers, torch, job)
    loading, loaded = watch.most - watch.base, anonymous() - watch.base
    logits = run(torch, model, job)
    print(json.dumps({"peak": watch.stop(), "loading": loading, "loaded": loaded}))
    torch.save(logits, job["logits"])


def load(transformers, torch, job):
    """Return the model where the map says."""
    config = transformers.AutoConfig.from_pretrained(job["folder"])
    cls = getattr(transformers, config.architectures[0])
    return cls.from_pretrained(
        job["folder"],
        dtype=torch.bfloat16,
        device_map=job["map"],
        offload_folder=job["offload"],
    ).eval()


def run(torch, model, job):
    """Return the logits of one prompt."""
    tokens = torch.arange(3, 3 + job["context"]).reshape(1, -1)
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    more = more or {"logits_to_keep": 1}
    with torch.no_grad():
        return model(input_ids=tokens, **more).logits[:, -1:]


class Watch:
    """Samples anonymous resident memory each millisecond."""

    def __init__(self) -> None:
        self.base = self.most = anonymous()
        self.over = False
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.over:
            self.most = max(self.most, anonymous())
            time.sleep(0.001)

    def stop(self) -> int:
        self.over = True
        self.thread.join()
        return max(self.most, anonymous()) - self.base


def anonymous() -> int:
    """Return RssAnon in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError


if __name__ == "__main__":
    main()
