// The table of functions, over the simulated network; and its faults.
#include "tests/transport/verbs_double.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/transport/verbs_network.h"

namespace ringfold::transport::test {
namespace {

// The table of functions knows no object, so there is one network at a time.
VerbsDouble::Network* the_network = nullptr;

using Network = VerbsDouble::Network;
using Context = Network::Context;
using Channel = Network::Channel;
using Queue = Network::Queue;
using Region = Network::Region;
using QueuePair = Network::QueuePair;
using Lock = std::lock_guard<std::recursive_mutex>;
Network& net() { return *the_network; }

int poll_cq(ibv_cq* verbs, int most, ibv_wc* out) {
  Lock lock(net().mutex);
  Queue* q = Network::from<Queue>(verbs);
  ++net().polls;
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
  Network::from<Queue>(verbs)->armed = true;
  return 0;
}

int post_send(ibv_qp* verbs, ibv_send_wr* wr, ibv_send_wr** bad) {
  Lock lock(net().mutex);
  return net().post(*Network::from<QueuePair>(verbs), wr, bad);
}

int post_recv(ibv_qp* verbs, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  Lock lock(net().mutex);
  QueuePair& q = *Network::from<QueuePair>(verbs);
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
  auto* c = Network::from<Context>(verbs);
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
  a->active_mtu = net().settings.mtu;
  a->max_mtu = IBV_MTU_4096;
  a->link_layer = IBV_LINK_LAYER_ETHERNET;
  a->active_width = 1;
  a->active_speed = 1;
  a->gid_tbl_len = net().settings.gids;
  return 0;
}
ssize_t query_gid_table(ibv_context* context, ibv_gid_entry* entries, size_t most, uint32_t, size_t) {
  const auto device = static_cast<uint8_t>(context->device - net().devices.data());
  const uint8_t addresses[2][16] = {{0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, device},
                                    {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 1, device}};
  const auto count = static_cast<uint32_t>(net().settings.gids);
  if (most < count) return -1;
  for (uint32_t i = 0; i < count; ++i) {
    entries[i] = {};
    entries[i].gid_index = i;
    entries[i].port_num = 1;
    entries[i].gid_type = net().settings.gid_type;
    std::memcpy(entries[i].gid.raw, addresses[i], 16);
  }
  return static_cast<ssize_t>(count);
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
// False: it is to fail.
bool may_register() {
  if (net().regions_left >= 0 && net().regions_left-- == 0) {
    net().regions_left = 0;
    errno = net().regions_error;
    return false;
  }
  return true;
}
ibv_mr* register_at(ibv_pd* pd, void* address, size_t bytes, int access, std::byte* seen) {
  auto* r = new Region;
  r->seen = seen;
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
ibv_mr* reg_mr(ibv_pd* pd, void* address, size_t bytes, int access) {
  Lock lock(net().mutex);
  if (!may_register()) return nullptr;
  if (bytes > net().most_registered) {
    errno = ENOMEM;
    return nullptr;
  }
  return register_at(pd, address, bytes, access, nullptr);
}
ibv_mr* reg_dmabuf_mr(ibv_pd* pd, uint64_t offset, size_t bytes, uint64_t address, int fd, int access) {
  Lock lock(net().mutex);
  errno = net().settings.dma_buf_error;
  if (fd < 0 || errno != EBADF || !may_register()) return nullptr;
  void* seen = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset));
  if (seen == MAP_FAILED) return nullptr;
  ++net().dma_bufs;
  ++net().dma_bufs_ever;
  return register_at(pd, reinterpret_cast<void*>(address), bytes, access, static_cast<std::byte*>(seen));
}
int dereg_mr(ibv_mr* verbs) {
  Lock lock(net().mutex);
  if (std::byte* seen = Network::from<Region>(verbs)->seen; seen != nullptr) {
    munmap(seen, verbs->length);
    --net().dma_bufs;
  }
  net().regions.erase(verbs->lkey);
  delete Network::from<Region>(verbs);
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
  delete Network::from<Channel>(verbs);
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
  auto* q = Network::from<Queue>(verbs);
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
  Network::from<Queue>(cq)->acknowledged += static_cast<int>(count);
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
  QueuePair& q = *Network::from<QueuePair>(verbs);
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
  delete Network::from<QueuePair>(verbs);
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
                                   event_type_str,
                                   reg_dmabuf_mr};
constexpr verbs::Library without_dma_buf() {
  verbs::Library table = kTable;
  table.reg_dmabuf_mr = nullptr;
  return table;
}
constexpr verbs::Library kOldTable = without_dma_buf();

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

const verbs::Library* VerbsDouble::api() const {
  return network_->settings.dma_buf_error == 0 ? &kOldTable : &kTable;
}

void VerbsDouble::end_write_with(ibv_wc_status status, int writes) {
  Lock lock(network_->mutex);
  network_->fail_with = status;
  network_->fail_in = writes;
}
void VerbsDouble::cut() {
  Lock lock(network_->mutex);
  network_->cut = true;
}
void VerbsDouble::hold(bool on) {
  Lock lock(network_->mutex);
  network_->held = on;
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
void VerbsDouble::limit_registration(size_t bytes) {
  Lock lock(network_->mutex);
  network_->most_registered = bytes;
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
void VerbsDouble::event(ibv_event_type type, int device) {
  Lock lock(network_->mutex);
  network_->tell(type, device);
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
int VerbsDouble::dma_bufs() const {
  Lock lock(network_->mutex);
  return network_->dma_bufs;
}
int VerbsDouble::dma_bufs_ever() const {
  Lock lock(network_->mutex);
  return network_->dma_bufs_ever;
}
uint64_t VerbsDouble::polls() const {
  Lock lock(network_->mutex);
  return network_->polls;
}
std::vector<std::string> VerbsDouble::complaints() const {
  Lock lock(network_->mutex);
  return network_->complaints;
}

}  // namespace ringfold::transport::test
