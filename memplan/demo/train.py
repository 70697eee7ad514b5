"""Trains the demo's model for a few AdamW steps; run under `memplan run`.

    python -m memplan.demo.train FOLDER SEQUENCE BATCH STEPS

FOLDER is the model's.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["main"]


def main(folder: Path, length: int, batch: int, steps: int) -> None:
    """Load and train, each step's parts as phases of the run."""
    import torch
    import transformers

    from memplan import measure

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    llama = transformers.LlamaForCausalLM  # imported when it is first named
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    with measure.track("start"):
        torch.manual_seed(0)
    with measure.track("load") as load:
        model = llama.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(
            device
        )
        load.watch(model=model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(3, model.config.vocab_size, (batch, length), device=device)
    for _ in range(steps):
        with measure.track("forward", model=model, optimizer=optimizer):
            loss = model(tokens, labels=tokens).loss
        with measure.track("backward", model=model, optimizer=optimizer):
            loss.backward()
        with measure.track("optimizer_step", model=model, optimizer=optimizer):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(f"{steps} AdamW steps, last loss {loss.item():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
