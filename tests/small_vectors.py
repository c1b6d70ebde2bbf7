"""Small task vectors and random matrices, which the tests of the merging rules share."""

import torch

from taskvec_mini import TaskVector


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def vector(values, shapes=None, dtype=torch.float64):
    """A task vector with these entries, in one part or in parts of these shapes."""
    shapes = shapes or [(len(values),)]
    return TaskVector(torch.tensor(values, dtype=dtype), [(f"part {i}", s) for i, s in enumerate(shapes)])


def matrices(*tensors):
    """One task vector for each matrix."""
    return [TaskVector(m.reshape(-1), [("weight", tuple(m.shape))]) for m in tensors]


def as_matrix(merged, shape):
    return merged.flat.reshape(shape)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


def rotation(size, seed):
    return torch.linalg.qr(noise(size, size, seed=seed))[0]


def cut(matrix, rank):
    """The matrix of the given rank that is nearest."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]
