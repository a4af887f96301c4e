// Links that hold their receiver to what it says ahead (Link::expect): the place is its own from then on, and is the
// one where it then wants the arrival.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "base/expected.h"
#include "ringfold/transport.h"

namespace ringfold::test {

struct Expectations {
  bool spoil = false;  // what is expected is overwritten at once: nobody may need it any more
  std::atomic<uint64_t> arrivals{0}, expected{0};
};

class ExpectingLink final : public transport::Link {
 public:
  ExpectingLink(transport::Link& link, Expectations& all) : link_(link), all_(all) {}
  bool writable() override { return link_.writable(); }
  void put(const std::byte* data, size_t bytes, const transport::Preamble* p) override { link_.put(data, bytes, p); }
  void put_by_copy(const std::byte* data, size_t bytes, const transport::Preamble* p) override {
    link_.put_by_copy(data, bytes, p);
  }
  std::byte* reserve(size_t bytes) override { return link_.reserve(bytes); }
  void commit(size_t bytes, const transport::Preamble* p) override { link_.commit(bytes, p); }
  uint64_t issued() const override { return link_.issued(); }
  uint64_t retired() override { return link_.retired(); }
  bool announced(transport::Arrival* a, size_t expected) override { return link_.announced(a, expected); }
  transport::Watch watch() override { return link_.watch(); }
  Status fetch(std::byte* to) override { return link_.fetch(to); }
  Status confirm() override { return link_.confirm(); }

  void expect(size_t skip, std::byte* memory, size_t bytes, size_t piece) override {
    ASSERT_GT(piece, 0u);
    if (expected_.add({released_ + skip, memory, bytes, piece}) && all_.spoil) std::memset(memory, 0xEE, bytes);
  }
  bool arrived(transport::Arrival* a, std::byte* landing, size_t expected) override {
    if (!link_.arrived(a, landing, expected)) return false;
    known_ = false;
    for (const base::Stretch& s : expected_) {
      if (released_ < s.first || released_ >= s.end()) continue;
      known_ = true;
      EXPECT_EQ(landing, s.place(released_, expected)) << "arrival " << released_ << " of " << expected << " bytes";
      EXPECT_EQ(a->preamble, nullptr);
    }
    return true;
  }
  void release() override {
    link_.release();
    expected_.drop(++released_);
    ++all_.arrivals;
    all_.expected += known_;
  }

 private:
  transport::Link& link_;
  Expectations& all_;
  base::Expected expected_;
  uint64_t released_ = 0;
  bool known_ = false;
};

// A transport with such links.
class Expecting final : public transport::Transport {
 public:
  Expecting(std::unique_ptr<transport::Transport> inner, Expectations& all) : inner_(std::move(inner)), all_(all) {}
  std::string_view name() const override { return inner_->name(); }
  transport::Capabilities capabilities() const override { return inner_->capabilities(); }
  std::string address() const override { return inner_->address(); }
  Status add_peer(int peer, std::string_view address) override { return inner_->add_peer(peer, address); }
  transport::Link* open(int peer, int lane) override {
    auto& link = links_[{peer, lane}];
    if (!link) link = std::make_unique<ExpectingLink>(*inner_->open(peer, lane), all_);
    return link.get();
  }
  bool wanted(int lane) const override { return inner_->wanted(lane); }
  void progress() override { inner_->progress(); }
  const transport::Failures& failures() const override { return inner_->failures(); }
  bool prepare_to_sleep() override { return inner_->prepare_to_sleep(); }
  void awake() override { inner_->awake(); }
  int wake_fd() const override { return inner_->wake_fd(); }
  void stop() override { inner_->stop(); }
  transport::Counters counters() const override { return inner_->counters(); }

 private:
  std::unique_ptr<transport::Transport> inner_;
  Expectations& all_;
  std::map<std::pair<int, int>, std::unique_ptr<ExpectingLink>> links_;
};

}  // namespace ringfold::test
