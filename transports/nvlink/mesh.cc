#include "transports/nvlink/mesh.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include "base/log.h"

namespace ringfold::nvlink {
namespace {

struct Card {
  std::string name, uuid;
  uint64_t bytes = 0;
  std::string fabric;  // "-": none

  static Result<Card> parse(const std::string& text) {
    Card card;
    std::istringstream in(text);
    if (!(in >> card.name >> card.uuid >> card.bytes >> card.fabric)) {
      return Status(Code::kProtocol, "a rank's card for GPU memory cannot be read");
    }
    return card;
  }
};

// Of threads that wait for a stream: the driver may ring late, when nobody waits any more.
struct Flag {
  std::mutex mutex;
  std::condition_variable changed;
  bool raised = false;

  void raise() {
    const std::lock_guard lock(mutex);
    raised = true;
    changed.notify_all();
  }
  bool wait(base::Deadline until) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, until.left(), [this] { return raised; });
  }
};

// Does all that is on the stream end by then?
bool idle(device::OwnStream& stream, base::Deadline until) {
  auto flag = std::make_shared<Flag>();
  auto end = stream.mark([flag] { flag->raise(); });
  return end.ok() && flag->wait(until);
}

}  // namespace

uint64_t Mesh::slot(int from, uint32_t number) const {
  const uint64_t words = kWordBytes * 2 * static_cast<uint64_t>(size_);
  const uint64_t first = (words + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
  const auto slots = static_cast<uint64_t>(options_.slots);
  return first + (static_cast<uint64_t>(from) * slots + number % slots) * options_.slot_bytes;
}

uint64_t Mesh::block_bytes() const { return slot(size_, 0) + options_.room; }

Result<std::unique_ptr<Mesh>> Mesh::make(int rank, int size, device::Context context, int ordinal,
                                         const Options& options) {
  auto gpu = Gpu::of(ordinal);
  if (!gpu.ok()) return gpu.status();
  if (const std::string why = why_not_shared(*gpu); !why.empty()) return Status(Code::kUnavailable, why);
  std::unique_ptr<Mesh> mesh(new Mesh(rank, size, *gpu, options));
  for (auto* stream : {&mesh->stream_, &mesh->rescue_}) {
    auto made = device::OwnStream::make(context);
    if (!made.ok()) return made.status();
    *stream = *std::move(made);
  }
  auto memory = Allocation::make(ordinal, mesh->block_bytes(), true);
  if (!memory.ok()) return memory.status();
  mesh->memory_ = *std::move(memory);
  RINGFOLD_TRY(mesh->map(rank, mesh->memory_));
  for (int peer = 0; peer < size; ++peer) {
    RINGFOLD_TRY(mesh->stream_->set(mesh->here(mesh->arrived(peer)), 0));
    RINGFOLD_TRY(mesh->stream_->set(mesh->here(mesh->released(peer)), 0));
  }
  if (options.zeroed_room > 0) RINGFOLD_TRY(mesh->stream_->zero(mesh->room(rank), options.zeroed_room));
  auto meeting = Meeting::make();
  if (!meeting.ok()) return meeting.status();
  mesh->meeting_ = *std::move(meeting);
  remember(mesh->meeting_->name(), mesh->memory_);
  return mesh;
}

Mesh::~Mesh() {
  // Zeros for its words, or what let_go() wrote, may be on their way.
  constexpr auto kPatience = std::chrono::seconds(5);
  for (auto* stream : {stream_.get(), rescue_.get()}) {
    if (stream == nullptr || idle(*stream, base::Deadline::after(kPatience))) continue;
    log::info("GPU {} does not finish its work: memory that it shared is kept", gpu_.ordinal);
    static std::mutex mutex;
    static auto& kept = *new std::vector<std::vector<Peer>>;
    const std::lock_guard lock(mutex);
    kept.push_back(std::move(peers_));
    return;
  }
}

std::string Mesh::address() const {
  return fmt::format("{} {} {} {}", meeting_->name(), gpu_.uuid, memory_->bytes(),
                     memory_->fabric().empty() ? "-" : memory_->fabric());
}

bool Mesh::on_fabric(const std::vector<std::string>& addresses) {
  return std::all_of(addresses.begin(), addresses.end(), [](const std::string& address) {
    auto card = Card::parse(address);
    return card.ok() && card->fabric != "-";
  });
}

Status Mesh::import_by_fabric(const std::vector<std::string>& addresses) {
  imported_.resize(addresses.size());
  for (size_t p = 0; p < addresses.size(); ++p) {
    auto card = Card::parse(addresses[p]);
    if (!card.ok()) return card.status();
    if (static_cast<int>(p) == rank_ || recall(card->name) != nullptr) continue;
    auto memory = Allocation::import(card->fabric, card->bytes);
    if (!memory.ok()) return memory.status();
    imported_[p] = *std::move(memory);
  }
  return {};
}

Status Mesh::map(int peer, std::shared_ptr<Allocation> memory) {
  auto mapping = Mapping::make(std::move(memory), gpu_.ordinal);
  if (!mapping.ok()) return mapping.status();
  peers_[static_cast<size_t>(peer)].block = *std::move(mapping);
  return {};
}

Status Mesh::connect(const std::vector<std::string>& addresses, base::Deadline deadline) {
  std::vector<std::shared_ptr<Allocation>> memory(addresses.size());
  std::vector<std::string> names(addresses.size());
  std::vector<uint64_t> sizes(addresses.size());
  names_.resize(addresses.size());
  by_fabric_ = !imported_.empty();
  std::set<std::string> gpus{gpu_.uuid};
  Status why;
  for (int p = 0; p < size_; ++p) {
    const auto at = static_cast<size_t>(p);
    names_[at] = meeting_->name();
    if (p == rank_) continue;
    auto card = Card::parse(addresses[at]);
    if (!card.ok()) return card.status();
    names_[at] = card->name;
    sizes[at] = card->bytes;
    apart_ &= gpus.insert(card->uuid).second;
    memory[at] = recall(card->name);
    if (memory[at] == nullptr && !imported_.empty()) memory[at] = std::move(imported_[at]);
    if (memory[at] == nullptr) names[at] = card->name;
    auto gpu = Gpu::find(card->uuid);
    const std::string cannot = gpu.ok() ? why_not_reached(gpu_, *gpu) : gpu.status().message();
    if (!cannot.empty() && why.ok()) why = {Code::kUnavailable, fmt::format("rank {}: {}", p, cannot)};
  }
  // Even then the others get what they wait for.
  auto mine = memory_->share();
  if (!mine.ok()) return mine.status();
  auto theirs = meeting_->exchange(*mine, names, deadline);
  if (!theirs.ok()) return theirs.status();
  RINGFOLD_TRY(why);
  for (int p = 0; p < size_; ++p) {
    const auto at = static_cast<size_t>(p);
    if (p == rank_) continue;
    if (memory[at] == nullptr) {
      auto imported = Allocation::import((*theirs)[at], sizes[at]);
      if (!imported.ok()) return imported.status();
      memory[at] = *std::move(imported);
    }
    RINGFOLD_TRY(map(p, memory[at]));
  }
  // This rank's words are zeros before anybody counts in them.
  if (!idle(*stream_, deadline)) return {Code::kTimeout, "the GPU did not write its words in time"};
  return {};
}

// ---- work on the stream ----

Result<device::Address> Mesh::reserve(int peer) {
  Peer& p = peers_[static_cast<size_t>(peer)];
  const auto slots = static_cast<uint32_t>(options_.slots);
  // Before the word was written for the first time it is 0, which is as good as any credit that came earlier.
  RINGFOLD_TRY(stream_->wait_until(here(released(peer)), p.puts + 1 - slots));
  return p.block->address() + slot(rank_, p.puts);
}

Status Mesh::commit(int peer) {
  Peer& p = peers_[static_cast<size_t>(peer)];
  return stream_->set(p.block->address() + arrived(rank_), ++p.puts);
}

Result<device::Address> Mesh::arrival(int peer) {
  const Peer& p = peers_[static_cast<size_t>(peer)];
  RINGFOLD_TRY(stream_->wait_until(here(arrived(peer)), p.takes + 1));
  return here(slot(peer, p.takes));
}

Status Mesh::release(int peer) {
  Peer& p = peers_[static_cast<size_t>(peer)];
  return stream_->set(p.block->address() + released(rank_), ++p.takes);
}

Status Mesh::let_go() {
  // Beyond anything that the stream waits for, as counters go round.
  constexpr uint32_t kFar = 1U << 30;
  for (int peer = 0; peer < size_; ++peer) {
    const Peer& p = peers_[static_cast<size_t>(peer)];
    RINGFOLD_TRY(rescue_->set(here(arrived(peer)), p.takes + kFar));
    RINGFOLD_TRY(rescue_->set(here(released(peer)), p.puts + kFar));
  }
  return {};
}

}  // namespace ringfold::nvlink
