"""Training on Ringfold: the same losses as with Gloo, the same bits again, compression, sharded optimizers, torchrun."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import unittest

import ranks
import torch
import torch.distributed as dist
import ringfold_torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

SOURCE = os.environ.get("RINGFOLD_SOURCE", os.path.join(os.path.dirname(__file__), "..", ".."))
TRAIN = os.path.join(SOURCE, "tools", "examples", "pytorch", "train.py")
sys.path.insert(0, os.path.dirname(TRAIN))
EXAMPLE = importlib.import_module("train")
DATA = "/usr/share/datasets/fashion-mnist"


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 300), nn.ReLU(), nn.Linear(300, 10))


def batches(rank, size, steps):
    """This rank's share, and the whole."""
    generator = torch.Generator().manual_seed(5)
    teacher = torch.randn(64, 10, generator=generator)
    for _ in range(steps):
        x = torch.randn(16 * size, 64, generator=generator)
        y = (x @ teacher).argmax(1)
        yield x[16 * rank:][:16], y[16 * rank:][:16], x, y


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def bits(model):
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def in_buckets(model, megabytes=0.2):
    """As DDP, with several buckets."""
    dist._DEFAULT_FIRST_BUCKET_BYTES = int(megabytes * 2**20)  # else it is 1 MB, whatever the others are
    return DistributedDataParallel(model, bucket_cap_mb=megabytes)


def train(rank, size, hook=None, steps=40, buckets=0.2):
    """The losses, and the parameters in the end."""
    model = in_buckets(network(), buckets)
    if hook is not None:
        model.register_comm_hook(*hook())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    losses = [step(model, optimizer, x, y) for x, y, _, _ in batches(rank, size, steps)]
    several = model._get_ddp_logging_data()["rebuilt_bucket_sizes"]
    assert (len(several.split(",")) > 1) == (buckets < 1), several
    return losses, bits(model.module)


def alone(size, steps=40):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    for _, _, x, y in batches(0, size, steps):
        step(model, optimizer, x, y)
    return model


def sharded(rank, size):
    """ZeroRedundancyOptimizer: Adam whose state is divided among the ranks ends like Adam."""
    model, other = DistributedDataParallel(network()), DistributedDataParallel(network())
    mine = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=1e-3)
    whole = torch.optim.Adam(other.parameters(), lr=1e-3)
    for x, y, _, _ in batches(rank, size, 10):
        step(model, mine, x, y)
        step(other, whole, x, y)
    mine.consolidate_state_dict(0)
    assert rank != 0 or len(mine.state_dict()["state"]) == len(whole.state_dict()["state"])
    return [(a - b).abs().max().item() for a, b in zip(model.parameters(), other.parameters())], bits(model)


def accumulated(rank, size):
    """no_sync() and uneven inputs."""
    model = DistributedDataParallel(network())
    x = torch.ones(4, 64)
    with model.no_sync():
        model(x).sum().backward()
    model(x).sum().backward()
    gradients = bits(nn.ParameterList([nn.Parameter(p.grad) for p in model.parameters()]))
    with model.join():
        for _ in range(rank + 1):
            model(x).sum().backward()
    return gradients


