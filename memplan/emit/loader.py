"""The end of every load.py: a trial of the loaded model, and where its bytes really are."""

from __future__ import annotations

__all__ = ["TRIAL"]

TRIAL = '''\


def stored(tensor):
    """Return the bytes of a tensor with the scales that a quantized one keeps beside it."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    size = tensor.numel() * tensor.element_size()
    state = getattr(tensor, "quant_state", None)
    for part in (state, getattr(state, "state2", None)):
        for name in ("absmax", "code"):
            beside = getattr(part, name, None)
            size += beside.numel() * beside.element_size() if beside is not None else 0
    scales = getattr(tensor, "SCB", None)
    return size + (scales.numel() * scales.element_size() if scales is not None else 0)


def places(model):
    """Return the bytes of weights on each device; "meta" = offloaded to the host or to disk."""
    found = {{}}
    for parameter in model.parameters():
        place = str(parameter.device)
        found[place] = found.get(place, 0) + stored(parameter)
    return found


def main():
    parser = argparse.ArgumentParser(description="load the model as planned, generate, report")
    parser.add_argument("--prompt", type=int, default=16, help="random tokens to begin with")
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate")
    parser.add_argument("--report", type=Path, help="folder for 0.json: where the weights are")
    args = parser.parse_args()
    model = load()
    found = {{"weights": places(model)}}
    print(json.dumps(found), flush=True)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / "0.json").write_text(json.dumps(found), encoding="utf-8")
    if args.tokens:
        high = model.config.get_text_config().vocab_size
        tokens = torch.randint(0, high, (SETTINGS["batch"], args.prompt), device=model.device)
        chosen = {{"max_new_tokens": args.tokens, "do_sample": False}}
        options = {{**SETTINGS.get("generate", {{}}), **chosen}}
        options.pop("max_length", None)
        out = model.generate(tokens, **options)
        print("generated", out.shape[-1] - args.prompt, "tokens of each sequence", flush=True)


if __name__ == "__main__":
    main()
'''
"""Follows a template that imports argparse, json, torch and Path, and defines SETTINGS and load;
filled in with `str.format`."""
