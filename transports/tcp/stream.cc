// How few system calls suffice. A put is one sendmsg of header and payload together, tried at once; only what the
// kernel does not take waits in the queue, and goes out with everything behind it in one further sendmsg when it is
// told that there is room. Reading looks ahead: while the tail of one payload is read to where it belongs, the same
// call reads what follows into the buffer: many small frames, so that they cost one call together, or behind a large
// payload just the next header, so that the next large payload is not copied. A stream of large puts thus costs one
// call each and no copy.
//
// A header is always known before its payload is placed. Reading header and payload in one scattered call would save
// a call for a lone put, but a payload of unexpected size would then have been written over memory that is not its
// own.
#include "transports/tcp/stream.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace ringfold::transport::tcp {
namespace {

constexpr size_t kBufferBytes = 16 << 10;
constexpr size_t kLarge = kBufferBytes;  // payloads from here on are not worth a copy
constexpr size_t kMostPieces = 32;       // of one sendmsg
constexpr size_t kSmall = 512;    // payloads up to here are put behind their header, so that send will do; not tuned
constexpr size_t kAlignment = 8;  // of payloads that are handed out in the buffer: any element type may lie there

void store(std::byte* to, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::byte>(value >> (8 * i));
}
uint64_t load(const std::byte* from, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(from[i]) << (8 * i);
  return value;
}

}  // namespace

Stream::Stream(Shared& shared, Link& link, int lane, int index, int fd, std::string ends)
    : shared_(shared), link_(link), lane_(lane), index_(index), fd_(fd), ends_(std::move(ends)) {
  queue_.resize(static_cast<size_t>(shared.slots));
}

Stream::~Stream() { close(); }

void Stream::push(uint8_t flags, size_t bytes, const Preamble* preamble, const std::byte* data, size_t size) {
  Outgoing& o = out(pushed_);
  store(o.header, shared_.tag, 2);
  store(o.header + 2, flags | (preamble ? Frame::kPreamble : 0), 1);
  store(o.header + 3, static_cast<uint64_t>(lane_), 1);
  store(o.header + 4, bytes, 4);
  o.header_bytes = Frame::kHeaderBytes;
  if (preamble) {
    for (size_t i = 0; i < 3; ++i) store(o.header + Frame::kHeaderBytes + 8 * i, preamble->words[i], 8);
    o.header_bytes = Frame::kMostHeaderBytes;
  }
  o.data = data;
  o.size = size;
  ++pushed_;
  if (pushed_ - sent_ == 1 && !broken()) {
    ++shared_.blocked;
    flush();
  }
}