def resumed(rank, size):
    """A run that goes on from a checkpoint with the error feedback has the bits of one that was not interrupted."""
    def one(model_state, hook_state, first, steps):
        model = in_buckets(network())
        hook = ringfold_torch.compress("int4", name="resumed")
        model.register_comm_hook(None, hook)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if model_state is not None:
            # The first step forms the buckets; it must not leave anything behind.
            for x, y, _, _ in batches(rank, size, 2):
                model(x).sum().backward()
            model.module.load_state_dict(model_state)
            hook.load_state_dict(hook_state)
        for number, (x, y, _, _) in enumerate(batches(rank, size, steps)):
            if number >= first:
                step(model, optimizer, x, y)
        return {k: v.clone() for k, v in model.module.state_dict().items()}, hook.state_dict()
    whole, owed = one(None, None, 0, 12)
    ringfold_torch.group_of().load_feedback(ringfold_torch.group_of().save_feedback())
    for name in ringfold_torch.group_of().feedback_names():
        ringfold_torch.group_of().reset_feedback(name)
    half, state = one(None, None, 0, 6)
    assert state["error_feedback"].numel() > 300_000, state["error_feedback"].numel()
    again, owed_again = one(half, state, 6, 12)
    for key in whole:
        assert torch.equal(whole[key], again[key]), key
    assert torch.equal(owed["error_feedback"], owed_again["error_feedback"])
    try:
        ringfold_torch.compress("int8", name="resumed").load_state_dict(state)
    except ValueError as error:
        assert "int4" in str(error)
    else:
        raise AssertionError("the state of another codec was taken")
    try:
        ringfold_torch.load_state_dict(dict(state, error_feedback=state["error_feedback"][:-5]))
    except ringfold_torch.Error as error:
        assert error.code == "invalid argument", vars(error)
    else:
        raise AssertionError("a damaged state was taken")


def by_options(rank, size):
    """Compression of a whole group: sums carry the codec's error, other calls none."""
    x = torch.linspace(-1, 1, 100_000) * (rank + 1)
    exact = torch.linspace(-1, 1, 100_000) * (size * (size + 1) / 2)
    dist.all_reduce(x)
    error = (x - exact).abs().max().item()
    assert 0 < error < 0.02 * size * size, error
    y = torch.linspace(0, 1, 1000)
    dist.broadcast(y, 0)
    assert torch.equal(y, torch.linspace(0, 1, 1000))
    exact_again = dist.new_group(range(size), pg_options=ringfold_torch.Options(codec="none"))
    z = torch.full((100_000,), 1 / 3)
    dist.all_reduce(z, op=dist.ReduceOp.MAX)
    assert torch.equal(z, torch.full((100_000,), 1 / 3))
    z = torch.linspace(-1, 1, 100_000)
    dist.all_reduce(z, group=exact_again)
    assert torch.allclose(z, size * torch.linspace(-1, 1, 100_000), rtol=1e-6, atol=1e-6)
    return x.numpy().tobytes()


