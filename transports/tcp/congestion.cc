#include "transports/tcp/congestion.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>

namespace ringfold::transport::tcp {
namespace {

namespace ip = boost::asio::ip;

std::vector<unsigned char> bytes_of(const ip::address& address) {
  const auto bytes = [](const auto& b) { return std::vector<unsigned char>(b.begin(), b.end()); };
  return address.is_v4() ? bytes(address.to_v4().to_bytes()) : bytes(address.to_v6().to_bytes());
}

// Empty: none of the Internet's.
std::vector<unsigned char> bytes_of(const sockaddr* address) {
  if (address == nullptr) return {};
  const void* from = nullptr;
  size_t size = 0;
  if (address->sa_family == AF_INET) {
    from = &reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
    size = sizeof(in_addr);
  } else if (address->sa_family == AF_INET6) {
    from = &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
    size = sizeof(in6_addr);
  }
  std::vector<unsigned char> bytes(size);
  if (size > 0) std::memcpy(bytes.data(), from, size);
  return bytes;
}

}  // namespace

bool Subnet::contains(const ip::address& other) const {
  const auto bytes = bytes_of(other);
  if (bytes.size() != address.size()) return false;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (((bytes[i] ^ address[i]) & mask[i]) != 0) return false;
  }
  return true;
}

std::vector<Subnet> own_subnets() {
  std::vector<Subnet> subnets;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return subnets;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if ((i->ifa_flags & IFF_POINTOPOINT) != 0) continue;
    Subnet subnet{bytes_of(i->ifa_addr), bytes_of(i->ifa_netmask)};
    if (!subnet.address.empty() && subnet.address.size() == subnet.mask.size()) subnets.push_back(std::move(subnet));
  }
  ::freeifaddrs(list);
  return subnets;
}

std::string congestion_for(const ip::address& peer, const std::string& usual, const std::vector<Subnet>& subnets) {
  if (peer.is_loopback()) return "reno";
  const bool near = std::any_of(subnets.begin(), subnets.end(), [&](const Subnet& s) { return s.contains(peer); });
  return usual == "bbr" && near ? "cubic" : usual;
}

}  // namespace ringfold::transport::tcp
