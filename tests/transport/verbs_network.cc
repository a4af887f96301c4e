#include "tests/transport/verbs_network.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ringfold::transport::test {

using std::chrono::steady_clock;

void VerbsDouble::Network::push(ibv_cq* verbs, const ibv_wc& wc) {
  Queue* q = from<Queue>(verbs);
  if (static_cast<int>(q->done.size()) >= q->verbs.cqe) return complain("a completion queue ran over");
  q->done.push_back(wc);
  if (!q->armed) return;
  q->armed = false;
  ++q->events;
  EXPECT_EQ(write(from<Channel>(q->verbs.channel)->events.ends[1], &verbs, sizeof verbs), ssize_t{sizeof verbs});
}

void VerbsDouble::Network::complete(QueuePair& q, uint64_t id, ibv_wc_status status) {
  ibv_wc wc{};
  wc.wr_id = id;
  wc.status = status;
  wc.qp_num = q.verbs.qp_num;
  wc.vendor_err = status == IBV_WC_SUCCESS ? 0 : 0x81;
  if (status != IBV_WC_SUCCESS) wc.opcode = static_cast<ibv_wc_opcode>(0x7f);  // not valid then: none may look
  push(q.verbs.send_cq, wc);
}

void VerbsDouble::Network::break_pair(QueuePair& q, ibv_wc_status first) {
  if (q.verbs.state == IBV_QPS_ERR) return;
  q.verbs.state = IBV_QPS_ERR;
  for (const Flight& f : q.flights) complete(q, f.wr.wr_id, std::exchange(first, IBV_WC_WR_FLUSH_ERR));
  q.flights.clear();
  for (uint64_t id : q.receives) complete(q, id, IBV_WC_WR_FLUSH_ERR);
  q.receives.clear();
}

const VerbsDouble::Network::Region* VerbsDouble::Network::region(uint32_t key, uint64_t address, size_t bytes,
                                                                 const ibv_pd* pd) const {
  auto it = regions.find(key);
  if (it == regions.end() || it->second->verbs.pd != pd) return nullptr;
  const auto base = reinterpret_cast<uint64_t>(it->second->verbs.addr);
  return address >= base && address + bytes <= base + it->second->verbs.length ? it->second : nullptr;
}

void VerbsDouble::Network::deliver(QueuePair& q) {
  Flight& f = q.flights.front();
  auto peer = pairs.find(q.destination);
  if (cut || peer == pairs.end() ||
      (peer->second->verbs.state != IBV_QPS_RTR && peer->second->verbs.state != IBV_QPS_RTS)) {
    return break_pair(q, IBV_WC_RETRY_EXC_ERR);
  }
  QueuePair& p = *peer->second;
  std::vector<std::byte> bytes = f.inlined;
  for (const ibv_sge& part : f.parts) {
    const Region* from = region(part.lkey, part.addr, part.length, q.verbs.pd);
    if (from == nullptr) {
      complain("a write from memory that is not registered");
      return break_pair(q, IBV_WC_LOC_PROT_ERR);
    }
    const std::byte* data = from->at(part.addr);
    bytes.insert(bytes.end(), data, data + part.length);
  }
  const Region* to = nullptr;
  if (!bytes.empty()) {
    to = region(f.wr.wr.rdma.rkey, f.wr.wr.rdma.remote_addr, bytes.size(), p.verbs.pd);
    if (to == nullptr || (to->access & IBV_ACCESS_REMOTE_WRITE) == 0 || (p.access & IBV_ACCESS_REMOTE_WRITE) == 0) {
      complain("a write to memory that is not registered");
      break_pair(q, IBV_WC_REM_ACCESS_ERR);
      return break_pair(p, IBV_WC_WR_FLUSH_ERR);
    }
  }
  const bool tells = f.wr.opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
  if (tells && p.receives.empty()) {
    complain("no receive was posted for a write with immediate data");
    return break_pair(q, IBV_WC_RNR_RETRY_EXC_ERR);
  }
  if (!bytes.empty()) std::memcpy(to->at(f.wr.wr.rdma.remote_addr), bytes.data(), bytes.size());
  if (tells) tell_of(p, f, bytes.size());
  if (f.signaled) complete(q, f.wr.wr_id, IBV_WC_SUCCESS);
  q.flights.pop_front();
}

