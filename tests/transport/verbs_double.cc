#include "tests/transport/verbs_double.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>

namespace ringfold::transport::test {
namespace {

using std::chrono::steady_clock;

// The table of functions knows no object, so there is one network at a time.
VerbsDouble::Network* the_network = nullptr;

struct Pipe {
  int ends[2] = {-1, -1};
  Pipe() { EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0); }
  ~Pipe() {
    close(ends[0]);
    close(ends[1]);
  }
};

struct Context {
  ibv_context verbs{};
  Pipe events;  // of ibv_async_event
};
struct Channel {
  ibv_comp_channel verbs{};
  Pipe events;  // of ibv_cq*
};
struct Queue {
  ibv_cq verbs{};
  std::deque<ibv_wc> done;
  bool armed = false;
  int events = 0, acknowledged = 0;
};
struct Region {
  ibv_mr verbs{};
  int access = 0;
};
struct Flight {
  ibv_send_wr wr{};
  std::vector<ibv_sge> parts;
  std::vector<std::byte> inlined;
  steady_clock::time_point due;
  bool signaled = false;
};
struct QueuePair {
  ibv_qp verbs{};
  uint32_t destination = 0, access = 0;
  ibv_qp_cap cap{};
  std::deque<uint64_t> receives;
  std::deque<Flight> flights;
  std::deque<std::pair<uint64_t, bool>> sends;  // wr_id, signaled: what takes room until it is known to be done
};

template <typename T, typename V>
T* from(V* verbs) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(verbs) - offsetof(T, verbs));
}

}  // namespace

struct VerbsDouble::Network {
  explicit Network(const Settings& s) : settings(s), random(s.seed), devices(static_cast<size_t>(s.devices)) {
    for (size_t i = 0; i < devices.size(); ++i) {
      ibv_device& d = devices[i];
      std::snprintf(d.name, sizeof d.name, "double%zu", i);
      d.transport_type = s.iwarp ? IBV_TRANSPORT_IWARP : IBV_TRANSPORT_IB;
      list.push_back(&d);
    }
    list.push_back(nullptr);
  }

  const Settings settings;
  mutable std::recursive_mutex mutex;
  std::mt19937 random;
  std::vector<ibv_device> devices;
  std::vector<ibv_device*> list;
  std::map<uint32_t, Region*> regions;  // by key
  std::map<uint32_t, QueuePair*> pairs;
  std::vector<Context*> contexts;
  uint32_t next = 17;
  Live live;
  std::vector<std::string> complaints;
  // faults
  int fail_in = -1, refuse_sends_in = -1, refuse_sends_error = 0, receives_accepted = -1, receives_error = 0;
  int regions_left = -1, regions_error = 0, pairs_left = -1, pairs_error = 0;
  ibv_wc_status fail_with = IBV_WC_SUCCESS;
  bool cut = false, removed = false, replace_note = false;
  uint32_t note = 0;

  std::thread wire;
  std::atomic<bool> ends{false};

  void complain(std::string what) { complaints.push_back(std::move(what)); }

  void push(ibv_cq* verbs, const ibv_wc& wc) {
    Queue* q = from<Queue>(verbs);
    if (static_cast<int>(q->done.size()) >= q->verbs.cqe) return complain("a completion queue ran over");
    q->done.push_back(wc);
    if (!q->armed) return;
    q->armed = false;
    ++q->events;
    EXPECT_EQ(write(from<Channel>(q->verbs.channel)->events.ends[1], &verbs, sizeof verbs), ssize_t{sizeof verbs});
  }

  void complete(QueuePair& q, uint64_t id, ibv_wc_status status) {
    ibv_wc wc{};
    wc.wr_id = id;
    wc.status = status;
    wc.qp_num = q.verbs.qp_num;
    wc.vendor_err = status == IBV_WC_SUCCESS ? 0 : 0x81;
    if (status != IBV_WC_SUCCESS) wc.opcode = static_cast<ibv_wc_opcode>(0x7f);  // not valid then: none may look
    push(q.verbs.send_cq, wc);
  }

