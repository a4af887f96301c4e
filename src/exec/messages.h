// Tagged messages between two ranks: send and receive in any order on both sides.
//
// Every message is cut into tiles that follow each other on the message lane of the link; the first carries the envelope
// {tag, bytes, type}. The receiver takes tiles whenever it is driven: into the buffer of the oldest matching receive, or, when there
// is none yet, into memory of its own ("unexpected"), from where a later receive copies. So a send completes without
// its receive being posted, and no order of sends and receives on the two sides can block for ever; only when the unexpected messages
// of a communicator exceed `buffer_limit` does the lane stand still until a receive takes one, and the deadline then
// names both sides.
//
// Order: two messages from one rank with equal tags are received in the order in which they were sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

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
  int peer = kAnySource;      // receives: filled in when matched
  int64_t tag = 0;
  DataType type = DataType::kU8;
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  uint64_t bytes = 0;
  uint64_t done_bytes = 0;
  uint64_t issued = 0;        // sends: retired when the link has retired this many puts
};

class Messages {
 public:
  Messages(int rank, int size, std::function<transport::Link*(int peer)> link);

  void post_send(Message* send);
  // True when an unexpected message satisfied it at once; *fault is set when that message does not fit.
  bool post_receive(Message* receive, Fault* fault);
  // Moves what can be moved; appends what finished. Links are opened to peers of posted messages; `listen` opens all, which a
  // receive from any source needs.
  bool poll(std::vector<Request*>* finished, Fault* fault);
  bool open() const { return open_links_ > 0 || !self_.empty(); }
  int waits_for(const Request* request) const;
  void clear();
  void set_limits(uint64_t buffer_limit, size_t tile_bytes) {
    buffer_limit_ = buffer_limit;
    tile_bytes_ = tile_bytes;
  }
  uint64_t buffered_bytes() const { return buffered_; }

 private:
  struct Unexpected {
    int64_t tag;
    DataType type;
    std::vector<std::byte> data;
    uint64_t got = 0;
  };
  struct Peer {
    transport::Link* link = nullptr;
    std::deque<Message*> sends;          // not fully put
    std::deque<Message*> retiring;       // put, source still referred to
    Message* receiving = nullptr;        // the message now arriving goes here,
    Unexpected* buffering = nullptr;     // or there
    std::deque<std::unique_ptr<Unexpected>> unexpected;
    bool held = false;                   // stands still at the buffer limit
  };
  transport::Link* link_of(int peer);
  bool poll_sends(int peer, Peer& p, std::vector<Request*>* finished);
  bool poll_arrivals(int peer, Peer& p, std::vector<Request*>* finished, Fault* fault);
  bool begin(int peer, Peer& p, const transport::Preamble& envelope, size_t first_bytes, Fault* fault, bool* held);
  Message* match(int peer, int64_t tag);
  bool take_unexpected(Message* receive, int peer, Peer& p, bool* complete, Fault* fault);

  const int rank_;
  std::function<transport::Link*(int)> link_;
  std::vector<Peer> peers_;
  std::deque<Message*> receives_;        // posted, not matched, in order
  std::deque<std::pair<Message*, bool>> self_;  // sends to this rank itself
  int open_links_ = 0;
  uint64_t buffered_ = 0;
  uint64_t buffer_limit_ = uint64_t{1} << 30;
  size_t tile_bytes_ = 64 * 1024;
};

}  // namespace ringfold::exec
