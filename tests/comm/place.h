// A key of this test run, and an address where nobody listens.
#pragma once

#include <string>

#include "base/handshake.h"
#include "comm/rendezvous.h"

namespace ringfold::comm {

inline const base::Key& key() {
  static const base::Key kKey = *base::Key::generate();
  return kKey;
}

inline std::string free_place(const std::string& host = "127.0.0.1") {
  auto server = RendezvousServer::start({host, 0, 0, 1, false}, key());
  return server.ok() ? (*server)->address() : server.status().to_string();  // its port is free again afterwards
}

}  // namespace ringfold::comm
