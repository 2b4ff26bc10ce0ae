"""A log of selections made by hand: 3 recordings of 4 sub-vectors, 2 of 5 bank vectors each; nobody takes vector 4."""

import torch

from vbank.selections_log import Selections

INDICES = (
    ((0, 1), (1, 2), (2, 3), (0, 3)),
    ((0, 2), (1, 2), (3, 2), (0, 3)),  # sub-vector 0 exchanges 1 for 2; sub-vector 2 puts its two in another order
    ((0, 2), (1, 3), (3, 2), (1, 2)),  # sub-vector 1 exchanges 2 for 3; sub-vector 3 both
)
BANK = ((3.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 1.0), (5.0, 5.0, 0.0), (0.0, 0.0, 4.0))
SITES = ("encoder.layer.0.query", "encoder.layer.1.query")


def by_hand(indices=INDICES, steps=(0, 10, 30), **changes) -> Selections:
    """The log, with other values where they are given."""
    chosen = torch.as_tensor(indices)
    weights = torch.tensor([0.75, 0.25]).expand(chosen.shape) if chosen.shape[-1] == 2 else chosen * 0 + 1.0
    bank = torch.tensor(BANK)
    values = {
        "steps": torch.as_tensor(steps),
        "indices": chosen,
        "weights": weights,
        "bank_before": bank,
        "bank_after": bank,
        "sites": SITES,
        "spans": ((0, 1, 2), (2, 3, 4)),
    }
    return Selections(**values | changes)
