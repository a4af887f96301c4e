// Tagged messages between two ranks: send and receive in any order on both sides.
//
// Every message is cut into tiles that follow each other on the message lane of the link; the first carries the
// envelope {tag, bytes, type}. The receiver takes tiles whenever it is driven: into the buffer of the oldest matching
// receive, or, when there is none yet, into memory of its own ("unexpected"), from where a later receive copies. So a
// send completes without its receive being posted, and no order of sends and receives on the two sides can block for
// ever. (A rank that is still making calls leaves them in the link: most receives are posted in time, and the payload
// is then copied once, straight to where it belongs.) There is a limit: when the unexpected messages of a
// communicator exceed `buffer_limit` does the lane stand still until a receive takes one, and the deadline then names
// both sides.
//
// Order: two messages from one rank with equal tags are received in the order in which they were sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "base/stores.h"
#include "exec/request.h"
#include "ringfold/transport.h"
#include "ringfold/types.h"

namespace ringfold::exec {

struct Fault;

inline constexpr int kAnySource = -1;

class Message final : public Request {
 public:
  std::string describe() const override;

  bool send = false;
  int peer = kAnySource;  // receives: filled in when matched
  int64_t tag = 0;
  DataType type = DataType::kU8;
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  uint64_t bytes = 0;
  uint64_t done_bytes = 0;
  uint64_t issued = 0;  // sends: retired when the link has retired this many puts
};

class Messages {
 public:
  Messages(int rank, int size, std::function<transport::Link*(int peer)> link);

  // Both append what they finish at once. A message that does not fit its receive is reported as a fault.
  void post_send(Message* send, std::vector<Request*>* finished, Fault* fault);
  void post_receive(Message* receive, std::vector<Request*>* finished, Fault* fault);
  // Moves what can be moved; appends what finished. `buffer`: takes in messages that nobody receives yet.
  bool poll(bool buffer, std::vector<Request*>* finished, Fault* fault);
  // The same for one peer's arrivals, messages that nobody receives yet excepted.
  void poll_peer(int peer, std::vector<Request*>* finished, Fault* fault);
  // Opens the message lane to all peers: at the first message here, or when a peer wants to send the first.
  void open_all();
  bool open() const { return open_; }
  int waits_for(const Request* request) const;
  void clear();
  void set_limits(uint64_t buffer_limit, size_t tile_bytes) {
    buffer_limit_ = buffer_limit;
    spare_.clear();
    tile_bytes_ = tile_bytes;
  }
  uint64_t buffered_bytes() const { return buffered_; }
  // Read or written by copies here, the transports apart; only grows.
  uint64_t touched_bytes() const { return touched_bytes_; }

 private:
  struct Unexpected {
    int64_t tag;
    DataType type;
    uint64_t bytes = 0;
    std::unique_ptr<std::byte[]> data;
    uint64_t got = 0;
    // The receive that gets it once it is complete: the link may be filling `data` already, so the place stays.
    Message* claimed_by = nullptr;
    bool complete() const { return got == bytes; }
  };
  struct Peer {
    transport::Link* link = nullptr;                     // null for this rank itself
    std::deque<Message*> sends;                          // not fully put
    std::deque<Message*> retiring;                       // put, source still referred to
    Message* receiving = nullptr;                        // the message now arriving goes here,
    Unexpected* buffering = nullptr;                     // or there
    std::deque<std::unique_ptr<Unexpected>> unexpected;  // in order of arrival; the last may be incomplete
  };
  void copy(std::byte* to, const std::byte* from, size_t bytes);
  bool poll_sends(Peer& p, std::vector<Request*>* finished);
  bool poll_arrivals(int peer, Peer& p, bool buffer, std::vector<Request*>* finished, Fault* fault);
  // Finds a place for the message that the envelope announces. False: the lane has to wait, or *fault is set.
  bool begin(int peer, Peer& p, bool buffer, int64_t tag, DataType type, uint64_t bytes, Fault* fault);
  std::unique_ptr<std::byte[]> take_memory(uint64_t bytes);
  void give_memory(uint64_t bytes, std::unique_ptr<std::byte[]> memory);
  bool pooled(uint64_t bytes) const { return bytes > kSmall && bytes <= tile_bytes_; }
  bool fits(const Message& receive, int peer, DataType type, uint64_t bytes, Fault* fault) const;
  void hand_over(Peer& p, Unexpected& whole, std::vector<Request*>* finished);
  bool take_unexpected(Message* receive, int peer, std::vector<Request*>* finished, Fault* fault);

  const int rank_;
  std::function<transport::Link*(int)> link_;
  std::vector<Peer> peers_;
  std::deque<Message*> receives_;  // posted, not matched, in order
  bool open_ = false;
  // Memory of tile_bytes_ each for unexpected messages, kept: it would go back to the system with each message, and
  // cost more to get again than to fill.
  static constexpr uint64_t kSmall = 4096;
  static constexpr size_t kMostSpare = 32;
  std::vector<std::unique_ptr<std::byte[]>> spare_;
  uint64_t buffered_ = 0, touched_bytes_ = 0;
  base::StoresBySize stores_;
  uint64_t buffer_limit_ = uint64_t{1} << 30;
  size_t tile_bytes_ = 64 * 1024;
};

}  // namespace ringfold::exec
