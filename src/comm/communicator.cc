#include "ringfold/communicator.h"

#include <fmt/format.h>

#include <numeric>
#include <thread>

#include "comm/impl.h"
#include "ringfold/version.h"

namespace ringfold {

const char* version() { return RINGFOLD_VERSION; }

namespace {
std::vector<int> everybody(int size) {
  std::vector<int> all(static_cast<size_t>(size));
  std::iota(all.begin(), all.end(), 0);
  return all;
}
}  // namespace

Communicator::Communicator() = default;
Communicator::Communicator(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;
Communicator::~Communicator() = default;

Result<Communicator> Communicator::init(const Options& options) {
  auto session = comm::Session::join(options);
  if (!session.ok()) return session.status();
  const auto until = base::Deadline::after((*session)->timeout);
  if ((*session)->control->came_back()) {
    auto joined = Impl::join(*session, until);
    if (!joined.ok()) return joined.status();
    return Communicator(*std::move(joined));
  }
  auto impl = Impl::make(*session, everybody((*session)->control->size()), "world", 0, until);
  if (!impl.ok()) return impl.status();
  Communicator comm(*std::move(impl));
  if (comm.impl_->wants_figures()) RINGFOLD_TRY(comm.tune(1.0));
  return comm;
}

Result<std::vector<Communicator>> Communicator::init_local(int ranks, const Options& options) {
  auto sessions = comm::Session::local(ranks, options);
  if (!sessions.ok()) return sessions.status();
  // Joining is collective, so each rank does it on a thread of its own.
  std::vector<Result<std::shared_ptr<Impl>>> made(static_cast<size_t>(ranks), Status(Code::kInternal, "not made"));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      auto& session = (*sessions)[static_cast<size_t>(r)];
      made[static_cast<size_t>(r)] =
          Impl::make(session, everybody(ranks), "world", 0, base::Deadline::after(session->timeout));
    });
  }
  for (auto& t : threads) t.join();
  std::vector<Communicator> all;
  for (auto& m : made) {
    if (!m.ok()) return m.status();
    all.push_back(Communicator(*std::move(m)));
  }
  return all;
}

int Communicator::rank() const { return impl_->rank(); }
int Communicator::size() const { return impl_->size(); }
int Communicator::job_rank() const { return impl_->session->control->rank(); }
uint32_t Communicator::epoch() const { return impl_->epoch(); }
std::vector<int> Communicator::waiting() const {
  std::vector<int> ranks;
  for (const auto& arrival : impl_->session->control->arrivals()) {
    if (arrival.ready) ranks.push_back(arrival.rank);
  }
  return ranks;
}
Status Communicator::status() const { return impl_->status(); }

std::string Communicator::transport_to(int peer) const {
  if (peer == rank()) return "self";
  std::string name;
  impl_->engine().inspect([&] { name = impl_->domain().transport_to(peer)->name(); });
  return name;
}

std::string Communicator::host_of(int rank) const {
  return impl_->session->control->peer(impl_->members()[static_cast<size_t>(rank)]).host;
}

Work Communicator::all_reduce(const void* input, void* output, size_t count, DataType type, ReduceOp op,
                              const CallOptions& options) {
  return impl_->start({.collective = Collective::kAllReduce, .type = type, .op = op, .count = count}, input, output,
                      options);
}

Work Communicator::reduce(const void* input, void* output, size_t count, DataType type, ReduceOp op, int root,
                          const CallOptions& options) {
  return impl_->start({.collective = Collective::kReduce, .type = type, .op = op, .root = root, .count = count},
                      input, rank() == root ? output : nullptr, options);
}

Work Communicator::reduce_scatter(const void* input, void* output, size_t count, DataType type, ReduceOp op,
                                  const CallOptions& options) {
  return impl_->start({.collective = Collective::kReduceScatter, .type = type, .op = op, .count = count}, input,
                      output, options);
}

Work Communicator::all_gather(const void* input, void* output, size_t count, DataType type,
                              const CallOptions& options) {
  return impl_->start({.collective = Collective::kAllGather, .type = type, .count = count}, input, output, options);
}

Work Communicator::broadcast(const void* input, void* output, size_t count, DataType type, int root,
                             const CallOptions& options) {
  return impl_->start({.collective = Collective::kBroadcast, .type = type, .root = root, .count = count},
                      rank() == root ? input : nullptr, output, options);
}

Work Communicator::gather(const void* input, void* output, size_t count, DataType type, int root,
                          const CallOptions& options) {
  return impl_->start({.collective = Collective::kGather, .type = type, .root = root, .count = count}, input,
                      rank() == root ? output : nullptr, options);
}

Work Communicator::scatter(const void* input, void* output, size_t count, DataType type, int root,
                           const CallOptions& options) {
  return impl_->start({.collective = Collective::kScatter, .type = type, .root = root, .count = count},
                      rank() == root ? input : nullptr, output, options);
}

