// A device and what a transport has of it.
#pragma once

#include <memory>
#include <string>

#include "transports/verbs/library.h"

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
  // Makes the next completion wake event_fd().
  bool arm();
  // Takes what has woken it. No more than was asked for can have come, so nothing is looked for in vain.
  void take_events();
  // The next event that is not about completions; false: none. `text`: in words.
  struct Event {
    ibv_event_type type{};
    ibv_qp* qp = nullptr;  // of events that concern one
    int port = 0;          // of events that concern one; 0: none
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
  // Can it register memory of other devices, as of GPUs, by dma-buf?
  bool takes_dma_buf() const;

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
  unsigned asked_ = 0;   // events that may still come, at most
  unsigned events_ = 0;  // taken and not acknowledged
};

}  // namespace ringfold::verbs
