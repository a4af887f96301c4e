#include "transports/nvlink/opened.h"

#include <fmt/format.h>

#include <charconv>
#include <sstream>

#include "base/log.h"
#include "device/direct.h"

namespace ringfold::nvlink {

using device::check;
using device::driver;

Result<std::unique_ptr<Opened>> Opened::make(Mesh& mesh, std::byte* memory, uint64_t bytes,
                                             const Multicast::Exchange& exchange, std::string* why) {
  std::unique_ptr<Opened> made(new Opened(mesh.context(), memory, bytes));
  const auto card = made->card(mesh);
  auto cards = exchange("card", card.ok() ? *card : "! " + card.status().message());
  if (!cards.ok()) return cards.status();
  for (size_t r = 0; r < cards->size() && why->empty(); ++r) {
    if ((*cards)[r].starts_with("! ")) *why = fmt::format("rank {}: {}", r, (*cards)[r].substr(2));
  }
  if (!why->empty()) return std::unique_ptr<Opened>();
  auto said = exchange("opened", made->open(mesh, *cards).message());
  if (!said.ok()) return said.status();
  for (size_t r = 0; r < said->size() && why->empty(); ++r) {
    if (!(*said)[r].empty()) *why = fmt::format("rank {}: {}", r, (*said)[r]);
  }
  return why->empty() ? std::move(made) : std::unique_ptr<Opened>();
}

// What the others need to open it: bytes, offset in its allocation, and that one's handle.
Result<std::string> Opened::card(const Mesh& mesh) {
  if (const std::string missing = driver()->missing_to_open(); !missing.empty()) {
    return Status(Code::kUnavailable, "the CUDA driver has no " + missing);
  }
  for (int r = 0; r < mesh.size(); ++r) {
    if (r == mesh.rank() || recall(mesh.names()[static_cast<size_t>(r)]) == nullptr) continue;
    return Status(Code::kUnavailable, fmt::format("it goes between processes, and rank {} is in this one", r));
  }
  auto place = device::place_of(memory_);
  if (!place.ok()) return place.status();
  if (place->context != context_) {
    return Status(Code::kUnavailable, "it is not memory of the GPU of this communicator's calls");
  }
  auto range = device::range_of(context_, memory_);
  if (!range.ok()) return range.status();
  const auto offset = static_cast<uint64_t>(memory_ - range->base);
  if (bytes_ > range->bytes - offset) return Status(Code::kUnavailable, "it ends before that");
  id_ = range->id;
  const device::Current current(context_);
  RINGFOLD_TRY(current.status());
  device::IpcHandle handle;
  RINGFOLD_TRY(
      check(driver()->ipc_handle(&handle, reinterpret_cast<device::Address>(range->base)), "cuIpcGetMemHandle"));
  std::string text = fmt::format("{} {} ", bytes_, offset);
  for (const unsigned char b : handle.bytes) text += fmt::format("{:02x}", b);
  return text;
}

Status Opened::open(const Mesh& mesh, const std::vector<std::string>& cards) {
  constexpr unsigned kReachPeers = 1;
  const device::Current current(context_);
  RINGFOLD_TRY(current.status());
  for (size_t r = 0; r < cards.size(); ++r) {
    uint64_t bytes = 0, offset = 0;
    std::string digits;
    device::IpcHandle handle;
    std::istringstream in(cards[r]);
    bool read = (in >> bytes >> offset >> digits) && digits.size() == 2 * sizeof handle.bytes;
    for (size_t i = 0; read && i < sizeof handle.bytes; ++i) {
      const char* const from = digits.data() + 2 * i;
      read = std::from_chars(from, from + 2, handle.bytes[i], 16).ptr == from + 2;
    }
    if (!read) return {Code::kProtocol, "what a rank says of its memory cannot be read"};
    if (bytes != bytes_) return {Code::kMismatch, fmt::format("{} bytes, and rank {} has {}", bytes_, r, bytes)};
    if (static_cast<int>(r) == mesh.rank()) {
      at_.push_back(memory_);
      continue;
    }
    device::Address address = 0;
    RINGFOLD_TRY(check(driver()->ipc_open(&address, handle, kReachPeers), "cuIpcOpenMemHandle"));
    opened_.push_back(address);
    at_.push_back(reinterpret_cast<std::byte*>(address) + offset);
  }
  return {};
}

bool Opened::holds(const std::byte* from, uint64_t bytes) const {
  if (from < memory_ || static_cast<uint64_t>(from - memory_) > bytes_ ||
      bytes > bytes_ - static_cast<uint64_t>(from - memory_)) {
    return false;
  }
  auto range = device::range_of(context_, from);
  return range.ok() && range->id == id_;
}

Opened::~Opened() {
  const device::Current current(context_);
  for (const device::Address address : opened_) {
    const Status s = check(driver()->ipc_close(address), "cuIpcCloseMemHandle");
    if (!s.ok()) log::info("{}", s.message());  // at the end of a process its driver may be gone
  }
}

}  // namespace ringfold::nvlink
