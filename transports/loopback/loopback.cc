#include "transports/loopback/loopback.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "transports/shm/ring_transport.h"

namespace ringfold::loopback {

using shm::Claim;
using shm::Reference;
using shm::SlotKind;
using shm::SlotLine;

struct Rank {
  shm::Bell bell = {};
  int wake_fd = -1;
  bool made = false;
};

// Everything that two ranks share. Each transport holds a reference, so a late look at a peer's bell or ring is safe.
struct Hub::State {
  State(int n, const Options& o)
      : options(o),
        geometry{static_cast<uint32_t>(o.slots), static_cast<uint32_t>(o.slot_bytes), static_cast<uint32_t>(o.slots)},
        ranks(static_cast<size_t>(n)) {}
  ~State() {
    for (auto& [key, memory] : rings) munmap(memory, geometry.ring_bytes());
    for (auto& rank : ranks) {
      if (rank.wake_fd >= 0) close(rank.wake_fd);
    }
  }

  // The ring from one rank to another; made by whoever asks first. Null: no memory.
  std::byte* ring(int from, int to, int lane) {
    std::lock_guard lock(mutex);
    std::byte*& memory = rings[{from, to, lane}];
    if (memory == nullptr) {
      void* m = mmap(nullptr, geometry.ring_bytes(), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      memory = m == MAP_FAILED ? nullptr : static_cast<std::byte*>(m);
    }
    return memory;
  }

  const Options options;
  const shm::Geometry geometry;
  std::mutex mutex;  // rings, Rank::made
  std::map<std::tuple<int, int, int>, std::byte*> rings;
  std::vector<Rank> ranks;
};

namespace {

class LoopbackTransport final : public shm::RingTransport {
 public:
  LoopbackTransport(int rank, std::shared_ptr<Hub::State> hub)
      : RingTransport(rank, static_cast<int>(hub->ranks.size()), hub->geometry, hub->options.reference_bytes),
        hub_(std::move(hub)) {
    own_bell(&me().bell);
  }
  ~LoopbackTransport() override { stop(); }

  std::string_view name() const override { return "loopback"; }
  std::string address() const override { return fmt::format("loopback/1 pid={} hub={}", getpid(), key()); }
  Status add_peer(int peer, std::string_view address) override {
    if (peer < 0 || peer >= size_ || peer == rank_) return {Code::kInvalid, fmt::format("no peer {} here", peer)};
    if (address != this->address()) {
      return {Code::kUnavailable, "the peer is in another process (loopback joins threads of one process)"};
    }
    peer_added(peer, &hub_->ranks[static_cast<size_t>(peer)].bell);
    return {};
  }
  int wake_fd() const override { return hub_->ranks[static_cast<size_t>(rank_)].wake_fd; }

 private:
  Rank& me() { return hub_->ranks[static_cast<size_t>(rank_)]; }
  uint64_t key() const { return reinterpret_cast<uint64_t>(hub_.get()); }

  Rings rings(int peer, int lane) override { return {hub_->ring(rank_, peer, lane), hub_->ring(peer, rank_, lane)}; }

  void ring(int peer) override {
    const uint64_t one = 1;
    [[maybe_unused]] auto n = write(hub_->ranks[static_cast<size_t>(peer)].wake_fd, &one, sizeof one);
  }

  void poll_system() override {
    // Nobody rings unless asked to; a ring that comes after this look makes the next sleep short, no more.
    uint64_t count;
    [[maybe_unused]] auto n = read(wake_fd(), &count, sizeof count);
    ++counters_.system_calls;
  }

  SlotKind refer(int, const std::byte* data, size_t, Reference* reference) override {
    *reference = Reference{.address = reinterpret_cast<uint64_t>(data), .claim = Claim::kUnclaimed};
    return SlotKind::kDirect;
  }

  const std::byte* resolve(int, SlotLine& line, bool* gone) override {
    uint32_t claim = Claim::kUnclaimed;
    *gone = !std::atomic_ref(line.reference.claim).compare_exchange_strong(claim, Claim::kClaimed);
    return reinterpret_cast<const std::byte*>(line.reference.address);
  }

  Status fetch(int, const SlotLine& line, std::byte* destination) override {
    std::memcpy(destination, reinterpret_cast<const std::byte*>(line.reference.address), line.bytes);
    return {};
  }

  int stop_wait_ms() const override { return hub_->options.stop_wait_ms; }

  const std::shared_ptr<Hub::State> hub_;
};

Result<std::shared_ptr<Hub::State>> make_state(int size, const Options& options) {
  if (size < 1) return Status(Code::kInvalid, "a communicator has at least one rank");
  RINGFOLD_TRY(shm::check_geometry(options.slots, options.slot_bytes, options.slots));
  auto state = std::make_shared<Hub::State>(size, options);
  for (auto& rank : state->ranks) {
    rank.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (rank.wake_fd < 0) return Status(Code::kUnavailable, fmt::format("eventfd: {}", std::strerror(errno)));
  }
  return state;
}

Result<std::unique_ptr<transport::Transport>> make_in(const std::shared_ptr<Hub::State>& state, int rank) {
  if (rank < 0 || rank >= static_cast<int>(state->ranks.size())) {
    return Status(Code::kInvalid, fmt::format("rank {} of {}", rank, state->ranks.size()));
  }
  {
    std::lock_guard lock(state->mutex);
    if (std::exchange(state->ranks[static_cast<size_t>(rank)].made, true)) {
      return Status(Code::kInvalid, fmt::format("rank {} has its transport already", rank));
    }
  }
  return std::unique_ptr<transport::Transport>(std::make_unique<LoopbackTransport>(rank, state));
}

}  // namespace

Hub::Hub(std::shared_ptr<State> state) : state_(std::move(state)) {}
Hub::~Hub() = default;

Result<std::unique_ptr<Hub>> Hub::create(int size, const Options& options) {
  auto state = make_state(size, options);
  if (!state.ok()) return state.status();
  return std::make_unique<Hub>(std::move(*state));
}

Result<std::unique_ptr<transport::Transport>> Hub::make(int rank) { return make_in(state_, rank); }

Result<std::unique_ptr<transport::Transport>> make(int rank, int size, uint64_t communicator_nonce,
                                                   const Options& options) {
  static std::mutex mutex;
  static std::map<uint64_t, std::weak_ptr<Hub::State>> hubs;
  std::shared_ptr<Hub::State> state;
  {
    std::lock_guard lock(mutex);
    std::erase_if(hubs, [](const auto& hub) { return hub.second.expired(); });
    state = hubs[communicator_nonce].lock();
    if (!state) {
      auto made = make_state(size, options);
      if (!made.ok()) return made.status();
      state = *made;
      hubs[communicator_nonce] = state;
    }
  }
  if (static_cast<int>(state->ranks.size()) != size ||
      state->geometry.slots != static_cast<uint32_t>(options.slots) ||
      state->geometry.slot_bytes != options.slot_bytes) {
    return Status(Code::kMismatch, "another rank of this process made this communicator with another size or slots");
  }
  return make_in(state, rank);
}

}  // namespace ringfold::loopback
