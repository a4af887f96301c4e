#include "transports/verbs/direct.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "transports/verbs/link.h"

namespace ringfold::verbs {
namespace {

constexpr size_t kMostBytes = size_t{1} << 30;  // of one write: any device takes so many

}  // namespace

bool Direct::possible(const std::vector<Device*>& devices) {
  return std::all_of(devices.begin(), devices.end(), [](const Device* d) { return d->takes_dma_buf(); });
}

Status Direct::add(uint64_t id, std::byte* base, size_t bytes, int dma_buf) {
  std::erase_if(known_, [&](const auto& entry) {
    const Memory& old = *entry.second;
    return old.data() < base + bytes && base < old.data() + old.bytes();
  });
  auto memory = std::make_unique<Memory>();
  RINGFOLD_TRY(memory->adopt_dma_buf(base, bytes, dma_buf, hub_.all_devices()));
  known_[id] = std::move(memory);
  return {};
}

const Memory* Direct::find(const std::byte* data, size_t bytes) const {
  for (const auto& [id, memory] : known_) {
    if (data >= memory->data() && data + bytes <= memory->data() + memory->bytes()) return memory.get();
  }
  return nullptr;
}

bool Direct::offer(int peer, std::byte* memory, size_t bytes) {
  const DirectHub::Way way = hub_.way_to(peer);
  const Memory* registered = find(memory, bytes);
  if (!way.up || registered == nullptr) return false;
  QueuePair& rail = *way.rails.front();
  if (rail.room() <= transport::kLanes) return false;
  *way.outgoing = {reinterpret_cast<uint64_t>(memory), bytes, {}};
  for (size_t r = 0; r < way.rails.size(); ++r) {
    way.outgoing->keys[r] = registered->remote_key(&way.rails[r]->device());
  }
  QueuePair::Write w{
      .to = way.offers, .key = way.offers_key, .immediate = Note{.kind = Note::kOffer}.encode(), .signaled = false};
  w.parts[0] = {reinterpret_cast<uint64_t>(way.outgoing), sizeof *way.outgoing, hub_.control_key(rail)};
  w.count = 1;
  return at(peer).expected = post(peer, rail, w);
}

std::optional<size_t> Direct::offered(int peer) {
  if (!at(peer).offered) return std::nullopt;
  return hub_.way_to(peer).incoming->bytes;
}

bool Direct::write(int peer, const std::byte* data, size_t bytes, size_t place) {
  const DirectHub::Way way = hub_.way_to(peer);
  const Memory* source = find(data, bytes);
  if (!way.up || source == nullptr) return false;
  const Window& window = *way.incoming;
  QueuePair& rail = *way.rails.front();
  const size_t parts = std::max<size_t>(1, (bytes + kMostBytes - 1) / kMostBytes);
  if (rail.room() < transport::kLanes + static_cast<int>(parts)) return false;
  for (size_t from = 0; from < bytes; from += kMostBytes) {
    const size_t size = std::min(kMostBytes, bytes - from);
    const bool last = from + size == bytes;
    QueuePair::Write w{.to = window.address + place + from,
                       .key = window.keys[0],
                       .immediate = Note{.kind = Note::kLanded}.encode(),
                       .signaled = last,
                       .silent = !last};
    w.parts[0] = {reinterpret_cast<uint64_t>(data + from), static_cast<uint32_t>(size),
                  source->local_key(&rail.device())};
    w.count = 1;
    if (!post(peer, rail, w)) return false;
  }
  at(peer).posted = rail.posted();
  at(peer).offered = false;
  return true;
}

bool Direct::written(int peer) {
  const DirectHub::Way way = hub_.way_to(peer);
  return !way.rails.empty() && way.rails.front()->completed() >= at(peer).posted;
}

bool Direct::post(int peer, QueuePair& rail, const QueuePair::Write& write) {
  const int error = rail.post(write);
  if (error != 0) {
    hub_.lose(peer, Status(Code::kIo,
                           fmt::format("{} takes no more work: {}", rail.device().name(), std::strerror(error))));
  }
  return error == 0;
}

}  // namespace ringfold::verbs
