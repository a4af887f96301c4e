// Communicator: a group of ranks that make the same calls in the same order. The main class of Ringfold.
//
//   auto comm = ringfold::Communicator::init();                    // in a program started by `ringfold run -n 4 --
//   ...` if (!comm.ok()) ...                                             // comm.status().to_string() says what and
//   where std::vector<float> gradient = ...; ringfold::Status s = comm->all_reduce(gradient.data(), gradient.data(),
//   gradient.size(), ringfold::DataType::kF32).wait();
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/codec.h"
#include "ringfold/counters.h"
#include "ringfold/error_feedback.h"
#include "ringfold/status.h"
#include "ringfold/types.h"
#include "ringfold/work.h"

namespace ringfold {

// A meeting place that the program brings, such as a key-value store that its ranks share: hands in this rank's bytes
// and returns those of all ranks, by rank, when all have handed in theirs; gives up after `timeout_s` with a status
// that names who is missing. Called once, by init(). What passes through it is sealed with the job's key.
using Exchange = std::function<Result<std::vector<std::string>>(const std::string& mine, double timeout_s)>;

// How a communicator is made. What is left unset comes from RINGFOLD_* variables (`ringfold info` lists them), then
// from the defaults.
struct Options {
  // Place in the job; rank < 0: from the launcher's variables (ringfold run, torchrun, Slurm, Open MPI, MPICH).
  int rank = -1;
  int size = -1;
  std::string rendezvous;  // "host:port" or "dir:/path"
  Exchange exchange;       // instead of a rendezvous; with rank and size
  double timeout_s = 0;    // deadline of every call, and of init itself; 0: RINGFOLD_TIMEOUT, else 300 s
  std::string transport;   // "auto", "shm", "tcp"; "": RINGFOLD_TRANSPORT
  std::string algorithm;   // "auto", "ring", "tree", ...; "": RINGFOLD_ALGORITHM
  std::string key_file;    // the job's shared key; "": RINGFOLD_KEY_FILE, else the user's own
  std::string key;         // the key itself, instead of a file: 16 characters or more that nobody else knows
  // The same bits whatever the size, algorithm, transport and number of calls in flight. (Not of calls that a codec
  // is asked for: blocks of codes begin where chunks do. "auto" takes no codec then.)
  bool deterministic = false;
  bool background = false;  // a thread drives calls that nobody waits for: overlap with computation
  // Processes may join the job in the place of ranks that were lost (see reconfigure). The same on all ranks. A
  // process with RINGFOLD_RESTARTED=1, which `ringfold run --restarts` sets, is one that does: its init() waits until
  // the others take it in, and returns their communicator, whose epoch() is not 0. It finds them where the job met,
  // if that was dir:... or the launcher's own address.
  bool open = false;
  // "int8", "auto", ... (codec.h): what all_reduce and reduce_scatter of f32 (sum, avg, scaled sum) use where a call
  // does not say; "": RINGFOLD_CODEC, else "none". The same on all ranks. With "auto", init() measures the links, if
  // nobody has.
  std::string codec;
};

class Group;

// Per call.
struct CallOptions {
  double timeout_s = 0;  // 0: the communicator's. Ranks may give different values
  // How values travel; unset: the communicator's. The same on all ranks. For f32 in all_reduce and reduce_scatter
  // (sum, avg, scaled sum), all_gather, broadcast, send and recv. A value is encoded at most twice on its way, sums
  // are made in f32, and all ranks end with the same bits, the root of a broadcast and the owner of a block included:
  // out of place they get what the others get, in place it replaces what they had (also where the call fails
  // afterwards). Messages do not know "auto".
  std::optional<Codec> codec = std::nullopt;
  // Name of the tensor whose error feedback the codes use (error_feedback.h); empty: what codes miss is dropped. Of
  // all_reduce and reduce_scatter. Needs to last until the call has started.
  std::string_view feedback = {};
  // Of all_reduce, reduce and reduce_scatter: this rank's values are multiplied by it before they are reduced (floats
  // rounded once; integers by its whole part, wrapping). Ranks may give different ones, or none.
  std::optional<double> input_factor = std::nullopt;
  // Of messages: what this one is, in words for verdicts ("the gradient of micro-batch 3"). A message with a label
  // may be posted ahead of need: this rank counts as waiting for it only while somebody is in its Work::wait. Needs
  // to last until the call has started.
  std::string_view label = {};
  // A CUDA stream (CUstream or cudaStream_t): the call begins when the work that is on it now is done, and work that
  // is put on it later begins when the call is done, well or not. For the default stream give CU_STREAM_LEGACY (or
  // cudaStreamLegacy), since null means no stream: then the call is ordered like one on host memory, and what other
  // streams do to its buffers is for the caller to order. With host memory, too. Not while the stream is captured.
  void* stream = nullptr;
  // Of a call on a stream: it is one of a group (see there), which is told of it.
  Group* group = nullptr;
};

// A collective with everything but its start decided. See Communicator::persistent_*.
class Persistent;

// Calls. Buffers are contiguous; counts are in elements of `type`. In and out of place: `input` and `output` may be
// the same (where one is a part of the other: the block that belongs to this rank); otherwise they must not overlap.
// A count of 0 is a call like any other. All ranks make the same calls in the same order, with equal arguments where
// the comments say "same"; a call that does not match is an error on every rank (Code::kMismatch), and no output
// receives a value from a call that does not match. A rank whose part was over before (a sender in a gather) learns
// of it in its next call; and where only two ranks had made the call, nobody can tell which of them is wrong.
// Pointers may be null where a rank has no such buffer (the input of a broadcast on other ranks than the root).
//
// Calls return at once. A number of them may be in flight; on each communicator they take effect in the order of the
// calls. Threads: all functions from any thread; threads that use one communicator at the same time must agree on the
// order of collectives on all ranks, or each use a communicator of its own (split).
//
// Device memory. Every buffer may lie on a CUDA device: its address tells. Collectives go from GPU to GPU where all
// ranks' GPUs reach each other, or RDMA reaches them and bytes are only moved; other calls pass through pinned
// memory, piece by piece, over whatever transport there is (RINGFOLD_STAGE: bytes of a piece). In one collective all
// ranks give device memory or none does, of any devices; all_to_all_v and messages leave that to each rank. On one
// rank one buffer may be on a device and the other on the host. Calls may be put on a stream (CallOptions::stream).
// From the first such call on the communicator has a thread for copies, and its calls move in the background,
// whatever Options::background says.
//
// Sums of f16 and bf16 are added in f32 and rounded once per reduction step of the algorithm: once in all with
// direct, oneshot and star, once per hop with ring, tree, recursive and chain.
//
// Failure. When a rank dies, stops, or makes another call, every survivor's calls end with the same Verdict, and so
// does every later call: the communicator is dead. reconfigure() makes a new one of the survivors. The library never
// ends the process.
class RINGFOLD_API Communicator {
 public:
  // Joins the job. Every rank calls it; blocks until all have, or the deadline.
  static Result<Communicator> init(const Options& options = {});
  // `ranks` communicators of one group in this process, for ranks as threads; element r is rank r's.
  static Result<std::vector<Communicator>> init_local(int ranks, const Options& options = {});

