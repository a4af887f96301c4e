#include "transports/nvlink/multicast.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "base/log.h"

namespace ringfold::nvlink {

using device::check;
using device::driver;

std::string why_not_multicast(const Gpu& gpu) {
  if (const std::string why = why_not_shared(gpu); !why.empty()) return why;
  if (const std::string missing = driver()->missing_to_multicast(); !missing.empty()) {
    return fmt::format("the CUDA driver has no {}: one of CUDA 12.1 or newer is needed", missing);
  }
  int device = 0, has = 0;
  if (const Status s = check(driver()->device_get(&device, gpu.ordinal), "cuDeviceGet"); !s.ok()) return s.message();
  // Drivers that do not know of it refuse to be asked.
  if (driver()->device_attribute(&has, device::kDeviceMulticasts, device) != device::kSuccess) has = 0;
  return has != 0 ? "" : fmt::format("GPU {} ({}) is on no switch that adds (NVLS)", gpu.ordinal, gpu.name);
}

namespace {

// The first rank that said something, and what; "": none.
std::string objection(const std::vector<std::string>& said) {
  const auto first = std::find_if(said.begin(), said.end(), [](const std::string& text) { return !text.empty(); });
  return first == said.end() ? "" : fmt::format("rank {}: {}", first - said.begin(), *first);
}

// Of every rank's device, in whole units of memory and of multicast.
Result<uint64_t> whole_units(uint64_t bytes, int devices) {
  const device::MulticastProperties properties{.devices = static_cast<unsigned>(devices), .bytes = bytes};
  size_t unit = 0;
  RINGFOLD_TRY(check(driver()->multicast_granularity(&unit, &properties, device::kLeastGranularity),
                     "cuMulticastGetGranularity"));
  if (unit == 0) return Status(Code::kUnavailable, "cuMulticastGetGranularity: 0");
  return (bytes + unit - 1) / unit * unit;
}

std::string object_name(const Mesh& mesh) { return mesh.names().front() + "/multicast"; }

// What rank 0 tells of the object.
constexpr char kRefused = '!';

}  // namespace

Result<std::unique_ptr<Multicast>> Multicast::make(Mesh& mesh, uint64_t bytes, const std::string& unwilling,
                                                   const Exchange& exchange, base::Deadline deadline,
                                                   std::string* why) {
  std::unique_ptr<Multicast> made(new Multicast(mesh.gpu()));
  const auto agreed = [&](const char* step, const std::string& cannot) -> Result<bool> {
    auto said = exchange(step, cannot);
    if (!said.ok()) return said.status();
    *why = objection(*said);
    return why->empty();
  };
  auto go_on = agreed("multicast", !unwilling.empty() ? unwilling : why_not_multicast(mesh.gpu()));
  if (!go_on.ok()) return go_on.status();
  if (!*go_on) return std::unique_ptr<Multicast>();

  std::string card;
  base::Fd descriptor;
  if (mesh.rank() == 0) {
    const auto create = [&]() -> Status {
      auto size = whole_units(bytes, mesh.size());
      if (!size.ok()) return size.status();
      auto object = Allocation::multicast(mesh.gpu().ordinal, mesh.size(), *size, true);
      if (!object.ok()) return object.status();
      made->object_ = *std::move(object);
      auto shared = made->object_->share();
      if (!shared.ok()) return shared.status();
      descriptor = *std::move(shared);
      remember(object_name(mesh), made->object_);
      const std::string& fabric = made->object_->fabric();
      card = fmt::format("{} {}", *size, fabric.empty() ? "-" : fabric);
      return {};
    };
    if (const Status s = create(); !s.ok()) card = kRefused + s.message();
  }
  auto cards = exchange("multicast-object", card);
  if (!cards.ok()) return cards.status();
  if (cards->front().empty() || cards->front()[0] == kRefused) {
    *why = "rank 0: " + cards->front().substr(cards->front().empty() ? 0 : 1);
    return std::unique_ptr<Multicast>();
  }

  Status mine = made->get_object(mesh, cards->front(), descriptor, deadline);
  if (mine.ok()) mine = made->join();
  go_on = agreed("multicast-joined", mine.message());
  if (!go_on.ok()) return go_on.status();
  if (!*go_on) return std::unique_ptr<Multicast>();
  go_on = agreed("multicast-bound", made->bind().message());
  if (!go_on.ok()) return go_on.status();
  return *go_on ? std::move(made) : std::unique_ptr<Multicast>();
}

// The object on other ranks than 0; rank 0 hands over what they need.
Status Multicast::get_object(Mesh& mesh, const std::string& card, const base::Fd& mine, base::Deadline deadline) {
  uint64_t bytes = 0;
  std::string fabric;
  if (std::istringstream in(card); !(in >> bytes >> fabric)) return {Code::kProtocol, "its object cannot be read"};
  auto memory = Allocation::make(gpu_.ordinal, bytes, true);
  if (memory.ok()) memory_ = *memory;
  if (object_ == nullptr) object_ = recall(object_name(mesh));
  if (mesh.by_fabric() && fabric != "-") {
    if (object_ == nullptr) {
      auto imported = Allocation::import(fabric, bytes);
      if (!imported.ok()) return imported.status();
      object_ = *std::move(imported);
    }
    return memory.status();
  }
  // Rank 0 meets all ranks that are not in its process, and each of those meets rank 0.
  std::vector<std::string> others(mesh.names().size());
  for (size_t r = 0; r < others.size(); ++r) {
    const bool meets = mesh.rank() == 0 ? recall(mesh.names()[r]) == nullptr : r == 0 && object_ == nullptr;
    if (meets) others[r] = mesh.names()[r];
  }
  base::Fd of_memory;
  if (mesh.rank() != 0 && object_ == nullptr && memory.ok()) {
    // Each gives something; this is of no use to rank 0. Without it both see that it failed.
    if (auto shared = memory_->share(); shared.ok()) of_memory = *std::move(shared);
  }
  auto got = mesh.meeting().exchange(mesh.rank() == 0 ? mine : of_memory, others, deadline);
  if (!got.ok()) return got.status();
  if (object_ == nullptr) {
    auto imported = Allocation::import(got->front(), bytes);
    if (!imported.ok()) return imported.status();
    object_ = *std::move(imported);
  }
  return memory.status();
}

Status Multicast::join() {
  RINGFOLD_TRY(check(driver()->device_get(&device_, gpu_.ordinal), "cuDeviceGet"));
  return check(driver()->multicast_add(object_->handle_, device_), "cuMulticastAddDevice");
}

Status Multicast::bind() {
  RINGFOLD_TRY(check(driver()->multicast_bind(object_->handle_, 0, memory_->handle_, 0, object_->bytes(), 0),
                     "cuMulticastBindMem"));
  bound_ = true;
  auto own = Mapping::make(memory_, gpu_.ordinal);
  if (!own.ok()) return own.status();
  own_ = *std::move(own);
  auto all = Mapping::make(object_, gpu_.ordinal);
  if (!all.ok()) return all.status();
  all_ = *std::move(all);
  return {};
}

Multicast::~Multicast() {
  all_.reset();
  if (bound_) {
    const Status s =
        check(driver()->multicast_unbind(object_->handle_, device_, 0, object_->bytes()), "cuMulticastUnbind");
    if (!s.ok()) log::info("{}", s.message());  // at the end of a process its driver may be gone
  }
}

}  // namespace ringfold::nvlink
