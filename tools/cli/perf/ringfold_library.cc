#include "tools/cli/perf/ringfold_library.h"

#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <set>

#include "ringfold/memory.h"
#include "ringfold/version.h"

namespace ringfold::cli {
namespace {

using Start = Work (*)(Communicator& comm, const Case& c, const void* input, void* output);

// The even rank sends, the odd one answers when it has all of it; `kTrips` times.
template <size_t kTrips>
Work ping_pong(Communicator& comm, const Case& c, const void* input, void* output) {
  const int partner = partner_of(comm.rank(), comm.size());
  if (partner < 0) return {};
  for (size_t trip = 1;; ++trip) {
    if (partner > comm.rank()) {
      Work sent = comm.send(input, c.block, c.type, partner);
      Work received = comm.recv(output, c.block, c.type, partner);
      if (trip == kTrips) return Work::all({std::move(sent), std::move(received)});
      if (Status s = received.wait(); !s.ok()) return Work(s);
      if (Status s = sent.wait(); !s.ok()) return Work(s);
    } else {
      if (Status s = comm.recv(output, c.block, c.type, partner).wait(); !s.ok()) return Work(s);
      Work sent = comm.send(input, c.block, c.type, partner);
      if (trip == kTrips) return sent;
      if (Status s = sent.wait(); !s.ok()) return Work(s);
    }
  }
}

// A window of messages to the odd rank, and a last word back. `kHot`: all of them from and to the same memory.
template <bool kHot>
Work stream(Communicator& comm, const Case& c, const void* input, void* output) {
  static const Operation* const kStream = find_operation("stream");
  const int partner = partner_of(comm.rank(), comm.size());
  if (partner < 0) return {};
  const size_t step = kHot ? 0 : c.block * size_of(c.type);
  const size_t window = kStream->transfers(c);
  std::vector<Work> works;
  works.reserve(window + 1);
  for (size_t i = 0; i < window; ++i) {
    works.push_back(partner > comm.rank()
                        ? comm.send(static_cast<const char*>(input) + i * step, c.block, c.type, partner)
                        : comm.recv(static_cast<char*>(output) + i * step, c.block, c.type, partner));
  }
  constexpr int64_t kDone = 1;  // the tag of the last word
  if (partner > comm.rank()) {
    works.push_back(comm.recv(nullptr, 0, c.type, partner, kDone));
    return Work::all(std::move(works));
  }
  if (Status received = Work::all(std::move(works)).wait(); !received.ok()) return Work(received);
  return comm.send(nullptr, 0, c.type, partner, kDone);
}

// NOLINTBEGIN: a table of one-liners
const std::map<std::string_view, Start>& starts() {
  using Comm = Communicator;
  static const std::map<std::string_view, Start> kStarts = {
      {"all_reduce", [](Comm& comm, const Case& c, const void* in,
                        void* out) { return comm.all_reduce(in, out, c.block, c.type, c.op); }},
      {"reduce", [](Comm& comm, const Case& c, const void* in,
                    void* out) { return comm.reduce(in, out, c.block, c.type, c.op, c.root); }},
      {"reduce_scatter", [](Comm& comm, const Case& c, const void* in,
                            void* out) { return comm.reduce_scatter(in, out, c.block, c.type, c.op); }},
      {"reduce_scatter_v",
       [](Comm& comm, const Case& c, const void* in, void* out) {
         return comm.reduce_scatter_v(in, out, uneven_counts(c.block, c.ranks), c.type, c.op);
       }},
      {"all_gather", [](Comm& comm, const Case& c, const void* in,
                        void* out) { return comm.all_gather(in, out, c.block, c.type); }},
      {"all_gather_v", [](Comm& comm, const Case& c, const void* in,
                          void* out) { return comm.all_gather_v(in, out, uneven_counts(c.block, c.ranks), c.type); }},
      {"broadcast", [](Comm& comm, const Case& c, const void* in,
                       void* out) { return comm.broadcast(in, out, c.block, c.type, c.root); }},
      {"gather", [](Comm& comm, const Case& c, const void* in,
                    void* out) { return comm.gather(in, out, c.block, c.type, c.root); }},
      {"scatter", [](Comm& comm, const Case& c, const void* in,
                     void* out) { return comm.scatter(in, out, c.block, c.type, c.root); }},
      {"all_to_all", [](Comm& comm, const Case& c, const void* in,
                        void* out) { return comm.all_to_all(in, out, c.block, c.type); }},
      {"all_to_all_v",
       [](Comm& comm, const Case& c, const void* in, void* out) {
         const auto counts = exchange_counts(c, comm.rank());
         return comm.all_to_all_v(in, counts, out, counts, c.type);
       }},
      {"barrier", [](Comm& comm, const Case&, const void*, void*) { return comm.barrier(); }},
      {"sendrecv", ping_pong<1>},
      {"hot_sendrecv", ping_pong<kTripsInARow>},
      {"stream", stream<false>},
      {"hot_stream", stream<true>},
  };
  return kStarts;
}
// NOLINTEND

class RingfoldCall final : public Call {
 public:
  RingfoldCall(Communicator& comm, const Case& c, const Buffers& buffers, Start start)
      : comm_(comm), case_(c), buffers_(buffers), start_(start) {}
  Status run() override { return start_(comm_, case_, buffers_.input, buffers_.output).wait(); }

 private:
  Communicator& comm_;
  const Case case_;
  const Buffers buffers_;
  const Start start_;
};

}  // namespace

std::string RingfoldLibrary::about() const { return fmt::format("Ringfold {}", version()); }

std::string RingfoldLibrary::transport() const {
  std::set<std::string> names;
  for (int r = 0; r < comm_.size(); ++r) {
    if (r != comm_.rank()) names.insert(comm_.transport_to(r));
  }
  if (names.empty()) return "self";
  std::string result;
  for (const auto& name : names) result += (result.empty() ? "" : "+") + name;
  return result;
}

Result<Memory> RingfoldLibrary::allocate(size_t bytes) {
  if (options_.memory == "malloc") {
    Memory memory(static_cast<char*>(std::malloc(bytes)), {&std::free});
    if (!memory) return Status(Code::kUnavailable, fmt::format("no memory for a buffer of {} bytes", bytes));
    return memory;
  }
  auto found = ringfold::allocate(bytes);
  if (!found.ok()) return found.status();
  return Memory(static_cast<char*>(*found), {&deallocate});
}

Result<std::unique_ptr<Call>> RingfoldLibrary::prepare(const Operation& operation, const Case& c, const std::string&,
                                                       const Buffers& buffers) {
  const auto found = starts().find(operation.name());
  if (found == starts().end()) {
    return Status(Code::kInternal, fmt::format("nobody knows how to call {}", operation.name()));
  }
  return std::unique_ptr<Call>(std::make_unique<RingfoldCall>(comm_, c, buffers, found->second));
}

std::string RingfoldLibrary::algorithm(const Operation& operation, const Case& c, const std::string&) const {
  const auto collective = operation.collective();
  return collective ? comm_.algorithm_for(*collective, c.block, c.type, c.op, c.root) : "-";
}

Codec RingfoldLibrary::codec(const Operation& operation, const Case& c) const {
  const auto collective = operation.collective();
  return collective ? comm_.codec_for(*collective, c.block, c.type, c.op, c.root) : Codec();
}

Status RingfoldLibrary::agree(std::span<double> values, ReduceKind kind) {
  return comm_.all_reduce(values.data(), values.data(), values.size(), DataType::kF64, kind).wait();
}

}  // namespace ringfold::cli
