// Gloo: TCP between processes that meet in a folder. Its collectives come in several forms, each a row of its own:
// functions (new_*) and the older classes, which work in place and set up their buffers when they are made, ahead of
// the timed calls. There is no bf16.
//
// The classes also set the sockets' send buffer to the size of their message, and whatever uses these sockets later
// must live with it: seen were functions that took 44 ms (a delayed acknowledgement) instead of 0.2. So each object
// of a class has connections of its own, and the functions share others.
#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/allreduce_halving_doubling.h>
#include <gloo/allreduce_ring_chunked.h>
#include <gloo/alltoall.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/math.h>
#include <gloo/reduce_scatter.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/rendezvous/prefix_store.h>
#include <gloo/transport/tcp/device.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <exception>
#include <functional>

#include "bench/peers/peer.h"

namespace ringfold::peers {
namespace {

using cli::Buffers;
using cli::Call;
using cli::Case;
using cli::Layout;
using cli::Memory;
using cli::Operation;

// Calls visit with a value of the C++ type; false when Gloo has none.
template <typename Visit>
bool with_type(DataType type, const Visit& visit) {
  switch (type) {
    case DataType::kF64: return visit(double{}), true;
    case DataType::kF32: return visit(float{}), true;
    case DataType::kF16: return visit(gloo::float16{}), true;
    case DataType::kI8: return visit(int8_t{}), true;
    case DataType::kU8: return visit(uint8_t{}), true;
    case DataType::kI32: return visit(int32_t{}), true;
    case DataType::kI64: return visit(int64_t{}), true;
    case DataType::kU64: return visit(uint64_t{}), true;
    default: return false;
  }
}

// What failed becomes a status: Gloo throws.
template <typename Body>
Status guarded(const Body& body) {
  try {
    body();
    return {};
  } catch (const std::exception& error) {
    return {Code::kIo, error.what()};
  }
}

class GlooCall final : public Call {
 public:
  explicit GlooCall(std::function<void()> body) : body_(std::move(body)) {}
  Status run() override { return guarded(body_); }

 private:
  const std::function<void()> body_;
};

// Where the ranks meet, for as many sets of connections as are asked for.
class Meeting {
 public:
  Meeting(int rank, int size, const PeerOptions& options) : rank_(rank), size_(size), store_(options.store) {
    gloo::transport::tcp::attr place;
    place.iface = options.interface;
    device_ = gloo::transport::tcp::CreateDevice(place);
  }
  std::shared_ptr<gloo::Context> connect() {
    auto context = std::make_shared<gloo::rendezvous::Context>(rank_, size_);
    context->setTimeout(std::chrono::minutes(2));
    gloo::rendezvous::PrefixStore store(std::to_string(sets_++), store_);
    context->connectFullMesh(store, device_);
    return context;
  }

 private:
  const int rank_, size_;
  int sets_ = 0;
  gloo::rendezvous::FileStore store_;
  std::shared_ptr<gloo::transport::Device> device_;
};

class Gloo final : public cli::Library {
 public:
  Gloo(std::unique_ptr<Meeting> meeting, std::string transport)
      : meeting_(std::move(meeting)),
        context_(meeting_->connect()),
        transport_(std::move(transport)),
        barrier_(context_) {
    barrier_.setTag(kBarrierTag);
    Name own{};
    if (const char* name = std::getenv("RINGFOLD_HOST_NAME"); name != nullptr) {
      std::string(name).copy(own.data(), own.size() - 1);
    } else {
      ::gethostname(own.data(), own.size() - 1);
    }
    hosts_.resize(static_cast<size_t>(context_->size));
    gloo::AllgatherOptions gather(context_);
    gather.setInput(own.data(), own.size());
    gather.setOutput(hosts_[0].data(), own.size() * hosts_.size());
    gloo::allgather(gather);
  }

  std::string about() const override { return "Gloo"; }
  int rank() const override { return context_->rank; }
  int size() const override { return context_->size; }
  std::string host_of(int rank) const override { return hosts_[static_cast<size_t>(rank)].data(); }
  std::string transport() const override { return transport_; }
  Result<Memory> allocate(size_t bytes) override { return aligned_memory(bytes); }

