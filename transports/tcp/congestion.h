// Which control of congestion a connection gets.
#pragma once

#include <boost/asio/ip/address.hpp>
#include <string>
#include <vector>

namespace ringfold::transport::tcp {

// The addresses that an interface reaches without a router.
struct Subnet {
  std::vector<unsigned char> address, mask;  // 4 bytes or 16, as on the wire
  bool contains(const boost::asio::ip::address& other) const;
};

// Of this process's interfaces; tunnels, behind which anything may be, excepted.
std::vector<Subnet> own_subnets();

// For a connection with `peer`, where the system would take `usual`.
//
// By a loopback address, the one that does least, and that all users may ask for: bbr's timer for each packet is a
// fifth of the processors' time in a virtual machine, and stays with a socket that is given another control later;
// cubic's sums are 3 % of a small message.
//
// Within a network, not bbr: it slows each connection down for 0.2 s in 10 s to see how short the path is, and as in
// a ring all wait for the slowest, each of n connections holds them all up (4 hosts, 100 Mbit/s: 2 to 8 %, cubic and
// reno none). Behind a router, where packets may be lost, it stays; as does any other control.
std::string congestion_for(const boost::asio::ip::address& peer, const std::string& usual,
                           const std::vector<Subnet>& subnets);

}  // namespace ringfold::transport::tcp
