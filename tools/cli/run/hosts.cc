#include "tools/cli/run/hosts.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <memory>
#include <sstream>

#include "comm/config.h"
#include "comm/interfaces.h"

namespace ringfold::cli {
namespace {

std::string own_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

bool is_here(const std::string& name) {
  const std::string own = own_name();
  return name == "localhost" || name == own || name == own.substr(0, own.find('.'));
}

// The local end of a route: connecting a UDP socket sends nothing.
std::string source_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* raw = nullptr;
  if (::getaddrinfo(host.c_str(), "9", &hints, &raw) != 0) return "";
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> found(raw, &::freeaddrinfo);
  for (const addrinfo* a = raw; a != nullptr; a = a->ai_next) {
    const int fd = ::socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    std::array<char, INET6_ADDRSTRLEN> text{};
    const bool good = ::connect(fd, a->ai_addr, a->ai_addrlen) == 0 &&
                      ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
                      ::getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text.data(), text.size(), nullptr, 0,
                                    NI_NUMERICHOST) == 0;
    ::close(fd);
    if (good) return text.data();
  }
  return "";
}

}  // namespace

Result<std::vector<Host>> parse_hosts(std::string_view text) {
  std::vector<Host> hosts;
  while (!text.empty()) {
    const auto comma = std::min(text.find(','), text.size());
    std::string_view item = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    Host host;
    std::string_view slots;
    bool good = true;
    if (item.starts_with('[')) {
      const auto close = item.find(']');
      good = close != item.npos;
      host.name = item.substr(1, good ? close - 1 : 0);
      if (good && close + 1 < item.size()) {
        good = item[close + 1] == ':';
        slots = item.substr(close + 2);
        good = good && !slots.empty();
      }
    } else if (std::count(item.begin(), item.end(), ':') == 1) {
      host.name = item.substr(0, item.find(':'));
      slots = item.substr(item.find(':') + 1);
      good = !slots.empty();
    } else {
      host.name = item;  // with several colons: an IPv6 address without slots
    }
    if (!slots.empty()) {
      const auto [end, error] = std::from_chars(slots.data(), slots.data() + slots.size(), host.slots);
      good = good && error == std::errc() && end == slots.data() + slots.size() && host.slots > 0;
    }
    if (!good || host.name.empty() || host.name.starts_with('-')) {
      return Status(
          Code::kInvalid,
          fmt::format("--hosts: \"{}\" is not a host: it takes NAME, NAME:SLOTS or [IPV6]:SLOTS, with commas", item));
    }
    host.local = is_here(host.name);
    hosts.push_back(std::move(host));
  }
  if (hosts.empty()) hosts.push_back({own_name(), 0, true});
  return hosts;
}

Result<std::vector<Seat>> seat_ranks(const std::vector<Host>& hosts, int ranks) {
  int fixed = 0, open = 0;
  for (const Host& host : hosts) {
    fixed += host.slots;
    open += host.slots == 0;
  }
  if (ranks == 0) ranks = fixed + open;
  if (open == 0 && ranks > fixed) {
    return Status(Code::kInvalid, fmt::format("{} ranks do not fit: the hosts have {} slots in all", ranks, fixed));
  }
  std::vector<Seat> seats;
  int left = ranks, shared = std::max(0, ranks - fixed);
  for (size_t h = 0; h < hosts.size(); ++h) {
    int here = std::min(left, hosts[h].slots);
    if (hosts[h].slots == 0) {  // hosts that said a number keep it: what they leave is shared
      here = (shared + open - 1) / open;
      shared -= here;
      --open;
    }
    for (int i = 0; i < here; ++i) seats.push_back({static_cast<int>(h), i, here});
    left -= here;
  }
  return seats;
}

Result<std::string> meeting_address(const std::vector<Host>& hosts) {
  const auto config = comm::Config::from_environment(comm::process_environment());
  if (!config.ok()) return config.status();
  const auto all = comm::list_interfaces();
  if (!all.ok()) return all.status();
  const auto usable = comm::select_interfaces(*all, config->interfaces);
  if (!usable.ok()) return usable.status();
  if (!config->interfaces.value().empty()) return usable->front().address;
  for (const Host& host : hosts) {
    const std::string source = host.local ? "" : source_towards(host.name);
    const bool loops = comm::same_subnet(source, "127.0.0.0", 8) || comm::same_subnet(source, "::1", 128);
    if (!source.empty() && !loops) return source;
  }
  return usable->front().address;
}

std::vector<std::string> ssh_command(const std::string& host) {
  std::vector<std::string> words;
  if (const char* own = std::getenv("RINGFOLD_SSH"); own != nullptr && *own != '\0') {
    std::istringstream text(own);
    for (std::string word; text >> word;) words.push_back(word);
  } else {
    words = {"ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"};
  }
  words.push_back(host);
  return words;
}

std::string sh_quoted(std::string_view text) {
  std::string result = "'";
  for (const char c : text) {
    if (c == '\'') {
      result += "'\\''";
    } else {
      result += c;
    }
  }
  return result + "'";
}

}  // namespace ringfold::cli