  Communicator();  // empty: only assignment and destruction are allowed
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  // Leaves the group in order; calls in flight end with kAborted.
  ~Communicator();

  int rank() const;
  int size() const;
  int job_rank() const;                      // of this process in its job: the same in all of its communicators
  uint32_t epoch() const;                    // 0, then one more for each reconfigure
  std::string transport_to(int peer) const;  // "shm", "tcp", "ucx", "loopback", or "self"
  std::string host_of(int rank) const;
  // Ok while usable; otherwise the verdict.
  Status status() const;

  // output[i] = op over all ranks of input[i]. Same count, type, op.
  Work all_reduce(const void* input, void* output, size_t count, DataType type, ReduceOp op = kSum,
                  const CallOptions& options = {});
  // The same at `root` only; output is ignored elsewhere. Same count, type, op, root.
  Work reduce(const void* input, void* output, size_t count, DataType type, ReduceOp op, int root,
              const CallOptions& options = {});
  // input: size() blocks of `count`; output: the reduced block number rank(). Same count, type, op.
  Work reduce_scatter(const void* input, void* output, size_t count, DataType type, ReduceOp op = kSum,
                      const CallOptions& options = {});
  // input: one block of `count`; output: size() blocks, block r from rank r. Same count, type.
  Work all_gather(const void* input, void* output, size_t count, DataType type, const CallOptions& options = {});
  // output of every rank = input of `root`. Same count, type, root.
  Work broadcast(const void* input, void* output, size_t count, DataType type, int root,
                 const CallOptions& options = {});
  // input: one block of `count`; output at `root`: size() blocks. Same count, type, root.
  Work gather(const void* input, void* output, size_t count, DataType type, int root,
              const CallOptions& options = {});
  // input at `root`: size() blocks; output: one block of `count`. Same count, type, root.
  Work scatter(const void* input, void* output, size_t count, DataType type, int root,
               const CallOptions& options = {});
  // Block d of input goes to block rank() of rank d's output; size() blocks of `count` each. Same count, type.
  Work all_to_all(const void* input, void* output, size_t count, DataType type, const CallOptions& options = {});
  // Completes when every rank has called it.
  Work barrier(const CallOptions& options = {});