  // To the error state: `first` is what the oldest write ends with, all else is flushed.
  void break_pair(QueuePair& q, ibv_wc_status first) {
    if (q.verbs.state == IBV_QPS_ERR) return;
    q.verbs.state = IBV_QPS_ERR;
    for (const Flight& f : q.flights) complete(q, f.wr.wr_id, std::exchange(first, IBV_WC_WR_FLUSH_ERR));
    q.flights.clear();
    for (uint64_t id : q.receives) complete(q, id, IBV_WC_WR_FLUSH_ERR);
    q.receives.clear();
  }

  const Region* region(uint32_t key, uint64_t address, size_t bytes, const ibv_pd* pd) const {
    auto it = regions.find(key);
    if (it == regions.end() || it->second->verbs.pd != pd) return nullptr;
    const auto base = reinterpret_cast<uint64_t>(it->second->verbs.addr);
    return address >= base && address + bytes <= base + it->second->verbs.length ? it->second : nullptr;
  }

  void deliver(QueuePair& q) {
    Flight& f = q.flights.front();
    auto peer = pairs.find(q.destination);
    if (cut || peer == pairs.end() ||
        (peer->second->verbs.state != IBV_QPS_RTR && peer->second->verbs.state != IBV_QPS_RTS)) {
      return break_pair(q, IBV_WC_RETRY_EXC_ERR);
    }
    QueuePair& p = *peer->second;
    std::vector<std::byte> bytes = f.inlined;
    for (const ibv_sge& part : f.parts) {
      if (region(part.lkey, part.addr, part.length, q.verbs.pd) == nullptr) {
        complain("a write from memory that is not registered");
        return break_pair(q, IBV_WC_LOC_PROT_ERR);
      }
      const auto* data = reinterpret_cast<const std::byte*>(part.addr);
      bytes.insert(bytes.end(), data, data + part.length);
    }
    if (!bytes.empty()) {
      const Region* to = region(f.wr.wr.rdma.rkey, f.wr.wr.rdma.remote_addr, bytes.size(), p.verbs.pd);
      if (to == nullptr || (to->access & IBV_ACCESS_REMOTE_WRITE) == 0 || (p.access & IBV_ACCESS_REMOTE_WRITE) == 0) {
        complain("a write to memory that is not registered");
        break_pair(q, IBV_WC_REM_ACCESS_ERR);
        return break_pair(p, IBV_WC_WR_FLUSH_ERR);
      }
    }
    if (p.receives.empty()) {
      complain("no receive was posted for a write with immediate data");
      return break_pair(q, IBV_WC_RNR_RETRY_EXC_ERR);
    }
    if (!bytes.empty()) std::memcpy(reinterpret_cast<void*>(f.wr.wr.rdma.remote_addr), bytes.data(), bytes.size());
    ibv_wc wc{};
    wc.wr_id = p.receives.front();
    wc.opcode = IBV_WC_RECV_RDMA_WITH_IMM;
    wc.byte_len = static_cast<uint32_t>(bytes.size());
    wc.imm_data = f.wr.imm_data;
    wc.wc_flags = IBV_WC_WITH_IMM;
    wc.qp_num = p.verbs.qp_num;
    p.receives.pop_front();
    push(p.verbs.recv_cq, wc);
    if (f.signaled) complete(q, f.wr.wr_id, IBV_WC_SUCCESS);
    q.flights.pop_front();
  }

