"""Trains a CNN on Fashion-MNIST with DistributedDataParallel: an ordinary PyTorch script, in which nothing is Ringfold's
but the name of the backend.

    torchrun --nproc_per_node 4 -m ringfold_torch tools/examples/pytorch/train.py --backend ringfold

`-m ringfold_torch` makes the backend known to PyTorch before 2.x's entry points do; `import ringfold_torch` in the
script does the same. (Debian 12's torchrun needs `-r 9:1 -t 9:1`, whatever it starts.)
"""

import argparse
import gzip
import json
import os
import time

import numpy
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="gloo")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256, help="of all ranks together")
    parser.add_argument("--steps", type=int, default=0, help="ends an epoch earlier; 0: not")
    parser.add_argument("--until", type=float, default=0, metavar="SHARE",
                        help="ends when this share of the test images is right; looks every 100 steps, and the clock "
                             "stands still meanwhile")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--codec", help="compresses gradients: int8, int4, auto, ... (backend ringfold)")
    parser.add_argument("--bucket-mb", type=float, metavar="MB",
                        help="gradients are reduced in buckets of this size, while others are computed; PyTorch's own: 1 "
                             "for the first, 25 for the others, so that this model has one")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--json", help="a file for the losses of rank 0 and the time per step")
    return parser.parse_args(arguments)


def load(folder, name):
    def read(path, header):
        with gzip.open(os.path.join(folder, path)) as file:
            return torch.from_numpy(numpy.frombuffer(file.read(), dtype=numpy.uint8, offset=header).copy())
    labels = read(f"{name}-labels-idx1-ubyte.gz", 8).long()
    return read(f"{name}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28), labels


def pixels(images):
    return images.float() / 255


def cnn():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
                         nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))


def accuracy(model, images, labels):
    """Of the ranks together, each on its share."""
    rank, size = dist.get_rank(), dist.get_world_size()
    with torch.no_grad():
        right = sum((model(pixels(x)).argmax(1) == y).sum()
                    for x, y in zip(images[rank::size].split(1000), labels[rank::size].split(1000)))
    dist.all_reduce(right)
    return right.item() / len(labels)


def train(args, images, labels, test=None):
    """In the default process group. Returns the model, this rank's losses, and the seconds of each step. `test`:
    images and labels for args.until."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    if args.bucket_mb:
        dist._DEFAULT_FIRST_BUCKET_BYTES = int(args.bucket_mb * 2**20)
    model = DistributedDataParallel(cnn(), bucket_cap_mb=args.bucket_mb or 25)
    if args.codec:
        import ringfold_torch
        model.register_comm_hook(None, ringfold_torch.compress(args.codec))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    share, losses, times = args.batch // size, [], []
    order = torch.Generator().manual_seed(1)
    for epoch in range(args.epochs):
        shuffled = torch.randperm(len(images), generator=order)
        for step in range(args.steps or len(images) // args.batch):
            begin = time.perf_counter()
            mine = shuffled[step * args.batch + rank * share:][:share]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pixels(images[mine])), labels[mine])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            times.append(time.perf_counter() - begin)
            if args.until and len(times) % 100 == 0 and accuracy(model.module, *test) >= args.until:
                return model, losses, times
        mean = torch.tensor(losses[-1])
        dist.all_reduce(mean)
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {mean.item() / size:.4f} in the last step", flush=True)
    return model, losses, times


def main():
    args = parse()
    torch.set_num_threads(1)
    dist.init_process_group(args.backend)
    test = load(args.data, "t10k")
    model, losses, times = train(args, *load(args.data, "train"), test)
    right = accuracy(model.module, *test)
    if dist.get_rank() == 0:
        step_ms = 1000 * sorted(times)[len(times) // 2]
        print(f"{args.backend}, {dist.get_world_size()} ranks: test accuracy {right:.4f}, {len(times)} steps in "
              f"{sum(times):.1f} s, {step_ms:.2f} ms per step (median)")
        if args.json:
            with open(args.json, "w") as file:
                json.dump({"losses": losses, "step_ms": step_ms, "accuracy": right}, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
