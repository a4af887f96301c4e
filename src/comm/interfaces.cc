#include "comm/interfaces.h"
#include "comm/text.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <memory>
#include <optional>

namespace ringfold::comm {
namespace {

struct Bytes {
  std::array<unsigned char, 16> data{};
  size_t size = 0;
};

std::optional<Bytes> parse_address(std::string_view text) {
  std::string copy(text);
  Bytes bytes;
  if (::inet_pton(AF_INET, copy.c_str(), bytes.data.data()) == 1) return bytes.size = 4, bytes;
  if (::inet_pton(AF_INET6, copy.c_str(), bytes.data.data()) == 1) return bytes.size = 16, bytes;
  return std::nullopt;
}

int prefix_of(const sockaddr* mask) {
  if (mask == nullptr) return 0;
  const auto* bytes =
      mask->sa_family == AF_INET
          ? reinterpret_cast<const unsigned char*>(&reinterpret_cast<const sockaddr_in*>(mask)->sin_addr)
          : reinterpret_cast<const unsigned char*>(&reinterpret_cast<const sockaddr_in6*>(mask)->sin6_addr);
  int bits = 0;
  for (int i = 0; i < (mask->sa_family == AF_INET ? 4 : 16); ++i) bits += std::popcount(bytes[i]);
  return bits;
}

bool matches(const Interface& interface, std::string_view wanted) {
  if (wanted == interface.name || wanted == interface.address) return true;
  auto slash = wanted.find('/');
  if (slash == wanted.npos) return false;
  int prefix = 0;
  auto text = wanted.substr(slash + 1);
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), prefix);
  return error == std::errc() && end == text.data() + text.size() &&
         same_subnet(interface.address, wanted.substr(0, slash), prefix);
}

bool is_v6(const Interface& interface) { return interface.address.find(':') != std::string::npos; }

}  // namespace

std::string_view name_of(AddressKind kind) {
  constexpr std::array<std::string_view, 5> kNames = {"network", "virtual", "loopback", "link-local", "down"};
  return kNames[static_cast<size_t>(kind)];
}

std::string Candidate::to_string() const {
  return fmt::format(fmt::runtime(is_v6(interface) ? "{} [{}]:{}" : "{} {}:{}"), interface.name, interface.address,
                     port);
}

bool same_subnet(std::string_view a, std::string_view b, int prefix) {
  auto x = parse_address(a), y = parse_address(b);
  if (!x || !y || x->size != y->size || prefix < 0 || prefix > static_cast<int>(8 * x->size)) return false;
  for (int bit = 0; bit < prefix; ++bit) {
    if (((x->data[bit / 8] ^ y->data[bit / 8]) >> (7 - bit % 8)) & 1) return false;
  }
  return true;
}

AddressKind classify(std::string_view name, std::string_view address, bool up) {
  if (!up) return AddressKind::kDown;
  if (same_subnet(address, "127.0.0.0", 8) || same_subnet(address, "::1", 128)) return AddressKind::kLoopback;
  if (same_subnet(address, "169.254.0.0", 16) || same_subnet(address, "fe80::", 10)) return AddressKind::kLinkLocal;
  for (auto prefix :
       {"docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "lxcbr", "lxdbr", "cni", "flannel", "podman", "cali"}) {
    if (name.starts_with(prefix)) return AddressKind::kVirtual;
  }
  return AddressKind::kNetwork;
}

Result<std::vector<Interface>> list_interfaces() {
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) return Status(Code::kIo, fmt::format("getifaddrs: {}", std::strerror(errno)));
  std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(raw, &::freeifaddrs);
  std::vector<Interface> result;
  for (const auto* entry = raw; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    const void* bytes =
        family == AF_INET ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr)
                          : &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr;
    if (::inet_ntop(family, bytes, text.data(), text.size()) == nullptr) continue;
    const bool up = (entry->ifa_flags & IFF_UP) != 0 && (entry->ifa_flags & IFF_RUNNING) != 0;
    result.push_back(
        {entry->ifa_name, text.data(), prefix_of(entry->ifa_netmask), classify(entry->ifa_name, text.data(), up)});
  }
  std::stable_sort(result.begin(), result.end(), [](const Interface& a, const Interface& b) {
    return a.kind != b.kind ? a.kind < b.kind : is_v6(a) < is_v6(b);
  });
  return result;
}