  int post(QueuePair& q, ibv_send_wr* wr, ibv_send_wr** bad) {
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

  void run_wire() {
    while (!ends) {
      {
        std::lock_guard lock(mutex);
        const auto now = steady_clock::now();
        for (auto& [number, q] : pairs) {
          while (!q->flights.empty() && q->flights.front().due <= now) deliver(*q);
        }
      }
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  void tell(ibv_event_type type) {
    for (Context* c : contexts) {
      ibv_async_event e{};
      e.event_type = type;
      EXPECT_EQ(write(c->events.ends[1], &e, sizeof e), ssize_t{sizeof e});
    }
  }
};

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;
VerbsDouble::Network& net() { return *the_network; }

int poll_cq(ibv_cq* verbs, int most, ibv_wc* out) {
  Lock lock(net().mutex);
  Queue* q = from<Queue>(verbs);
  int n = 0;
  for (; n < most && !q->done.empty(); ++n) {
    out[n] = q->done.front();
    q->done.pop_front();
    // Room in a send queue comes back with the completion of a request, for it and all before it.
    auto pair = net().pairs.find(out[n].qp_num);
    if (pair == net().pairs.end()) continue;
    auto& sends = pair->second->sends;
    auto at = std::find_if(sends.begin(), sends.end(), [&](auto& s) { return s.first == out[n].wr_id; });
    if (at != sends.end()) sends.erase(sends.begin(), at + 1);
  }
  return n;
}

int req_notify_cq(ibv_cq* verbs, int) {
  Lock lock(net().mutex);
  from<Queue>(verbs)->armed = true;
  return 0;
}

int post_send(ibv_qp* verbs, ibv_send_wr* wr, ibv_send_wr** bad) {
  Lock lock(net().mutex);
  return net().post(*from<QueuePair>(verbs), wr, bad);
}

int post_recv(ibv_qp* verbs, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  Lock lock(net().mutex);
  QueuePair& q = *from<QueuePair>(verbs);
  for (; wr != nullptr; wr = wr->next) {
    *bad = wr;
    if (net().receives_accepted >= 0 && net().receives_accepted-- == 0) return net().receives_error;
    if (q.receives.size() >= q.cap.max_recv_wr) {
      net().complain("a receive queue ran over");
      return ENOMEM;
    }
    if (q.verbs.state == IBV_QPS_ERR) {
      net().complete(q, wr->wr_id, IBV_WC_WR_FLUSH_ERR);
    } else {
      q.receives.push_back(wr->wr_id);
    }
  }
  return 0;
}

ibv_device** get_device_list(int* count) {
  *count = static_cast<int>(net().devices.size());
  return net().list.data();
}
void free_device_list(ibv_device**) {}
const char* get_device_name(ibv_device* device) { return device->name; }

ibv_context* open_device(ibv_device* device) {
  Lock lock(net().mutex);
  auto* c = new Context;
  c->verbs.device = device;
  c->verbs.ops.poll_cq = poll_cq;
  c->verbs.ops.req_notify_cq = req_notify_cq;
  c->verbs.ops.post_send = post_send;
  c->verbs.ops.post_recv = post_recv;
  c->verbs.async_fd = c->events.ends[0];
  net().contexts.push_back(c);
  ++net().live.contexts;
  return &c->verbs;
}
int close_device(ibv_context* verbs) {
  Lock lock(net().mutex);
  auto* c = from<Context>(verbs);
  std::erase(net().contexts, c);
  delete c;
  --net().live.contexts;
  return 0;
}
int query_device(ibv_context*, ibv_device_attr* a) {
  *a = {};
  a->phys_port_cnt = 1;
  a->max_cqe = net().settings.most_completions;
  return 0;
}
int query_port(ibv_context*, uint8_t, _compat_ibv_port_attr* out) {
  auto* a = reinterpret_cast<ibv_port_attr*>(out);
  a->state = net().settings.state;
  a->active_mtu = IBV_MTU_4096;
  a->link_layer = IBV_LINK_LAYER_ETHERNET;
  a->active_width = 1;
  a->active_speed = 1;
  a->gid_tbl_len = 2;
  return 0;
}
ssize_t query_gid_table(ibv_context* context, ibv_gid_entry* entries, size_t most, uint32_t, size_t) {
  if (most < 2) return -1;
  const auto device = static_cast<uint8_t>(context->device - net().devices.data());
  for (uint32_t i = 0; i < 2; ++i) {
    entries[i] = {};
    entries[i].gid_index = i;
    entries[i].port_num = 1;
    entries[i].gid_type = 2;
  }
  const uint8_t local[16] = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, device};
  const uint8_t mapped[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 1, device};
  std::memcpy(entries[0].gid.raw, local, 16);
  std::memcpy(entries[1].gid.raw, mapped, 16);
  return 2;
}
ibv_pd* alloc_pd(ibv_context* context) {
  Lock lock(net().mutex);
  ++net().live.domains;
  return new ibv_pd{context, 0};
}
int dealloc_pd(ibv_pd* pd) {
  Lock lock(net().mutex);
  --net().live.domains;
  delete pd;
  return 0;
}
ibv_mr* reg_mr(ibv_pd* pd, void* address, size_t bytes, int access) {
  Lock lock(net().mutex);
  if (net().regions_left >= 0 && net().regions_left-- == 0) {
    net().regions_left = 0;
    errno = net().regions_error;
    return nullptr;
  }
  auto* r = new Region;
  r->access = access;
  r->verbs.context = pd->context;
  r->verbs.pd = pd;
  r->verbs.addr = address;
  r->verbs.length = bytes;
  r->verbs.lkey = r->verbs.rkey = net().next++;
  net().regions[r->verbs.lkey] = r;
  ++net().live.regions;
  return &r->verbs;
}
int dereg_mr(ibv_mr* verbs) {
  Lock lock(net().mutex);
  net().regions.erase(verbs->lkey);
  delete from<Region>(verbs);
  --net().live.regions;
  return 0;
}
ibv_comp_channel* create_comp_channel(ibv_context* context) {
  Lock lock(net().mutex);
  auto* c = new Channel;
  c->verbs.context = context;
  c->verbs.fd = c->events.ends[0];
  ++net().live.channels;
  return &c->verbs;
}
int destroy_comp_channel(ibv_comp_channel* verbs) {
  Lock lock(net().mutex);
  delete from<Channel>(verbs);
  --net().live.channels;
  return 0;
}
ibv_cq* create_cq(ibv_context* context, int entries, void*, ibv_comp_channel* channel, int) {
  Lock lock(net().mutex);
  auto* q = new Queue;
  q->verbs.context = context;
  q->verbs.channel = channel;
  q->verbs.cqe = entries;
  ++net().live.queues;
  return &q->verbs;
}
int destroy_cq(ibv_cq* verbs) {
  Lock lock(net().mutex);
  auto* q = from<Queue>(verbs);
  // The real one waits for this, for ever. An event that nobody has taken is thrown away.
  if (q->acknowledged > q->events) net().complain("more events were acknowledged than there were");
  delete q;
  --net().live.queues;
  return 0;
}
int get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** context) {
  *context = nullptr;
  return read(channel->fd, cq, sizeof *cq) == ssize_t{sizeof *cq} ? 0 : -1;
}
void ack_cq_events(ibv_cq* cq, unsigned count) {
  Lock lock(net().mutex);
  from<Queue>(cq)->acknowledged += static_cast<int>(count);
}
ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr* a) {
  Lock lock(net().mutex);
  if (net().pairs_left >= 0 && net().pairs_left-- == 0) {
    net().pairs_left = 0;
    errno = net().pairs_error;
    return nullptr;
  }
  if (static_cast<int>(a->cap.max_inline_data) > net().settings.most_inline) {
    errno = EINVAL;
    return nullptr;
  }
  auto* q = new QueuePair;
  q->verbs.context = pd->context;
  q->verbs.pd = pd;
  q->verbs.send_cq = a->send_cq;
  q->verbs.recv_cq = a->recv_cq;
  q->verbs.qp_num = net().next++;
  q->verbs.state = IBV_QPS_RESET;
  q->cap = a->cap;
  net().pairs[q->verbs.qp_num] = q;
  ++net().live.queue_pairs;
  return &q->verbs;
}
int modify_qp(ibv_qp* verbs, ibv_qp_attr* a, int mask) {
  Lock lock(net().mutex);
  QueuePair& q = *from<QueuePair>(verbs);
  if (net().removed) return EIO;
  if ((mask & IBV_QP_ACCESS_FLAGS) != 0) q.access = a->qp_access_flags;
  if ((mask & IBV_QP_DEST_QPN) != 0) q.destination = a->dest_qp_num;
  if (a->qp_state == IBV_QPS_ERR) {
    net().break_pair(q, IBV_WC_WR_FLUSH_ERR);
    return 0;
  }
  const ibv_qp_state before = a->qp_state == IBV_QPS_INIT  ? IBV_QPS_RESET
                              : a->qp_state == IBV_QPS_RTR ? IBV_QPS_INIT
                                                           : IBV_QPS_RTR;
  if (q.verbs.state != before) return EINVAL;
  q.verbs.state = a->qp_state;
  return 0;
}
int destroy_qp(ibv_qp* verbs) {
  Lock lock(net().mutex);
  net().pairs.erase(verbs->qp_num);
  delete from<QueuePair>(verbs);
  --net().live.queue_pairs;
  return 0;
}
int get_async_event(ibv_context* context, ibv_async_event* event) {
  return read(context->async_fd, event, sizeof *event) == ssize_t{sizeof *event} ? 0 : -1;
}
void ack_async_event(ibv_async_event*) {}
const char* wc_status_str(ibv_wc_status status) {
  return status == IBV_WC_RETRY_EXC_ERR ? "transport retry counter exceeded" : "status of the double";
}
const char* event_type_str(ibv_event_type type) {
  return type == IBV_EVENT_DEVICE_FATAL ? "local catastrophic error" : "event of the double";
}