  // The -v forms: blocks of different sizes, one after another. counts[r] belongs to rank r; same counts on all
  // ranks.
  Work all_gather_v(const void* input, void* output, std::span<const size_t> counts, DataType type,
                    const CallOptions& options = {});
  Work reduce_scatter_v(const void* input, void* output, std::span<const size_t> counts, DataType type,
                        ReduceOp op = kSum, const CallOptions& options = {});
  // send_counts[d] elements go to rank d, receive_counts[s] come from rank s, which must be what s sends.
  Work all_to_all_v(const void* input, std::span<const size_t> send_counts, void* output,
                    std::span<const size_t> receive_counts, DataType type, const CallOptions& options = {});

  // Messages. Matched by sender and tag; equal tags from one sender arrive in the order they were sent. Order-free: a
  // send does not wait for its receive (up to RINGFOLD_MESSAGE_BUFFER bytes kept by the receiver), so sends and
  // receives may be made in any order on both sides. Count and type must match (kMismatch). `peer` may be this rank.
  Work send(const void* data, size_t count, DataType type, int peer, int64_t tag = 0,
            const CallOptions& options = {});
  // From `peer`, or from anybody with kAnySource; Work::source() tells who.
  Work recv(void* data, size_t count, DataType type, int peer, int64_t tag = 0, const CallOptions& options = {});
  // Both at once.
  Work send_recv(const void* send_data, size_t send_count, int to, void* recv_data, size_t recv_count, int from,
                 DataType type, int64_t tag = 0, const CallOptions& options = {});
  static constexpr int kAnySource = -1;

  // An all_reduce (and so on) on fixed buffers that is started again and again: checks and look-ups happen once.
  Result<Persistent> persistent_all_reduce(const void* input, void* output, size_t count, DataType type,
                                           ReduceOp op = kSum, const CallOptions& options = {});
  Result<Persistent> persistent_all_gather(const void* input, void* output, size_t count, DataType type,
                                           const CallOptions& options = {});
  Result<Persistent> persistent_reduce_scatter(const void* input, void* output, size_t count, DataType type,
                                               ReduceOp op = kSum, const CallOptions& options = {});
  Result<Persistent> persistent_broadcast(const void* input, void* output, size_t count, DataType type, int root,
                                          const CallOptions& options = {});

