"""Loads the demo's model by the plan's device_map and generates; run under `memplan run`.

    python -m memplan.demo.generate FOLDER PROMPT_TOKENS NEW_TOKENS

FOLDER holds what `memplan emit --to accelerate` wrote.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(folder: Path, prompt: int, new: int) -> None:
    """Load, prefill and decode, each as a phase of the run."""
    import torch
    import transformers

    from memplan import measure

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _ = transformers.LlamaForCausalLM  # imported when it is first named
    with measure.track("start"):
        loader = _loader(folder)
    with measure.track("load") as load:
        model = loader.load()
        load.watch(model=model)
    cache = transformers.DynamicCache(config=model.config)
    tokens = torch.randint(3, model.config.vocab_size, (1, prompt), generator=_seeded(torch))
    with torch.no_grad(), measure.track("prefill", model=model, cache=cache):
        logits = model(tokens, past_key_values=cache, logits_to_keep=1).logits
    with torch.no_grad(), measure.track("decode", model=model, cache=cache):
        for _ in range(new):
            tokens = logits[:, -1:].argmax(-1)
            logits = model(tokens, past_key_values=cache, logits_to_keep=1).logits
    print(f"generated {new} tokens after a prompt of {prompt}")


def _seeded(torch: Any) -> Any:
    return torch.Generator().manual_seed(0)


def _loader(folder: Path) -> Any:
    """Import the load.py that the plan was emitted as."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
