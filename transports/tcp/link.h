// A link: the streams to one peer on one lane, made to look like one queue of puts each way.
#pragma once

#include <memory>
#include <vector>

#include "ringfold/transport.h"
#include "transports/tcp/stream.h"

namespace ringfold::transport::tcp {

class Link final : public transport::Link {
 public:
  Link(Shared& shared, int peer, int lane);

  bool writable() override;
  void put(const std::byte* data, size_t bytes, const Preamble* preamble) override;
  std::byte* reserve(size_t bytes) override;
  void commit(size_t bytes, const Preamble* preamble) override;
  uint64_t issued() const override { return issued_; }
  uint64_t retired() override;
  bool announced(Arrival* arrival, size_t expected) override;
  bool arrived(Arrival* arrival, std::byte* landing, size_t expected) override;
  Status fetch(std::byte* destination) override;
  void release() override;

  int peer() const { return peer_; }
  int lane() const { return lane_; }
  // One of the connections is there; the link is up with the last of them.
  void adopt(int index, std::unique_ptr<Stream> stream);
  bool has(int index) const { return streams_[static_cast<size_t>(index)] != nullptr; }
  // Reports the stream's failure as the peer's.
  void failed(const Stream& stream);
  void close();

 private:
  // What the link keeps about a put until the kernel has all of it.
  struct Slot {
    std::unique_ptr<std::byte[]> memory;  // for what is built in the link
    size_t capacity = 0;
    uint64_t parts = 0;  // frames of every stream but the first up to and including this put
  };

  Slot& slot(uint64_t k) { return slots_[k % slots_.size()]; }
  void send(const std::byte* data, size_t bytes, const Preamble* preamble);
  void collect();
  // The header of the oldest arrival is here, in frame_.
  bool header(size_t hint);
  bool receive(std::byte* landing, size_t expected);
  void fail_if_broken();
  bool striped(size_t bytes) const { return streams_.size() > 1 && bytes >= shared_.stripe_bytes; }
  // Part `i` of a striped payload: [first, second).
  std::pair<size_t, size_t> part(size_t bytes, size_t i) const;

  Shared& shared_;
  const int peer_, lane_;
  std::vector<std::unique_ptr<Stream>> streams_;
  bool up_ = false, failed_ = false;  // puts are allowed; no more
  bool readable_ = false;             // all streams are there: what came before a failure can still be read

  std::vector<Slot> slots_;  // a ring
  uint64_t issued_ = 0, sent_ = 0, parts_ = 0;

  std::unique_ptr<std::byte[]> staging_;  // where a payload goes that neither fits the buffer nor has a landing
  const Frame* frame_ = nullptr;          // of the oldest arrival
  std::byte* target_ = nullptr;           // where its payload is being put
  const std::byte* payload_ = nullptr;
  bool ready_ = false;
};

}  // namespace ringfold::transport::tcp