  // Collective. Ranks with the same `color` >= 0 become a communicator, ordered by key, then rank; color < 0: none,
  // and the result is an empty Communicator. Blocks.
  Result<Communicator> split(int color, int key = 0);
  // Collective among `ranks` only, the same list of ranks of this communicator on each of them: they become a
  // communicator, in the order of the list, and the other ranks take no part. Blocks, for `timeout_s` at most (0: the
  // communicator's).
  Result<Communicator> subset(std::span<const int> ranks, double timeout_s = 0);
  // After a verdict: every survivor calls it, and gets a communicator of the survivors, in the old order, with the
  // next epoch. Blocks. kDenied for a rank that the others left out. In a job that is open, one process that has come
  // in the place of a lost rank is taken in with it, as the last rank (further ones by the next calls); not where all
  // say so by `admit`. To take it in when nothing has failed, one rank calls abort() first.
  Result<Communicator> reconfigure(bool admit = true);
  // Ranks of the job (job_rank()) that have come back and wait for that, as far as this rank knows.
  std::vector<int> waiting() const;
  // Ends the communicator on all ranks, with a verdict that names this rank and `cause`.
  void abort(const std::string& cause);

  // What this rank's codes have missed, by tensor. Lives as long as a communicator that uses it.
  ErrorFeedback& error_feedback();

  // Collective, with nothing in flight: measures links and memory for about `seconds`, chooses algorithms by the
  // result from now on, and keeps it on disk for later communicators on the same hosts. Another choice may mean other
  // bits (not in deterministic mode), so Ringfold never measures unasked ("auto" asks).
  Status tune(double seconds = 2.0);
  // Collective, with nothing in flight, of ranks that are processes of one host: until unshare_memory() all ranks'
  // GPUs use this memory of cudaMalloc where it lies (cudaIpc), so that sums of f32, f16 and bf16 of more than 16 KiB
  // by 2, 4 or 8 ranks on GPUs of their own, with both buffers in such memory and at the same place of it on all
  // ranks, are neither copied before nor after. Same `bytes` on all ranks. kUnavailable or kInvalid, the same on all:
  // why it stays as it was; calls work all the same. One call on device memory must have been made before.
  Status share_memory(void* memory, size_t bytes);
  // Collective, with nothing in flight. Only then may any rank free it. (After a verdict: when all have given the
  // communicator back.) kMismatch: ranks named memory of different calls; kInvalid: a rank has calls in flight, or
  // does not share it. It stays shared then, on all.
  Status unshare_memory(void* memory);

  // The ranges of sizes and their algorithms for all collectives, with the reasons and figures. For people.
  std::string tuning();

  // What this rank has done so far; differences tell what calls took.
  Counters counters();

  // What a call would do: algorithm, steps, costs, with the reasons. For people. `codec` as in CallOptions.
  std::string explain(Collective collective, size_t count, DataType type, ReduceOp op = kSum, int root = 0,
                      std::optional<Codec> codec = std::nullopt);
  // What the last collective call that was planned for this shape uses: "ring", "direct", ...
  // With the codec, if links carry codes: "direct+int8"; and that codec by itself.
  std::string algorithm_for(Collective collective, size_t count, DataType type, ReduceOp op = kSum, int root = 0,
                            std::optional<Codec> codec = std::nullopt);
  Codec codec_for(Collective collective, size_t count, DataType type, ReduceOp op = kSum, int root = 0,
                  std::optional<Codec> codec = std::nullopt);

  class Impl;
  const std::shared_ptr<Impl>& impl() const { return impl_; }  // for Ringfold's own parts

 private:
  friend class Persistent;
  explicit Communicator(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

class RINGFOLD_API Persistent {
 public:
  // Starts it once more. The one before must be complete.
  Work start();
  class Impl;

 private:
  friend class Communicator;
  explicit Persistent(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

// Several calls as one: complete when all are. The calls start as they are added.
//   ringfold::Group group;
//   group.add(comm.send(...)); group.add(comm.recv(...));
//   Status s = group.wait();
// Calls on streams that are made with CallOptions::group (and need not be added) begin together: each when the work
// is done that was on its stream when the first of the group on that stream was made, whatever order they are in; so
// a send and its answer, or calls on two communicators, may share a stream. submit() holds the streams until the
// group's calls on them are done. One thread at a time.
class RINGFOLD_API Group {
 public:
  Group();
  ~Group();  // of one that was not submitted: its calls go on, and hold no stream
  Group(Group&&) noexcept;
  Group& operator=(Group&&) noexcept;
  void add(Work work);
  Work submit();
  Status wait() { return submit().wait(); }

  class Impl;

 private:
  friend class Communicator::Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ringfold
