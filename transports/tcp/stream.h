// One connected socket: frames out, frames in. Knows no links and no peers.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ringfold/transport.h"

namespace ringfold::transport::tcp {

class Link;

// What the links and streams of one transport share.
struct Shared {
  size_t slot_bytes = 0;
  int slots = 0;
  int streams = 0;  // per link
  size_t stripe_bytes = 0;
  uint16_t tag = 0;  // begins every frame: a constant mixed with the epoch

  bool edges = false;  // reads wait for epoll's word instead of trying the socket
  int blocked = 0;     // streams with frames that the kernel has not taken yet
  uint64_t round = 1;  // counts the owner's sleeps
  uint64_t moved =
      0;  // counts what happened that the owner may act upon: puts that went out late, links that came up
  Counters counters;
  Failures failures;
};

// On the wire, little endian: tag 16, flags 8, lane 8, bytes 32; the preamble's 24 bytes when flagged; the payload.
struct Frame {
  static constexpr uint8_t kPreamble = 1;
  static constexpr uint8_t kStriped = 2;  // `bytes` tells the whole payload; the other streams carry the other parts
  static constexpr uint8_t kPart = 4;     // such a part
  static constexpr size_t kHeaderBytes = 8, kMostHeaderBytes = 8 + sizeof(Preamble);
  uint8_t flags = 0;
  uint32_t bytes = 0;
  Preamble preamble;
};

// Owns its socket. Reads and writes never block; whatever goes wrong makes the stream broken() for good, and status()
// says what. Not movable: epoll holds its address.
class Stream {
 public:
  Stream(Shared& shared, Link& link, int lane, int index, int fd, std::string ends);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // ---- sending: at most Shared::slots frames wait in the queue ----
  // Queues a frame that announces `bytes` and carries `size` bytes at `data`, and tries to send it unless others
  // wait.
  void push(uint8_t flags, size_t bytes, const Preamble* preamble, const std::byte* data, size_t size);
  void flush();
  uint64_t sent() const { return sent_; }  // frames handed to the kernel in full
  bool pending() const { return sent_ != pushed_; }

  // ---- receiving: frame(), then its payload by body() or body_in_place(), then next() ----
  // The next frame once its header is here. `hint`: the payload that the caller expects.
  const Frame* frame(size_t hint);
  // The frame's payload, where it lies complete and aligned in the buffer already; else null. Valid until next().
  const std::byte* body_in_place(size_t size);
  // Reads on; true once all `size` bytes are at `to`. Repeated calls pass the same arguments.
  bool body(std::byte* to, size_t size);
  void next();
  // What came makes no sense to the caller.
  void refuse(std::string why) { fail(End::kProtocol, 0, std::move(why)); }

  // ---- events ----
  void on_events(uint32_t epoll_events);
  bool hung_up() const { return hung_up_; }
  // The peer closed and everything that it sent has been taken: breaks the stream.
  void check_end();
  // Something came in since a read of this round found nothing.
  bool wants_attention() const { return readable_ && dry_round_ == shared_.round; }

  bool broken() const { return end_ != End::kNone; }
  Status status(int peer) const;
  Link& link() const { return link_; }
  int fd() const { return fd_; }
  // Says goodbye and closes, without a reset where that is possible.
  void close();

 private:
  enum class End : uint8_t { kNone, kClosed, kError, kProtocol };
  struct Outgoing {
    std::byte header[Frame::kMostHeaderBytes];
    uint8_t header_bytes = 0;
    const std::byte* data = nullptr;
    size_t size = 0;
  };

  Outgoing& out(uint64_t k) { return queue_[k % queue_.size()]; }
  ssize_t write(size_t* offered);
  bool parse();
  // Reads into `to`, then into the buffer, which is empty if `size` > 0. False: there was nothing, or the stream
  // broke.
  bool read(std::byte* to, size_t size, size_t ahead, size_t* got);
  bool dry();
  void fail(End end, int error, std::string detail = {});

  Shared& shared_;
  Link& link_;
  const int lane_, index_;
  int fd_;
  const std::string ends_;  // "10.0.0.1:4000 to 10.0.0.2:5000"

  std::vector<Outgoing> queue_;  // a ring of Shared::slots
  uint64_t pushed_ = 0, sent_ = 0;
  size_t offset_ = 0;  // bytes of the oldest queued frame that are with the kernel

  std::unique_ptr<std::byte[]> buffer_;
  size_t begin_ = 0, end_of_data_ = 0;
  Frame frame_;
  bool have_frame_ = false;
  size_t taken_ = 0;  // bytes of the frame's payload that body() or body_in_place() has

  // False only when nothing is unread that epoll will not announce.
  bool readable_ = true;
  bool hung_up_ = false;
  uint64_t dry_round_ = 0;

  End end_ = End::kNone;
  int error_ = 0;
  std::string detail_;
  uint64_t bytes_in_ = 0, bytes_out_ = 0;
};

}  // namespace ringfold::transport::tcp
