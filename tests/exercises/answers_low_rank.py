"""Right and wrong answers to the exercises of *Low rank*."""

import torch


def balanced(M, r, of_B=0.5, of_A=0.5):
    """Factors with powers of the singular values."""
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[:, :r] * S[:r] ** of_B, S[:r, None] ** of_A * Vh[:r]


def turned(M, r):
    turn = torch.linalg.qr(torch.eye(r, dtype=M.dtype).roll(1, 0) + 0.5)[0]
    B, A = balanced(M, r)
    return B @ turn, turn.T @ A


def same_norms(M, r):
    B, A = balanced(M, r, 1, 0)
    size = (A.norm() / B.norm()) ** 0.5
    return B * size, A / size


def smallest(M, r):
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[:, -r:] * S[-r:], Vh[-r:]


def spend(matrices, total, relative=False):
    values = [torch.linalg.svdvals(M) for M in matrices]
    values = [v / v.norm() for v in values] if relative else values
    least = torch.cat(values).sort(descending=True).values[total - 1]
    return [int((v >= least).sum()) for v in values]


def normal_form(B, A):
    top = B[: A.shape[0]]
    return torch.linalg.solve(top, B, left=False), top @ A


RIGHT = {
    "low-rank-1": balanced,
    "low-rank-2": spend,
    "low-rank-3": normal_form,
}
WRONG = [
    ("low-rank-1", lambda M, r: balanced(M, r, 1, 0), "times the norm of A"),
    ("low-rank-1", same_norms, "balance each direction"),
    ("low-rank-1", lambda M, r: balanced(M, r, 0, 0), "where are the singular values"),
    ("low-rank-1", lambda M, r: balanced(M, r, 1, 1), "every singular value twice"),
    ("low-rank-1", smallest, "smallest singular values"),
    ("low-rank-1", lambda M, r: balanced(M + 1, r), "times the best"),
    ("low-rank-1", lambda M, r: balanced(M, r + 1 - len(M) // 9) if r < 5 else M, "should have shape"),
    ("low-rank-1", lambda M, r: M, "two tensors"),
    ("low-rank-1", lambda M, r: [factor.tolist() for factor in balanced(M, r)], "should be a tensor"),
    ("low-rank-2", lambda Ms, total: [total // len(Ms)] * len(Ms), "All matrices get the same"),
    ("low-rank-2", lambda Ms, total: spend(Ms, total, relative=True), "All matrices get the same"),
    ("low-rank-2", lambda Ms, total: spend(Ms, total + 1), "more than you may spend"),
    ("low-rank-2", lambda Ms, total: [0] * (len(Ms) - 1) + [total], "times the least"),
    ("low-rank-2", lambda Ms, total: [9] * len(Ms), "impossible"),
    ("low-rank-2", lambda Ms, total: [float(rank) for rank in spend(Ms, total)], "should be an int"),
    ("low-rank-2", lambda Ms, total: total, "one rank for each matrix"),
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
