// Device memory that ranks share: physical memory behind a handle, and mappings of it, each for one device. Both are
// counted by the driver: memory lives on while anybody in any process has a handle or a mapping of it, so nobody's
// exit takes it from under another.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/fd.h"
#include "device/driver.h"
#include "ringfold/status.h"

namespace ringfold::nvlink {

// A GPU as this process sees it.
struct Gpu {
  int ordinal = 0;
  std::string name, uuid;  // the uuid is the same in all processes of a host

  static Result<Gpu> of(int ordinal);
  // By its uuid: kUnavailable where this process does not see it.
  static Result<Gpu> find(const std::string& uuid);
};

// "" or why memory of this process's GPUs cannot be shared at all: no driver, or one that is too old.
std::string why_not_shared();
// "" or why memory of this GPU cannot be shared.
std::string why_not_shared(const Gpu& gpu);
// "" or why a GPU cannot use the memory of another one.
std::string why_not_reached(const Gpu& from, const Gpu& to);

// Any thread.
class Allocation {
 public:
  // At least `bytes`, of a device; what is in it is not known. `fabric`: with a fabric handle, too, where the device
  // says that it has them and really gives one (systems without its service refuse).
  static Result<std::shared_ptr<Allocation>> make(int ordinal, size_t bytes, bool fabric = false);
  // What another process has exported, of `bytes` bytes: by file descriptor, or by what fabric() told.
  static Result<std::shared_ptr<Allocation>> import(const base::Fd& from, size_t bytes);
  static Result<std::shared_ptr<Allocation>> import(const std::string& fabric, size_t bytes);
  // An object at whose address all memory that is bound to it is read and written at once (multicast.h): of as many
  // devices, each with `bytes`, a multiple of what the driver asks for.
  static Result<std::shared_ptr<Allocation>> multicast(int ordinal, int devices, size_t bytes, bool fabric);
  ~Allocation();
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  // Another process that is given this file descriptor can import the memory.
  Result<base::Fd> share() const;
  // What lets any process of this user import it, in hexadecimal digits; "": it has no fabric handle.
  const std::string& fabric() const { return fabric_; }
  size_t bytes() const { return bytes_; }

 private:
  friend class Mapping;
  friend class Multicast;
  Allocation(device::Allocation handle, size_t bytes) : handle_(handle), bytes_(bytes) {}
  const device::Allocation handle_;
  const size_t bytes_;
  std::string fabric_;
};

// Allocations of this process by a name, for its other ranks: a process does not import what it exports. Null: there
// is none of that name.
void remember(const std::string& name, const std::shared_ptr<Allocation>& memory);
std::shared_ptr<Allocation> recall(const std::string& name);

// All of an allocation at an address that one device may read and write. No work on it may be left at its end.
class Mapping {
 public:
  static Result<std::unique_ptr<Mapping>> make(std::shared_ptr<Allocation> memory, int ordinal);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  device::Address address() const { return address_; }

 private:
  explicit Mapping(std::shared_ptr<Allocation> memory) : memory_(std::move(memory)) {}
  const std::shared_ptr<Allocation> memory_;
  device::Address address_ = 0;
  bool mapped_ = false;
};

}  // namespace ringfold::nvlink
