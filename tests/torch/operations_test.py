"""Every operation of torch.distributed on Ringfold, for every dtype, with tensors that lie in memory in different ways,
against what each rank computes by itself."""

import os
import unittest
from datetime import timedelta
from importlib.metadata import EntryPoint

import ranks
import torch
import torch.distributed as dist
import ringfold_torch

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
COMPLEX = [torch.complex64, torch.complex128]
ALL = FLOATS + INTEGERS + COMPLEX + [torch.bool]


def values(rank, dtype, shape=(6, 4), salt=0):
    """The same on every rank that asks for the values of `rank`. Small integers: sums of them are exact in all dtypes."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    low = 0 if dtype == torch.uint8 else -3
    x = torch.randint(low, 4, shape, generator=generator)
    return x.to(dtype) + (1j * x.flip(0)).to(dtype) if dtype.is_complex else x.to(dtype)


def contiguous(x):
    return x.clone()


def transposed(x):
    return x.t().contiguous().t()


def strided(x):
    apart = torch.zeros(x.shape[:-1] + (2 * x.shape[-1],), dtype=x.dtype)
    apart[..., ::2] = x
    return apart[..., ::2]


def offset(x):
    longer = torch.cat([x.flatten()[:1], x.flatten()])
    return longer[1:].view(x.shape)


LAYOUTS = [contiguous, transposed, strided, offset]


def same(got, expected, what):
    assert got.dtype == expected.dtype and got.shape == expected.shape, what
    assert torch.equal(got, expected), f"{what}: {got} instead of {expected}"


def fold(inputs, op):
    if op == dist.ReduceOp.AVG:
        total = fold(inputs, dist.ReduceOp.SUM)
        if total.dtype in INTEGERS:
            return torch.div(total, len(inputs), rounding_mode="trunc")
        return (total.to(torch.float64) / len(inputs)).to(total.dtype) if not total.dtype.is_complex else total / len(inputs)
    result = inputs[0].clone()
    for x in inputs[1:]:
        if op == dist.ReduceOp.SUM:
            result = result | x if x.dtype == torch.bool else result + x
        elif op == dist.ReduceOp.PRODUCT:
            result = result & x if x.dtype == torch.bool else result * x
        elif op == dist.ReduceOp.MIN:
            result = torch.minimum(result, x)
        elif op == dist.ReduceOp.MAX:
            result = torch.maximum(result, x)
        elif op == dist.ReduceOp.BAND:
            result = result & x
        elif op == dist.ReduceOp.BOR:
            result = result | x
        elif op == dist.ReduceOp.BXOR:
            result = result ^ x
    return result


def operations(dtype):
    every = ["SUM"] if dtype.is_complex else ["SUM", "PRODUCT", "MIN", "MAX"]
    if dtype in INTEGERS + [torch.bool]:
        every += ["BAND", "BOR", "BXOR"]
    if dtype in FLOATS + INTEGERS + COMPLEX:
        every += ["AVG"]
    return [getattr(dist.ReduceOp, name) for name in every]


def reductions(rank, size):
    for dtype in ALL:
        for number, op in enumerate(operations(dtype)):
            layout = LAYOUTS[(number + rank) % len(LAYOUTS)]  # another one on each rank
            what = f"{op} {dtype} {layout.__name__}"
            # Products of 16-bit floats and averages stay exact with values that are powers of two.
            inputs = [values(r, dtype, salt=number) for r in range(size)]
            expected = fold(inputs, op)

            x = layout(inputs[rank])
            dist.all_reduce(x, op=op)
            same(x, expected, "all_reduce " + what)

            x = layout(inputs[rank])
            dist.reduce(x, size - 1, op=op)
            if rank == size - 1:
                same(x, expected, "reduce " + what)

            blocks = [[values(10 * r + b, dtype, salt=number) for b in range(size)] for r in range(size)]
            mine = fold([blocks[r][rank] for r in range(size)], op)
            out = layout(torch.zeros_like(mine))
            dist.reduce_scatter(out, [layout(b) for b in blocks[rank]], op=op)
            same(out, mine, "reduce_scatter " + what)
            out = layout(torch.zeros_like(mine))
            dist.reduce_scatter_tensor(out, torch.cat(blocks[rank]), op=op)
            same(out, mine, "reduce_scatter_tensor " + what)

            several = [layout(values(rank, dtype, shape, number)) for shape in ((3, 2), (1, 1), (5, 3))]
            if not dtype.is_complex:
                dist.all_reduce_coalesced(several, op=op)
                for shape, x in zip(((3, 2), (1, 1), (5, 3)), several):
                    same(x, fold([values(r, dtype, shape, number) for r in range(size)], op), "coalesced " + what)


def movements(rank, size):
    for dtype in ALL:
        for layout in LAYOUTS:
            what = f"{dtype} {layout.__name__}"
            everybody = [values(r, dtype) for r in range(size)]
            empty = lambda: layout(torch.zeros_like(everybody[0]))

            for root in range(size):
                x = layout(everybody[rank])
                dist.broadcast(x, root)
                same(x, everybody[root], "broadcast " + what)

                into = [empty() for _ in range(size)] if rank == root else None
                dist.gather(layout(everybody[rank]), into, root)
                for r in range(size) if rank == root else ():
                    same(into[r], everybody[r], "gather " + what)

                out = empty()
                dist.scatter(out, [layout(x) for x in everybody] if rank == root else None, root)
                same(out, everybody[rank], "scatter " + what)

            outs = [empty() for _ in range(size)]
            dist.all_gather(outs, layout(everybody[rank]))
            for r in range(size):
                same(outs[r], everybody[r], "all_gather " + what)
            out = layout(torch.zeros((6 * size, 4), dtype=dtype))
            dist.all_gather_into_tensor(out, layout(everybody[rank]))
            same(out, torch.cat(everybody), "all_gather_into_tensor " + what)

            to = [[values(10 * a + b, dtype, (a + 2 * b, 3)) for b in range(size)] for a in range(size)]
            outs = [layout(torch.zeros((a + 2 * rank, 3), dtype=dtype)) for a in range(size)]
            dist.all_to_all(outs, [layout(x) for x in to[rank]])
            for a in range(size):
                same(outs[a], to[a][rank], "all_to_all " + what)
            out = layout(torch.zeros((sum(a + 2 * rank for a in range(size)), 3), dtype=dtype))
            dist.all_to_all_single(out, layout(torch.cat(to[rank])), [a + 2 * rank for a in range(size)],
                                   [rank + 2 * b for b in range(size)])
            same(out, torch.cat([to[a][rank] for a in range(size)]), "all_to_all_single " + what)
            even = [values(r, dtype, (size, 5)) for r in range(size)]
            out = layout(torch.zeros((size, 5), dtype=dtype))
            dist.all_to_all_single(out, layout(even[rank]))
            same(out, torch.stack([even[r][rank] for r in range(size)]), "all_to_all_single " + what)

            # Messages: around the ring, in whatever order; from anybody.
            right, left = (rank + 1) % size, (rank - 1) % size
            first, second = empty(), empty()
            works = [dist.isend(layout(everybody[rank]), right, tag=1), dist.isend(layout(even[rank]), right, tag=2)]
            second = layout(torch.zeros((size, 5), dtype=dtype))
            dist.recv(second, left, tag=2)
            dist.recv(first, left, tag=1)
            same(first, everybody[left], "send " + what)
            same(second, even[left], "send with another tag " + what)
            if rank == 0:
                seen = set()
                for _ in range(size - 1):
                    x = empty()
                    source = dist.recv(x, tag=3)
                    same(x, everybody[source], "recv from any " + what)
                    seen.add(source)
                assert seen == set(range(1, size)), seen
            else:
                dist.send(layout(everybody[rank]), 0, tag=3)
            for work in works:
                work.wait()


def uneven(rank, size):
    """Lists whose tensors differ in size, and such that lie one after another in one tensor."""
    flat = torch.zeros(sum(r + 1 for r in range(size)))
    outs = list(flat.split([r + 1 for r in range(size)]))
    dist.all_gather(outs, torch.full((rank + 1,), float(rank)))
    same(flat, torch.cat([torch.full((r + 1,), float(r)) for r in range(size)]), "all_gather")
    out = torch.zeros(rank + 1)
    dist.reduce_scatter(out, [torch.full((r + 1,), float(r * 10 + rank)) for r in range(size)])
    same(out, torch.full((rank + 1,), float(rank * 10 * size + size * (size - 1) // 2)), "reduce_scatter")
    for empty in (torch.zeros(0), torch.zeros((0, 3))):
        dist.all_reduce(empty)
        dist.broadcast(empty, 0)
        dist.all_gather([empty.clone() for _ in range(size)], empty)
        dist.all_to_all_single(empty.clone(), empty)
    one = torch.tensor(float(rank))
    dist.all_reduce(one)
    assert one == size * (size - 1) / 2


def coalesced(rank, size):
    shapes = [(2, 2), (3, 1), (1, 1)]
    outs = [[torch.zeros(s) for s in shapes] for _ in range(size)]
    dist.all_gather_coalesced(outs, [values(rank, torch.float32, s) for s in shapes])
    for r in range(size):
        for s, x in zip(shapes, outs[r]):
            same(x, values(r, torch.float32, s), "all_gather_coalesced")
    group = ringfold_torch.group_of()
    outs = [torch.zeros(size * 3), torch.zeros(size * 2)]
    group.allgather_into_tensor_coalesced(outs, [torch.full((3,), float(rank)), torch.full((2,), float(-rank))]).wait()
    same(outs[0], torch.arange(size).repeat_interleave(3).float(), "allgather_into_tensor_coalesced")
    same(outs[1], -torch.arange(size).repeat_interleave(2).float(), "allgather_into_tensor_coalesced")
    outs = [torch.zeros(3), torch.zeros(1)]
    group.reduce_scatter_tensor_coalesced(outs, [torch.ones(3 * size), torch.arange(size).float()],
                                          dist.ReduceOp.SUM).wait()
    same(outs[0], torch.full((3,), float(size)), "reduce_scatter_tensor_coalesced")
    same(outs[1], torch.full((1,), float(size * rank)), "reduce_scatter_tensor_coalesced")
    batch = [dist.P2POp(dist.irecv, x := torch.zeros(4), (rank - 1) % size),
             dist.P2POp(dist.isend, torch.full((4,), float(rank)), (rank + 1) % size)]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    same(x, torch.full((4,), float((rank - 1) % size)), "batch_isend_irecv")


def premultiplied(rank, size):
    tensor = torch.tensor([2.0])
    for factor in (2.0, [tensor] if torch.__version__.startswith("1.") else tensor):
        x = torch.full((5,), float(rank + 1))
        dist.all_reduce(x, op=torch._C._distributed_c10d._make_nccl_premul_sum(factor))
        same(x, torch.full((5,), float(size * (size + 1))), "PREMUL_SUM")


def sparse(rank, size):
    def mine(r):
        i = torch.tensor([[r, r + 1, r, 7], [0, 1, 0, 2]])
        return torch.sparse_coo_tensor(i, torch.arange(8.0).view(4, 2) + r, (size + 8, 3, 2))
    x = mine(rank)
    dist.all_reduce(x)
    same(x.to_dense(), sum(mine(r).to_dense() for r in range(size)), "sparse")
    x = torch.sparse_coo_tensor(size=(4, 4)) if rank == 0 else torch.eye(4).to_sparse()
    dist.all_reduce(x)
    same(x.to_dense(), (size - 1) * torch.eye(4), "sparse, and nothing on one rank")
    try:
        dist.all_reduce(torch.eye(4 + (rank == 0)).to_sparse())
    except ringfold_torch.Error as error:
        assert error.code == "mismatch", error
    else:
        assert False, "different shapes were added up"


def objects(rank, size):
    everything = [None] * size
    dist.all_gather_object(everything, {"rank": rank, "text": "x" * (100 * rank)})
    assert [o["rank"] for o in everything] == list(range(size))
    box = [f"from {rank}", rank]
    dist.broadcast_object_list(box, 1)
    assert box == ["from 1", 1]
    into = [None] * size if rank == 0 else None
    dist.gather_object((rank, rank * rank), into)
    assert rank != 0 or into == [(r, r * r) for r in range(size)]
    out = [None]
    dist.scatter_object_list(out, [f"for {r}" for r in range(size)] if rank == 0 else None)
    assert out == [f"for {rank}"]


def groups(rank, size):
    """Groups at work side by side, made in one order and used in another; one within another's ranks, and again."""
    for _ in range(2):
        evens, odds = dist.new_group(range(0, size, 2)), dist.new_group(range(1, size, 2))
        mine = evens if rank % 2 == 0 else odds
        world = torch.full((1000,), float(rank))
        part = world.clone()
        works = [dist.all_reduce(world, async_op=True), dist.all_reduce(part, group=mine, async_op=True)]
        for work in reversed(works):
            work.wait()
        same(world, torch.full((1000,), float(sum(range(size)))), "world")
        same(part, torch.full((1000,), float(sum(range(rank % 2, size, 2)))), "part")
        x = torch.tensor([float(rank)])
        dist.broadcast(x, rank % 2, group=mine)  # roots are given as ranks of the world
        assert x == rank % 2
        dist.barrier(group=mine)
        dist.destroy_process_group(mine)
    own = dist.new_group(range(size), pg_options=ringfold_torch.Options(algorithm="ring", deterministic=True))
    x = torch.ones(7)
    dist.all_reduce(x, group=own)
    same(x, torch.full((7,), float(size)), "a group with options")
    gloo = dist.new_group(backend="gloo")
    dist.all_reduce(x, group=gloo)
    same(x, torch.full((7,), float(size * size)), "a group of another backend")


