// The transport interface: what a way of moving bytes between two ranks must offer. A transport knows no collective;
// the executor (src/exec) and the message channel (src/comm) are its only callers. Implementations: transports/*.
//
// A Transport belongs to one communicator of one rank. It owns a Link per (peer, lane). A link is a pair of one-way,
// in-order, credited queues of *slots*: the k-th put of one side is the k-th arrival of the other, whole and
// unchanged. There are no tags and no matching: both ends know from the program what slot k means.
//
// Threads. All calls on one Transport and its Links come from one thread at a time (the engine's lock sees to that).
//
// Failure. A call never blocks and never fails by itself: a link whose peer or connection is gone is not writable and
// has no arrivals but those that came before, and Transport::failures() names its peer. The links to others go on: a
// peer may have left in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::transport {

// Lanes 0..3 carry collectives; lane 4 carries tagged messages.
inline constexpr int kCollectiveLanes = 4;
inline constexpr int kMessageLane = 4;
inline constexpr int kLanes = 5;

// Up to 24 bytes that may ride on a put, beside the payload: the executor's contract, a message's envelope.
struct Preamble {
  uint64_t words[3] = {0, 0, 0};
  // Word by word, since the default for an array is a call of memcmp.
  friend bool operator==(const Preamble& a, const Preamble& b) {
    return a.words[0] == b.words[0] && a.words[1] == b.words[1] && a.words[2] == b.words[2];
  }
};

// The oldest arrival of a link that was not released yet. Pointers are valid until release().
struct Arrival {
  const std::byte* data = nullptr;  // the payload; null when it must be fetched (or has no bytes)
  size_t bytes = 0;
  const Preamble* preamble = nullptr;  // null when the put carried none
  bool remote = false;                 // data is null and fetch() brings it
  bool referred = false;               // data is in the sender's memory: see confirm()
};

class Link;

// What shows that something has come: a word of memory that will hold `value` then, or, where no word tells, a link
// that can be asked again and again (Link::announced), which costs a call of a library and none of anybody else.
struct Watch {
  const uint64_t* word = nullptr;  // atomic
  uint64_t value = 0;
  Link* link = nullptr;
  explicit operator bool() const { return word != nullptr || link != nullptr; }
};

class RINGFOLD_API Link {
 public:
  virtual ~Link() = default;

  // ---- sending ----
  // Is there credit for one more put? (And is the link up?) Stays true until the next put or commit.
  virtual bool writable() = 0;
  // Sends `bytes` <= Capabilities::slot_bytes at `data`. The link copies them now or refers to them until they are
  // retired, as it sees fit; until then they must not change. Precondition: writable().
  virtual void put(const std::byte* data, size_t bytes, const Preamble* preamble) = 0;
  // The same where a payload that the receiver would have to fetch() is better copied now. (Memory that it maps is
  // read in place all the same.)
  virtual void put_by_copy(const std::byte* data, size_t bytes, const Preamble* preamble) {
    put(data, bytes, preamble);
  }
  // How much of a message of `bytes` at `data` one put_by_copy() had best carry: less than all of it where the
  // receiver is to copy the beginning while the rest is still copied here. Before the message's first put.
  virtual size_t piece(const std::byte*, size_t bytes) { return bytes; }
  // The same for a payload that the caller builds in the link's own memory: reserve, fill, commit with no other call
  // on this link between. There is no source to wait for. Precondition of reserve: writable().
  virtual std::byte* reserve(size_t bytes) = 0;
  virtual void commit(size_t bytes, const Preamble* preamble) = 0;
  // How many puts and commits were accepted since the link was opened, and how many of them, in order, no longer need
  // their source memory and reach the peer without further calls on this side.
  virtual uint64_t issued() const = 0;
  virtual uint64_t retired() = 0;

