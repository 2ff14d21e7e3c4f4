"""One summation tree over the lanes: the same bits for every number of workers.

Floating-point addition is not associative. So every sum over lanes (gradients, loss, batch statistics) is taken in one
fixed binary tree: inside a worker by merging partial sums of equal size, between workers by recursive doubling (many
elements: by halving and doubling), nearest neighbour first. Where the number of workers is no power of two, some carry
half as many lanes as the others; these come in pairs of siblings, and fold their sums into one before that.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from unet_core.plan import lanes_of_workers

#: Up to so many elements a sum takes the time of its messages, not of its bytes.
FEW_ELEMENTS = 2**15


class LaneTree:
    """The tree above the workers: which lanes each carries, and how their partial sums are added."""

    def __init__(self, *, lanes: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_lanes = lanes
        self.rank = rank
        self.world_size = world_size
        shares = lanes_of_workers(lanes=lanes, workers=world_size)
        self.lanes = shares[rank]
        largest = max(len(share) for share in shares)
        # Of two siblings with half a share the first speaks for both: with them speakers are a power of two.
        self._speakers = [number for number, share in enumerate(shares) if share.start % largest == 0]
        # One thread: sums travel in the order in which they were begun, while the backward pass goes on.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lane-tree")

    @property
    def share(self) -> float:
        """Part of the lanes that this worker has, 0 to 1."""
        return len(self.lanes) / self.num_lanes

    def all_reduce(self, partial: Tensor) -> Tensor:
        """Sum over all workers, in the memory of `partial`; every rank must call it, in the same order."""
        if self.world_size == 1:
            return partial
        return self.start_all_reduce(partial).wait()

    def start_all_reduce(self, partial: Tensor) -> "torch.futures.Future[Tensor]":
        """Begin a sum over all workers, in the memory of `partial`; every rank must call it, in the same order."""
        future: torch.futures.Future[Tensor] = torch.futures.Future()

        def exchange() -> None:
            try:
                future.set_result(self._exchange(partial))
            except Exception as error:
                # A lost neighbour: whoever waits for the sum is told.
                future.set_exception(error)  # type: ignore[arg-type]

        if partial.is_cuda:
            # NCCL orders its work by streams, which are a thread's own.
            exchange()
        else:
            self._thread.submit(exchange)
        return future

    def gather_texts(self, text: str, device: torch.device) -> list[str]:
        """The texts of all workers in order of rank, as plain bytes; every rank must call it."""
        if self.world_size == 1:
            return [text]
        data = torch.tensor([*text.encode()], dtype=torch.uint8, device=device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)], device=device))
        longest = max(int(size) for size in sizes)
        parts = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(self.world_size)]
        dist.all_gather(parts, F.pad(data, (0, longest - len(data))))
        return [bytes(part[: int(size)].tolist()).decode() for part, size in zip(parts, sizes, strict=True)]

    def _exchange(self, partial: Tensor) -> Tensor:
        """Fold siblings with half a share, sum among the speakers, and hand the sum back."""
        nothing = partial.new_empty(0)
        if self.rank not in self._speakers:
            _swap(self.rank - 1, partial, nothing)
            return _swap(self.rank - 1, nothing, partial)
        sibling = self.rank + 1
        has_sibling = sibling < self.world_size and sibling not in self._speakers
        if has_sibling:
            partial.add_(_swap(sibling, nothing, torch.empty_like(partial)))
        if len(self._speakers) == 2 or partial.numel() <= FEW_ELEMENTS:
            self._swap_whole(partial)
        else:
            self._halve_and_double(partial)
        if has_sibling:
            _swap(sibling, partial, nothing)
        return partial

    def _swap_whole(self, partial: Tensor) -> None:
        """Recursive doubling, nearest neighbour first: half the messages, but all elements in each of them."""
        position = self._speakers.index(self.rank)
        for level in range(len(self._speakers).bit_length() - 1):
            neighbour = self._speakers[position ^ (1 << level)]
            # Two operands: their order changes no bit.
            partial.add_(_swap(neighbour, partial, torch.empty_like(partial)))

    def _halve_and_double(self, partial: Tensor) -> None:
        """Recursive halving, nearest neighbour first, then doubling (Rabenseifner 2004), among the speakers.

        On the way down each of two neighbours sums one half of what both hold; on the way up they swap the sums. In
        every step a neighbour stands for the sibling subtree of the same size, so the additions are those of the tree.
        """
        flat, start, end = partial.view(-1), 0, partial.numel()
        position = self._speakers.index(self.rank)
        steps: list[tuple[int, Tensor, Tensor]] = []
        for level in range(len(self._speakers).bit_length() - 1):
            neighbour = self._speakers[position ^ (1 << level)]
            middle = (start + end) // 2
            mine, theirs = (start, middle), (middle, end)
            if neighbour < self.rank:
                mine, theirs = theirs, mine
            kept, given = flat[slice(*mine)], flat[slice(*theirs)]
            kept.add_(_swap(neighbour, given, torch.empty_like(kept)))
            steps.append((neighbour, kept, given))
            start, end = mine
        for neighbour, kept, given in reversed(steps):
            _swap(neighbour, kept, given)


def _swap(neighbour: int, give: Tensor, take: Tensor) -> Tensor:
    """Exchange tensors with a neighbour; empty ones are not sent."""
    sides = []
    if give.numel():
        sides.append(dist.P2POp(dist.isend, give, neighbour))
    if take.numel():
        sides.append(dist.P2POp(dist.irecv, take, neighbour))
    for work in dist.batch_isend_irecv(sides) if sides else ():
        work.wait()
    return take


class PartialSums:
    """Sums lists of tensors in a binary tree, one leaf at a time, holding at most log2(leaves) + 1 of them."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, list[Tensor]]] = []

    def push(self, leaf: list[Tensor]) -> None:
        """Add a leaf; subtrees of equal size merge at once."""
        size = 1
        while self._stack and self._stack[-1][0] == size:
            _, left = self._stack.pop()
            leaf = [a.add_(b) for a, b in zip(left, leaf, strict=True)]
            size *= 2
        self._stack.append((size, leaf))

    def pop_total(self) -> list[Tensor]:
        """The sum of all leaves, a power of two of them."""
        (_, total) = self._stack.pop()
        assert not self._stack, "the number of lanes of a worker is a power of two"
        return total

    def waiting(self, position: int) -> list[Tensor]:
        """The partial sums of one tensor that the last leaf will meet, smallest first."""
        return [parts[position] for _, parts in reversed(self._stack)]

    def clear(self) -> None:
        """Forget everything."""
        self._stack.clear()