def futures(rank, size):
    """Completion by test(), by futures, and by callbacks that wait for further calls."""
    x = torch.ones(100_000)
    work = dist.all_reduce(x, async_op=True)
    while not work.is_completed():
        pass
    assert work.is_success()
    same(x, torch.full((100_000,), float(size)), "is_completed")
    assert work.get_future().wait()[0] is x or torch.equal(work.get_future().wait()[0], x)

    def and_again(done):
        y = done.value()[0].clone()
        dist.all_reduce(y, async_op=True).get_future().wait()  # on the thread that runs callbacks
        return y
    chains = [dist.all_reduce(torch.full((3,), float(i)), async_op=True).get_future().then(and_again) for i in range(6)]
    # The second calls are made in the order in which callbacks run, which is that of the first ones only if there is
    # one chain; so all chains carry the same value where it matters.
    assert len(torch.futures.wait_all(chains)) == 6
    many = [torch.full((17,), float(i * (rank + 1))) for i in range(50)]
    for work in [dist.all_reduce(x, async_op=True) for x in many]:
        work.wait(timedelta(seconds=30))
    for i, x in enumerate(many):
        same(x, torch.full((17,), i * size * (size + 1) / 2), "in flight together")


def titles(rank, size):
    with torch.autograd.profiler.profile() as profile:
        x = torch.ones(4)
        dist.all_reduce(x)
        dist.broadcast(x, 0)
        dist.all_gather([torch.zeros(4) for _ in range(size)], x)
        dist.barrier()
        work = dist.isend(x, (rank + 1) % size)
        dist.recv(torch.zeros(4), (rank - 1) % size)
        work.wait()
    names = [event.name for event in profile.function_events]
    for title in ("all_reduce", "broadcast", "all_gather", "barrier", "send", "recv"):
        assert f"ringfold:{title}" in names, (title, names)
    shapes = [e.name for e in profile.function_events if e.is_async]
    assert "ringfold:all_reduce" in shapes, shapes


