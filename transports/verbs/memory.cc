#include "transports/verbs/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"

namespace ringfold::verbs {
namespace {

// Has this process to mind a limit of locked memory? What to say when a registration fails.
std::string memlock_hint() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "";
  return fmt::format(
      "; the limit of locked memory is {} KiB: raise it (ulimit -l unlimited, or memlock in "
      "/etc/security/limits.conf)",
      limit.rlim_cur >> 10);
}

}  // namespace

Status Memory::allocate(size_t bytes, const std::vector<Device*>& devices) {
  // Shared, so that a fork does not copy the pages on the parent's next write, under the device's feet.
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return {Code::kUnavailable, fmt::format("no memory of {} KiB for RDMA: {}", bytes >> 10, std::strerror(errno))};
  }
  data_ = static_cast<std::byte*>(memory);
  bytes_ = bytes;
  own_ = true;
  return register_with(devices);
}

Status Memory::adopt(std::byte* data, size_t bytes, const std::vector<Device*>& devices) {
  data_ = data;
  bytes_ = bytes;
  return register_with(devices);
}

Status Memory::adopt_dma_buf(std::byte* data, size_t bytes, int dma_buf, const std::vector<Device*>& devices) {
  data_ = data;
  bytes_ = bytes;
  return register_with(devices, dma_buf);
}

Status Memory::register_with(const std::vector<Device*>& devices, int dma_buf) {
  constexpr int kAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
  for (Device* device : devices) {
    if (find(device) != nullptr) continue;
    errno = 0;
    const auto address = reinterpret_cast<uint64_t>(data_);
    ibv_mr* mr = dma_buf < 0 ? device->api().reg_mr(device->pd(), data_, bytes_, kAccess)
                             : device->api().reg_dmabuf_mr(device->pd(), 0, bytes_, address, dma_buf, kAccess);
    if (mr == nullptr) {
      const int error = errno;
      return {Code::kUnavailable,
              fmt::format("{} cannot register {} KiB of memory{}: {}{}", device->name(), bytes_ >> 10,
                          dma_buf < 0 ? "" : " of another device", std::strerror(error),
                          error == ENOMEM && dma_buf < 0 ? memlock_hint() : "")};
    }
    entries_.push_back({device, mr});
  }
  return {};
}

void Memory::reset() {
  for (const Entry& e : entries_) e.device->api().dereg_mr(e.mr);
  entries_.clear();
  if (own_) munmap(data_, bytes_);
  data_ = nullptr;
  own_ = false;
}

const ibv_mr* Memory::find(const Device* device) const {
  for (const Entry& e : entries_) {
    if (e.device == device) return e.mr;
  }
  return nullptr;
}

const Memory* Regions::find(const std::byte* data, size_t bytes, const std::vector<Device*>& devices) {
  const region::Region* found = finder_.find(data, bytes);
  if (found == nullptr) return nullptr;
  for (const auto& [id, memory] : entries_) {
    if (id == found->id) return memory->data() != nullptr ? memory.get() : nullptr;
  }
  const region::Region region = *found;
  // A new one: time to let go of those that were freed since.
  std::erase_if(entries_, [&](auto& entry) {
    const region::Region* still = finder_.find(entry.second->data(), 1);
    return entry.second->data() != nullptr && (still == nullptr || still->id != entry.first);
  });
  auto memory = std::make_unique<Memory>();
  if (Status s = memory->adopt(const_cast<std::byte*>(region.base), region.bytes, devices); !s.ok()) {
    log::info("{}: large puts are copied", s.message());
    memory->reset();  // kept, so that it is not tried again
  }
  entries_.emplace_back(region.id, std::move(memory));
  return entries_.back().second->data() != nullptr ? entries_.back().second.get() : nullptr;
}

}  // namespace ringfold::verbs
