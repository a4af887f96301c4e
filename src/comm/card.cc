#include "comm/card.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>

#include "comm/rendezvous.h"
#include "comm/wire.h"

namespace ringfold::comm {
namespace {

constexpr uint16_t kProtocol = 3;  // of cards and of the mesh; any change to a card or frame raises it

std::string host_name() {
  if (auto environment = process_environment(); !lookup(environment, "RINGFOLD_HOST_NAME").empty()) {
    return std::string(lookup(environment, "RINGFOLD_HOST_NAME"));
  }
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string boot_id() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id.empty() ? random_name() : id;  // unknown: shares with nobody
}

std::string stack_id(const std::string& host_id) {
  struct stat info {};
  if (::stat("/proc/self/ns/net", &info) != 0) return random_name();
  return fmt::format("{}/{}", host_id, info.st_ino);
}

}  // namespace

PeerInfo describe_self(int rank) {
  PeerInfo me;
  me.rank = rank;
  me.host = host_name();
  me.host_id = boot_id();
  me.stack_id = stack_id(me.host_id);
  me.processors = base::Processors::mine();
  me.pid = ::getpid();
  me.version = RINGFOLD_VERSION;
  return me;
}

std::string write_card(const PeerInfo& me) {
  Writer card;
  card.number(kProtocol).text(me.version).text(me.host).text(me.host_id).text(me.stack_id).number(me.pid).text(me.processors.to_string());
  card.number(static_cast<uint16_t>(me.candidates.size()));
  for (const auto& c : me.candidates) {
    card.text(c.interface.name).text(c.interface.address).number(static_cast<uint8_t>(c.interface.prefix));
    card.number(static_cast<uint8_t>(c.interface.kind)).number(c.port);
  }
  return card.take();
}

Status read_card(std::string_view card, const PeerInfo& me, PeerInfo* peer) {
  Reader reader(card);
  const auto protocol = reader.number<uint16_t>();
  peer->version = reader.text(64);
  peer->host = reader.text(256);
  if (protocol != kProtocol || peer->version != me.version) {
    return {
        Code::kMismatch,
        fmt::format("rank {} on {} runs Ringfold {} (protocol {}), rank {} on {} runs {} (protocol {}): all ranks "
                    "must use the same build",
                    peer->rank, peer->host, peer->version, protocol, me.rank, me.host, me.version, kProtocol)};
  }
  peer->host_id = reader.text(256);
  peer->stack_id = reader.text(256);
  peer->pid = reader.number<int64_t>();
  peer->processors = base::Processors::parse(reader.text(1 << 16));
  for (int n = reader.number<uint16_t>(); n > 0 && reader.ok(); --n) {
    Candidate c;
    c.interface.name = reader.text(64);
    c.interface.address = reader.text(64);
    c.interface.prefix = reader.number<uint8_t>();
    c.interface.kind =
        static_cast<AddressKind>(std::min<int>(reader.number<uint8_t>(), static_cast<int>(AddressKind::kDown)));
    c.port = reader.number<uint16_t>();
    peer->candidates.push_back(std::move(c));
  }
  if (!reader.done()) return {Code::kProtocol, fmt::format("the card of rank {} cannot be read", peer->rank)};
  return {};
}

}  // namespace ringfold::comm
