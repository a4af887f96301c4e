// sendrecv, hot_sendrecv, stream, hot_stream: messages between pairs of ranks (0 and 1, 2 and 3, ...). A rank without
// a partner only watches.
#include <algorithm>

#include "tools/cli/perf/operation.h"

// The hot ones measure as UCX's ucx_perftest and rdma-core's ib_write_lat and ib_write_bw do, to be set beside them.

namespace ringfold::cli {
namespace {

// Ping-pong: the even rank sends, the odd one answers when it has all of it. The time is half of the round trip.
class SendRecv : public Operation {
 public:
  std::string_view name() const override { return "sendrecv"; }
  bool has_in_place() const override { return false; }
  int least_ranks() const override { return 2; }
  size_t blocks(int) const override { return 1; }
  double bus_factor(int) const override { return 1; }
  size_t transfers(const Case&) const override { return 2; }
  Layout layout(const Case& c, int rank) const override {
    const int partner = partner_of(rank, c.ranks);
    if (partner < 0) return {};
    return {c.block, c.block, {{0, c.block, partner, 0}}, 0, 0};
  }
};

// Round trips that follow each other, so that nobody comes late to one.
class HotSendRecv final : public SendRecv {
 public:
  std::string_view name() const override { return "hot_sendrecv"; }
  size_t transfers(const Case&) const override { return 2 * kTripsInARow; }
};

// A window of messages, all in flight, from the even rank to the odd one, which then says that it has them. The time
// is the window's, divided by the messages: what a pipeline or a parameter server can get out of a link.
class Stream : public Operation {
 public:
  std::string_view name() const override { return "stream"; }
  bool has_in_place() const override { return false; }
  int least_ranks() const override { return 2; }
  size_t blocks(int) const override { return 1; }
  double bus_factor(int) const override { return 1; }
  // The window: 64 MiB in flight at most, but always a few messages.
  size_t transfers(const Case& c) const override {
    return std::clamp<size_t>((size_t{64} << 20) / (c.block * size_of(c.type)), 2, 32);
  }
  Layout layout(const Case& c, int rank) const override {
    const int partner = partner_of(rank, c.ranks);
    const size_t all = transfers(c) * c.block;
    if (partner < 0) return {};
    if (rank < partner) return {all, 0, {}, 0, 0};
    return {0, all, {{0, all, partner, 0}}, 0, 0};
  }
};

// The messages of a window all lie in the same memory, on both sides: it stays in the caches. So UCX's ucx_perftest
// and rdma-core's ib_write_bw measure, and what is to be set beside them must.
class HotStream final : public Stream {
 public:
  std::string_view name() const override { return "hot_stream"; }
  Layout layout(const Case& c, int rank) const override {
    const int partner = partner_of(rank, c.ranks);
    if (partner < 0) return {};
    if (rank < partner) return {c.block, 0, {}, 0, 0};
    return {0, c.block, {{0, c.block, partner, 0}}, 0, 0};
  }
};

}  // namespace

int partner_of(int rank, int ranks) {
  const int partner = rank ^ 1;
  return partner < ranks ? partner : -1;
}

void add_messages(Operations* list) {
  list->push_back(std::make_unique<SendRecv>());
  list->push_back(std::make_unique<HotSendRecv>());
  list->push_back(std::make_unique<Stream>());
  list->push_back(std::make_unique<HotStream>());
}

}  // namespace ringfold::cli
