// Tagged messages between two ranks: send and receive in any order on both sides.
//
// Every message is cut into tiles that follow each other on the message lane of the link; the first carries the
// envelope {tag, bytes, format}. The receiver takes tiles whenever it is driven: into the buffer of the oldest
// matching receive, or, when there is none yet, into memory of its own ("unexpected"), from where a later receive
// copies. So a send completes without its receive being posted, and no order of sends and receives on the two sides
// can block for ever. (A rank that is still making calls leaves them in the link: most receives are posted in time,
// and the payload is then copied once, straight to where it belongs.) There is a limit: when the unexpected messages
// of a communicator exceed `buffer_limit` does the lane stand still until a receive takes one, and the deadline then
// names both sides.
//
// Order: two messages from one rank with equal tags are received in the order in which they were sent.
//
// Most small messages wait for nothing: the link has room, or what is to be received is there. They are moved at once
// (attempt()), and there is no request for them. What has to wait becomes a Message, from a pool, in lists that are
// linked through the messages themselves.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "base/stores.h"
#include "exec/list.h"
#include "exec/request.h"
#include "ringfold/codec.h"
#include "ringfold/transport.h"
#include "ringfold/types.h"

namespace ringfold::exec {

struct Fault;

inline constexpr int kAnySource = -1;

// What the bytes of a message are: elements of a type, or the code of f32.
struct Format {
  DataType type = DataType::kU8;
  CodecKind codec = CodecKind::kNone;
  bool rotate = false;  // (what else a codec has does not matter to who decodes)
  uint32_t count = 0;   // of codes: low bits of the elements, which their bytes do not tell
  static constexpr uint32_t kMostCount = 0x7fffffff;
  // "f32 x100", "f32 x100 as int8".
  std::string to_string(uint64_t bytes) const;
  friend bool operator==(const Format&, const Format&) = default;
};

// What a send or a receive asks for, and how far it has come.
struct Transfer {
  bool send = false;
  int peer = kAnySource;  // receives: filled in when matched
  int64_t tag = 0;
  Format format;
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  uint64_t bytes = 0;
  uint64_t done_bytes = 0;
  size_t piece = 0;     // sends: what a put carries
  uint64_t issued = 0;  // sends that are put: retired when the link has retired this many puts
};

class Message final : public Request, public Transfer {
 public:
  std::string describe() const override;
  int came_from() const override { return !send && done() ? peer : -1; }
  int listens_to() const override { return send ? -1 : peer; }

  uint64_t posted = 0;           // receives: their number
  std::function<void()> decode;  // receives of codes: when all is here, before it is done; under the engine's lock
  std::string label;             // what it is, in words; empty: not known
  // Is this rank held up by it? One with a label may have been posted ahead of need.
  bool awaited() const { return label.empty() || waiters > 0; }
  Hook<Message> queue;  // of the one list that it is in

 private:
  friend class Domain;
  void recycle() override;
  void landed() override {
    if (decode) decode();
  }
};

class Messages {
 public:
  Messages(int rank, int size, std::function<transport::Link*(int peer)> link);