  // ---- receiving ----
  // What the oldest unreleased arrival is: its size and preamble, which may be known before its payload is here, so
  // that the caller can decide where that may land. Arrival::data is not set. `expected`: its size, if the caller has
  // an idea, else 0. False: not known yet.
  virtual bool announced(Arrival* arrival, size_t expected) = 0;
  // The oldest unreleased arrival, if there is one. `landing`, when not null, is memory of `expected` bytes where the
  // payload is wanted: a transport that would have to copy may put it there at once (then Arrival::data == landing);
  // it must stay valid until the arrival is released or the transport is stopped, and repeated calls for the same
  // arrival pass the same landing. A payload of another size never touches it.
  virtual bool arrived(Arrival* arrival, std::byte* landing, size_t expected) = 0;
  // Where the next arrivals are wanted, said before they come, so that they can go there without a stop: those behind
  // the first `skip` that are not released yet are, in order, pieces of `piece` bytes of this memory, the last one of
  // what is left. One of another size, or with a preamble, never touches it, nor do those behind a preamble that
  // comes in its midst: they belong to something else. As of a landing, the memory must stay valid until the last
  // piece is released or the transport is stopped, and arrived() is called with the same places; a piece's place is
  // touched by nobody else from when the peer puts it. A hint: the link may forget it, and keeps what it was told of
  // an arrival first.
  virtual void expect(size_t /*skip*/, std::byte* /*memory*/, size_t /*bytes*/, size_t /*piece*/) {}
  // Where the oldest unreleased arrival shows before any other call sees it, for who has nothing else to wait for.
  // Until the next release.
  virtual Watch watch() { return {}; }
  // Brings the payload of the arrival, which is `remote`, to `destination`. kUnavailable: not this way, but arrived()
  // will say again when it is here. Otherwise not ok: the peer's memory cannot be read.
  virtual Status fetch(std::byte* destination) = 0;
  // Was the arrival, which is `referred`, all that time what the sender had put? To be asked when its payload was
  // read, before what was made of that goes anywhere, and before release(). Not ok: the sender has stopped, so its
  // memory was its user's again, who may have written there.
  virtual Status confirm() { return {}; }
  // Gives the oldest arrival back, and with it one credit to the sender.
  virtual void release() = 0;
};

struct Capabilities {
  size_t slot_bytes = 0;      // largest payload of one put
  int slots = 0;              // puts that a link accepts before the first is released by the receiver (at least)
  bool by_reference = false;  // large puts are read in place by the receiver: no copy into a slot
  bool in_memory = false;     // arrivals are seen by a look at memory, not by a call to the system: spinning pays
};

// What a transport has done since it was made; only ever grows. For `perf --counters` and tests.
struct Counters {
  uint64_t puts = 0, put_bytes = 0;
  uint64_t copied_bytes = 0;  // bytes that the transport itself copied (slots, staging), both directions
  uint64_t system_bytes = 0;  // bytes that the system copied for it (sockets, memory of other processes)
  uint64_t system_calls = 0;  // that move bytes or wake somebody; polls that find nothing included
  uint64_t wakeups = 0;       // sleeping peers that it woke
  uint64_t polls = 0;         // how often a library or device was asked for what came, where that is what it takes
  // RDMA: requests handed to devices (receives included), the calls that did so, and completions taken.
  uint64_t work_requests = 0, doorbells = 0, completions = 0;
};

