#include "transports/nvlink/memory.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <map>
#include <mutex>

#include "base/log.h"

namespace ringfold::nvlink {

using device::check;
using device::driver;

namespace {

Result<int> attribute_of(const Gpu& gpu, int attribute) {
  int handle = 0, value = 0;
  RINGFOLD_TRY(check(driver()->device_get(&handle, gpu.ordinal), "cuDeviceGet"));
  RINGFOLD_TRY(check(driver()->device_attribute(&value, attribute, handle), "cuDeviceGetAttribute"));
  return value;
}

void note(int error, const char* call) {
  // At the end of a process its driver may be gone before us.
  if (const Status s = check(error, call); !s.ok()) log::info("{}", s.message());
}

}  // namespace

std::string why_not_shared() {
  if (driver() == nullptr) return device::why_none();
  if (const std::string missing = driver()->missing_to_share(); !missing.empty()) {
    return fmt::format("the CUDA driver has no {}: one of CUDA 12 or newer is needed", missing);
  }
  if (const Status started = check(driver()->init(0), "cuInit"); !started.ok()) return started.message();
  return "";
}

Result<Gpu> Gpu::of(int ordinal) {
  if (const std::string why = why_not_shared(); !why.empty()) return Status(Code::kUnavailable, why);
  int handle = 0;
  std::array<char, 256> name{};
  device::Uuid uuid;
  RINGFOLD_TRY(check(driver()->device_get(&handle, ordinal), "cuDeviceGet"));
  RINGFOLD_TRY(check(driver()->device_name(name.data(), name.size() - 1, handle), "cuDeviceGetName"));
  RINGFOLD_TRY(check(driver()->device_uuid(&uuid, handle), "cuDeviceGetUuid"));
  Gpu gpu{.ordinal = ordinal, .name = name.data(), .uuid = {}};
  for (const unsigned char b : uuid.bytes) gpu.uuid += fmt::format("{:02x}", b);
  return gpu;
}

Result<Gpu> Gpu::find(const std::string& uuid) {
  if (const std::string why = why_not_shared(); !why.empty()) return Status(Code::kUnavailable, why);
  int count = 0;
  RINGFOLD_TRY(check(driver()->device_count(&count), "cuDeviceGetCount"));
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    auto gpu = Gpu::of(ordinal);
    if (!gpu.ok() || gpu->uuid == uuid) return gpu;
  }
  return Status(Code::kUnavailable,
                fmt::format("GPU {} is not among the {} that this process sees: let all ranks of a host see all of "
                            "its GPUs (CUDA_VISIBLE_DEVICES) and choose one by cudaSetDevice",
                            uuid, count));
}

std::string why_not_shared(const Gpu& gpu) {
  for (const auto& [attribute, what] : {std::pair{device::kDeviceHasVirtualMemory, "virtual memory management"},
                                        std::pair{device::kDeviceSharesDescriptors, "sharing by file descriptors"}}) {
    auto has = attribute_of(gpu, attribute);
    if (!has.ok()) return has.status().message();
    if (*has == 0) return fmt::format("GPU {} ({}) or its driver has no {}", gpu.ordinal, gpu.name, what);
  }
  return "";
}

std::string why_not_reached(const Gpu& from, const Gpu& to) {
  if (from.uuid == to.uuid) return "";  // the driver calls it a mistake to ask
  int a = 0, b = 0, reaches = 0;
  for (const auto& [gpu, handle] : {std::pair{&from, &a}, std::pair{&to, &b}}) {
    if (const Status s = check(driver()->device_get(handle, gpu->ordinal), "cuDeviceGet"); !s.ok())
      return s.message();
  }
  if (const Status s = check(driver()->device_reaches(&reaches, a, b), "cuDeviceCanAccessPeer"); !s.ok()) {
    return s.message();
  }
  if (reaches != 0) return "";
  return fmt::format(
      "GPU {} ({}) cannot use the memory of GPU {} ({}): the driver allows no peer access between them", from.ordinal,
      from.name, to.ordinal, to.name);
}

// ---- allocations ----

namespace {

Result<bool> says_fabric(int ordinal) {
  int device = 0, has = 0;
  RINGFOLD_TRY(check(driver()->device_get(&device, ordinal), "cuDeviceGet"));
  // Drivers that do not know of it refuse to be asked.
  return driver()->device_attribute(&has, device::kDeviceSharesFabric, device) == device::kSuccess && has != 0;
}

// "": it has none.
std::string fabric_of(device::Allocation handle) {
  device::FabricHandle told;
  if (driver()->allocation_export(&told, handle, device::kFabric, 0) != device::kSuccess) return "";
  std::string text;
  for (const unsigned char b : told.bytes) text += fmt::format("{:02x}", b);
  return text;
}

}  // namespace

