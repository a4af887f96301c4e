// What this host has: devices and their ports.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "transports/verbs/address.h"
#include "transports/verbs/device.h"
#include "transports/verbs/verbs.h"

namespace ringfold::verbs {

// A port that can be used, or why it cannot.
struct LocalPort {
  Device* device = nullptr;
  Port port;
  std::string state, netdev;
  Finding unusable;              // no text: it can be used
  std::vector<Finding> remarks;  // on one that can be used
  bool usable() const { return unusable.text.empty(); }
};

struct Host {
  std::vector<std::unique_ptr<Device>> devices;
  std::vector<LocalPort> ports;  // usable and unusable ones
  std::string why_none;          // no port is usable
};
// Opens what options.devices names, or everything. kUnavailable: no rdma-core, or no device at all.
Result<Host> look_around(const Library& library, const Options& options);

}  // namespace ringfold::verbs