  std::vector<std::string> variants(const Operation& operation, const Case& c, bool in_place) const override {
    const auto name = operation.name();
    if (!with_type(c.type, [](auto) {})) return {};
    if (operation.reduced() && c.op.kind != ReduceKind::kSum) return {};
    if (name == "all_reduce" && !in_place) return {"new_ring", "new_bcube"};
    if (name == "all_reduce") return {"new_ring", "new_bcube", "ring_chunked", "halving_doubling"};
    if (name == "reduce_scatter" && in_place) return {"halving_doubling"};
    if (name == "all_to_all" && !in_place) return {"-"};
    if (name == "all_gather" || name == "broadcast" || name == "barrier" || name == "sendrecv" || name == "stream") {
      return {"-"};
    }
    return {};
  }
  // The class leaves the rank's block at the start.
  Layout layout(const Operation& operation, const Case& c, bool in_place) const override {
    Layout layout = operation.layout(c, rank());
    if (in_place && operation.name() == "reduce_scatter") layout.output_at = 0;
    return layout;
  }
  std::string algorithm(const Operation&, const Case&, const std::string& variant) const override { return variant; }

  Result<std::unique_ptr<Call>> prepare(const Operation& operation, const Case& c, const std::string& variant,
                                        const Buffers& buffers) override {
    std::function<void()> body;
    Status made = guarded([&] {
      with_type(c.type, [&](auto value) {
        using T = decltype(value);
        const Typed<T> typed{c, static_cast<T*>(buffers.input), static_cast<T*>(buffers.output), buffers.in_place};
        const auto name = operation.name();
        if (name == "all_reduce") body = all_reduce(typed, variant);
        if (name == "reduce_scatter") body = reduce_scatter(typed);
        if (name == "all_gather") body = all_gather(typed);
        if (name == "broadcast") body = broadcast(typed);
        if (name == "all_to_all") body = all_to_all(typed);
        if (name == "barrier") body = [this] { gloo::barrier(barrier_); };
        if (name == "sendrecv") body = ping_pong(typed);
        if (name == "stream") body = stream(typed, operation.transfers(c));
      });
    });
    if (!made.ok()) return made;
    return std::unique_ptr<Call>(std::make_unique<GlooCall>(std::move(body)));
  }

  Status barrier() override {
    return guarded([&] { gloo::barrier(barrier_); });
  }
  Status agree(std::span<double> values, ReduceKind kind) override {
    return guarded([&] {
      gloo::AllreduceOptions options(context_);
      options.setOutput(values.data(), values.size());
      using Function = void (*)(void*, const void*, const void*, size_t);
      options.setReduceFunction(static_cast<Function>(kind == ReduceKind::kMax ? Function(&gloo::max<double>)
                                                                               : Function(&gloo::sum<double>)));
      options.setTag(kAgreeTag);
      gloo::allreduce(options);
    });
  }

 private:
  static constexpr uint32_t kBarrierTag = 1, kAgreeTag = 2, kCallTag = 3;
  static constexpr uint8_t kMessagePrefix = 0x40;  // of slots; Gloo's collectives use 1 to 8
  using Name = std::array<char, 64>;

  template <typename T>
  struct Typed {
    Case c;
    T* input;
    T* output;
    bool in_place;
  };
  using Body = std::function<void()>;

  // Options and algorithms are made once and used by every call: the library's best case.
  template <typename T>
  Body all_reduce(const Typed<T>& t, const std::string& variant) {
    const std::vector<T*> pointers = {t.output};
    const auto count = static_cast<int>(t.c.block);
    if (variant == "ring_chunked")
      return running(std::make_shared<gloo::AllreduceRingChunked<T>>(meeting_->connect(), pointers, count));
    if (variant == "halving_doubling") {
      return running(std::make_shared<gloo::AllreduceHalvingDoubling<T>>(meeting_->connect(), pointers, count));
    }
    auto options = std::make_shared<gloo::AllreduceOptions>(context_);
    using Algorithm = gloo::AllreduceOptions::Algorithm;
    options->setAlgorithm(variant == "new_ring" ? Algorithm::RING : Algorithm::BCUBE);
    if (!t.in_place) options->setInput(t.input, t.c.block);
    options->setOutput(t.output, t.c.block);
    options->setReduceFunction(static_cast<void (*)(void*, const void*, const void*, size_t)>(&gloo::sum<T>));
    options->setTag(kCallTag);
    return [options] { gloo::allreduce(*options); };
  }
  template <typename T>
  Body reduce_scatter(const Typed<T>& t) {
    const auto block = static_cast<int>(t.c.block);
    return running(std::make_shared<gloo::ReduceScatterHalvingDoubling<T>>(
        meeting_->connect(), std::vector<T*>{t.output}, block * size(),
        std::vector<int>(static_cast<size_t>(size()), block)));
  }
  static Body running(std::shared_ptr<gloo::Algorithm> algorithm) {
    return [algorithm = std::move(algorithm)] { algorithm->run(); };
  }
  template <typename T>
  Body all_gather(const Typed<T>& t) {
    auto options = std::make_shared<gloo::AllgatherOptions>(context_);
    if (!t.in_place) options->setInput(t.input, t.c.block);
    options->setOutput(t.output, t.c.block * static_cast<size_t>(size()));
    options->setTag(kCallTag);
    return [options] { gloo::allgather(*options); };
  }
  template <typename T>
  Body broadcast(const Typed<T>& t) {
    auto options = std::make_shared<gloo::BroadcastOptions>(context_);
    if (!t.in_place && rank() == t.c.root) options->setInput(t.input, t.c.block);
    options->setOutput(t.output, t.c.block);
    options->setRoot(t.c.root);
    options->setTag(kCallTag);
    return [options] { gloo::broadcast(*options); };
  }
  template <typename T>
  Body all_to_all(const Typed<T>& t) {
    auto options = std::make_shared<gloo::AlltoallOptions>(context_);
    const size_t all = t.c.block * static_cast<size_t>(size());
    options->setInput(t.input, all);
    options->setOutput(t.output, all);
    options->setTag(kCallTag);
    return [options] { gloo::alltoall(*options); };
  }

