// Work on streams: copies on streams of our own, what waits for a user's stream, and what a user's stream waits for.
// Objects belong to a context. Every function needs none to be current.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "device/memory.h"

namespace ringfold::device {

// A moment in a stream's work: all that was put on it before. Movable; empty: long past.
class Moment {
 public:
  Moment() = default;
  Moment(Moment&& other) noexcept;
  Moment& operator=(Moment&& other) noexcept;
  ~Moment();
  // That of the work which `stream` has by now. kInvalid while the stream is captured into a graph: what the host
  // does would not be in the graph.
  static Result<Moment> now(Context context, Stream stream);
  // Is it over? An error that the device met before is reported here.
  Result<bool> over() const;
  Event event() const { return event_; }

 private:
  Context context_ = nullptr;
  Event event_ = nullptr;
};

// Is what is put on the stream captured into a graph? Its context is current, or given.
Result<bool> is_captured(Context context, Stream stream);

// Copies on any stream.
Status copy_to_host(Context context, Stream stream, std::byte* to, const std::byte* device, size_t bytes);
Status copy_on_devices(Context context, Stream stream, Address to, Address from, size_t bytes);

// A stream of our own, for copies between device memory, of any device, and pinned memory, in order.
class OwnStream {
 public:
  static Result<std::unique_ptr<OwnStream>> make(Context context);
  // What was put on it must be over.
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;

  Context context() const { return context_; }
  // Later copies begin after `moment`.
  Status wait_for(const Moment& moment);
  Status to_host(std::byte* to, const std::byte* device, size_t bytes) {
    return copy_to_host(context_, stream_, to, device, bytes);
  }
  Status to_device(std::byte* device, const std::byte* from, size_t bytes);
  Status on_devices(Address to, Address from, size_t bytes) {
    return copy_on_devices(context_, stream_, to, from, bytes);
  }
  // What comes later waits until a word of memory that the device reaches has come to `value` (it may go round), and
  // a word is set when all that came before is done and can be seen. Needs Driver::missing_to_share() to be "".
  Status wait_until(Address word, uint32_t value);
  Status set(Address word, uint32_t value);
  Status zero(Address memory, size_t bytes);
  Stream handle() const { return stream_; }
  // The moment when all copies so far are over; `wake` is called then, on a thread of the driver's, where it may call
  // neither the driver nor anything that waits. It is not called where the device has failed: look at the moment now
  // and then.
  Result<Moment> mark(std::function<void()> wake);
  Result<Moment> now() const { return Moment::now(context_, stream_); }

 private:
  OwnStream(Context context, Stream stream) : context_(context), stream_(stream) {}
  const Context context_;
  const Stream stream_;
};

// Holds a user's stream until it is opened: work that is put on the stream after hold() begins then. Opened at the
// latest by its destructor. The words that streams look at are never given back: a stream may look late.
class Gate {
 public:
  Gate() = default;
  Gate(Gate&& other) noexcept : word_(std::exchange(other.word_, nullptr)), value_(other.value_) {}
  Gate& operator=(Gate&& other) noexcept;
  ~Gate() { open(); }
  // By a wait of the stream itself, or where the device has none, by a host function, which keeps one of the driver's
  // threads.
  static Result<Gate> hold(Context context, Stream stream);
  void open();
  // Has the device open it when what is on `stream` by now is done; open() is called later all the same.
  Status open_after(OwnStream& stream);

 private:
  struct Word {
    std::atomic<uint32_t> value{0};
  };
  friend struct Words;
  Word* word_ = nullptr;
  uint32_t value_ = 0;  // the gate is open when the word has come so far
};

// The context of a stream; of the default streams it is the calling thread's.
Result<Context> context_of(Stream stream);

}  // namespace ringfold::device
