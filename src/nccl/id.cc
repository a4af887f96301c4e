// Unique ids. An id holds an address at which rank 0 will listen and a fresh key; so who has the id, and nobody else,
// can join. Rank 0 must be on the host where the id was made, as it is in nccl-tests and PyTorch.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/random.h>

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "nccl/shim.h"

namespace ringfold::nccl {
namespace {

constexpr std::string_view kMagic = "ringfold ";
constexpr int kPorts = 16;  // rank 0 takes the first that is free
constexpr int kFirstPort = 20000, kLastPort = 60000;

// An address of this host that others can reach: of an interface that NCCL_SOCKET_IFNAME names by the beginning of
// its name (RINGFOLD_INTERFACE is for the transports, which find their own), else of the first that is up and no
// loopback.
std::string own_address() {
  const char* wanted = std::getenv("NCCL_SOCKET_IFNAME");
  const std::string_view prefix = wanted != nullptr ? wanted : "";
  std::string found;
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "127.0.0.1";
  for (const ifaddrs* i = all; i != nullptr && found.empty(); i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET || (i->ifa_flags & IFF_UP) == 0) continue;
    const std::string_view name = i->ifa_name;
    const bool fits = prefix.empty() ? (i->ifa_flags & IFF_LOOPBACK) == 0 && !name.starts_with("docker") &&
                                           !name.starts_with("virbr")
                                     : name.starts_with(prefix);
    char text[INET_ADDRSTRLEN];
    if (fits &&
        ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr, text, sizeof text)) {
      found = text;
    }
  }
  ::freeifaddrs(all);
  return found.empty() ? "127.0.0.1" : found;
}

}  // namespace

Result<ncclUniqueId> make_id() {
  ncclUniqueId id{};
  std::string text;
  if (const char* given = std::getenv("NCCL_COMM_ID"); given != nullptr && *given != '\0') {
    text = fmt::format("{}{}", kMagic, given);  // every rank makes it by itself, so the key is the user's own
  } else {
    unsigned char random[18];
    if (::getrandom(random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) {
      return Status(Code::kIo, "ncclGetUniqueId: the system has no random bytes");
    }
    const int port = kFirstPort + (random[16] << 8 | random[17]) % (kLastPort - kFirstPort - kPorts);
    text = fmt::format("{}{}:{}-{} ", kMagic, own_address(), port, port + kPorts - 1);
    for (int i = 0; i < 16; ++i) text += fmt::format("{:02x}", random[i]);
  }
  if (text.size() >= sizeof id.internal) return Status(Code::kInvalid, "NCCL_COMM_ID is too long");
  std::memcpy(id.internal, text.data(), text.size());
  return id;
}

Result<Meeting> read_id(const ncclUniqueId& id) {
  std::string_view text(id.internal, ::strnlen(id.internal, sizeof id.internal));
  if (!text.starts_with(kMagic)) {
    return Status(Code::kInvalid,
                  "the ncclUniqueId was not made by this library's ncclGetUniqueId, or was damaged on its way");
  }
  text.remove_prefix(kMagic.size());
  const size_t space = std::min(text.find(' '), text.size());
  return Meeting{std::string(text.substr(0, space)), std::string(text.substr(std::min(space + 1, text.size())))};
}

}  // namespace ringfold::nccl
