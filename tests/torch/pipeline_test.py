"""Pipelines on Ringfold: stages on different ranks, written by hand with the messages of torch.distributed, or executed by
torch.distributed.pipelining where PyTorch has it. They train like the whole model on one rank."""

import importlib.util
import inspect
import unittest

import ranks
import torch
import torch.distributed as dist
from torch import nn

PIPELINING = importlib.util.find_spec("torch.distributed.pipelining")  # 2.x
MICROBATCHES, ROWS, WIDTH, STEPS = 8, 4, 64, 3


def layers(stages):
    """The model, as a list of its stages."""
    torch.manual_seed(7)
    made = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)) for _ in range(stages - 1)]
    return made + [nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 10))]


def batch(step, replica, replicas):
    """One replica's share of a step's batch."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(replicas * MICROBATCHES * ROWS, WIDTH, generator=generator)
    y = torch.randint(10, (len(x),), generator=generator)
    return x.chunk(replicas)[replica], y.chunk(replicas)[replica]


def optimizer_of(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def whole(stages, replicas):
    """What a rank with all of the model and all of the batch comes to: losses, and parameters by stage."""
    parts = layers(stages)
    model = nn.Sequential(*parts)
    optimizer = optimizer_of(model.parameters())
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(step, 0, 1) if replicas == 1 else (torch.cat(t) for t in zip(
            *(batch(step, replica, replicas) for replica in range(replicas))))
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [values(part) for part in parts]


def values(part):
    return torch.cat([p.detach().flatten() for p in part.parameters()]).numpy()


class ByHand:
    """1F1B as one writes it with messages: sent ahead of need, received when needed."""

    def __init__(self, part, position, stages, base):
        self.part, self.first, self.last = part, position == 0, position == stages - 1
        self.before, self.after = base + position - 1, base + position + 1  # ranks
        self.warm = min(MICROBATCHES, stages - 1 - position)

    def step(self, x, y):
        """Leaves the gradients in the parameters, and returns the loss (on the last stage)."""
        xs, ys, sent, alive, loss = x.chunk(MICROBATCHES), y.chunk(MICROBATCHES), [], [], 0.0

        def forward(number):
            nonlocal loss
            if self.first:
                given = xs[number]
            else:
                given = torch.empty(ROWS, WIDTH)
                dist.recv(given, self.before, tag=number)
                given.requires_grad_()
            made = self.part(given)
            if self.last:
                made = nn.functional.cross_entropy(made, ys[number]) / MICROBATCHES
                loss += made.item()
            alive.append((given, made))
            return made.detach()

        for number in range(self.warm):
            sent.append(dist.isend(forward(number), self.after, tag=number))
        for number in range(self.warm, MICROBATCHES + self.warm):
            made = forward(number) if number < MICROBATCHES else None
            done = number - self.warm
            gradient = None
            if not self.last:  # an activation goes down while a gradient comes up
                gradient = torch.empty(ROWS, WIDTH)
                both = [dist.P2POp(dist.irecv, gradient, self.after, tag=1000 + done)]
                if made is not None:
                    both.append(dist.P2POp(dist.isend, made, self.after, tag=number))
                for work in dist.batch_isend_irecv(both):
                    work.wait()
            given, made = alive.pop(0)
            made.backward(gradient)
            if not self.first:
                sent.append(dist.isend(given.grad, self.before, tag=1000 + done))
        for work in sent:
            work.wait()
        return loss


def by_hand(replicas):
    """Data x pipeline: rank = replica * stages + position."""
    def play(rank, size):
        stages = size // replicas
        replica, position = divmod(rank, stages)
        peers = [dist.new_group([r * stages + p for r in range(replicas)]) for p in range(stages)][position]
        part = layers(stages)[position]
        stage, optimizer = ByHand(part, position, stages, replica * stages), optimizer_of(part.parameters())
        losses = []
        for number in range(STEPS):
            optimizer.zero_grad()
            loss = torch.tensor(stage.step(*batch(number, replica, replicas)))
            for tensor in [p.grad for p in part.parameters()] + [loss]:
                dist.all_reduce(tensor, group=peers)
                tensor /= replicas
            optimizer.step()
            losses.append(loss.item())
        return losses, values(part)
    return play


def by_pytorch(schedule, chunks=1):
    """torch.distributed.pipelining with `chunks` stages on each rank."""
    def play(rank, size):
        from torch.distributed import pipelining
        parts = layers(size * chunks)
        mine = list(range(rank, len(parts), size))
        made = [pipelining.PipelineStage(parts[i], i, len(parts), torch.device("cpu")) for i in mine]
        form = getattr(pipelining, schedule)
        unscaled = {"scale_grads": False} if "scale_grads" in inspect.signature(form).parameters else {}  # 2.6 never scales
        running = form(made if chunks > 1 else made[0], MICROBATCHES, **unscaled,
                       loss_fn=lambda out, y: nn.functional.cross_entropy(out, y) / MICROBATCHES)
        optimizer = optimizer_of([p for i in mine for p in parts[i].parameters()])
        losses = []
        for number in range(STEPS):
            optimizer.zero_grad()
            x, y = batch(number, 0, 1)
            of_microbatches = []
            running.step(*([x] if rank == 0 else []), target=y, losses=of_microbatches)
            optimizer.step()
            losses.append(sum(loss.item() for loss in of_microbatches))
        return losses, [values(parts[i]) for i in mine]
    return play


class Pipelines(unittest.TestCase):
    def agree(self, losses, of_stages, stages, replicas=1):
        expected, parameters = ranks.play(1, lambda *_: whole(stages, replicas))[0]
        for a, b in zip(losses, expected):
            self.assertAlmostEqual(a, b, delta=1e-5)
        for number, (a, b) in enumerate(zip(of_stages, parameters)):
            self.assertEqual(a.shape, b.shape)
            self.assertLess(abs(a - b).max(), 1e-5, f"stage {number}")

    def test_by_hand(self):
        for size in (2, 3, 4):
            played = ranks.play(size, by_hand(1))
            self.agree(played[-1][0], [part for _, part in played], size)

    def test_replicas_of_a_pipeline(self):
        played = ranks.play(4, by_hand(2))
        self.assertEqual(played[1][0], played[3][0])
        for position in (0, 1):
            self.assertTrue((played[position][1] == played[position + 2][1]).all())
        self.agree(played[1][0], [part for _, part in played[:2]], 2, 2)

    def pytorch(self, schedule, size, chunks=1):
        played = ranks.play(size, by_pytorch(schedule, chunks))
        stages = size * chunks  # dealt out in turn
        self.agree(played[-1][0], [played[i % size][1][i // size] for i in range(stages)], stages)


for schedule, size, chunks in (("GPipe", 2, 1), ("GPipe", 4, 1), ("1F1B", 2, 1), ("1F1B", 4, 1), ("Interleaved1F1B", 2, 2),
                               ("InterleavedZeroBubble", 2, 2)):
    def schedule_test(self, what=("Schedule" + schedule, size, chunks)):
        self.pytorch(*what)
    setattr(Pipelines, f"test_{schedule}_of_pytorch_{size}_ranks",
            unittest.skipUnless(PIPELINING, f"PyTorch {torch.__version__} has no torch.distributed.pipelining")(schedule_test))

if __name__ == "__main__":
    ranks.main()