constexpr verbs::Library kTable = {get_device_list,
                                   free_device_list,
                                   get_device_name,
                                   open_device,
                                   close_device,
                                   query_device,
                                   query_port,
                                   query_gid_table,
                                   alloc_pd,
                                   dealloc_pd,
                                   reg_mr,
                                   dereg_mr,
                                   create_comp_channel,
                                   destroy_comp_channel,
                                   create_cq,
                                   destroy_cq,
                                   get_cq_event,
                                   ack_cq_events,
                                   create_qp,
                                   modify_qp,
                                   destroy_qp,
                                   get_async_event,
                                   ack_async_event,
                                   wc_status_str,
                                   event_type_str};

}  // namespace

VerbsDouble::VerbsDouble(const Settings& settings) : network_(std::make_unique<Network>(settings)) {
  EXPECT_EQ(the_network, nullptr) << "two networks at a time";
  the_network = network_.get();
  if (settings.lag_us > 0) network_->wire = std::thread([n = network_.get()] { n->run_wire(); });
}

VerbsDouble::~VerbsDouble() {
  network_->ends = true;
  if (network_->wire.joinable()) network_->wire.join();
  EXPECT_EQ(live(), Live()) << "something was not given back";
  for (const std::string& c : network_->complaints) ADD_FAILURE() << "against the rules of verbs: " << c;
  the_network = nullptr;
}

