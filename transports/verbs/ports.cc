#include "transports/verbs/ports.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>

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

// Can the port be used, and what would make it better?
void judge(const ibv_port_attr& a, const Options& options, bool iwarp, LocalPort* p) {
  const std::string netdev = p->netdev.empty() ? "its network interface" : p->netdev;
  const std::string give_address = fmt::format("give {} an IP address (ip addr add ADDRESS/PREFIX dev {})", netdev,
                                               p->netdev.empty() ? "IT" : netdev);
  if (iwarp) {
    p->unusable = {"iWARP has no write with immediate data", "none for verbs: its network interface carries tcp"};
    return;
  }
  if (a.state != IBV_PORT_ACTIVE) {
    p->unusable = {fmt::format("it is {}", p->state),
                   p->port.ethernet
                       ? fmt::format("ip link set {} up; if it stays so, look at cable and switch", netdev)
                   : a.state == IBV_PORT_DOWN ? "look at cable and switch"
                                              : "a subnet manager must bring it up: start opensm"};
    return;
  }
  auto& gids = p->port.gids;
  if (gids.empty()) {
    p->unusable = options.gid_index >= 0
                      ? Finding{fmt::format("it has no GID {} (RINGFOLD_RDMA_GID)", options.gid_index),
                                "unset RINGFOLD_RDMA_GID, or name one that `ringfold info` shows"}
                      : Finding{"it has no GID", give_address};
    return;
  }
  auto all = [&](auto&& is) { return std::all_of(gids.begin(), gids.end(), is); };
  if (p->port.ethernet && all([](const Gid& g) { return g.kind == GidKind::kRoceV1; })) {
    p->remarks.push_back({"its GIDs are all of RoCE v1, which no router forwards",
                          give_address + "; cards by mlx4 also need the module's parameter roce_mode=2"});
  } else if (p->port.ethernet && all([](const Gid& g) { return g.link_local(); })) {
    p->remarks.push_back({"its GIDs are all link-local: they reach hosts on the same switches only", give_address});
  }
  if (a.active_mtu >= a.max_mtu) return;
  // What Ethernet carries besides the payload is 96 bytes at most.
  const int most = mtu_bytes(a.max_mtu), needed = most + 104, carried = interface_mtu(options.root, p->netdev);
  const auto text = fmt::format("packets of {} bytes, where the device can do {}", p->port.mtu, most);
  if (!p->port.ethernet) {
    p->remarks.push_back({text, "the subnet manager decides: mtu= in opensm's partitions.conf"});
  } else if (carried < needed) {
    p->remarks.push_back(
        {carried > 0 ? fmt::format("{}: {} has an MTU of {}", text, netdev, carried) : text,
         fmt::format("ip link set {} mtu {} or more, on all hosts; switches must allow it", netdev, needed)});
  } else {
    p->remarks.push_back({fmt::format("{}, though {} has an MTU of {}", text, netdev, carried),
                          fmt::format("ip link set {} down, and up again", netdev)});
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
      p.unusable = {fmt::format("its state cannot be read: {}", std::strerror(error)), "dmesg may tell why"};
      out->push_back(std::move(p));
      continue;
    }
    p.port.ethernet = a.link_layer == IBV_LINK_LAYER_ETHERNET;
    p.port.lid = a.lid;
    p.port.mtu = mtu_bytes(a.active_mtu);
    p.port.mbps = mbps_of(a);
    p.state = state_of(a.state);
    if (p.port.ethernet) p.netdev = interface_of(options.root, p.port.device, number);
    for (const ibv_gid_entry& e : gids) {
      if (static_cast<int>(e.port_num) != number) continue;
      if (options.gid_index >= 0 && static_cast<int>(e.gid_index) != options.gid_index) continue;
      Gid g;
      std::memcpy(g.bytes.data(), e.gid.raw, 16);
      g.index = static_cast<int>(e.gid_index);
      g.kind = static_cast<GidKind>(e.gid_type);
      if (g.kind == GidKind::kInfiniBand) g.prefix = 64;
      for (const Subnet& s : nets) {
        if (g.kind != GidKind::kInfiniBand && s.address == g.bytes) g.prefix = s.prefix;
      }
      p.port.gids.push_back(g);
    }
    judge(a, options, device.context()->device->transport_type == IBV_TRANSPORT_IWARP, &p);
    out->push_back(std::move(p));
  }
  if (!found) {
    return {Code::kUnavailable, fmt::format("{} has no port {} (RINGFOLD_RDMA_DEVICE)", device.name(), only)};
  }
  return {};
}

}  // namespace

