"""The teacher: a moving average of the student. Source: mal.md §3."""

import copy

import torch

from mal.train.sighted import Net


def make_teacher(student: Net) -> Net:
    """A copy of the student, heads and buffers included, that learns nothing by itself."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: Net, student: Net, momentum: float) -> None:
    """Move the teacher: parameters by 1 - momentum towards the student, buffers (BatchNorm's) copied."""
    for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
        own.lerp_(other, 1 - momentum)
    for own, other in zip(teacher.buffers(), student.buffers(), strict=True):
        own.copy_(other)
