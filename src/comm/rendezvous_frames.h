// What the two sides of a rendezvous at an address have in common: rendezvous_server.cc and rendezvous.cc.
#pragma once

#include <boost/system/error_code.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "comm/channel.h"

namespace ringfold::comm {

// A rank sends kRegister {rank, size, milliseconds it will wait, card}; the server answers kRoster {job, cards} or
// kRefused {code, text}. The hello says who we are, so that another kind of Ringfold socket is not mistaken for us.
// Who comes back sends kReturn in the place of kRegister, and gets the roster of the job that met last.
enum RendezvousFrame : uint8_t { kRegister = 1, kRoster, kRefused, kReturn };
inline constexpr std::string_view kRendezvousHello = "rendezvous";

std::vector<tcp::endpoint> resolve(asio::io_context& io, const std::string& host, uint16_t port,
                                   boost::system::error_code& error);

}  // namespace ringfold::comm
