#include "transports/ucx/address.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

namespace ringfold::transport::ucx {
namespace {

std::string hex(std::string_view bytes) {
  std::string text;
  for (char c : bytes) fmt::format_to(std::back_inserter(text), "{:02x}", static_cast<uint8_t>(c));
  return text;
}

bool from_hex(std::string_view text, std::string* bytes) {
  if (text.empty() || text.size() % 2 != 0) return false;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  bytes->clear();
  for (size_t i = 0; i < text.size(); i += 2) {
    if (digit(text[i]) < 0 || digit(text[i + 1]) < 0) return false;
    bytes->push_back(static_cast<char>(digit(text[i]) << 4 | digit(text[i + 1])));
  }
  return true;
}

}  // namespace

std::string host_id() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id.empty() ? "?" : id;
}

std::string Address::to_string() const {
  return fmt::format("ucx/2 {:x} {} {} {} {} {} {} {} {} {} {} {}", nonce, rank, size, slots, slot_bytes, version,
                     host, standing.pid, standing.fd, standing.value, worker.size(), hex(worker));
}

Result<Address> Address::parse(std::string_view from, int peer) {
  std::istringstream words{std::string(from)};
  std::string layout, text, more;
  size_t length = 0;
  Address a;
  words >> layout >> std::hex >> a.nonce >> std::dec >> a.rank >> a.size >> a.slots >> a.slot_bytes >> a.version >>
      a.host >> a.standing.pid >> a.standing.fd >> a.standing.value >> length >> text;
  if (!layout.starts_with("ucx/")) {
    return Status(Code::kUnavailable, fmt::format("rank {} has no address for UCX: is UCX installed there?", peer));
  }
  if (layout != "ucx/2") {
    return Status(Code::kMismatch, fmt::format("rank {} speaks {}, this is ucx/2", peer, layout));
  }
  if (words.fail() || (words >> more) || !from_hex(text, &a.worker) || a.worker.size() != length) {
    return Status(Code::kProtocol, fmt::format("the address of rank {} is damaged", peer));
  }
  return a;
}

Status Address::check(const Address& theirs, int peer) const {
  if (theirs.nonce != nonce) return {Code::kMismatch, fmt::format("rank {} belongs to another communicator", peer)};
  if (theirs.rank != peer || theirs.size != size) {
    return {Code::kMismatch, fmt::format("this is the address of rank {} of {}, not of rank {} of {}", theirs.rank,
                                         theirs.size, peer, size)};
  }
  if (theirs.slots != slots || theirs.slot_bytes != slot_bytes) {
    return {Code::kMismatch, fmt::format("rank {} has {} slots of {} bytes, rank {} has {} of {}", peer, theirs.slots,
                                         theirs.slot_bytes, rank, slots, slot_bytes)};
  }
  if (theirs.version != version) {
    return {Code::kMismatch,
            fmt::format("rank {} has UCX {}, rank {} has {}: install the same", peer, theirs.version, rank, version)};
  }
  return {};
}

}  // namespace ringfold::transport::ucx