// Offers the system what is queued, as far as one call goes.
ssize_t Stream::write(size_t* offered) {
  const Outgoing& oldest = out(sent_);
  if (pushed_ - sent_ == 1 && offset_ == 0 && oldest.size <= kSmall) {
    std::byte frame[Frame::kMostHeaderBytes + kSmall];
    std::memcpy(frame, oldest.header, oldest.header_bytes);
    if (oldest.size > 0) std::memcpy(frame + oldest.header_bytes, oldest.data, oldest.size);
    shared_.counters.copied_bytes += oldest.size;
    *offered = oldest.header_bytes + oldest.size;
    return ::send(fd_, frame, *offered, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  iovec pieces[kMostPieces];
  size_t count = 0;
  *offered = 0;
  auto offer = [&](const std::byte* data, size_t size, size_t skip) {
    if (skip >= size) return skip - size;
    pieces[count++] = {const_cast<std::byte*>(data) + skip, size - skip};
    *offered += size - skip;
    return size_t{0};
  };
  size_t skip = offset_;
  for (uint64_t k = sent_; k < pushed_ && count + 2 <= kMostPieces; ++k) {
    skip = offer(out(k).header, out(k).header_bytes, skip);
    skip = offer(out(k).data, out(k).size, skip);
  }
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = count;
  return ::sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void Stream::flush() {
  while (pending() && !broken()) {
    size_t offered = 0;
    const ssize_t result = write(&offered);
    ++shared_.counters.system_calls;
    if (result < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) fail(End::kError, errno);
      return;
    }
    bytes_out_ += static_cast<uint64_t>(result);
    shared_.counters.system_bytes += static_cast<uint64_t>(result);
    offset_ += static_cast<size_t>(result);
    while (pending() && offset_ >= out(sent_).header_bytes + out(sent_).size) {
      offset_ -= out(sent_).header_bytes + out(sent_).size;
      ++sent_;
    }
    if (!pending()) --shared_.blocked;
    if (static_cast<size_t>(result) < offered) return;  // full: on_events() says when there is room
  }
}

bool Stream::dry() {
  dry_round_ = shared_.round;
  return false;
}

bool Stream::read(std::byte* to, size_t size, size_t ahead, size_t* got) {
  *got = 0;
  if (broken() || (shared_.edges && !readable_)) return dry();
  if (!buffer_) buffer_ = std::make_unique<std::byte[]>(kBufferBytes);
  std::byte* const behind = buffer_.get() + end_of_data_;
  iovec pieces[2] = {{to, size}, {behind, ahead}};
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = 2;
  ssize_t result;
  do {
    // recv where there is one place: recvmsg must first take in a header and a list.
    result = size > 0 ? ::recvmsg(fd_, &message, MSG_DONTWAIT) : ::recv(fd_, behind, ahead, MSG_DONTWAIT);
    ++shared_.counters.system_calls;
  } while (result < 0 && errno == EINTR);
  if (result <= 0) {
    if (result == 0) {
      fail(End::kClosed, 0);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
      fail(End::kError, errno);
    }
    readable_ = hung_up_;
    return dry();
  }
  const size_t n = static_cast<size_t>(result);
  bytes_in_ += n;
  shared_.counters.system_bytes += n;
  *got = std::min(n, size);
  end_of_data_ += n - *got;
  // A short read has emptied the socket. After a hang-up no further event tells of the end, so reading must go on.
  if (n < size + ahead) readable_ = hung_up_;
  return true;
}

const Frame* Stream::frame(size_t hint) {
  while (!have_frame_ && !parse()) {
    if (broken()) return nullptr;
    if (begin_ > 0) {  // to the front, so that the header fits and the payload behind it is aligned
      std::memmove(buffer_.get(), buffer_.get() + begin_, end_of_data_ - begin_);
      end_of_data_ -= begin_;
      begin_ = 0;
    }
    const size_t ahead = hint >= kLarge && end_of_data_ < Frame::kMostHeaderBytes
                             ? Frame::kMostHeaderBytes - end_of_data_
                             : kBufferBytes - end_of_data_;
    size_t got = 0;
    if (!read(nullptr, 0, ahead, &got)) return nullptr;
    if (!readable_ && !parse()) {
      dry();
      return nullptr;
    }
  }
  return broken() ? nullptr : &frame_;
}

// Takes the header of the next frame from the buffer. False: it is not complete, or it cannot be.
bool Stream::parse() {
  if (have_frame_) return true;
  const size_t have = end_of_data_ - begin_;
  if (have < Frame::kHeaderBytes) return false;
  const std::byte* p = buffer_.get() + begin_;
  const uint64_t tag = load(p, 2), lane = load(p + 3, 1), bytes = load(p + 4, 4);
  const auto flags = static_cast<uint8_t>(load(p + 2, 1));
  const bool known = index_ > 0 ? flags == Frame::kPart
                                : (flags & ~(Frame::kPreamble | (shared_.streams > 1 ? Frame::kStriped : 0))) == 0;
  if (tag != shared_.tag || !known || lane != static_cast<uint64_t>(lane_) || bytes > shared_.slot_bytes) {
    fail(End::kProtocol, 0,
         fmt::format(
             "a frame with tag {:04x}, flags {:02x}, lane {}, {} bytes, where tag {:04x}, lane {} and at most {} "
             "bytes are due",
             tag, flags, lane, bytes, shared_.tag, lane_, shared_.slot_bytes));
    return false;
  }
  const bool preamble = flags & Frame::kPreamble;
  const size_t header = preamble ? Frame::kMostHeaderBytes : Frame::kHeaderBytes;
  if (have < header) return false;
  frame_.flags = flags;
  frame_.bytes = static_cast<uint32_t>(bytes);
  for (size_t i = 0; preamble && i < 3; ++i) frame_.preamble.words[i] = load(p + Frame::kHeaderBytes + 8 * i, 8);
  begin_ += header;
  taken_ = 0;
  return have_frame_ = true;
}

const std::byte* Stream::body_in_place(size_t size) {
  const std::byte* data = buffer_.get() + begin_;
  if (taken_ > 0 || end_of_data_ - begin_ < size || reinterpret_cast<uintptr_t>(data) % kAlignment != 0)
    return nullptr;
  begin_ += size;
  taken_ = size;
  return data;
}

bool Stream::body(std::byte* to, size_t size) {
  while (taken_ < size) {
    if (const size_t have = std::min(end_of_data_ - begin_, size - taken_); have > 0) {
      std::memcpy(to + taken_, buffer_.get() + begin_, have);
      shared_.counters.copied_bytes += have;
      begin_ += have;
      taken_ += have;
      continue;
    }
    begin_ = end_of_data_ = 0;
    size_t got = 0;
    if (!read(to + taken_, size - taken_, size >= kLarge ? Frame::kMostHeaderBytes : kBufferBytes, &got))
      return false;
    taken_ += got;
    if (taken_ < size && !readable_) return dry();
  }
  return true;
}

void Stream::next() {
  have_frame_ = false;
  if (begin_ == end_of_data_) begin_ = end_of_data_ = 0;
}

void Stream::on_events(uint32_t events) {
  if (broken()) return;
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) readable_ = true;
  if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) hung_up_ = true;
  const uint64_t before = sent_;
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) flush();
  shared_.moved += sent_ - before;
}

