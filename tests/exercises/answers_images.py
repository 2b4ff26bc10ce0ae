"""Right and wrong answers to the exercises of *Images with ViT*."""

import random

import torch


def draw(labels, samples, seed):
    rng, places = random.Random(seed), []
    for label in sorted(set(labels)):
        places += rng.sample([i for i, one in enumerate(labels) if one == label], samples)
    return places


def spreads(table):
    y = torch.tensor(table, dtype=torch.float64)
    draws, seeds = y.shape
    row, column = y.mean(1), y.mean(0)
    rest = ((y - row[:, None] - column + y.mean()) ** 2).sum() / ((draws - 1) * (seeds - 1))
    parts = row.var() - rest / seeds, column.var() - rest / draws, rest
    return [part.clamp(min=0).sqrt().item() for part in parts]


def raw(table):
    y = torch.tensor(table, dtype=torch.float64)
    return y.mean(1).std().item(), y.mean(0).std().item(), spreads(table)[2]


def unclamped(table):
    y = torch.tensor(table, dtype=torch.float64)
    rest = spreads(table)[2] ** 2
    return [(y.mean(1).var() - rest / y.shape[1]).sqrt(), (y.mean(0).var() - rest / y.shape[0]).sqrt(), rest**0.5]


RIGHT = {"images-1": draw, "images-2": spreads}
WRONG = [
    ("images-1", lambda labels, n, seed: random.Random(seed).sample(range(len(labels)), n), "in all"),
    (
        "images-1",
        lambda labels, n, seed: random.Random(seed).sample(range(len(labels)), n * len(set(labels))),
        "number in all is right",
    ),
    ("images-1", lambda labels, n, seed: draw(labels, n + 1, seed), "Class 0 has 2"),
    ("images-1", lambda labels, n, seed: draw(labels, n, 0), "one draw"),
    ("images-1", lambda labels, n, seed: draw(labels, n, None), "different draws"),
    ("images-1", lambda labels, n, seed: [i for i in draw(labels, 1, seed) for _ in range(2)], "twice"),
    ("images-1", lambda labels, n, seed: [len(labels)] * n, "outside"),
    ("images-1", lambda labels, n, seed: "first", "list of whole numbers"),
    ("images-2", lambda t: [value**2 for value in spreads(t)], "variances"),
    ("images-2", lambda t: [spreads(t)[i] for i in (1, 0, 2)], "changed places"),
    ("images-2", raw, "share of the rest"),
    ("images-2", unclamped, "below 0"),
    ("images-2", lambda t: [*spreads(t)[:2], torch.tensor(t, dtype=torch.float64).std().item()], "whole table"),
    ("images-2", lambda t: [spreads(t)[0] + 1, *spreads(t)[1:]], "draw is too large"),
    ("images-2", lambda t: [*spreads(t)[:2], 0.0], "rest is too small"),
    ("images-2", lambda t: spreads(t)[0], "three numbers"),
    ("images-2", lambda t: ["a", "b", "c"], "should be numbers"),
]