Result<Host> look_around(const Library& library, const Options& options) {
  const std::vector<std::string> known = kernel_devices(options.root);
  int count = 0;
  errno = 0;
  ibv_device** list = library.get_device_list(&count);
  if (list == nullptr) count = 0;
  if (count == 0 && known.empty()) {
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
    ~Free() {
      if (list != nullptr) library.free_device_list(list);
    }
  } free{library, list};

  // Those that libibverbs shows, then those that only the kernel does.
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(library.get_device_name(list[i]));
  for (const std::string& name : known) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  // Name and port, in order of preference; port 0: all.
  std::vector<std::pair<size_t, int>> wanted;
  for (const std::string& text : options.devices) {
    const size_t colon = text.find(':');
    const std::string name = text.substr(0, colon);
    const std::string number = colon == std::string::npos ? "" : text.substr(colon + 1);
    if (number.find_first_not_of("0123456789") != std::string::npos || number.size() > 3 ||
        (colon != std::string::npos && (number.empty() || std::stoi(number) == 0))) {
      return Status(Code::kInvalid, fmt::format("RINGFOLD_RDMA_DEVICE: \"{}\" is not DEVICE or DEVICE:PORT", text));
    }
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
      std::string there;
      for (const std::string& other : names) there += (there.empty() ? "" : ", ") + other;
      return Status(Code::kUnavailable,
                    fmt::format("RINGFOLD_RDMA_DEVICE: there is no {}; there is {}", name, there));
    }
    wanted.emplace_back(at - names.begin(), number.empty() ? 0 : std::stoi(number));
  }
  if (options.devices.empty()) {
    for (size_t i = 0; i < names.size(); ++i) wanted.emplace_back(i, 0);
  }

  Host host;
  const std::vector<Subnet> nets = subnets();
  for (const auto& [index, port] : wanted) {
    const std::string& name = names[index];
    auto open = std::find_if(host.devices.begin(), host.devices.end(), [&](auto& d) { return d->name() == name; });
    if (open == host.devices.end()) {
      LocalPort hidden;
      hidden.port.device = name;
      hidden.port.number = std::max(1, port);
      hidden.state = "unknown";
      if (index >= static_cast<size_t>(count)) {
        hidden.unusable = why_closed(options.root, name);
        if (hidden.usable()) {
          hidden.unusable = {"libibverbs has no driver for it", "install its provider (Debian: ibverbs-providers)"};
        }
        host.ports.push_back(std::move(hidden));
        continue;
      }
      auto opened = Device::open(library, list[index]);
      if (!opened.ok()) {
        const Finding closed = why_closed(options.root, name);
        hidden.unusable = {opened.status().message(), closed.text.empty() ? "dmesg may tell why" : closed.mend};
        host.ports.push_back(std::move(hidden));
        continue;
      }
      host.devices.push_back(*std::move(opened));
      open = host.devices.end() - 1;
    }
    RINGFOLD_TRY(add_ports(**open, port, options, nets, &host.ports));
  }
  const bool usable = std::any_of(host.ports.begin(), host.ports.end(), [](auto& p) { return p.usable(); });
  if (!usable) {
    for (const LocalPort& p : host.ports) {
      host.why_none += fmt::format("{}{}: {} ({})", host.why_none.empty() ? "" : "; ", p.port.name(), p.unusable.text,
                                   p.unusable.mend);
    }
    if (host.why_none.empty()) host.why_none = "the RDMA devices have no ports";
  }
  return host;
}

}  // namespace ringfold::verbs
