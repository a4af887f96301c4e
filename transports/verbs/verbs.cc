// The entrances.
#include "transports/verbs/verbs.h"

#include <fmt/format.h>

#include <algorithm>

#include "transports/verbs/memory.h"
#include "transports/verbs/ports.h"
#include "transports/verbs/transport.h"

namespace ringfold::verbs {
namespace {

Result<const Library*> library_of(const Options& options) {
  return options.api != nullptr ? Result<const Library*>(options.api) : load();
}

}  // namespace

Result<std::unique_ptr<Transport>> make(int rank, int size, uint64_t communicator_nonce, const Options& options) {
  const auto invalid = [](std::string why) { return Status(Code::kInvalid, "verbs: " + std::move(why)); };
  if (size < 1 || rank < 0 || rank >= size) return invalid(fmt::format("there is no rank {} of {}", rank, size));
  if (options.slots < 1 || options.slots > 256) {
    return invalid(fmt::format("{} slots; 1 to 256 are possible", options.slots));
  }
  if (options.slot_bytes < 256 || options.slot_bytes > 64 << 20 || options.slot_bytes % 64 != 0) {
    return invalid(
        fmt::format("slots of {} bytes; 256 to 64 Mi, a multiple of 64, are possible", options.slot_bytes));
  }
  if (options.rails < 1 || options.rails > kMostRails) {
    return invalid(fmt::format("{} rails; 1 to {} are possible", options.rails, kMostRails));
  }
  auto library = library_of(options);
  if (!library.ok()) return library.status();
  auto made = std::make_unique<VerbsTransport>(rank, size, communicator_nonce, options);
  RINGFOLD_TRY(made->create(**library));
  return std::unique_ptr<Transport>(std::move(made));
}

bool Survey::usable() const {
  return std::any_of(ports.begin(), ports.end(), [](const PortReport& p) { return p.usable; });
}

Survey survey(const Options& options) {
  Survey result;
  auto library = library_of(options);
  if (!library.ok()) {
    const auto devices = kernel_devices(options.root);
    result.none = {library.status().message(), devices.empty() ? "" : "install it: this host has RDMA devices"};
    return result;
  }
  auto host = look_around(**library, options);
  if (!host.ok()) {
    result.none = {host.status().message(), ""};
    return result;
  }
  for (const LocalPort& p : host->ports) {
    PortReport r;
    r.device = p.port.device;
    r.port = p.port.number;
    r.state = p.state;
    r.link = p.port.ethernet ? "RoCE" : "InfiniBand";
    r.netdev = p.netdev;
    r.mtu = p.port.mtu;
    r.gbps = p.port.mbps / 1000.0;
    r.usable = p.usable();
    r.dma_buf = p.device != nullptr && p.device->takes_dma_buf();
    r.findings = p.usable() ? p.remarks : std::vector<Finding>{p.unusable};
    static constexpr const char* kKinds[] = {"InfiniBand", "RoCE v1", "RoCE v2"};
    for (const Gid& g : p.port.gids) {
      r.gids.push_back(fmt::format("{}: {} ({})", g.index, g.to_string(), kKinds[static_cast<size_t>(g.kind)]));
    }
    result.ports.push_back(std::move(r));
  }
  return result;
}

size_t link_bytes(const Options& options) {
  return 2 * static_cast<size_t>(options.slots) * (head_bytes(options.slot_bytes) + options.slot_bytes);
}

Status try_memory(size_t bytes, const Options& options) {
  auto library = library_of(options);
  if (!library.ok()) return library.status();
  auto host = look_around(**library, options);
  if (!host.ok()) return host.status();
  std::vector<Device*> devices;
  for (const LocalPort& p : host->ports) {
    if (p.usable()) devices.push_back(p.device);
  }
  Memory memory;
  return memory.allocate(bytes, devices);
}

}  // namespace ringfold::verbs
