"""Right and wrong answers to the exercises of *Save, merge, convert*."""

import json

import torch


def tensor_bytes(blob, name, before=8, order="little"):
    length = int.from_bytes(blob[:8], order)
    begin, end = json.loads(blob[8 : 8 + length])[name]["data_offsets"]
    return blob[before + length + begin : before + length + end]


def from_the_start(blob, name):
    length = int.from_bytes(blob[:8], "little")
    begin, end = json.loads(blob[8 : 8 + length])[name]["data_offsets"]
    return blob[begin:end]


def all_weights(rest, dtype=torch.float32, least=0.0):
    largest = (1 - rest.to(dtype).sum(-1, keepdim=True)).clamp(min=least)
    return torch.cat([largest.to(rest.dtype), rest], -1)


def normalised(rest):
    weights = all_weights(rest)
    return weights / weights.sum(-1, keepdim=True) * 0.99


def reopened(indices, weights, others, margin, floor=2**-24, best=None):
    others = others.scatter(-1, indices, -torch.inf)
    logs = weights.clamp(min=floor).log()
    best = others.amax(-1, keepdim=True) if best is None else best
    return others.scatter(-1, indices, best + margin + logs - logs.amin(-1, keepdim=True))


def bare_logarithms(indices, weights, others, margin):
    return others.scatter(-1, indices, weights.clamp(min=2**-24).log())


def raised_logarithms(indices, weights, others, margin):
    return (others - 30).scatter(-1, indices, weights.clamp(min=2**-24).log())


def of_the_largest(indices, weights, others, margin):
    """The largest chosen logit, not the smallest, stands at the margin."""
    return reopened(indices, weights, others, margin + 2.0)


def shares_as_logits(indices, weights, others, margin):
    return others.scatter(-1, indices, 1.0 + margin + weights)


RIGHT = {"save-1": tensor_bytes, "save-2": all_weights, "save-3": reopened}
WRONG = [
    ("save-1", from_the_start, "too early by the length"),
    ("save-1", lambda blob, name: tensor_bytes(blob, name, before=0), "eight too early"),
    ("save-1", lambda blob, name: blob[8 + int.from_bytes(blob[:8], "little") :], "of all tensors"),
    ("save-1", lambda blob, name: tensor_bytes(blob, name)[:-1], "yours are"),
    ("save-1", lambda blob, name: tensor_bytes(blob, name, before=12), "yours are"),
    ("save-1", lambda blob, name: list(tensor_bytes(blob, name)), "Return bytes"),
    ("save-2", lambda rest: all_weights(rest).roll(-1, -1), "stands first"),
    ("save-2", lambda rest: all_weights(rest, least=-1.0), "negative"),
    ("save-2", lambda rest: all_weights(rest, dtype=rest.dtype), "which type"),
    ("save-2", normalised, "come back changed"),
    ("save-2", lambda rest: rest, "shape"),
    ("save-3", lambda *given: reopened(*given, floor=0.0), "not finite"),
    ("save-3", lambda *given: reopened(*given, floor=1e-30), "A weight of zero counts"),
    ("save-3", lambda *given: reopened(*given, floor=2**-20), "A weight of zero counts"),
    ("save-3", bare_logarithms, "stands below"),
    ("save-3", raised_logarithms, "not chosen change"),
    ("save-3", of_the_largest, "not the margin"),
    ("save-3", shares_as_logits, "gives other weights"),
    ("save-3", lambda i, w, o, m: reopened(i, w, o, m, best=o.amax()), "best of its own"),
    ("save-3", lambda i, w, o, m: reopened(i, w, o, m, best=o.amax(-1, keepdim=True)), "old values"),
]
