#include "transports/verbs/ports.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

namespace ringfold::verbs {
namespace {

// Lengths of the subnets of this host's addresses, by their form as GIDs.
struct Subnet {
  std::array<uint8_t, 16> address;
  int prefix;
};

std::vector<Subnet> subnets() {
  std::vector<Subnet> found;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return found;
  for (ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_netmask == nullptr) continue;
    Subnet s{{}, 0};
    auto ones = [](const uint8_t* mask, int bytes) {
      int bits = 0;
      for (int k = 0; k < bytes; ++k) bits += std::popcount(mask[k]);
      return bits;
    };
    if (i->ifa_addr->sa_family == AF_INET) {
      s.address[10] = s.address[11] = 0xff;
      std::memcpy(s.address.data() + 12, &reinterpret_cast<sockaddr_in*>(i->ifa_addr)->sin_addr, 4);
      s.prefix = 96 + ones(reinterpret_cast<uint8_t*>(&reinterpret_cast<sockaddr_in*>(i->ifa_netmask)->sin_addr), 4);
    } else if (i->ifa_addr->sa_family == AF_INET6) {
      std::memcpy(s.address.data(), &reinterpret_cast<sockaddr_in6*>(i->ifa_addr)->sin6_addr, 16);
      s.prefix = ones(reinterpret_cast<uint8_t*>(&reinterpret_cast<sockaddr_in6*>(i->ifa_netmask)->sin6_addr), 16);
    } else {
      continue;
    }
    found.push_back(s);
  }
  freeifaddrs(list);
  return found;
}

int mtu_bytes(int mtu) { return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128 << mtu : 1024; }

// Bits per second of a port, from the codes of its width and speed.
int mbps_of(const ibv_port_attr& a) {
  const int lanes = a.active_width == 1    ? 1
                    : a.active_width == 2  ? 4
                    : a.active_width == 4  ? 8
                    : a.active_width == 8  ? 12
                    : a.active_width == 16 ? 2
                                           : 1;
  int each = 2500;
  switch (a.active_speed) {
    case 2: each = 5000; break;
    case 4:
    case 8: each = 10000; break;
    case 16: each = 14000; break;
    case 32: each = 25000; break;
    case 64: each = 50000; break;
    case 128: each = 100000; break;
    default: break;
  }
  return lanes * each;
}

const char* state_of(ibv_port_state state) {
  switch (state) {
    case IBV_PORT_DOWN: return "down";
    case IBV_PORT_INIT: return "initializing";
    case IBV_PORT_ARMED: return "armed";
    case IBV_PORT_ACTIVE: return "active";
    case IBV_PORT_ACTIVE_DEFER: return "active (deferred)";
    default: return "in an unknown state";
  }
}

Status add_ports(Device& device, int only, const Options& options, const std::vector<Subnet>& nets,
                 std::vector<LocalPort>* out) {
  std::vector<ibv_gid_entry> gids(1024);
  const ssize_t n = device.api().query_gid_table(device.context(), gids.data(), gids.size(), 0, sizeof gids[0]);
  gids.resize(n < 0 ? 0 : static_cast<size_t>(n));
  bool found = only == 0;
  for (int number = 1; number <= device.attributes().phys_port_cnt; ++number) {
    if (only != 0 && number != only) continue;
    found = true;
    ibv_port_attr a{};
    LocalPort p;
    p.device = &device;
    p.port.device = device.name();
    p.port.number = number;
    const int error = device.api().query_port(device.context(), static_cast<uint8_t>(number),
                                              reinterpret_cast<_compat_ibv_port_attr*>(&a));
    if (error != 0) {
      p.state = "unknown";
      p.unusable = fmt::format("its state cannot be read: {}", std::strerror(error));
      out->push_back(std::move(p));
      continue;
    }
    p.port.ethernet = a.link_layer == IBV_LINK_LAYER_ETHERNET;
    p.port.lid = a.lid;
    p.port.mtu = mtu_bytes(a.active_mtu);
    p.port.mbps = mbps_of(a);
    p.state = state_of(a.state);
    for (const ibv_gid_entry& e : gids) {
      if (static_cast<int>(e.port_num) != number) continue;
      if (options.gid_index >= 0 && static_cast<int>(e.gid_index) != options.gid_index) continue;
      Gid g;
      std::memcpy(g.bytes.data(), e.gid.raw, 16);
      g.index = static_cast<int>(e.gid_index);
      g.kind = static_cast<GidKind>(e.gid_type);
      if (g.kind == GidKind::kInfiniBand) {
        g.prefix = 64;
      } else {
        for (const Subnet& s : nets) {
          if (s.address == g.bytes) g.prefix = s.prefix;
        }
        char name[IF_NAMESIZE];
        if (p.netdev.empty() && if_indextoname(e.ndev_ifindex, name) != nullptr) p.netdev = name;
      }
      p.port.gids.push_back(g);
    }
    if (device.context()->device->transport_type == IBV_TRANSPORT_IWARP) {
      p.unusable = "iWARP has no write with immediate data";
    } else if (a.state != IBV_PORT_ACTIVE) {
      p.unusable = fmt::format("it is {}", p.state);
    } else if (p.port.gids.empty()) {
      p.unusable = options.gid_index >= 0 ? fmt::format("it has no GID {} (RINGFOLD_RDMA_GID)", options.gid_index)
                                          : std::string("it has no GID: give its network interface an address");
    }
    out->push_back(std::move(p));
  }
  if (!found) {
    return {Code::kUnavailable, fmt::format("{} has no port {} (RINGFOLD_RDMA_DEVICE)", device.name(), only)};
  }
  return {};
}

}  // namespace