// Writes straight from memory of a device, such as a GPU, into a peer's: without slots, credit or copies, where both
// have agreed that it is to be. A rank *offers* a window of its memory to a peer, which then writes there, once. The
// next offer to a peer follows when that has landed.
//
// Threads, failure and stop() as of the transport's links.
class RINGFOLD_API Direct {
 public:
  // Memory that only devices can reach, known by `id` until it is removed: ids of other memory differ. `dma_buf` is a
  // file descriptor of all of it, for the time of this call. What it overlaps is gone, and is removed.
  virtual Status add(uint64_t id, std::byte* base, size_t bytes, int dma_buf) = 0;
  virtual void remove(uint64_t id) = 0;
  // Of memory that was added. False: not now, try again. (Where the peer is gone: for good, see failures().)
  virtual bool offer(int peer, std::byte* memory, size_t bytes) = 0;
  // The bytes of the peer's offer that was not written to yet; nothing: none has come.
  virtual std::optional<size_t> offered(int peer) = 0;
  // Writes memory that was added, some bytes of it, to a place in what the peer has offered. False: not now, try
  // again.
  virtual bool write(int peer, const std::byte* data, size_t bytes, size_t place) = 0;
  // Has the device done with all writes to the peer?
  virtual bool written(int peer) = 0;
  // How many writes of the peer have come, since the beginning.
  virtual uint64_t landed(int peer) const = 0;

 protected:
  ~Direct() = default;
};

struct Failure {
  int peer = -1;
  Status status;
};

// The peers whose links are gone, in the order in which that was seen, each with the first reason.
class Failures {
 public:
  // False: it was known.
  bool add(int peer, Status why) {
    if (of(peer) != nullptr) return false;
    list_.push_back({peer, std::move(why)});
    return true;
  }
  const Failure* of(int peer) const {
    for (const Failure& f : list_) {
      if (f.peer == peer) return &f;
    }
    return nullptr;
  }
  const Failure* first() const { return list_.empty() ? nullptr : list_.data(); }
  auto begin() const { return list_.begin(); }
  auto end() const { return list_.end(); }

 private:
  std::vector<Failure> list_;
};

class RINGFOLD_API Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;
  virtual Capabilities capabilities() const = 0;

  // ---- wiring, before any link is opened ----
  // What the other ranks must know to reach this one; published through the bootstrap.
  virtual std::string address() const = 0;
  // The address that `peer` published. Not ok when the peer cannot be reached this way (the reason is for people: it
  // ends up in `ringfold info`).
  virtual Status add_peer(int peer, std::string_view address) = 0;
  // The link to `peer` on `lane`; opened at the first call, the same object afterwards, owned by the transport.
  // Returns at once: connecting goes on in progress(), and until then the link is not writable. The peer must open
  // it, too.
  virtual Link* open(int peer, int lane) = 0;
  // Has any peer opened its end of `lane` towards this rank? (Sticky.) A receiver that has not opened that lane yet
  // learns here that somebody wants to talk on it. Cheap.
  virtual bool wanted(int lane) const = 0;

  // ---- running ----
  // Moves what can be moved without waiting. Cheap when there is nothing to do.
  virtual void progress() = 0;
  // All that failed so far. A pointer to one is valid until the next call of progress() or prepare_to_sleep().
  virtual const Failures& failures() const = 0;
  const Failure* failure() const { return failures().first(); }
  // Before the owner sleeps: asks peers (and the system) to make wake_fd() readable when something arrives or credit
  // comes back. False when something is there already: do not sleep. After sleeping, or instead of it, call awake().
  virtual bool prepare_to_sleep() = 0;
  virtual void awake() = 0;
  // A file descriptor that polls readable when there may be something to do; -1: the transport must be polled.
  virtual int wake_fd() const = 0;
  // The peer has left the job in order some time ago: what it sent has come. For transports that would not find out
  // by themselves where the two had never met.
  virtual void peer_left(int /*peer*/) {}
  // Ends all traffic. When it returns, this transport no longer touches memory that it was given, and its peers find
  // out that the links are gone. (Those that read there what was put by reference do so before they use it.)
  // Idempotent.
  virtual void stop() = 0;
  // The same where all ranks give up and nobody waits for what is on its way: never waits for a peer, which may be
  // dead, while the others wait for this rank to go on.
  virtual void abandon() { stop(); }
  // Null: it has no way to do that.
  virtual Direct* direct() { return nullptr; }

  virtual Counters counters() const = 0;
};

}  // namespace ringfold::transport