class Operations(unittest.TestCase):
    pass


def forked(rank, size):
    """A child of a rank, as data loaders make them, may end as it likes."""
    child = os.fork()
    if child == 0:
        dist.destroy_process_group()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    x = torch.ones(3)
    dist.all_reduce(x)
    same(x, torch.full((3,), float(size)), "after a child's end")


def of_2_x(rank, size):
    """Functional and coalesced collectives, tensors of a mesh, sharded parameters."""
    import torch.distributed._functional_collectives as functional
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    world = dist.group.WORLD
    ranks_of = torch.arange(float(size))
    same(functional.all_reduce(torch.ones(3), "sum", world), torch.full((3,), float(size)), "functional all_reduce")
    mine = torch.full((2,), float(rank))
    both = functional.all_gather_into_tensor_coalesced([mine, mine[:1]], world)
    for got, width in zip(both, (2, 1)):
        same(got, ranks_of.repeat_interleave(width), "functional all_gather_into_tensor_coalesced")
    both = functional.reduce_scatter_tensor_coalesced([torch.arange(2.0 * size), ranks_of], "sum", [0, 0], world)
    same(both[0], size * torch.arange(2.0 * size)[2 * rank:][:2], "functional reduce_scatter_tensor_coalesced")
    same(both[1], size * ranks_of[rank:][:1], "functional reduce_scatter_tensor_coalesced")
    x, y = torch.ones(4), torch.ones(2)
    with dist._coalescing_manager():
        dist.all_reduce(x)
        dist.all_reduce(y)
    same(torch.cat([x, y]), torch.full((6,), float(size)), "all_reduce in a coalescing manager")
    mesh = init_device_mesh("cpu", (size,))
    whole = torch.arange(4.0 * size).view(2 * size, 2)
    same(distribute_tensor(whole, mesh, [Shard(0)]).redistribute(mesh, [Replicate()]).to_local(), whole, "DTensor")
    model = FullyShardedDataParallel(torch.nn.Linear(8, 4), device_id=torch.device("cpu"))
    model(torch.full((2, 8), rank + 1.0)).sum().backward()
    mean = 2 * (size + 1) / 2  # of the ranks' gradients of a weight
    total = sum(p.grad.sum() for p in model.parameters())
    dist.all_reduce(total)
    same(total, torch.tensor(8 * 4 * mean + 4 * 2), "FSDP")


class Since2(unittest.TestCase):
    @unittest.skipIf(torch.__version__.startswith("1."), f"PyTorch {torch.__version__} is older than 2")
    def test_what_came_with_2_x(self):
        for size in (2, 4):
            ranks.play(size, of_2_x, timeout=120)


class Package(unittest.TestCase):
    def test_the_entry_point_registers_the_backend(self):
        folder = os.path.dirname(ringfold_torch.__file__)
        with open(os.path.join(folder, "entry_points.txt")) as file:
            lines = file.read().split("\n")
        self.assertEqual(lines[0], "[torch.distributed.backends]")
        name, value = lines[1].split(" = ")
        EntryPoint(name, value, "torch.distributed.backends").load()()
        self.assertEqual(dist.Backend.RINGFOLD.lower(), name)  # 1.13 keeps it in capitals


def _add(function, size, **how):
    setattr(Operations, f"test_{function.__name__}_{size}_ranks", lambda self: ranks.play(size, function, **how))


for size in (2, 4):
    for function in (reductions, movements, uneven, coalesced, premultiplied, sparse, objects, groups, futures, titles, forked):
        _add(function, size, timeout=120)
_add(uneven, 1)
_add(futures, 3)

if __name__ == "__main__":
    ranks.main()
