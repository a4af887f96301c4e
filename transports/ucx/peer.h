// What the links of one transport share: the worker, and for each peer the endpoint and how it fares.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ringfold/transport.h"
#include "transports/ucx/header.h"
#include "transports/ucx/library.h"
#include "transports/ucx/standing.h"

namespace ringfold::transport::ucx {

class Link;
struct Shared;

struct Peer {
  int rank = -1;
  Shared* shared = nullptr;
  ucp_ep_h endpoint = nullptr;
  bool guarded = true;        // UCX watches it; not so over its shared memory, where it cannot
  size_t under_way = 0;       // bytes of puts that were not released yet
  bool over_tcp = false;      // a put that UCX has completed may still wait here for the socket
  bool is_read = false;       // fetching is reading its memory, here and now
  Standing standing;          // known if so
  bool heard = false;         // the connection works
  bool said_bye = false;      // nothing more may be sent to it
  bool told_bye = false;      // nothing more comes from here
  std::optional<Status> end;  // set once it is gone; reported when what came before was taken
  std::string ways;           // "rc_verbs/rxe0:1, ud_verbs/rxe0:1"
  std::unique_ptr<Link> links[kLanes];
};

// One thread at a time, as the transport.
struct Shared {
  const Library* ucx = nullptr;
  ucp_worker_h worker = nullptr;  // null once stopped
  size_t slot_bytes = 0;
  int slots = 0;
  uint32_t tag = 0;
  uint16_t rank = 0;
  uint64_t moved = 0;        // counts what the owner may act upon
  int outstanding = 0;       // requests that UCX has not completed,
  int fetches = 0;           // and how many of them fetch
  std::vector<Link*> owing;  // links with credit to give back
  Counters counters;
  Failures failures;

  void ended(Peer& peer, Status why) {
    if (peer.end) return;
    peer.end = std::move(why);
    ++moved;
  }
  void fail(Peer& peer, Status why) {
    ended(peer, why);
    failures.add(peer.rank, std::move(why));
  }
  // Lets UCX do what it can now, once.
  void poll() {
    if (worker == nullptr) return;
    const Listening listening;
    ++counters.polls;
    ucx->ucp_worker_progress(worker);
  }
  // Sends a header without payload.
  void tell(Peer& peer, Header::Kind kind, int lane, uint64_t credit);
};

}  // namespace ringfold::transport::ucx