  // Does at once what has to wait for nothing, and behind nothing. False: it has to be posted, and `*transfer` knows
  // how far it has come.
  bool attempt(Transfer* transfer);
  // Where that shows which a receive in vain attempted waits for: the next arrival. Nowhere if something else is to
  // be looked at first, messages that came before it was called among them.
  transport::Watch next_for(const Transfer& transfer) const;
  // Both append what they finish at once. A message that does not fit its receive is reported as a fault.
  void post_send(Message* send, std::vector<Request*>* finished, Fault* fault);
  void post_receive(Message* receive, std::vector<Request*>* finished, Fault* fault);
  // Moves what can be moved; appends what finished. `buffer`: takes in messages that nobody receives yet.
  bool poll(bool buffer, std::vector<Request*>* finished, Fault* fault);
  // The same for one peer's arrivals, messages that nobody receives yet excepted.
  void poll_peer(int peer, std::vector<Request*>* finished, Fault* fault);
  // Where the next arrival from `peer` shows.
  transport::Watch watch(int peer) const;
  // Opens the message lane to all peers: at the first message here, or when a peer wants to send the first.
  void open_all() {
    if (!open_) open_links();
  }
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
  static constexpr size_t kInPlace = 128;
  struct Unexpected {
    int64_t tag;
    Format format;
    uint64_t bytes = 0;
    uint64_t got = 0;
    // The receive that gets it once it is complete: the link may be filling data() already, so the place stays.
    Message* claimed_by = nullptr;
    std::array<std::byte, kInPlace> in_place;  // the data, if it fits
    std::unique_ptr<std::byte[]> memory;       // otherwise
    std::byte* data() { return bytes <= kInPlace ? in_place.data() : memory.get(); }
    bool complete() const { return got == bytes; }
  };
  using Queue = List<Message, &Message::queue>;
  using Places = std::list<Unexpected>;
  struct Peer {
    transport::Link* link = nullptr;  // null for this rank itself
    Queue sends;                      // not fully put
    Queue retiring;                   // put, source still referred to
    Queue receives;                   // posted, not matched
    Message* receiving = nullptr;     // the message now arriving goes here,
    bool buffering = false;           // or to the last of these
    Places unexpected;                // in order of arrival
    Unexpected* buffer() { return buffering ? &unexpected.back() : nullptr; }
  };
  void open_links();
  bool send_at_once(Peer& p, Transfer& send);
  bool receive_at_once(Peer& p, const Transfer& receive);
  // Would a receive from this peer take the next arrival?
  bool is_next(const Peer& p) const {
    return p.receives.empty() && any_source_.empty() && p.unexpected.empty() && p.receiving == nullptr;
  }
  // Puts the next tile of a send. True: it was the last.
  bool put_tile(Peer& p, Transfer& send);
  // The oldest receive that takes messages of this tag from `peer`; null: none is posted.
  Message* receive_for(int peer, int64_t tag) const;
  Queue& receives_of(const Message& receive) {
    return receive.peer == kAnySource ? any_source_ : peers_[receive.peer].receives;
  }
  // A place for an unexpected message, the last of p.unexpected.
  Unexpected& add_unexpected(Peer& p, int64_t tag, const Format& format, uint64_t bytes);
  void copy(std::byte* to, const std::byte* from, size_t bytes);
  bool poll_sends(Peer& p, std::vector<Request*>* finished);
  bool poll_arrivals(int peer, Peer& p, bool buffer, std::vector<Request*>* finished, Fault* fault);
  // Finds a place for the message that the envelope announces. False: the lane has to wait, or *fault is set.
  bool begin(int peer, Peer& p, bool buffer, int64_t tag, const Format& format, uint64_t bytes, Fault* fault);
  std::unique_ptr<std::byte[]> take_memory(uint64_t bytes);
  void give_memory(uint64_t bytes, std::unique_ptr<std::byte[]> memory);
  bool pooled(uint64_t bytes) const { return bytes > kSmall && bytes <= tile_bytes_; }
  bool fits(const Message& receive, int peer, const Format& format, uint64_t bytes, Fault* fault) const;
  void hand_over(Peer& p, Places::iterator whole, std::vector<Request*>* finished);
  bool take_unexpected(Message* receive, int peer, std::vector<Request*>* finished, Fault* fault);

  const int rank_;
  std::function<transport::Link*(int)> link_;
  std::vector<Peer> peers_;
  Queue any_source_;     // receives from anybody: posted, not matched
  uint64_t posted_ = 0;  // receives so far
  bool open_ = false;
  // Memory of tile_bytes_ each for unexpected messages, kept: it would go back to the system with each message, and
  // cost more to get again than to fill.
  static constexpr uint64_t kSmall = 4096;
  static constexpr size_t kMostSpare = 32;
  static constexpr size_t kMostSparePlaces = 1024;
  std::vector<std::unique_ptr<std::byte[]>> spare_;
  Places spare_places_;
  uint64_t buffered_ = 0, touched_bytes_ = 0;
  base::StoresBySize stores_;
  uint64_t buffer_limit_ = uint64_t{1} << 30;
  size_t tile_bytes_ = 64 * 1024;
};

}  // namespace ringfold::exec
