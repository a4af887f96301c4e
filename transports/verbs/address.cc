#include "transports/verbs/address.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <tuple>

namespace ringfold::verbs {
namespace {

constexpr const char* kMagic = "verbs2";
constexpr size_t kMostPortsOffered = 16, kMostGids = 64, kMostRanks = 1 << 20;

std::string hex(const std::array<uint8_t, 16>& bytes) {
  std::string text;
  for (uint8_t b : bytes) text += fmt::format("{:02x}", b);
  return text;
}

bool parse_hex(std::string_view text, std::array<uint8_t, 16>* bytes) {
  if (text.size() != 32) return false;
  auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  for (size_t i = 0; i < 16; ++i) {
    const int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    (*bytes)[i] = static_cast<uint8_t>(high * 16 + low);
  }
  return true;
}

bool same_subnet(const Gid& a, const Gid& b) {
  const int bits = std::min(a.prefix, b.prefix);
  if (bits <= 0) return false;
  for (int i = 0; i < bits; ++i) {
    if (((a.bytes[static_cast<size_t>(i / 8)] ^ b.bytes[static_cast<size_t>(i / 8)]) >> (7 - i % 8) & 1) != 0) {
      return false;
    }
  }
  return true;
}

struct Quality {
  int rank = 0;  // 0: does not reach
  const char* words = "";
};

// By what a pair of GIDs promises.
Quality quality(const Gid& a, const Gid& b) {
  if (a.kind != b.kind) return {};
  const bool near = same_subnet(a, b);
  if (a.kind == GidKind::kInfiniBand)
    return near ? Quality{10, "InfiniBand, one subnet"} : Quality{6, "InfiniBand, routed"};
  const bool v2 = a.kind == GidKind::kRoceV2;
  if (a.ipv4() != b.ipv4() || a.link_local() != b.link_local()) return {};
  if (a.link_local()) return v2 ? Quality{3, "RoCE v2, link-local"} : Quality{2, "RoCE v1, link-local"};
  if (v2) return near ? Quality{9, "RoCE v2, one subnet"} : Quality{5, "RoCE v2, routed"};
  return near ? Quality{4, "RoCE v1, one subnet"} : Quality{};
}

struct Candidate {
  Quality quality;
  int mbps = 0;
  Route route;  // mine: the lower rank's
};

// The best pair of GIDs of two ports.
Candidate best(const Port& a, const Port& b) {
  Candidate c;
  if (a.ethernet != b.ethernet) return c;
  for (size_t i = 0; i < a.gids.size(); ++i) {
    for (size_t j = 0; j < b.gids.size(); ++j) {
      const Quality q = quality(a.gids[i], b.gids[j]);
      if (q.rank <= c.quality.rank) continue;
      c.quality = q;
      c.route.my_gid = static_cast<int>(i);
      c.route.their_gid = static_cast<int>(j);
    }
  }
  c.mbps = std::min(a.mbps, b.mbps);
  c.route.mtu = std::min(a.mtu, b.mtu);
  return c;
}

}  // namespace

bool Gid::ipv4() const {
  static constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::memcmp(bytes.data(), kMapped, sizeof kMapped) == 0;
}

bool Gid::link_local() const {
  if (ipv4()) return bytes[12] == 169 && bytes[13] == 254;
  return kind != GidKind::kInfiniBand && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
}

std::string Gid::to_string() const {
  char text[INET6_ADDRSTRLEN] = "";
  if (ipv4()) {
    inet_ntop(AF_INET, bytes.data() + 12, text, sizeof text);
  } else {
    inet_ntop(AF_INET6, bytes.data(), text, sizeof text);
  }
  return text;
}

std::string Address::to_string() const {
  std::string text = fmt::format("{} {:x} {} {} {} {} {:x} {}", kMagic, communicator, rank, size, slots, slot_bytes,
                                 control, ports.size());
  for (const Port& p : ports) {
    text += fmt::format(" {} {} {} {} {} {} {:x} {}", p.device, p.number, p.ethernet ? "eth" : "ib", p.lid, p.mtu,
                        p.mbps, p.control_key, p.gids.size());
    for (const Gid& g : p.gids) {
      text += fmt::format(" {} {} {} {}", hex(g.bytes), g.index, static_cast<int>(g.kind), g.prefix);
    }
    for (uint32_t qp : p.queue_pairs) text += fmt::format(" {:x}", qp);
  }
  return text;
}

Result<Address> Address::parse(std::string_view text) {
  const auto damaged = [](const char* what) {
    return Status(Code::kProtocol, fmt::format("verbs: the peer's address is damaged: {}", what));
  };
  std::istringstream in{std::string(text)};
  std::string magic;
  Address a;
  size_t ports = 0;
  in >> magic >> std::hex >> a.communicator >> std::dec >> a.rank >> a.size >> a.slots >> a.slot_bytes >> std::hex >>
      a.control >> std::dec >> ports;
  if (magic != kMagic) return damaged("it is no address of this version");
  if (!in || a.size < 1 || static_cast<size_t>(a.size) > kMostRanks || a.rank < 0 || a.rank >= a.size ||
      ports > kMostPortsOffered) {
    return damaged("its beginning");
  }
  for (size_t i = 0; i < ports; ++i) {
    Port p;
    std::string layer;
    size_t gids = 0;
    in >> p.device >> p.number >> layer >> p.lid >> p.mtu >> p.mbps >> std::hex >> p.control_key >> std::dec >> gids;
    if (!in || (layer != "eth" && layer != "ib") || gids > kMostGids || p.mtu < 256 || p.mtu > 4096) {
      return damaged("a port");
    }
    p.ethernet = layer == "eth";
    for (size_t k = 0; k < gids; ++k) {
      Gid g;
      std::string bytes;
      int kind = 0;
      in >> bytes >> g.index >> kind >> g.prefix;
      if (!in || !parse_hex(bytes, &g.bytes) || kind < 0 || kind > 2 || g.prefix < 0 || g.prefix > 128) {
        return damaged("a GID");
      }
      g.kind = static_cast<GidKind>(kind);
      p.gids.push_back(g);
    }
    for (int k = 0; k < a.size; ++k) {
      uint32_t qp = 0;
      in >> std::hex >> qp >> std::dec;
      if (!in || qp > 0xffffff) return damaged("the number of a queue pair");
      p.queue_pairs.push_back(qp);
    }
    a.ports.push_back(std::move(p));
  }
  if (in >> magic) return damaged("it goes on after its end");
  return a;
}

Result<std::vector<Route>> choose_routes(const Address& mine, const Address& theirs, int rails) {
  const bool first = mine.rank < theirs.rank;
  const Address &low = first ? mine : theirs, &high = first ? theirs : mine;
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < low.ports.size(); ++i) {
    for (size_t j = 0; j < high.ports.size(); ++j) {
      Candidate c = best(low.ports[i], high.ports[j]);
      if (c.quality.rank == 0) continue;
      c.route.mine = static_cast<int>(i);
      c.route.theirs = static_cast<int>(j);
      candidates.push_back(std::move(c));
    }
  }
  if (candidates.empty()) {
    std::string text;
    for (const Address* a : {&mine, &theirs}) {
      text += a == &mine ? "" : "; the peer has ";
      if (a->ports.empty()) text += "no port";
      for (size_t i = 0; i < a->ports.size(); ++i) {
        const Port& p = a->ports[i];
        text += fmt::format("{}{} ({}{}{})", i > 0 ? ", " : "", p.name(), p.ethernet ? "RoCE" : "InfiniBand",
                            p.gids.empty() ? "" : " ", p.gids.empty() ? "" : p.gids.front().to_string());
      }
    }
    return Status(Code::kUnavailable, "no port of this rank reaches one of the peer: here " + text);
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return std::tuple(-a.quality.rank, -a.mbps, a.route.mine, a.route.theirs) <
           std::tuple(-b.quality.rank, -b.mbps, b.route.mine, b.route.theirs);
  });
  std::vector<bool> low_used(low.ports.size()), high_used(high.ports.size());
  std::vector<Route> routes;
  for (Candidate& c : candidates) {
    const auto i = static_cast<size_t>(c.route.mine), j = static_cast<size_t>(c.route.theirs);
    if (static_cast<int>(routes.size()) == rails || c.quality.rank != candidates.front().quality.rank ||
        c.mbps != candidates.front().mbps) {
      break;
    }
    if (low_used[i] || high_used[j]) continue;
    low_used[i] = high_used[j] = true;
    Route r = c.route;
    if (!first) {
      std::swap(r.mine, r.theirs);
      std::swap(r.my_gid, r.their_gid);
    }
    const Port &here = mine.ports[static_cast<size_t>(r.mine)], &there = theirs.ports[static_cast<size_t>(r.theirs)];
    r.why = fmt::format("{} to {}, {}, {} to {}, MTU {}", here.name(), there.name(), c.quality.words,
                        here.gids[static_cast<size_t>(r.my_gid)].to_string(),
                        there.gids[static_cast<size_t>(r.their_gid)].to_string(), r.mtu);
    routes.push_back(std::move(r));
  }
  return routes;
}

}  // namespace ringfold::verbs
