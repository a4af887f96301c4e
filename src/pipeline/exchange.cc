#include "pipeline/exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace ringfold::pipeline {
namespace {

// Tags of pipelines: bit 62, so that a program's own small tags on the same communicator do not meet them.
int64_t tag_of(const Name& name, bool credit) {
  return int64_t{1} << 62 | int64_t{credit} << 61 | int64_t{name.gradient} << 60 |
         static_cast<int64_t>(name.stage) << 32 | static_cast<int64_t>(name.micro_batch);
}

CallOptions options_of(const Envelope& envelope, std::string_view label) {
  CallOptions options;
  options.label = label;
  // A deadline in the past is met by the next look at the clock; 0 would mean the communicator's.
  if (envelope.deadline.at != base::TimePoint::max())
    options.timeout_s = std::max(1e-3, base::seconds_of(envelope.deadline.left()));
  return options;
}

}  // namespace

std::string Name::to_string() const {
  return fmt::format("the {} of micro-batch {} from stage {}", gradient ? "gradient" : "activation", micro_batch,
                     stage);
}

// ---- memory ----

// Memory that neighbours read in place comes in pages, from the system; small messages are copied anyway.
constexpr size_t kSmall = 16 * 1024;

void Pool::Free::operator()(std::byte* memory) const {
  if (bytes <= kSmall) {
    delete[] memory;
  } else {
    deallocate(memory);
  }
}

Result<Memory> Pool::take(size_t bytes) {
  if (bytes == 0) return Memory();
  Block block(nullptr, {bytes});
  {
    std::lock_guard lock(mutex_);
    bytes_ += bytes;
    peak_ = std::max(peak_, bytes_);
    if (auto& free = free_[bytes]; !free.empty()) {
      block = std::move(free.back());
      free.pop_back();
    }
  }
  if (!block && bytes <= kSmall) block.reset(new std::byte[bytes]);
  if (!block) {
    auto made = allocate(bytes);
    if (!made.ok()) return made.status();
    block.reset(static_cast<std::byte*>(*made));
  }
  return Memory(block.release(), [pool = shared_from_this(), bytes](std::byte* memory) {
    std::lock_guard lock(pool->mutex_);
    pool->bytes_ -= bytes;
    pool->free_[bytes].push_back(Block(memory, {bytes}));
  });
}

size_t Pool::peak_bytes() const {
  std::lock_guard lock(mutex_);
  return peak_;
}

// ---- sends ----

struct Exchange::Outgoing {
  Envelope envelope;
  Memory memory;
  std::string label;
  Work credit;
  Work data;              // guarded; once `started`
  bool started = false;   // guarded: the credit has come, or failed
  bool finished = false;  // guarded
};

struct Exchange::Sends {
  std::shared_ptr<Port> port;
  mutable std::mutex mutex;
  std::condition_variable changed;
  Status first;  // error

  // On the thread that has completed the receive of the credit.
  void start(const std::shared_ptr<Outgoing>& out, const std::shared_ptr<Sends>& self, const Status& credit) {
    if (!credit.ok()) return finish(*out, credit);
    const Envelope& e = out->envelope;
    CallOptions options = options_of(e, out->label);
    if (e.codec) options.codec = e.codec;
    Work data =
        port->send(out->memory.get(), e.boundary.count, e.boundary.type, e.peer, tag_of(e.name, false), options);
    {
      std::lock_guard lock(mutex);
      out->data = data;
      out->started = true;
      changed.notify_all();
    }
    data.then([out, self](const Status& status) { self->finish(*out, status); });
  }
  void finish(Outgoing& out, const Status& status) {
    Memory memory;
    std::lock_guard lock(mutex);
    if (!status.ok() && first.ok()) first = status;
    out.started = out.finished = true;
    memory.swap(out.memory);
    changed.notify_all();
  }
};

Exchange::Exchange(std::shared_ptr<Port> port)
    : port_(std::move(port)), pool_(std::make_shared<Pool>()), sends_(std::make_shared<Sends>()) {
  sends_->port = port_;
}

Exchange::~Exchange() {
  (void)flush();                                                        // whoever wants to know has asked
  for (auto& [name, incoming] : incoming_) (void)incoming.work.wait();  // of a step that failed
}

void Exchange::send(const Envelope& envelope, Memory memory) {
  forget_sent();
  auto out = std::make_shared<Outgoing>();
  out->envelope = envelope;
  out->memory = std::move(memory);
  out->label = envelope.name.to_string();
  const std::string label = "the credit for " + out->label;
  out->credit =
      port_->recv(nullptr, 0, DataType::kU8, envelope.peer, tag_of(envelope.name, true), options_of(envelope, label));
  outgoing_.push_back(out);
  out->credit.then([out, sends = sends_](const Status& status) { sends->start(out, sends, status); });
}

void Exchange::forget_sent() {
  std::lock_guard lock(sends_->mutex);
  outgoing_.remove_if([](const auto& out) { return out->finished; });
}

size_t Exchange::unsent() const {
  std::lock_guard lock(sends_->mutex);
  return static_cast<size_t>(std::count_if(outgoing_.begin(), outgoing_.end(), [](auto& o) { return !o->finished; }));
}

Status Exchange::status() const {
  std::lock_guard lock(sends_->mutex);
  return sends_->first;
}

Status Exchange::flush() {
  for (const auto& out : outgoing_) {
    (void)out->credit.wait();
    Work data;
    {
      // Where another thread has completed the credit, it is about to start the message.
      std::unique_lock lock(sends_->mutex);
      sends_->changed.wait(lock, [&] { return out->started; });
      data = out->data;
    }
    (void)data.wait();
    std::unique_lock lock(sends_->mutex);
    sends_->changed.wait(lock, [&] { return out->finished; });
  }
  outgoing_.clear();
  return status();
}

// ---- receives ----

Status Exchange::post(const Envelope& envelope) {
  auto memory = pool_->take(envelope.boundary.bytes());
  if (!memory.ok()) return memory.status();
  const std::string label = envelope.name.to_string(), credit = "the credit for " + label;
  CallOptions options = options_of(envelope, label);
  if (envelope.codec) options.codec = envelope.codec;
  Work work = port_->recv(memory->get(), envelope.boundary.count, envelope.boundary.type, envelope.peer,
                          tag_of(envelope.name, false), options);
  incoming_.emplace(envelope.name, Incoming{*memory, work});
  // Without content, so there is nothing to keep until it has gone; its error is the communicator's.
  (void)port_->send(nullptr, 0, DataType::kU8, envelope.peer, tag_of(envelope.name, true),
                    options_of(envelope, credit));
  return {};
}

bool Exchange::arrived(const Name& name) { return incoming_.at(name).work.test(); }

Status Exchange::wait(const Name& name) { return incoming_.at(name).work.wait(); }

Result<Memory> Exchange::take(const Name& name) {
  auto it = incoming_.find(name);
  if (Status s = it->second.work.wait(); !s.ok()) return s;
  Memory memory = std::move(it->second.memory);
  incoming_.erase(it);
  return memory;
}

}  // namespace ringfold::pipeline