  using Message = std::shared_ptr<gloo::transport::UnboundBuffer>;
  template <typename T>
  Message message(T* data, size_t elems) {
    return context_->createUnboundBuffer(data, elems * sizeof(T));
  }
  template <typename T>
  Body ping_pong(const Typed<T>& t) {
    const int partner = cli::partner_of(rank(), size());
    if (partner < 0) return [] {};
    const uint64_t slot = gloo::Slot::build(kMessagePrefix, kCallTag);
    return [to = message(t.input, t.c.block), from = message(t.output, t.c.block), partner, slot,
            first = partner > rank()] {
      from->recv(partner, slot);
      if (first) to->send(partner, slot);
      from->waitRecv();
      if (!first) to->send(partner, slot);
      to->waitSend();
    };
  }
  // A buffer for each message, as each may have one operation in flight; the last word is a byte, in a slot of its
  // own.
  template <typename T>
  Body stream(const Typed<T>& t, size_t window) {
    const int partner = cli::partner_of(rank(), size());
    if (partner < 0) return [] {};
    const bool sends = partner > rank();
    std::vector<Message> messages;
    for (size_t i = 0; i < window; ++i) {
      messages.push_back(message((sends ? t.input : t.output) + i * t.c.block, t.c.block));
    }
    const uint64_t slot = gloo::Slot::build(kMessagePrefix, kCallTag);
    const uint64_t last = gloo::Slot::build(kMessagePrefix, kCallTag + 1);
    return [messages = std::move(messages), word = message(&last_word_, 1), partner, slot, last, sends] {
      for (const auto& m : messages) sends ? m->send(partner, slot) : m->recv(partner, slot);
      for (const auto& m : messages) sends ? m->waitSend() : m->waitRecv();
      if (sends) {
        word->recv(partner, last);
        word->waitRecv();
      } else {
        word->send(partner, last);
        word->waitSend();
      }
    };
  }

  const std::unique_ptr<Meeting> meeting_;
  const std::shared_ptr<gloo::Context> context_;
  const std::string transport_;
  gloo::BarrierOptions barrier_;
  std::vector<Name> hosts_;
  char last_word_ = 0;
};

int number_from(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? -1 : std::atoi(text);
}

}  // namespace

const char* const kProgram = RINGFOLD_PEER;

// Gloo has no launcher: `ringfold run` is one for any program.
Result<std::unique_ptr<cli::Library>> join(const PeerOptions& options) {
  const int rank = number_from("RINGFOLD_RANK"), size = number_from("RINGFOLD_SIZE");
  if (rank < 0 || size < 1 || options.store.empty()) {
    return Status(Code::kInvalid,
                  "it takes RINGFOLD_RANK and RINGFOLD_SIZE (from `ringfold run`) and --store FOLDER");
  }
  std::unique_ptr<cli::Library> library;
  Status joined = guarded(
      [&] { library = std::make_unique<Gloo>(std::make_unique<Meeting>(rank, size, options), options.transport); });
  if (!joined.ok()) return joined;
  return library;
}

}  // namespace ringfold::peers
