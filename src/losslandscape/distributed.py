"""Sums over the processes of a ``torch.distributed`` group, and ranks that stay in step.

Each rank holds a shard of the data and all the weights.
A sum costs one all-reduce; in its last entries travel, for each rank, a sign that its own part was
computed and fingerprints of what all ranks must share.
So a rank that fails, or that works on other weights or another vector, is named on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

# How long ranks that saw a failure wait for word of the others before they name the silent ones.
GRACE = 5.0
_MIX = 0x9E3779B97F4A7C15  # an odd number, so that all bits of a hash reach its upper ones
_PIECE = 1 << 16  # entries looked at together: a processor's cache holds them
_BITS = 22  # a fingerprint and one more fit exactly into a float32


class RankError(RuntimeError):
    """Another process of the group failed, is silent or is out of step; the message names it."""


class Ranks:
    """The processes that share one mean over data, each with a shard of the examples.

    The time limit for a rank that hangs is that of the group:
    ``torch.distributed.init_process_group(..., timeout=timedelta(minutes=5))``.

    Args:
        group: A process group; ``torch.distributed.group.WORLD`` is all of them.

    Attributes:
        rank: The number of this process in the group.
        size: How many processes the group has.

    Raises:
        ValueError: ``group`` is no process group, or this process is not in it.
    """

    def __init__(self, group: Any) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("no process group yet: call torch.distributed.init_process_group")
        self.group = group
        try:
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"group must be a torch.distributed process group, got {type(group).__name__}"
            ) from error
        if self.rank < 0:
            raise ValueError("this process is not in the group")
        self._calls = 0

    def sum(
        self,
        part: Callable[[], Tensor],
        like: Tensor,
        shared: Mapping[str, Iterable[Tensor]] | None = None,
    ) -> Tensor:
        """The sum of every rank's ``part()``, the same bits on each, with one all-reduce.

        Args:
            part: Computes this rank's share.
            like: A tensor of the shape, type and device that it has on every rank.
            shared: What must be the same on all ranks: its name in a message, and the tensors.

        Raises:
            RankError: Another rank failed, is silent past the time limit, or differs in what must
                be shared.
            Exception: Whatever ``part()`` raised here.
        """
        if self.size == 1:
            return part()  # nobody to disagree with
        shared, failure = shared or {}, None
        tail = torch.zeros(1 + len(shared), self.size, dtype=like.dtype, device=like.device)
        try:
            own = part()
            tail[0, self.rank] = 1
        except Exception as error:  # the others wait in the all-reduce: answer first, raise then
            own, failure = torch.zeros_like(like), error
        for row, tensors in enumerate(shared.values(), start=1):
            tail[row, self.rank] = fingerprint(tensors)
        packed = torch.cat([own.reshape(-1), tail.reshape(-1)])
        self._all_reduce(packed)
        if failure is not None:
            raise failure
        total, tail = packed[: like.numel()], packed[like.numel() :].view_as(tail)
        self._same_everywhere(tail.cpu(), list(shared))
        return total.view_as(like)

    def gather(
        self,
        number: Callable[[], int],
        shared: Mapping[str, Iterable[Tensor]] | None = None,
        device: torch.device | str = "cpu",
    ) -> list[int]:
        """Every rank's ``number()``, in their order; errors as for :meth:`sum`."""
        zeros = torch.zeros(self.size, dtype=torch.float64, device=device)

        def part() -> Tensor:
            own = zeros.clone()
            own[self.rank] = number()
            return own

        return [int(count) for count in self.sum(part, zeros, shared)]

    def _all_reduce(self, tensor: Tensor) -> None:
        self._calls += 1
        try:
            dist.all_reduce(tensor, group=self.group)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise RankError(f"{self._silent()}: {reason}") from error

    def _silent(self) -> str:
        """Which ranks do not answer: each that noticed leaves word, and waits for the others'."""
        place = f"losslandscape/{dist.get_process_group_ranks(self.group)}/{self._calls}"
        silent = [rank for rank in range(self.size) if rank != self.rank]
        try:
            # There is no public way to the group's store, and none to ask who is alive.
            store = dist.distributed_c10d._get_default_store()
            store.set(f"{place}/{self.rank}", "here")
            end = time.monotonic() + GRACE
            while silent and time.monotonic() < end:
                silent = [rank for rank in silent if not store.check([f"{place}/{rank}"])]
                time.sleep(0.05)
        except RuntimeError:
            return "a rank does not answer, and the store of the group is gone with it"
        if not silent:
            return "the ranks lost touch with each other"
        return f"rank {_listed(silent)} of {self.size} does not answer"

    def _same_everywhere(self, tail: Tensor, names: list[str]) -> None:
        failed = (tail[0] == 0).nonzero().flatten().tolist()
        if failed:
            raise RankError(f"rank {_listed(failed)} of {self.size} failed: see what it raised")
        for name, prints in zip(names, tail[1:], strict=True):
            other = (prints != prints[0]).nonzero().flatten().tolist()
            if other:
                raise RankError(
                    f"{name} on rank {_listed(other)} is not that of rank 0: every rank must make "
                    "the same calls with the same weights (torch.distributed.broadcast)"
                )


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A number between 1 and 2^22 that depends on every bit of the tensors, and on their sizes.

    Example:
        >>> fingerprint([torch.ones(2)]) == fingerprint([torch.ones(2)])
        True
        >>> fingerprint([torch.ones(2)]) == fingerprint([torch.tensor([1.0, 2.0])])
        False
    """
    found = 0
    for tensor in tensors:
        found = ((found + _weighted_bits(tensor) + tensor.numel()) * _MIX) % 2**64
    return 1 + (found >> (64 - _BITS))


def _weighted_bits(tensor: Tensor) -> int:
    """The bits of the entries as integers, weighted by their places: sums that wrap, not round."""
    pieces = tensor.detach().reshape(-1).contiguous().view(torch.int32).split(_PIECE)
    odd = 2 * torch.arange(len(pieces[0]), device=tensor.device, dtype=torch.int32) + 1
    # Upper bits are mixed into lower ones: an even number of changed signs would wrap to nothing.
    sums = [((p ^ (p >> 15)) * odd[: len(p)]).sum(dtype=torch.int32) for p in pieces]
    powers = [pow(_MIX, place, 2**63) for place in range(len(sums))]
    return int((torch.stack(sums) * torch.tensor(powers, device=tensor.device)).sum())


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown} and {len(ranks) - 8} more" if len(ranks) > 8 else shown
