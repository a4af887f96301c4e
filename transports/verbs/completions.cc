// What devices say: completions of what was posted, notes that came with writes, and events of the device itself.
#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/log.h"
#include "transports/verbs/transport.h"

namespace ringfold::verbs {

using transport::kLanes;

void VerbsTransport::poll() {
  constexpr int kBatch = 32;
  std::array<ibv_wc, kBatch> done;
  ++Hub::counters.polls;
  for (Device* device : devices_) {
    int n = 0;
    do {
      if (stopped_) return;
      n = ibv_poll_cq(device->cq(), kBatch, done.data());
      if (n <= 0) break;
      device->moved = true;
      Hub::counters.completions += static_cast<uint64_t>(n);
      for (int i = 0; i < n; ++i) handle(done[static_cast<size_t>(i)]);
    } while (n == kBatch);
    if (n < 0) {
      for (size_t m = 0; m < peers_.size(); ++m) {
        if (peers_[m].connected())
          fail(static_cast<int>(m), Status(Code::kIo, device->name() + " does not give its completions"));
      }
    }
  }
}

void VerbsTransport::handle(const ibv_wc& wc) {
  const uint32_t tag = QueuePair::tag_of(wc.wr_id);
  const int rank = static_cast<int>(tag / kMostPorts);
  Peer& peer = at(rank);
  QueuePair* rail = peer.queue_pairs[tag % kMostPorts].get();
  if (rail == nullptr) return;  // of a port that was not chosen: flushed when it was given up
  if (wc.status != IBV_WC_SUCCESS) return handle_error(rank, *rail, wc);
  ++news;
  if ((wc.wr_id & QueuePair::kReceive) != 0) {
    handle_note(rank, *rail, wc);
  } else {
    rail->complete(static_cast<uint32_t>(wc.wr_id));
  }
}

void VerbsTransport::handle_note(int rank, QueuePair& rail, const ibv_wc& wc) {
  Peer& peer = at(rank);
  if (peer.failed) return;
  if (const int error = rail.received(); error != 0) {
    return fail(
        rank, Status(Code::kIo, fmt::format("{} takes no receives: {}", rail.device().name(), std::strerror(error))));
  }
  const Note note = Note::decode(ntohl(wc.imm_data));
  Link* link = note.lane < kLanes ? peer.links[note.lane].get() : nullptr;
  switch (note.kind) {
    case Note::kPut:
    case Note::kPlaced:
      if (link != nullptr) {
        if (Status s = link->took(note, wc.byte_len); !s.ok()) fail(rank, std::move(s));
        return;
      }
      break;
    case Note::kCredit:
      if (link != nullptr) return link->credited(note.released);
      break;
    case Note::kPlace:
      if (link != nullptr) {
        if (Status s = link->offered(offer_of(rank, static_cast<int>(note.lane), false)); !s.ok()) {
          fail(rank, std::move(s));
        }
        return;
      }
      break;
    case Note::kOpen:
      if (note.lane >= kLanes) break;
      wanted_ |= 1u << note.lane;
      peer.opened |= 1u << note.lane;
      if (link != nullptr && link->allocated()) link->connect(control(rank, static_cast<int>(note.lane), false));
      return;
    case Note::kGreeting: peer.greeted = true; return;
    case Note::kOffer:
      if (direct_.take_offer(rank)) return;
      break;
    case Note::kLanded:
      if (direct_.take_landing(rank)) return;
      break;
    case Note::kStop: {
      const auto r = static_cast<size_t>(std::find(peer.rails.begin(), peer.rails.end(), &rail) - peer.rails.begin());
      peer.stopped |= 1u << r;
      if (!peer.left()) return;
      for (auto& l : peer.links) {
        if (l) l->peer_left();
      }
      leaving_ = true;
      return;
    }
    default: break;
  }
  fail(rank,
       Status(Code::kProtocol, fmt::format("the peer wrote a note that makes no sense: {:#x}", ntohl(wc.imm_data))));
}

void VerbsTransport::handle_error(int rank, QueuePair& rail, const ibv_wc& wc) {
  Peer& peer = at(rank);
  // Of a peer that has left, errors are the echo of its end, which bury() reports when what came before is taken.
  if (peer.failed || peer.left()) return;
  const char* words = rail.device().api().wc_status_str(wc.status);
  Code code = Code::kIo;
  switch (wc.status) {
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_REM_ABORT_ERR:
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
    case IBV_WC_WR_FLUSH_ERR: code = Code::kPeerLost; break;
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_BAD_RESP_ERR: code = Code::kProtocol; break;
    default: break;
  }
  fail(rank, Status(code, fmt::format("{} to it failed: {} (status {}, vendor's code {:#x}; {})",
                                      (wc.wr_id & QueuePair::kReceive) != 0 ? "a receive posted" : "a write", words,
                                      static_cast<int>(wc.status), wc.vendor_err, peer.route)));
}

void VerbsTransport::poll_events(Device& device) {
  Device::Event event;
  while (device.next_event(&event)) {
    if (event.type == IBV_EVENT_DEVICE_FATAL || event.type == IBV_EVENT_CQ_ERR) {
      for (size_t m = 0; m < peers_.size(); ++m) {
        const auto& rails = peers_[m].rails;
        if (std::any_of(rails.begin(), rails.end(), [&](auto* q) { return &q->device() == &device; })) {
          fail(static_cast<int>(m), Status(Code::kIo, fmt::format("{}: {}", device.name(), event.text)));
        }
      }
    } else if (event.type == IBV_EVENT_QP_FATAL || event.type == IBV_EVENT_QP_ACCESS_ERR ||
               event.type == IBV_EVENT_QP_REQ_ERR) {
      for (size_t m = 0; m < peers_.size(); ++m) {
        const auto& rails = peers_[m].rails;
        if (std::any_of(rails.begin(), rails.end(), [&](auto* q) { return q->qp() == event.qp; }) &&
            !peers_[m].left()) {  // else an echo, as in handle_error()
          fail(static_cast<int>(m),
               Status(Code::kIo, fmt::format("{}: {} ({})", device.name(), event.text, peers_[m].route)));
        }
      }
    } else {
      log::info("{}: {}", device.name(), event.text);
      switch (event.type) {
        case IBV_EVENT_PORT_ERR:
        case IBV_EVENT_LID_CHANGE:
        case IBV_EVENT_PKEY_CHANGE:
        case IBV_EVENT_GID_CHANGE: doubt(device, event.port); break;
        default: break;
      }
    }
  }
}

// Of a port that goes down, or changes its addresses, only those learn who have writes under way: they fail when the
// device has tried for long enough, unless the port has come back. Who only receives would wait for ever; so each
// peer that is reached over that port is asked.
void VerbsTransport::doubt(const Device& device, int port) {
  for (size_t m = 0; m < peers_.size(); ++m) {
    Peer& peer = peers_[m];
    if (peer.failed || peer.left()) continue;
    for (size_t r = 0; r < peer.rails.size(); ++r) {
      if (&peer.rails[r]->device() == &device && peer.rails[r]->port() == port) peer.doubted |= 1u << r;
    }
    if (peer.doubted != 0) ask(static_cast<int>(m));
  }
}

// By a write of nothing, of which the peer sees nothing, either.
void VerbsTransport::ask(int rank) {
  Peer& peer = at(rank);
  for (size_t r = 0; r < peer.rails.size() && !peer.left(); ++r) {
    if ((peer.doubted >> r & 1) == 0) continue;
    QueuePair& rail = *peer.rails[r];
    if (rail.room() <= kLanes) {  // what is left belongs to puts
      overdue = true;
      continue;
    }
    peer.doubted &= ~(1u << r);
    const int error = rail.post({.to = peer.control, .key = peer.control_key, .signaled = true, .silent = true});
    if (error != 0) {
      return fail(rank, Status(Code::kIo, fmt::format("{} takes no more work: {} ({})", rail.device().name(),
                                                      std::strerror(error), peer.route)));
    }
  }
}

}  // namespace ringfold::verbs