Result<Host> look_around(const Library& library, const Options& options) {
  int count = 0;
  errno = 0;
  ibv_device** list = library.get_device_list(&count);
  if (list == nullptr || count == 0) {
    const int error = list == nullptr ? errno : 0;
    if (list != nullptr) library.free_device_list(list);
    return Status(Code::kUnavailable,
                  error == 0 || error == ENOSYS
                      ? "this host has no RDMA device (/sys/class/infiniband is empty)"
                      : fmt::format("the RDMA devices cannot be listed: {}", std::strerror(error)));
  }
  struct Free {
    const Library& library;
    ibv_device** list;
    ~Free() { library.free_device_list(list); }
  } free{library, list};

  // Name and port, in order of preference; port 0: all.
  std::vector<std::pair<ibv_device*, int>> wanted;
  for (const std::string& text : options.devices) {
    const size_t colon = text.find(':');
    const std::string name = text.substr(0, colon);
    const std::string number = colon == std::string::npos ? "" : text.substr(colon + 1);
    if (number.find_first_not_of("0123456789") != std::string::npos || number.size() > 3 ||
        (colon != std::string::npos && (number.empty() || std::stoi(number) == 0))) {
      return Status(Code::kInvalid, fmt::format("RINGFOLD_RDMA_DEVICE: \"{}\" is not DEVICE or DEVICE:PORT", text));
    }
    ibv_device** at =
        std::find_if(list, list + count, [&](ibv_device* d) { return name == library.get_device_name(d); });
    if (at == list + count) {
      std::string names;
      for (int i = 0; i < count; ++i) names += (i > 0 ? ", " : "") + std::string(library.get_device_name(list[i]));
      return Status(Code::kUnavailable,
                    fmt::format("RINGFOLD_RDMA_DEVICE: there is no {}; there is {}", name, names));
    }
    wanted.emplace_back(*at, number.empty() ? 0 : std::stoi(number));
  }
  if (options.devices.empty()) {
    for (int i = 0; i < count; ++i) wanted.emplace_back(list[i], 0);
  }

  Host host;
  const std::vector<Subnet> nets = subnets();
  for (const auto& [device, port] : wanted) {
    const std::string name = library.get_device_name(device);
    auto open = std::find_if(host.devices.begin(), host.devices.end(), [&](auto& d) { return d->name() == name; });
    if (open == host.devices.end()) {
      auto opened = Device::open(library, device);
      if (!opened.ok()) {
        LocalPort p;
        p.port.device = name;
        p.port.number = std::max(1, port);
        p.state = "unknown";
        p.unusable = opened.status().message();
        host.ports.push_back(std::move(p));
        continue;
      }
      host.devices.push_back(*std::move(opened));
      open = host.devices.end() - 1;
    }
    RINGFOLD_TRY(add_ports(**open, port, options, nets, &host.ports));
  }
  const bool usable = std::any_of(host.ports.begin(), host.ports.end(), [](auto& p) { return p.unusable.empty(); });
  if (!usable) {
    for (const LocalPort& p : host.ports) {
      host.why_none += fmt::format("{}{}: {}", host.why_none.empty() ? "" : "; ", p.port.name(), p.unusable);
    }
    if (host.why_none.empty()) host.why_none = "the RDMA devices have no ports";
  }
  return host;
}

}  // namespace ringfold::verbs