void Stream::check_end() {
  if (broken() || have_frame_ || begin_ != end_of_data_) return;
  std::byte byte;
  const ssize_t result = ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  ++shared_.counters.system_calls;
  if (result == 0) fail(End::kClosed, 0);
  if (result < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) fail(End::kError, errno);
}

void Stream::fail(End end, int error, std::string detail) {
  if (broken()) return;
  end_ = end;
  error_ = error;
  detail_ = std::move(detail);
  if (pending()) --shared_.blocked;
  ++shared_.moved;
}

Status Stream::status(int peer) const {
  const std::string where =
      fmt::format("lane {}, {}, {} bytes received, {} sent", lane_, ends_, bytes_in_, bytes_out_);
  if (end_ == End::kProtocol) {
    return Status(
        Code::kProtocol,
        fmt::format("rank {} sent what no rank sends ({}): {}; do all ranks run one release?", peer, where, detail_));
  }
  if (end_ == End::kClosed) {
    const bool midway = have_frame_ || begin_ != end_of_data_;
    return Status(Code::kPeerLost, fmt::format("rank {} closed its links{} ({}): its process ended or left the "
                                               "communicator; its own output says why",
                                               peer, midway ? " in the middle of a message" : "", where));
  }
  const char* cause = "";
  Code code = Code::kPeerLost;
  switch (error_) {
    case ECONNRESET:
    case EPIPE: cause = "its process was killed or gave up; see its own output and its host's kernel log"; break;
    case ETIMEDOUT: cause = "its host is down or the network between is cut; try to ping it"; break;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN: cause = "the route to its host is gone; look at both interfaces"; break;
    default: cause = "the system reported this error; see the kernel log"; code = Code::kIo;
  }
  return Status(
      code, fmt::format("the connection to rank {} broke ({}): {}: {}", peer, where, std::strerror(error_), cause));
}

// Closing a socket with unread bytes in it resets the connection, and a reset may overtake what the peer has still to
// read: so the unread bytes, a bounded number of them, are taken first.
void Stream::close() {
  if (fd_ < 0) return;
  fail(End::kClosed, 0);
  ::shutdown(fd_, SHUT_WR);
  std::byte sink[4096];
  for (int i = 0; i < 256 && ::recv(fd_, sink, sizeof sink, MSG_DONTWAIT) > 0; ++i) {
  }
  ::close(fd_);
  fd_ = -1;
}

}  // namespace ringfold::transport::tcp