// Of a write with immediate data, to the queue pair that it came to.
void VerbsDouble::Network::tell_of(QueuePair& p, const Flight& f, size_t bytes) {
  ibv_wc wc{};
  wc.wr_id = p.receives.front();
  wc.opcode = IBV_WC_RECV_RDMA_WITH_IMM;
  wc.byte_len = static_cast<uint32_t>(bytes);
  wc.imm_data = f.wr.imm_data;
  wc.wc_flags = IBV_WC_WITH_IMM;
  wc.qp_num = p.verbs.qp_num;
  p.receives.pop_front();
  push(p.verbs.recv_cq, wc);
}

int VerbsDouble::Network::post(QueuePair& q, ibv_send_wr* wr, ibv_send_wr** bad) {
  for (; wr != nullptr; wr = wr->next) {
    *bad = wr;
    if (removed) return EIO;
    if (refuse_sends_in >= 0 && refuse_sends_in-- == 0) {
      refuse_sends_in = 0;
      return refuse_sends_error;
    }
    if (q.verbs.state != IBV_QPS_RTS && q.verbs.state != IBV_QPS_ERR) return EINVAL;
    if (q.sends.size() >= q.cap.max_send_wr) {
      complain("a send queue ran over");
      return ENOMEM;
    }
    Flight f;
    f.wr = *wr;
    f.signaled = (wr->send_flags & IBV_SEND_SIGNALED) != 0;
    if (replace_note) f.wr.imm_data = htonl(note);
    replace_note = false;
    size_t bytes = 0;
    for (int i = 0; i < wr->num_sge; ++i) bytes += wr->sg_list[i].length;
    if ((wr->send_flags & IBV_SEND_INLINE) != 0) {
      if (bytes > q.cap.max_inline_data) return ENOMEM;
      for (int i = 0; i < wr->num_sge; ++i) {
        const auto* data = reinterpret_cast<const std::byte*>(wr->sg_list[i].addr);
        f.inlined.insert(f.inlined.end(), data, data + wr->sg_list[i].length);
      }
    } else {
      if (wr->num_sge > static_cast<int>(q.cap.max_send_sge)) return EINVAL;
      f.parts.assign(wr->sg_list, wr->sg_list + wr->num_sge);
    }
    q.sends.emplace_back(wr->wr_id, f.signaled);
    if (q.verbs.state == IBV_QPS_ERR) {
      complete(q, wr->wr_id, IBV_WC_WR_FLUSH_ERR);
      continue;
    }
    f.due = steady_clock::now();
    if (settings.lag_us > 0) {
      f.due += std::chrono::microseconds(random() % static_cast<unsigned>(settings.lag_us + 1));
      if (!q.flights.empty()) f.due = std::max(f.due, q.flights.back().due);
    }
    const bool fails = fail_in >= 0 && fail_in-- == 0;
    const bool waits = !q.flights.empty() || settings.lag_us > 0;
    q.flights.push_back(std::move(f));
    if (fails) {
      while (q.flights.size() > 1) deliver(q);
      break_pair(q, fail_with);
    } else if (!waits) {
      deliver(q);
    }
  }
  *bad = nullptr;
  return 0;
}

void VerbsDouble::Network::run_wire() {
  while (!ends) {
    {
      std::lock_guard lock(mutex);
      const auto now = steady_clock::now();
      for (auto& [number, q] : pairs) {
        while (!held && !q->flights.empty() && q->flights.front().due <= now) deliver(*q);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void VerbsDouble::Network::tell(ibv_event_type type, int device) {
  for (Context* c : contexts) {
    if (device >= 0 && c->verbs.device != &devices[static_cast<size_t>(device)]) continue;
    ibv_async_event e{};
    e.event_type = type;
    e.element.port_num = 1;
    EXPECT_EQ(write(c->events.ends[1], &e, sizeof e), ssize_t{sizeof e});
  }
}

}  // namespace ringfold::transport::test