Work Communicator::all_to_all(const void* input, void* output, size_t count, DataType type,
                              const CallOptions& options) {
  return impl_->start(
      {.collective = Collective::kAllToAll, .type = type, .count = count, .in_place = input == output}, input, output,
      options);
}

Work Communicator::barrier(const CallOptions& options) {
  return impl_->start({.collective = Collective::kBarrier, .type = DataType::kU8}, nullptr, nullptr, options);
}

namespace {
// One count per rank; an empty list would pass for a call with a single count.
Status check_counts(const char* name, std::span<const size_t> counts, int ranks) {
  if (counts.size() == static_cast<size_t>(ranks)) return {};
  return {Code::kInvalid, fmt::format("{}: {} counts for {} ranks", name, counts.size(), ranks)};
}
}  // namespace

Work Communicator::all_gather_v(const void* input, void* output, std::span<const size_t> counts, DataType type,
                                const CallOptions& options) {
  if (Status s = check_counts("all_gather_v", counts, size()); !s.ok()) return Work(s);
  return impl_->start({.collective = Collective::kAllGather, .type = type, .sizes = counts}, input, output, options);
}

Work Communicator::reduce_scatter_v(const void* input, void* output, std::span<const size_t> counts, DataType type,
                                    ReduceOp op, const CallOptions& options) {
  if (Status s = check_counts("reduce_scatter_v", counts, size()); !s.ok()) return Work(s);
  return impl_->start({.collective = Collective::kReduceScatter, .type = type, .op = op, .sizes = counts}, input,
                      output, options);
}

Work Communicator::all_to_all_v(const void* input, std::span<const size_t> send_counts, void* output,
                                std::span<const size_t> receive_counts, DataType type, const CallOptions& options) {
  for (auto counts : {send_counts, receive_counts}) {
    if (Status s = check_counts("all_to_all_v", counts, size()); !s.ok()) return Work(s);
  }
  const auto me = static_cast<size_t>(rank());
  if (send_counts[me] != receive_counts[me]) {
    return Work(Status(Code::kInvalid, fmt::format("all_to_all_v: rank {} sends itself {} elements but receives {}",
                                                   me, send_counts[me], receive_counts[me])));
  }
  return impl_->start({.collective = Collective::kAllToAll,
                       .type = type,
                       .sizes = send_counts,
                       .receive_sizes = receive_counts,
                       .in_place = input == output},
                      input, output, options);
}

Work Communicator::send_recv(const void* send_data, size_t send_count, int to, void* recv_data, size_t recv_count,
                             int from, DataType type, int64_t tag, const CallOptions& options) {
  Work receive = recv(recv_data, recv_count, type, from, tag, options);
  return Work::all({send(send_data, send_count, type, to, tag, options), receive});
}

// ---- persistent calls ----

class Persistent::Impl {
 public:
  std::shared_ptr<Communicator::Impl> comm;
  Call call;
  std::shared_ptr<const exec::Plan> plan;  // null: the call may be on device memory or a stream
  const void* input;
  void* output;
  CallOptions options;
  std::string feedback;  // what options.feedback refers to
};

namespace {
template <typename P>
Result<std::shared_ptr<typename P::Impl>> persist(const std::shared_ptr<Communicator::Impl>& comm, const Call& call,
                                                  const void* input, void* output, const CallOptions& options) {
  Call coded = call;
  coded.codec = comm->codec_of(call, options);
  auto impl = std::make_shared<typename P::Impl>();
  impl->comm = comm;
  impl->call = coded;
  RINGFOLD_TRY(comm->check(coded));
  const plan::Layout layout = comm->layout_of(call);
  RINGFOLD_TRY(comm->check_buffers(call, layout.input_elems() * size_of(call.type),
                                   layout.output_elems() * size_of(call.type), input, output));
  if (!comm->may_be_staged(options) && !options.input_factor) {
    auto plan = comm->plan_for(coded);
    if (!plan.ok()) return plan.status();
    impl->plan = *std::move(plan);
  }
  impl->input = input;
  impl->output = output;
  impl->options = options;
  impl->feedback = options.feedback;
  impl->options.feedback = impl->feedback;
  return impl;
}
}  // namespace

Work Persistent::start() {
  Impl& p = *impl_;
  return p.plan != nullptr ? p.comm->start(p.plan, p.input, p.output, p.options)
                           : p.comm->start(Call(p.call), p.input, p.output, p.options);
}

Result<Persistent> Communicator::persistent_all_reduce(const void* input, void* output, size_t count, DataType type,
                                                       ReduceOp op, const CallOptions& options) {
  auto p = persist<Persistent>(impl_, {.collective = Collective::kAllReduce, .type = type, .op = op, .count = count},
                               input, output, options);
  if (!p.ok()) return p.status();
  return Persistent(*std::move(p));
}