const verbs::Library* VerbsDouble::api() const { return &kTable; }

void VerbsDouble::end_write_with(ibv_wc_status status, int writes) {
  Lock lock(network_->mutex);
  network_->fail_with = status;
  network_->fail_in = writes;
}
void VerbsDouble::cut() {
  Lock lock(network_->mutex);
  network_->cut = true;
}
void VerbsDouble::refuse_sends(int error, int writes) {
  Lock lock(network_->mutex);
  network_->refuse_sends_error = error;
  network_->refuse_sends_in = writes;
}
void VerbsDouble::refuse_receives(int error, int accepted) {
  Lock lock(network_->mutex);
  network_->receives_error = error;
  network_->receives_accepted = accepted;
}
void VerbsDouble::refuse_registration(int error, int regions) {
  Lock lock(network_->mutex);
  network_->regions_error = error;
  network_->regions_left = regions;
}
void VerbsDouble::refuse_queue_pairs(int error, int count) {
  Lock lock(network_->mutex);
  network_->pairs_error = error;
  network_->pairs_left = count;
}
void VerbsDouble::remove_devices() {
  Lock lock(network_->mutex);
  network_->removed = true;
  network_->tell(IBV_EVENT_DEVICE_FATAL);
}
void VerbsDouble::event(ibv_event_type type) {
  Lock lock(network_->mutex);
  network_->tell(type);
}
void VerbsDouble::replace_note(uint32_t note) {
  Lock lock(network_->mutex);
  network_->replace_note = true;
  network_->note = note;
}
VerbsDouble::Live VerbsDouble::live() const {
  Lock lock(network_->mutex);
  return network_->live;
}
std::vector<std::string> VerbsDouble::complaints() const {
  Lock lock(network_->mutex);
  return network_->complaints;
}

}  // namespace ringfold::transport::test
