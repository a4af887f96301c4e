"""The Python package `ringfold` on ranks as threads: results against NumPy's, refusals, memory that calls keep."""

import array
import gc
import sys
import threading
import time
import unittest
import weakref

import numpy as np

import ringfold

N = 3


def on_ranks(body, ranks=N, **options):
    """body(comm) for each rank on a thread of its own; the results by rank. Raises the first error."""
    options.setdefault("timeout", 60)
    comms = ringfold.init_local(ranks, **options)
    results, errors = [None] * ranks, [None] * ranks

    def play(rank):
        try:
            with comms[rank] as comm:
                results[rank] = body(comm)
        except BaseException as error:  # noqa: BLE001
            errors[rank] = error

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results


def given(rank, count, dtype=np.float32):
    return ((np.arange(count) % 7 + 1) * (rank + 1)).astype(dtype)


def stacked(count, ranks=N, dtype=np.float32):
    return np.stack([given(rank, count, dtype) for rank in range(ranks)])


class Results(unittest.TestCase):
    def equal(self, a, b):
        np.testing.assert_array_equal(a, b)

    def test_all_reduce_knows_every_type_and_operation(self):
        types = ["f8", "f4", "f2", "i1", "u1", "i4", "u4", "i8", "u8"]

        def body(comm):
            for name in types:
                all_of_them = stacked(100, dtype=name)
                for op, expected in [
                    ("sum", all_of_them.sum(0)),
                    ("prod", all_of_them.prod(0, dtype=name)),
                    ("min", all_of_them.min(0)),
                    ("max", all_of_them.max(0)),
                    ("avg", all_of_them.sum(0) / N),
                ]:
                    mine = given(comm.rank, 100, name)
                    back = comm.all_reduce(mine, op=op)
                    self.assertIs(back, mine)  # in place
                    if mine.dtype.kind == "f":
                        np.testing.assert_allclose(mine, expected, rtol=2e-3 if name == "f2" else 1e-6)
                    else:
                        self.equal(mine, expected.astype(name))
            x = given(comm.rank, 10)
            self.equal(comm.all_reduce(x, op="scaled_sum", scale=0.5), stacked(10).sum(0) / 2)

        on_ranks(body)

    def test_out_of_place_leaves_the_input_alone(self):
        def body(comm):
            x, out = given(comm.rank, 50), np.full(50, -1, np.float32)
            self.assertIs(comm.all_reduce(x, out), out)
            self.equal(out, stacked(50).sum(0))
            self.equal(x, given(comm.rank, 50))

        on_ranks(body)

    def test_calls_without_out_make_arrays_of_the_right_shape(self):
        def body(comm):
            me = comm.rank
            x = given(me, 12).reshape(4, 3)
            gathered = comm.all_gather(x)
            self.assertEqual(gathered.shape, (N, 4, 3))
            self.equal(gathered.reshape(N, 12), stacked(12))
            at_root = comm.gather(x, 1)
            self.assertEqual(at_root is None, me != 1)
            if me == 1:
                self.equal(at_root, gathered)
            rows = given(me, 6 * N).reshape(2 * N, 3)
            mine = comm.reduce_scatter(rows)
            self.assertEqual(mine.shape, (2, 3))
            self.equal(mine, stacked(6 * N).sum(0).reshape(2 * N, 3)[2 * me : 2 * me + 2])
            blocks = given(me, 2 * N).reshape(N, 2)
            self.equal(comm.reduce_scatter(blocks), stacked(2 * N).sum(0).reshape(N, 2)[me])
            swapped = comm.all_to_all(blocks)
            self.equal(swapped, np.stack([given(r, 2 * N).reshape(N, 2)[me] for r in range(N)]))
            self.equal(comm.all_to_all(bytes([me] * N)), np.arange(N))

        on_ranks(body)

    def test_roots_give_and_take(self):
        def body(comm):
            me = comm.rank
            x = given(me, 20)
            self.assertIs(comm.broadcast(x, 2), x)
            self.equal(x, given(2, 20))
            self.equal(comm.scatter(np.empty(5, np.float32), 0, given(0, 5 * N) if me == 0 else None), given(0, 5 * N)[5 * me : 5 * me + 5])
            x = given(me, 20)
            result = comm.reduce(x, 1, op="max")
            self.assertEqual(result is None, me != 1)
            self.equal(x, given(N - 1, 20) if me == 1 else given(me, 20))

        on_ranks(body)

    def test_blocks_of_different_sizes(self):
        counts = [1, 2, 3]

        def body(comm):
            me = comm.rank
            self.equal(comm.all_gather_v(given(me, counts[me]), counts), np.concatenate([given(r, counts[r]) for r in range(N)]))
            edges = np.cumsum([0] + counts)
            total = stacked(6).sum(0)
            self.equal(comm.reduce_scatter_v(given(me, 6), counts), total[edges[me] : edges[me + 1]])
            received = comm.all_to_all_v(given(me, 6), counts, [counts[me]] * N)
            self.equal(received, np.concatenate([given(r, 6)[edges[me] : edges[me + 1]] for r in range(N)]))

        on_ranks(body)

    def test_messages_go_in_any_order_and_tell_their_source(self):
        def body(comm):
            me, right, left = comm.rank, (comm.rank + 1) % N, (comm.rank - 1) % N
            first, second = np.empty(4, np.float32), np.empty(4, np.float32)
            works = [comm.recv(second, left, 2, async_op=True), comm.recv(first, tag=1, async_op=True)]
            works += [comm.send(given(me, 4), right, 1, async_op=True), comm.send(given(me, 4) * 10, right, 2, async_op=True)]
            results = ringfold.wait_all(works)
            self.assertIs(results[0], second)
            self.assertEqual([w.source for w in works], [left, left, -1, -1])
            self.equal(first, given(left, 4))
            self.equal(second, given(left, 4) * 10)
            self.equal(comm.send_recv(given(me, 4), left, np.empty(4, np.float32), right), given(right, 4))

        on_ranks(body)

    def test_persistent_calls_start_again_and_again(self):
        def body(comm):
            x, out = given(comm.rank, 30), np.empty(30, np.float32)
            calls = [comm.persistent_all_reduce(x, out), comm.persistent_all_gather(x), comm.persistent_broadcast(x.copy(), 1), comm.persistent_reduce_scatter(x)]
            for factor in (1, 2, 3):
                x[:] = given(comm.rank, 30) * factor
                self.assertIs(calls[0].start(), out)
                self.equal(out, stacked(30).sum(0) * factor)
                work = calls[1].start(async_op=True)
                self.equal(work.wait(), stacked(30) * factor)
                self.equal(calls[2].start(), given(1, 30))
                self.equal(calls[3].start(), stacked(30).sum(0)[comm.rank * 10 : comm.rank * 10 + 10] * factor)
            work = calls[0].start(async_op=True)
            del calls
            self.assertIs(work.wait(), out)

        on_ranks(body)

    def test_anything_with_the_buffer_protocol_will_do(self):
        def body(comm):
            x = array.array("d", [comm.rank, 1])
            comm.all_reduce(x)
            self.assertEqual(x.tolist(), [3, 3])
            y = bytearray([comm.rank, 5])
            comm.all_reduce(memoryview(y), op="max")
            self.assertEqual(bytes(y), bytes([2, 5]))
            # bf16: the upper halves of 1.0f and 2.0f
            z = np.array([0x3F80, 0x4000], np.uint16)
            comm.all_reduce(z, dtype="bf16", op="prod")
            self.assertEqual(z.tolist(), [0x3F80, 0x4100])
            raw = bytearray(np.float32([comm.rank]).tobytes())
            comm.all_reduce(raw, dtype="f32")
            self.equal(np.frombuffer(raw, np.float32), np.float32([3]))
            own = ringfold.allocate((2, 3), "int32")
            self.assertEqual((own.shape, own.dtype, own.sum()), ((2, 3), np.dtype("int32"), 0))
            own += 1
            self.equal(comm.all_reduce(own), np.full((2, 3), N))
            empty = np.empty(0, np.float32)
            self.assertIs(comm.all_reduce(empty), empty)

        on_ranks(body)

    def test_codecs_keep_what_they_miss(self):
        def body(comm):
            x = given(comm.rank, 2048) + np.float32(0.3)
            exact = sum(given(r, 2048) + np.float32(0.3) for r in range(N))
            back = comm.all_reduce(x.copy(), codec="int8", feedback="w")
            error = np.abs(back - exact).max()
            self.assertLess(0, error)
            self.assertLess(error, 2 * exact.max() * ringfold.error_bound("int8"))
            feedback = comm.error_feedback
            self.assertEqual(feedback.names(), ["w"])
            held, saved = feedback.get("w"), feedback.save()
            self.assertEqual(held.shape, (2048,))
            feedback.reset()
            self.assertIsNone(feedback.get("w"))
            feedback.load(saved)
            feedback.add(saved)
            self.equal(feedback.get("w"), 2 * held)
            with self.assertRaises(ringfold.InvalidError):
                feedback.load(saved[:-1])
            self.assertEqual(comm.codec_for("all_reduce", 2048, codec="int4"), "int4")
            self.assertIn("+int4", comm.algorithm_for("all_reduce", 2048, codec="int4"))

        on_ranks(body)
        self.assertEqual(ringfold.encoded_bytes("int8", 1024), 1024 + 64)

    def test_groups_facts_and_figures(self):
        def body(comm):
            backwards = comm.subset(range(comm.size - 1, -1, -1))
            self.assertEqual(backwards.rank, comm.size - 1 - comm.rank)
            with self.assertRaises(ringfold.Error):
                comm.subset([comm.size])
            part = comm.split(comm.rank % 2, -comm.rank)
            self.assertEqual((part.size, part.rank), ((2, 1 - comm.rank // 2) if comm.rank % 2 == 0 else (1, 0)))
            part.close()
            self.assertIsNone(comm.split(-1) if comm.rank == 0 else (comm.split(1), None)[1])
            self.assertEqual(comm.transport_to(comm.rank), "self")
            self.assertTrue(comm.host_of(0))
            self.assertIn("all_reduce f32 x1000", comm.explain("all_reduce", 1000))
            self.assertIn("all_reduce", comm.tuning())
            comm.barrier()
            self.assertGreaterEqual(comm.counters().touched_bytes, 0)
            comm.tune(0.2)
            self.assertIn("measured", comm.tuning())
            self.assertIn(f"rank {comm.rank} of {N}", repr(comm))
            comm.check()

        on_ranks(body)


class Refusals(unittest.TestCase):
    def refuses(self, pattern, call, *args, **kwargs):
        with self.assertRaisesRegex(ringfold.InvalidError, pattern) as caught:
            call(*args, **kwargs)
        self.assertIsInstance(caught.exception, ValueError)
        self.assertIsNone(caught.exception.rank)

    def test_bad_arguments_are_named_and_start_nothing(self):
        x = np.ones(6, np.float32)
        with ringfold.init(rank=0, size=1) as comm:
            self.refuses("contiguous", comm.all_reduce, np.ones((4, 4), np.float32)[:, 1])
            self.refuses("writable", comm.all_reduce, b"bytes")
            self.refuses("contiguous", comm.all_reduce, [1.0, 2.0])
            self.refuses("format 'Zf'", comm.all_reduce, np.ones(2, np.complex64))
            self.refuses("none of Ringfold's types", comm.all_reduce, np.ones(2, ">f4"))
            self.refuses("none of Ringfold's types", comm.all_reduce, np.ones(2, np.uint16))
            self.refuses("which are not f64", comm.all_reduce, x, dtype="f64")
            self.refuses("none of f64", comm.all_reduce, x, dtype="f31")
            self.refuses("none of sum", comm.all_reduce, x, op="median")
            self.refuses("scale", comm.all_reduce, x, op="scaled_sum")
            self.refuses("scale", comm.all_reduce, x, op="sum", scale=2.0)
            self.refuses("different types", comm.all_reduce, x, np.ones(6))
            self.refuses("out has 5 elements, but this call takes 6", comm.all_reduce, x, np.ones(5, np.float32))
            self.refuses("int9", comm.all_reduce, x, codec="int9")
            self.refuses("2 counts for 1 ranks", comm.all_gather_v, x, [3, 3])
            self.refuses("not a rank", comm.host_of, 1)
            self.refuses("root|rank", comm.broadcast, x, 4)
            self.refuses("no collective", comm.explain, "all_shout", 1)
            self.refuses("peer 3", comm.send, x, 3)
            np.testing.assert_array_equal(x, np.ones(6))
            with self.assertRaises(TypeError):
                comm.all_reduce(x, None, "sum")  # op is a keyword
        self.refuses("closed", comm.barrier)
        self.assertTrue(comm.closed)
        comm.close()  # again: allowed
        self.refuses("rank", ringfold.init, rank=2, size=1)
        self.refuses("pigeon", ringfold.init, transport="pigeon")

    def test_blocks_that_do_not_divide_are_refused(self):
        def body(comm):
            self.refuses("7 elements are not 3 equal blocks", comm.reduce_scatter, np.ones(7))
            self.refuses("7 elements are not 3 equal blocks", comm.all_to_all, np.ones(7))

        on_ranks(body)


class Failures(unittest.TestCase):
    def test_a_mismatch_names_the_same_rank_on_all(self):
        def body(comm):
            with self.assertRaises(ringfold.MismatchError) as caught:
                comm.all_reduce(np.ones(2 if comm.rank == 1 else 3, np.float32))
            error = caught.exception
            self.assertEqual((error.rank, error.operation, error.sequence, error.epoch, error.code), (1, "all_reduce", 1, 0, "mismatch"))
            self.assertTrue(error.host and error.cause)
            self.assertIn("rank 1", str(error))
            with self.assertRaises(ringfold.MismatchError):
                comm.check()
            with comm.reconfigure() as again:
                self.assertEqual(again.epoch, 1)
                again.barrier()

        on_ranks(body)

    def test_waits_end_at_their_timeout_and_go_on(self):
        a, b = ringfold.init_local(2, timeout=60)
        x = np.zeros(1, np.float32)
        work = a.recv(x, 1, async_op=True)
        for timeout in (0, 0.05):
            with self.assertRaises(ringfold.TimeoutError) as caught:
                work.wait(timeout)
            self.assertIsInstance(caught.exception, TimeoutError)
        self.assertFalse(work.done or work.test())
        b.send(np.float32([7]), 0)
        self.assertIs(work.wait(), x)
        self.assertEqual((x[0], work.source, work.done), (7, 1, True))
        with self.assertRaises(ringfold.TimeoutError) as caught:
            a.recv(x, 1, timeout=0.1)
        self.assertEqual(caught.exception.rank, 1)  # whose message did not come

    def test_leaving_a_with_block_waits_for_the_others_but_not_after_an_error(self):
        def body(comm):
            if comm.rank == 1:
                time.sleep(0.2)
            x = comm.scatter(np.empty(5, np.float32), 0, given(0, 5 * N) if comm.rank == 0 else None)
            np.testing.assert_array_equal(x, given(0, 5 * N)[5 * comm.rank : 5 * comm.rank + 5])

        on_ranks(body)
        a, b = ringfold.init_local(2, timeout=60)
        with self.assertRaises(ZeroDivisionError):
            with a:
                1 / 0
        with self.assertRaises(ringfold.PeerLostError) as caught:
            b.barrier()
        self.assertEqual(caught.exception.rank, 0)

    def test_abort_and_close_end_calls_in_flight(self):
        a, b = ringfold.init_local(2, timeout=60)
        work = a.recv(np.zeros(1), 1, async_op=True)
        b.abort("enough is enough")
        with self.assertRaisesRegex(ringfold.AbortedError, "enough is enough") as caught:
            work.wait()
        self.assertEqual(caught.exception.rank, 1)
        a, b = ringfold.init_local(2, timeout=60)
        work = a.recv(np.zeros(1), 1, async_op=True)
        a.close()
        with self.assertRaises(ringfold.AbortedError):
            work.wait()


class Memory(unittest.TestCase):
    def test_a_call_keeps_its_buffers_until_it_is_done(self):
        class Mine(np.ndarray):  # can be referred to weakly
            pass

        a, b = ringfold.init_local(2, timeout=60)
        x = np.zeros(4, np.float32).view(Mine)
        alive = weakref.ref(x)
        work = a.recv(x, 1, async_op=True)
        locked = bytearray(4)
        other = a.recv(locked, 1, 9, async_op=True)
        with self.assertRaises(BufferError):
            locked.extend(b"more")
        del x, work, other
        gc.collect()
        self.assertIsNotNone(alive())  # though nobody has the handle
        b.send(np.ones(4, np.float32), 0)
        b.send(b"1234", 0, 9)
        for _ in range(1000):
            a.send(b"", 0, 5, async_op=True)  # sweeps what is done
            if alive() is None:
                break
            time.sleep(0.001)
        self.assertIsNone(alive())
        self.assertEqual(locked, b"1234")
        a.close()
        locked.extend(b"more")

    def test_finished_calls_leak_no_references(self):
        with ringfold.init(rank=0, size=1) as comm:
            x = np.ones(8, np.float32)
            before = sys.getrefcount(x)
            for _ in range(100):
                comm.all_reduce(x)
                comm.all_reduce(x, async_op=True).wait()
                comm.all_gather(x)
                try:
                    comm.all_reduce(x, np.ones(3, np.float32))
                except ringfold.InvalidError:
                    pass
            gc.collect()
            self.assertEqual(sys.getrefcount(x), before)

    def test_other_threads_run_while_one_waits(self):
        a, b = ringfold.init_local(2, timeout=60)
        counted = []
        x = np.zeros(1)

        def wait():
            a.recv(x, 1)
            counted.append("received")

        thread = threading.Thread(target=wait)
        thread.start()
        for i in range(100):  # would never get here if the wait held the lock of the interpreter
            counted.append(i)
        b.send(np.float64([3]), 0)
        thread.join()
        self.assertEqual((x[0], counted[-1], len(counted)), (3, "received", 101))


if __name__ == "__main__":
    unittest.main(verbosity=2)