class Training(unittest.TestCase):
    def test_replicas_have_the_bits_of_each_other_and_of_another_run(self):
        for size in (2, 4):
            one, two = (ranks.play(size, train) for _ in range(2))
            self.assertEqual(len({parameters for _, parameters in one + two}), 1)
            self.assertEqual([losses for losses, _ in one], [losses for losses, _ in two])

    def test_losses_are_those_of_gloo(self):
        ours, theirs = ranks.play(4, train), ranks.play(4, train, backend="gloo")
        for (a, _), (b, _) in zip(ours, theirs):
            for x, y in zip(a, b):
                self.assertAlmostEqual(x, y, delta=1e-5)
        self.assertLess(ours[0][0][-1], 0.7 * ours[0][0][0])

    def test_ranks_follow_one_rank_with_all_of_the_batch(self):
        for size in (2, 4):
            parameters = torch.frombuffer(bytearray(ranks.play(size, train)[0][1]), dtype=torch.float32)
            # In a process of its own, since PyTorch 2.x forks none that has run a backward pass.
            alone_bits = ranks.play(1, lambda *_: bits(alone(size)))[0]
            whole = torch.frombuffer(bytearray(alone_bits), dtype=torch.float32)
            self.assertLess((parameters - whole).abs().max().item(), 1e-5)

    def test_compressed_gradients_train_as_well(self):
        plain = ranks.play(4, train)[0][0]
        for codec, worst in (("int8", 1.02), ("int4", 1.1), ("none", 1.0001)):
            def hook(codec=codec):
                return None, ringfold_torch.compress(codec)
            played = ranks.play(4, lambda rank, size: train(rank, size, hook))
            self.assertEqual(len({parameters for _, parameters in played}), 1, codec)
            self.assertLess(sum(played[0][0][-5:]), worst * sum(plain[-5:]), codec)
            if codec != "none":
                self.assertNotEqual(played[0][0], plain, "the codec did nothing")

    def test_other_hooks_of_pytorch_work(self):
        plain = ranks.play(2, train)[0][0]
        hooks = {
            "allreduce": lambda: (dist.group.WORLD, default_hooks.allreduce_hook),
            "fp16": lambda: (dist.group.WORLD, default_hooks.fp16_compress_hook),
            "bf16": lambda: (dist.group.WORLD, default_hooks.bf16_compress_hook),
            "powersgd": lambda: (powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2),
                                 powerSGD_hook.powerSGD_hook),
        }
        for name, hook in hooks.items():
            # The calls that PowerSGD makes when others are done have an order only within one bucket.
            buckets = 25 if name == "powersgd" else 0.2
            try:
                losses = ranks.play(2, lambda rank, size: train(rank, size, hook, buckets=buckets))[0][0]
            except AssertionError as error:  # of the CPU build of PyTorch, with Gloo, too
                self.assertRegex(str(error), "BF16 all reduce communication hook required CUDA|Torch not compiled with CUDA", name)
                continue
            self.assertLess(sum(losses[-5:]), 1.1 * sum(plain[-5:]), name)

    def test_sharded_optimizer_ends_like_the_whole_one(self):
        for size in (2, 4):
            played = ranks.play(size, sharded)
            self.assertEqual(len({parameters for _, parameters in played}), 1)
            self.assertLess(max(played[0][0]), 1e-6)

    def test_gradients_may_be_accumulated_and_inputs_uneven(self):
        self.assertEqual(len(set(ranks.play(4, accumulated))), 1)

    def test_error_feedback_goes_on_from_a_checkpoint(self):
        for size in (2, 4):
            ranks.play(size, resumed)

    def test_a_group_may_be_compressed_as_a_whole(self):
        for size in (2, 4):
            played = ranks.play(size, by_options, options=ringfold_torch.Options(codec="int8"))
            self.assertEqual(len(set(played)), 1)

    @unittest.skipUnless(os.path.isdir(DATA), "dataset-fashion-mnist is not installed")
    def test_the_cnn_has_the_losses_of_gloo_and_the_bits_of_another_run(self):
        data = EXAMPLE.load(DATA, "train")

        def run(*arguments, backend="ringfold"):
            def one(rank, size):
                model, losses, _ = EXAMPLE.train(EXAMPLE.parse(["--steps", "30", *arguments]), *data)
                return losses, bits(model)
            played = ranks.play(4, one, backend=backend)
            self.assertEqual(len({parameters for _, parameters in played}), 1)
            return played
        ours, again, theirs, coded = run(), run(), run(backend="gloo"), run("--codec", "int8")
        self.assertEqual(ours, again)
        for (a, _), (b, _) in zip(ours, theirs):
            for x, y in zip(a[:20], b[:20]):  # later on, differences in the last bit have grown
                self.assertAlmostEqual(x, y, delta=1e-4)
        mean = [sum(losses[step] for losses, _ in ours) / 4 for step in range(30)]
        self.assertLess(min(mean[-5:]), 0.9 * mean[0])
        self.assertNotEqual(ours, coded)
        for step in range(10):
            self.assertAlmostEqual(sum(losses[step] for losses, _ in coded) / 4, mean[step], delta=0.05)

    @unittest.skipUnless(os.path.isdir(DATA), "dataset-fashion-mnist is not installed")
    def test_torchrun_starts_the_example(self):
        try:
            dist.TCPStore("127.0.0.1", 0, 1, True)
        except RuntimeError as error:
            self.skipTest(f"torchrun of this PyTorch works with no backend: {str(error).splitlines()[0]}")
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "out.json")
            done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "-r", "9:1", "-t", "9:1", "--standalone",
                                   "--nproc_per_node", "2", "-m", "ringfold_torch", TRAIN, "--steps", "3", "--backend",
                                   "ringfold", "--codec", "int8", "--json", file],
                                  capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertNotIn("[warning]", (done.stdout + done.stderr).lower())
            with open(file) as result:
                self.assertEqual(len(json.load(result)["losses"]), 3)


if __name__ == "__main__":
    ranks.main()
