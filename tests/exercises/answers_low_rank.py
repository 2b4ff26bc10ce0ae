"""Right and wrong answers to the exercises of *Low rank*."""

import torch


def svd_rank_r(M, r):
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[:, :r] * S[:r] @ Vh[:r]


def energy(M, share, power=2, plus=1):
    s = torch.linalg.svdvals(M) ** power
    return int((torch.cumsum(s, 0) / s.sum() < share - 1e-12).sum()) + plus


def normal_form(B, A):
    top = B[: A.shape[0]]
    return torch.linalg.solve(top, B, left=False), top @ A


RIGHT = {
    "low-rank-1": svd_rank_r,
    "low-rank-2": energy,
    "low-rank-3": normal_form,
}
WRONG = [
    ("low-rank-1", lambda M, r: M, "more than r"),
    ("low-rank-1", lambda M, r: torch.linalg.svd(M, full_matrices=False)[0][:, :r], "should have shape"),
    ("low-rank-1", lambda M, r: M.tolist(), "should be a tensor"),
    ("low-rank-1", lambda M, r: svd_rank_r(M / M.norm(), r) * 0 + svd_rank_r(M, 1), "times the best"),
    (
        "low-rank-1",
        lambda M, r: (lambda U, S, Vh: U[:, :r] @ Vh[:r])(*torch.linalg.svd(M, full_matrices=False)),
        "where are the singular values",
    ),
    (
        "low-rank-1",
        lambda M, r: (lambda U, S, Vh: U[:, -r:] * S[-r:] @ Vh[-r:])(*torch.linalg.svd(M, full_matrices=False)),
        "smallest singular values",
    ),
    ("low-rank-1", lambda M, r: svd_rank_r(M, r).float(), "type torch.float64"),
    ("low-rank-2", lambda M, share: energy(M, share, power=1), "squared"),
    ("low-rank-2", lambda M, share: energy(M, share, plus=0), "from 0"),
    ("low-rank-2", lambda M, share: len(M), "too large"),
    ("low-rank-3", lambda B, A: (normal_form(B, A)[0], A), "A stayed as it was"),
    ("low-rank-3", lambda B, A: (normal_form(B, A)[0], B[: len(A)] @ B[: len(A)] @ A), "one factor too many"),
    ("low-rank-3", lambda B, A: (normal_form(B, A)[0], 2 * normal_form(B, A)[1]), "product is another one"),
    ("low-rank-3", lambda B, A: (B, A), "does not begin"),
    ("low-rank-3", lambda B, A: (torch.linalg.inv(B[: len(A)]).T @ B.T, A), "should have shape"),
    ("low-rank-3", lambda B, A: (B * 2, A), "which side"),
    ("low-rank-3", lambda B, A: (B @ torch.linalg.inv(B[-len(A) :]), B[-len(A) :] @ A), "at the bottom"),
    ("low-rank-3", lambda B, A: (B @ A[:, : len(A)], torch.linalg.solve(A[:, : len(A)], A)), "stands in A"),
    ("low-rank-3", lambda B, A: normal_form(B, A)[0], "two tensors"),
]
