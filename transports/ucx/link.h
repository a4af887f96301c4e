// A link: the puts to one peer on one lane, as active messages both ways.
#pragma once

#include <memory>
#include <vector>

#include "base/expected.h"
#include "transports/ucx/peer.h"

namespace ringfold::transport::ucx {

class Link final : public transport::Link {
 public:
  Link(Shared& shared, Peer& peer, int lane);
  ~Link() override;

  bool writable() override;
  void put(const std::byte* data, size_t bytes, const Preamble* preamble) override;
  std::byte* reserve(size_t bytes) override;
  void commit(size_t bytes, const Preamble* preamble) override;
  uint64_t issued() const override { return issued_; }
  uint64_t retired() override;
  bool announced(Arrival* arrival, size_t expected) override;
  bool arrived(Arrival* arrival, std::byte* landing, size_t expected) override;
  Watch watch() override { return opened ? Watch{.link = this} : Watch{}; }
  Status fetch(std::byte* destination) override;
  void expect(size_t skip, std::byte* memory, size_t bytes, size_t piece) override {
    expected_.add({released_ + skip, memory, bytes, piece});
  }
  void release() override;

  // ---- for the transport ----
  bool opened = false;       // here
  bool peer_opened = false;  // there
  // A put came. The answer is what UCX wants of its callback: UCS_INPROGRESS keeps `data`.
  ucs_status_t take(const Header& header, void* data, size_t bytes, uint64_t flags);
  void take_credit(uint16_t credit);
  // Gives back the credit of what was released, if it is due or `all`.
  void give_credit(bool all);
  bool owing() const { return owing_; }
  // Is there something that came and was not released? It may be taken though the peer is gone.
  bool holds_arrival() const;
  // Does UCX still need memory of a put?
  bool unsent() {
    collect();
    return sent_ < issued_;
  }
  // Before the worker goes.
  void stop();

 private:
  enum class State : uint8_t { kEmpty, kHere, kAnnounced, kFetching, kLost };
  struct Incoming {
    Link* link = nullptr;
    State state = State::kEmpty;
    bool has_preamble = false;
    uint8_t words = 0;  // Header::preamble, until it was decoded
    bool kept = false;  // `data` is UCX's
    std::byte* data = nullptr;
    size_t bytes = 0;
    Preamble preamble;
    std::unique_ptr<std::byte[]> staging;
    size_t capacity = 0;
    std::byte* room(size_t bytes);
  };
  struct Outgoing {
    Link* link = nullptr;
    bool done = true;
    size_t bytes = 0;
    Header header;  // until it is done
    std::unique_ptr<std::byte[]> memory;
    size_t capacity = 0;
  };

  Incoming& in(uint64_t k) { return in_[k & mask_]; }
  const Incoming& in(uint64_t k) const { return in_[k & mask_]; }
  Outgoing& out(uint64_t k) { return out_[k & mask_]; }
  void send(const std::byte* data, size_t bytes, const Preamble* preamble);
  void collect();
  bool owes() const { return told_ != released_; }
  void fetched(Incoming& arrival);
  void start_fetch(Incoming& arrival, std::byte* to);
  void fetch_ahead();
  // Before this link looks for what may have come. A turn of the engine has let UCX look for all links; only who
  // looks again without one does so again.
  void look() {
    if (looked_ == shared_.counters.polls) shared_.poll();
    looked_ = shared_.counters.polls;
  }
  void describe(Incoming& from, Arrival* arrival);
  static void on_sent(void* request, ucs_status_t status, void* outgoing);
  static void on_fetched(void* request, ucs_status_t status, size_t bytes, void* incoming);

  Shared& shared_;
  Peer& peer_;
  const int lane_;
  const size_t slots_;
  const uint64_t mask_;  // of places in the rings, whose size is a power of two: finding one is most of a look

  std::vector<Outgoing> out_;
  Preambles preambles_out_, preambles_in_;
  uint64_t issued_ = 0, sent_ = 0, credited_ = 0;

  std::vector<Incoming> in_;
  uint64_t released_ = 0, told_ = 0;
  base::Expected expected_;
  uint64_t headed_ = 0;  // the newest arrival released that had a preamble
  int announced_ = 0;    // arrivals in that state
  uint64_t looked_ = 0;  // polls at the last look()
  int patience_ = 0;     // turns that credit has been waiting for a put to ride on
  bool owing_ = false;
};

}  // namespace ringfold::transport::ucx