Result<std::vector<Interface>> select_interfaces(const std::vector<Interface>& all,
                                                 const std::vector<std::string>& wanted) {
  std::vector<Interface> result;
  for (const auto& interface : all) {
    if (interface.kind == AddressKind::kDown) continue;  // cannot be listened on
    const bool chosen = wanted.empty() ? interface.kind != AddressKind::kLinkLocal
                                       : std::any_of(wanted.begin(), wanted.end(),
                                                     [&](const auto& w) { return matches(interface, w); });
    // A link-local IPv6 address means nothing without its interface, which the other side cannot know.
    if (chosen && !(interface.kind == AddressKind::kLinkLocal && is_v6(interface))) result.push_back(interface);
  }
  if (!result.empty()) return result;
  std::vector<std::string> existing;
  existing.reserve(all.size());
  for (const auto& interface : all)
    existing.push_back(fmt::format("{} ({})", interface.to_string(), name_of(interface.kind)));
  return Status(Code::kInvalid,
                wanted.empty()
                    ? fmt::format("this host has no usable network address; there are: {}", join(existing, ", "))
                    : fmt::format("RINGFOLD_INTERFACE={} matches no address that is up; this host has: {}",
                                  join(wanted, ","), join(existing, ", ")));
}

DialOrder dial_order(const std::vector<Interface>& mine, const std::vector<Candidate>& theirs, bool same_stack) {
  DialOrder order;
  auto cost = [&](const Candidate& candidate) {
    const auto kind = candidate.interface.kind;
    if (same_stack) return kind == AddressKind::kLoopback ? -1 : static_cast<int>(kind);
    if (kind == AddressKind::kLoopback) return 100;
    const bool neighbour = std::any_of(mine.begin(), mine.end(), [&](const Interface& own) {
      return own.kind != AddressKind::kLoopback && own.kind != AddressKind::kDown &&
             same_subnet(own.address, candidate.interface.address, own.prefix);
    });
    return 2 * static_cast<int>(kind) + (neighbour ? 0 : 1);
  };
  for (const auto& candidate : theirs) {
    const bool own = std::any_of(mine.begin(), mine.end(),
                                 [&](const auto& i) { return i.address == candidate.interface.address; });
    if (own && !same_stack && candidate.interface.kind != AddressKind::kLoopback) {
      order.skipped.push_back(candidate.interface.to_string() + ": also an address of this host");
    } else {
      order.tries.push_back(candidate);
    }
  }
  std::stable_sort(order.tries.begin(), order.tries.end(),
                   [&](const auto& a, const auto& b) { return cost(a) < cost(b); });
  return order;
}

std::string explain_choice(const std::vector<Interface>& mine, const std::vector<Candidate>& offered,
                           const std::map<std::string, std::vector<int>>& used,
                           const std::map<std::string, std::string>& failures) {
  std::vector<std::string> chosen, rejected;
  for (const auto& [address, ranks] : used) {
    const auto it = std::find_if(mine.begin(), mine.end(), [&](const auto& i) { return i.address == address; });
    chosen.push_back(fmt::format("{} for rank{} {}", it == mine.end() ? address : it->to_string(),
                                 ranks.size() == 1 ? "" : "s", list_ranks(ranks)));
  }
  for (const auto& interface : mine) {
    if (used.contains(interface.address) || interface.kind == AddressKind::kLinkLocal) continue;
    const auto failure = std::find_if(failures.begin(), failures.end(), [&](const auto& f) {
      return f.first.starts_with(interface.to_string() + ":") ||
             f.first.starts_with(fmt::format("{} [{}]:", interface.name, interface.address));
    });
    std::string reason = "not needed";
    if (failure != failures.end()) {
      reason = failure->second;
    } else if (interface.kind == AddressKind::kDown) {
      reason = "the link is down";
    } else if (std::none_of(offered.begin(), offered.end(),
                            [&](const auto& c) { return c.interface.address == interface.address; })) {
      reason = "not in RINGFOLD_INTERFACE";
    }
    rejected.push_back(fmt::format("{} ({})", interface.to_string(), reason));
  }
  return join(chosen, ", ") + (rejected.empty() ? "" : "; not " + join(rejected, ", "));
}

}  // namespace ringfold::comm
