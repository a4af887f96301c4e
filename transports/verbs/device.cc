#include "transports/verbs/device.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstring>

namespace ringfold::verbs {
namespace {

Status failed(const std::string& where, const char* what) {
  return {Code::kUnavailable, fmt::format("{}: {}: {}", where, what, std::strerror(errno))};
}

bool set_nonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

}  // namespace

Result<std::unique_ptr<Device>> Device::open(const Library& library, ibv_device* device) {
  std::unique_ptr<Device> d(new Device(library));
  const std::string name = library.get_device_name(device);
  errno = 0;
  d->context_ = library.open_device(device);
  if (d->context_ == nullptr) {
    return Status(Code::kUnavailable, fmt::format("{} cannot be opened: {}", name, std::strerror(errno)));
  }
  if (const int error = library.query_device(d->context_, &d->attributes_); error != 0) {
    errno = error;
    return failed(name, "its attributes cannot be read");
  }
  if ((d->pd_ = library.alloc_pd(d->context_)) == nullptr) return failed(name, "no protection domain");
  if ((d->channel_ = library.create_comp_channel(d->context_)) == nullptr) return failed(name, "no event channel");
  if (!set_nonblocking(d->channel_->fd) || !set_nonblocking(d->context_->async_fd)) {
    return failed(name, "its events cannot be read without waiting");
  }
  return d;
}

Device::~Device() {
  if (cq_ != nullptr) {
    if (events_ > 0) library_.ack_cq_events(cq_, events_);
    library_.destroy_cq(cq_);
  }
  if (channel_ != nullptr) library_.destroy_comp_channel(channel_);
  if (pd_ != nullptr) library_.dealloc_pd(pd_);
  if (context_ != nullptr) library_.close_device(context_);
}

Status Device::make_queue(int entries) {
  if (entries > attributes_.max_cqe) {
    return {Code::kUnavailable,
            fmt::format("{} holds {} completions, {} are needed for so many peers: lower RINGFOLD_SLOTS", name(),
                        attributes_.max_cqe, entries)};
  }
  cq_ = library_.create_cq(context_, entries, nullptr, channel_, 0);
  if (cq_ == nullptr) return failed(name(), "no completion queue");
  return {};
}

// It is asked to register no file at all: a driver that can do it minds the file, one that cannot minds the question.
bool Device::takes_dma_buf() const {
  if (library_.reg_dmabuf_mr == nullptr) return false;
  errno = 0;
  ibv_mr* mr = library_.reg_dmabuf_mr(pd_, 0, 4096, 0, -1, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
  if (mr != nullptr) library_.dereg_mr(mr);
  return mr != nullptr || errno == EBADF;
}

bool Device::arm() {
  armed = ibv_req_notify_cq(cq_, 0) == 0;
  moved = false;
  asked_ += armed;
  return armed;
}

void Device::take_events() {
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  while (asked_ > 0) {
    if (library_.get_cq_event(channel_, &cq, &context) != 0) {
      asked_ = 1;  // what it was armed for last may still come
      return;
    }
    --asked_;
    armed = false;
    if (++events_ < 1024) continue;
    library_.ack_cq_events(cq_, events_);  // a locked counter: in batches
    events_ = 0;
  }
}

bool Device::next_event(Event* event) {
  ibv_async_event e{};
  if (library_.get_async_event(context_, &e) != 0) return false;
  event->type = e.event_type;
  event->text = library_.event_type_str(e.event_type);
  const bool of_queue_pair = e.event_type <= IBV_EVENT_PATH_MIG_ERR && e.event_type != IBV_EVENT_CQ_ERR;
  event->qp = of_queue_pair || e.event_type == IBV_EVENT_QP_LAST_WQE_REACHED ? e.element.qp : nullptr;
  switch (e.event_type) {
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_PORT_ERR:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
    case IBV_EVENT_GID_CHANGE: event->port = e.element.port_num; break;
    default: event->port = 0;
  }
  library_.ack_async_event(&e);
  return true;
}

}  // namespace ringfold::verbs