class GradientTree:
    """Gradients of a model's lanes, summed along the tree and divided by the number of lanes.

    In a group, the last lane's backward pass runs under DDP, whose hook merges each bucket with what the
    earlier lanes left and starts its exchange while the backward pass goes on.
    """

    def __init__(self, model: nn.Module, tree: LaneTree) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._position = {id(parameter): number for number, parameter in enumerate(self._parameters)}
        self._tree = tree
        self._sums = PartialSums()

    def keep(self) -> None:
        """Take the gradients of the lane that just ran."""
        grads = []
        for parameter in self._parameters:
            assert parameter.grad is not None
            grads.append(parameter.grad)
            parameter.grad = None
        self._sums.push(grads)

    def finish_alone(self) -> None:
        """Without a group: put the mean gradient where the optimizer looks for it."""
        for parameter, total in zip(self._parameters, self._sums.pop_total(), strict=True):
            parameter.grad = total.div_(self._tree.num_lanes)

    def finish_group(self) -> None:
        """In a group: the hook has put the mean gradients in place; forget this step's partial sums."""
        self._sums.clear()

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """DDP communication hook. DDP reads its annotations, so they are no strings."""
        buffer = bucket.buffer()
        start = buffer.storage_offset()
        for parameter in bucket.parameters():
            # A bucket keeps each gradient in its parameter's memory order; `bucket.gradients()` reads it as
            # contiguous and would mix up the elements of channels-last weights.
            grad = buffer.as_strided(parameter.size(), parameter.stride(), start)
            for partial in self._sums.waiting(self._position[id(parameter)]):
                grad.add_(partial)
            start += parameter.numel()
        lanes = self._tree.num_lanes
        future = self._tree.start_all_reduce(buffer)
        return future.then(lambda done: done.value().div_(lanes))


class BatchStatistics:
    """Batch norm's running statistics, updated once a step from the tree's mean over the lanes.

    While a lane runs, momentum 1 makes the buffers hold that lane's own statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._momenta = [norm.momentum or 0.1 for norm in self._norms]
        self._running = self._read() if self._norms else None

    def begin(self) -> None:
        """Before the lanes of a step."""
        for norm in self._norms:
            norm.momentum = 1.0
        self._running = self._read() if self._norms else None

    def read_lane(self) -> Tensor:
        """The statistics of the lane that just ran, as one vector (empty without batch norm)."""
        return self._read() if self._norms else torch.zeros(0)

    def finish(self, mean: Tensor) -> None:
        """After a step: move the running statistics towards the mean over all lanes."""
        if self._running is None:
            return
        start = 0
        for norm, momentum in zip(self._norms, self._momenta, strict=True):
            for buffer in (norm.running_mean, norm.running_var):
                assert buffer is not None
                part = slice(start, start + buffer.numel())
                buffer.copy_(torch.lerp(self._running[part], mean[part], momentum))
                start += buffer.numel()
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                # Counts lanes of this worker otherwise, and would tell how many workers there were.
                norm.num_batches_tracked.zero_()

    def _read(self) -> Tensor:
        buffers = [buffer for norm in self._norms for buffer in (norm.running_mean, norm.running_var)]
        return torch.cat([buffer.detach().flatten() for buffer in buffers if buffer is not None])
