// What this host has: devices, their ports, and the memory that they may reach.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "transports/verbs/address.h"
#include "transports/verbs/library.h"
#include "transports/verbs/verbs.h"

namespace ringfold::verbs {

// An open device with the one protection domain, completion queue and event channel of a transport. Everything made
// on it must be gone first.
class Device {
 public:
  static Result<std::unique_ptr<Device>> open(const Library& library, ibv_device* device);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // The completion queue, for `entries` completions at once.
  Status make_queue(int entries);
  // Makes CQ events wake event_fd(); until take_events().
  bool arm();
  void take_events();
  // The next event that is not about completions; false: none. `text`: in words.
  struct Event {
    ibv_event_type type{};
    ibv_qp* qp = nullptr;  // of events that concern one
    std::string text;
  };
  bool next_event(Event* event);

  std::string name() const { return library_.get_device_name(context_->device); }
  const Library& api() const { return library_; }
  ibv_context* context() const { return context_; }
  ibv_pd* pd() const { return pd_; }
  ibv_cq* cq() const { return cq_; }
  int event_fd() const { return channel_->fd; }
  const ibv_device_attr& attributes() const { return attributes_; }

  bool armed = false;  // an event will come
  bool moved = false;  // a completion was taken since it was armed, so it may have come

 private:
  explicit Device(const Library& library) : library_(library) {}

  const Library& library_;
  ibv_context* context_ = nullptr;
  ibv_pd* pd_ = nullptr;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* cq_ = nullptr;
  ibv_device_attr attributes_{};
  unsigned events_ = 0;  // taken and not acknowledged
};

// A port that can be used, or why it cannot.
struct LocalPort {
  Device* device = nullptr;
  Port port;
  std::string state, unusable;
  std::string netdev;
};

struct Host {
  std::vector<std::unique_ptr<Device>> devices;
  std::vector<LocalPort> ports;  // usable and unusable ones
  std::string why_none;          // no port is usable
};
// Opens what options.devices names, or everything. kUnavailable: no rdma-core, or no device at all.
Result<Host> look_around(const Library& library, const Options& options);

// Page-aligned zeroed memory that devices may reach, and its keys. Stays with the parent at a fork.
class Memory {
 public:
  Memory() = default;
  ~Memory() { reset(); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // New memory of `bytes`, reachable by `devices`.
  Status allocate(size_t bytes, const std::vector<Device*>& devices);
  // Memory of somebody else's, which devices may only read.
  Status adopt(std::byte* data, size_t bytes, const std::vector<Device*>& devices);
  void reset();
  std::byte* data() const { return data_; }
  uint32_t local_key(const Device* device) const { return find(device)->lkey; }
  uint32_t remote_key(const Device* device) const { return find(device)->rkey; }

 private:
  Status register_with(const std::vector<Device*>& devices, int access);
  const ibv_mr* find(const Device* device) const;

  struct Entry {
    Device* device;
    ibv_mr* mr;
  };
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  bool own_ = false;
  std::vector<Entry> entries_;
};

}  // namespace ringfold::verbs
