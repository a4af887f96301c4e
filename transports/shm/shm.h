// Ranks as processes of one host, over shared memory.
//
// Each rank makes one memfd, its *segment*: a header, then the inbound rings from every local rank (slot_ring.h),
// sparse. Peers open it as /proc/PID/fd/FD, so it has no name anywhere and goes with the last process that maps it,
// however that process ends. What a peer must be to do so: in the same host and PID namespace, with the same user (or
// root).
//
// A put is copied into a slot, unless
//   it lies in memory from ringfold::allocate: the receiver maps the region and reads it in place;
//   or it has Options::remote_bytes, is no put_by_copy(), and the receiver may read this process's memory: it is read
//   once, with process_vm_readv, straight to where the receiver wants it. Whether that works, and pays (reads.h), is
//   tried when peers are added. Yama's ptrace_scope 1 forbids it between processes that are not parent and child,
//   unless Options::permit_reads.
// A receiver that cannot read what was put asks the sender for a copy. (Of memory that its user unmaps or protects
// while a put is under way, that is a fault, or the end of the sender's process.)
// Who stops has all of its memory back at once, whoever may still be reading there: a reader looks afterwards whether
// the sender has stopped meanwhile, and makes nothing of what it read if so (Link::confirm, Link::fetch).
#pragma once

#include <cstdint>
#include <memory>

#include "ringfold/transport.h"

namespace ringfold::shm {

struct Options {
  int slots = 8;                  // largest puts that a link takes ahead of the receiver: a power of two, 1 to 64
  size_t slot_bytes = 128 << 10;  // the largest put; 8 of them stay within a core's L2 cache
  int lines = 64;                 // puts of any size that it takes: a power of two up to 64, `slots` at least
  // Puts from allocated memory are by reference from this size on. (Intel Xeon, 2 ranks, a message and its answer: 1
  // KiB 0.31 us instead of 0.51, 2 KiB 0.36 instead of 0.95, 512 bytes alike.)
  size_t region_bytes = 1 << 10;
  // Puts from ordinary memory are from this size on; SIZE_MAX: never. (Intel Xeon, 2 ranks, all_gather in place:
  // blocks of 256 KiB that the caller has just written 25.5 us instead of 28.7, 4 MiB 473 instead of 640; 64 KiB 8.2
  // instead of 7.4. Of blocks that nobody has written since the last call, which are in the reader's cache, 3.7
  // instead of 7.8.)
  // Memory that the kernel does not read for others, as drivers may map it, is copied when the receiver asks for it.
  size_t remote_bytes = 128 << 10;
  bool weigh_reads = true;  // only where that is faster than copying (reads.h); false: wherever it is possible
  // Lets every process of this user read (and debug) this one where Yama would forbid it: prctl(PR_SET_PTRACER_ANY).
  // Off, large puts from ordinary memory are copied there.
  bool permit_reads = false;
};

// The transport of one rank. The nonce keeps communicators apart; all ranks pass the same nonce, size and options.
RINGFOLD_API Result<std::unique_ptr<transport::Transport>> make(int rank, int size, uint64_t communicator_nonce,
                                                                const Options& options = {});

}  // namespace ringfold::shm