Result<Persistent> Communicator::persistent_all_gather(const void* input, void* output, size_t count, DataType type,
                                                       const CallOptions& options) {
  auto p = persist<Persistent>(impl_, {.collective = Collective::kAllGather, .type = type, .count = count}, input,
                               output, options);
  if (!p.ok()) return p.status();
  return Persistent(*std::move(p));
}

Result<Persistent> Communicator::persistent_reduce_scatter(const void* input, void* output, size_t count,
                                                           DataType type, ReduceOp op, const CallOptions& options) {
  auto p =
      persist<Persistent>(impl_, {.collective = Collective::kReduceScatter, .type = type, .op = op, .count = count},
                          input, output, options);
  if (!p.ok()) return p.status();
  return Persistent(*std::move(p));
}

Result<Persistent> Communicator::persistent_broadcast(const void* input, void* output, size_t count, DataType type,
                                                      int root, const CallOptions& options) {
  auto p =
      persist<Persistent>(impl_, {.collective = Collective::kBroadcast, .type = type, .root = root, .count = count},
                          rank() == root ? input : nullptr, output, options);
  if (!p.ok()) return p.status();
  return Persistent(*std::move(p));
}

// ---- groups of ranks ----

Result<Communicator> Communicator::split(int color, int key) {
  auto impl = impl_->split(color, key);
  if (!impl.ok()) return impl.status();
  return Communicator(*std::move(impl));
}

Result<Communicator> Communicator::subset(std::span<const int> ranks, double timeout_s) {
  auto impl = impl_->subset(ranks, timeout_s);
  if (!impl.ok()) return impl.status();
  return Communicator(*std::move(impl));
}

Result<Communicator> Communicator::reconfigure(bool admit) {
  auto impl = impl_->reconfigure(admit);
  if (!impl.ok()) return impl.status();
  return Communicator(*std::move(impl));
}

void Communicator::abort(const std::string& cause) { impl_->guard().request_abort(cause); }

Status Communicator::tune(double seconds) { return impl_->tune(*this, seconds); }

Status Communicator::share_memory(void* memory, size_t bytes) { return impl_->share_memory(memory, bytes, true); }
Status Communicator::unshare_memory(void* memory) { return impl_->share_memory(memory, 0, false); }

Counters Communicator::counters() { return impl_->engine().counters(impl_->domain()); }

std::string Communicator::tuning() {
  std::string text;
  for (int c = 0; c < kCollectives; ++c) text += impl_->choices().ranges(static_cast<Collective>(c));
  return text + impl_->choices().figures();
}

namespace {
// A call as people ask about it.
Call question(const Communicator::Impl& comm, Collective collective, size_t count, DataType type, ReduceOp op,
              int root, std::optional<Codec> codec) {
  Call call{.collective = collective, .type = type, .op = op, .root = root, .count = count};
  call.codec = comm.codec_of(call, {.codec = codec});
  return call;
}
}  // namespace

std::string Communicator::algorithm_for(Collective collective, size_t count, DataType type, ReduceOp op, int root,
                                        std::optional<Codec> codec) {
  auto plan = impl_->plan_for(question(*impl_, collective, count, type, op, root, codec));
  if (!plan.ok()) return plan.status().to_string();
  return (*plan)->coder.codec ? fmt::format("{}+{}", (*plan)->algorithm, to_string((*plan)->coder.codec))
                              : (*plan)->algorithm;
}

Codec Communicator::codec_for(Collective collective, size_t count, DataType type, ReduceOp op, int root,
                              std::optional<Codec> codec) {
  auto plan = impl_->plan_for(question(*impl_, collective, count, type, op, root, codec));
  return plan.ok() ? (*plan)->coder.codec : Codec();
}

std::string Communicator::explain(Collective collective, size_t count, DataType type, ReduceOp op, int root,
                                  std::optional<Codec> codec) {
  const Call call = question(*impl_, collective, count, type, op, root, codec);
  auto plan = impl_->plan_for(call);
  if (!plan.ok()) return plan.status().to_string();
  const auto choice = plan::choose(impl_->world(), impl_->layout_of(call), type, call.codec);
  const auto& p = (*plan)->program;
  size_t moves = 0;
  for (const auto& lane : p.lanes) moves += lane.size();
  return fmt::format(
      "{} {} x{} over {} ranks: {} ({}), codec {}; {} moves in {} lanes, {} passes, tiles of {} bytes, {} bytes of "
      "scratch, {} links\n{}",
      name_of(collective), name_of(type), count, size(), (*plan)->algorithm, choice.reason, to_string(choice.codec),
      moves, p.lanes.size(), p.passes, p.tile_bytes, p.scratch_bytes, p.links.size(),
      impl_->choices().ranges(collective) + impl_->choices().figures());
}

ErrorFeedback& Communicator::error_feedback() { return *impl_->feedback; }

}  // namespace ringfold
