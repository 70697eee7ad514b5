"""The real model code on fake tensors: every allocation of a step, and no memory spent."""
