// What the kernel says of RDMA devices, in /sys and /dev, whether or not libibverbs is there: where it gives less
// than there is, the reason lies between the two.
#pragma once

#include <string>
#include <vector>

namespace ringfold::verbs {

// What is wrong, and what to do about it.
struct Finding {
  std::string text, mend;
};

// `root` stands before /sys and /dev: "", or a test's folder.
std::vector<std::string> kernel_devices(const std::string& root);
// What keeps this process from `device`'s file; no text: nothing.
Finding why_closed(const std::string& root, const std::string& device);
// The network interface under a port of RoCE; "": not known.
std::string interface_of(const std::string& root, const std::string& device, int port);
// Of a network interface, bytes; 0: not known.
int interface_mtu(const std::string& root, const std::string& name);

}  // namespace ringfold::verbs