Result<std::shared_ptr<Allocation>> Allocation::make(int ordinal, size_t bytes, bool fabric) {
  bool has_fabric = false;
  if (fabric) {
    auto says = says_fabric(ordinal);
    if (!says.ok()) return says.status();
    has_fabric = *says;
  }
  device::AllocationProperties properties;
  properties.location.ordinal = ordinal;
  if (has_fabric) properties.handles |= device::kFabric;
  size_t unit = 0;
  RINGFOLD_TRY(check(driver()->allocation_granularity(&unit, &properties, device::kRecommendedGranularity),
                     "cuMemGetAllocationGranularity"));
  if (unit == 0) return Status(Code::kUnavailable, "cuMemGetAllocationGranularity: 0");
  const size_t size = (bytes + unit - 1) / unit * unit;
  device::Allocation handle = 0;
  if (has_fabric && driver()->allocation_create(&handle, size, &properties, 0) != device::kSuccess) {
    has_fabric = false;
    properties.handles = device::kDescriptor;
  }
  if (!has_fabric) RINGFOLD_TRY(check(driver()->allocation_create(&handle, size, &properties, 0), "cuMemCreate"));
  std::shared_ptr<Allocation> made(new Allocation(handle, size));
  if (has_fabric) made->fabric_ = fabric_of(handle);
  return made;
}

Result<std::shared_ptr<Allocation>> Allocation::multicast(int ordinal, int devices, size_t bytes, bool fabric) {
  bool has_fabric = false;
  if (fabric) {
    auto says = says_fabric(ordinal);
    if (!says.ok()) return says.status();
    has_fabric = *says;
  }
  device::MulticastProperties properties{.devices = static_cast<unsigned>(devices), .bytes = bytes};
  if (has_fabric) properties.handles |= device::kFabric;
  device::Allocation handle = 0;
  if (has_fabric && driver()->multicast_create(&handle, &properties) != device::kSuccess) {
    has_fabric = false;
    properties.handles = device::kDescriptor;
  }
  if (!has_fabric) RINGFOLD_TRY(check(driver()->multicast_create(&handle, &properties), "cuMulticastCreate"));
  std::shared_ptr<Allocation> made(new Allocation(handle, bytes));
  if (has_fabric) made->fabric_ = fabric_of(handle);
  return made;
}

Result<std::shared_ptr<Allocation>> Allocation::import(const std::string& fabric, size_t bytes) {
  device::FabricHandle told;
  if (fabric.size() != 2 * sizeof told.bytes) return Status(Code::kProtocol, "a fabric handle cannot be read");
  for (size_t i = 0; i < sizeof told.bytes; ++i) {
    const char* const digits = fabric.data() + 2 * i;
    if (std::from_chars(digits, digits + 2, told.bytes[i], 16).ptr != digits + 2) {
      return Status(Code::kProtocol, "a fabric handle cannot be read");
    }
  }
  device::Allocation handle = 0;
  RINGFOLD_TRY(check(driver()->allocation_import(&handle, &told, device::kFabric), "cuMemImportFromShareableHandle"));
  return std::shared_ptr<Allocation>(new Allocation(handle, bytes));
}

Result<std::shared_ptr<Allocation>> Allocation::import(const base::Fd& from, size_t bytes) {
  device::Allocation handle = 0;
  auto* number = reinterpret_cast<void*>(static_cast<intptr_t>(from.get()));
  RINGFOLD_TRY(
      check(driver()->allocation_import(&handle, number, device::kDescriptor), "cuMemImportFromShareableHandle"));
  return std::shared_ptr<Allocation>(new Allocation(handle, bytes));
}

Allocation::~Allocation() { note(driver()->allocation_release(handle_), "cuMemRelease"); }

Result<base::Fd> Allocation::share() const {
  int fd = -1;
  RINGFOLD_TRY(
      check(driver()->allocation_export(&fd, handle_, device::kDescriptor, 0), "cuMemExportToShareableHandle"));
  return base::Fd(fd);
}

namespace {
struct Names {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<Allocation>> known;
};
Names& names() {
  static Names* const kNames = new Names;
  return *kNames;
}
}  // namespace

void remember(const std::string& name, const std::shared_ptr<Allocation>& memory) {
  const std::lock_guard lock(names().mutex);
  std::erase_if(names().known, [](const auto& entry) { return entry.second.expired(); });
  names().known[name] = memory;
}

std::shared_ptr<Allocation> recall(const std::string& name) {
  const std::lock_guard lock(names().mutex);
  const auto found = names().known.find(name);
  return found == names().known.end() ? nullptr : found->second.lock();
}

// ---- mappings ----

Result<std::unique_ptr<Mapping>> Mapping::make(std::shared_ptr<Allocation> memory, int ordinal) {
  std::unique_ptr<Mapping> mapping(new Mapping(std::move(memory)));
  const size_t bytes = mapping->memory_->bytes();
  RINGFOLD_TRY(check(driver()->range_reserve(&mapping->address_, bytes, 0, 0, 0), "cuMemAddressReserve"));
  RINGFOLD_TRY(check(driver()->range_map(mapping->address_, bytes, 0, mapping->memory_->handle_, 0), "cuMemMap"));
  mapping->mapped_ = true;
  device::AccessDescription who;
  who.location.ordinal = ordinal;
  RINGFOLD_TRY(check(driver()->range_allow(mapping->address_, bytes, &who, 1), "cuMemSetAccess"));
  return mapping;
}

Mapping::~Mapping() {
  const size_t bytes = memory_->bytes();
  if (mapped_) note(driver()->range_unmap(address_, bytes), "cuMemUnmap");
  if (address_ != 0) note(driver()->range_free(address_, bytes), "cuMemAddressFree");
}

}  // namespace ringfold::nvlink
