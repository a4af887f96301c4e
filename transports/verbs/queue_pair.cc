#include "transports/verbs/queue_pair.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ringfold::verbs {
namespace {

constexpr int kReceiveBatch = 16;  // receives are posted so many at a time: one doorbell for all
constexpr int kSignalParts = 4;    // a completion is asked for at each fourth of the queue

ibv_mtu mtu_code(int bytes) {
  return bytes >= 4096   ? IBV_MTU_4096
         : bytes >= 2048 ? IBV_MTU_2048
         : bytes >= 1024 ? IBV_MTU_1024
         : bytes >= 512  ? IBV_MTU_512
                         : IBV_MTU_256;
}

}  // namespace

QueuePair::QueuePair(Device& device, int port, uint32_t tag, const Depth& depth, transport::Counters& counters)
    : device_(device), port_(port), tag_(tag), depth_(depth), counters_(counters) {}

Result<std::unique_ptr<QueuePair>> QueuePair::make(Device& device, int port, uint32_t tag, const Depth& depth,
                                                   const Options& options, transport::Counters& counters) {
  std::unique_ptr<QueuePair> q(new QueuePair(device, port, tag, depth, counters));
  // How much a device takes inline is not to be asked: it is tried.
  for (int bytes = options.inline_bytes;; bytes /= 2) {
    ibv_qp_init_attr init{};
    init.send_cq = init.recv_cq = device.cq();
    init.qp_type = IBV_QPT_RC;
    init.cap = {static_cast<uint32_t>(depth.send), static_cast<uint32_t>(depth.receive), 2, 1,
                static_cast<uint32_t>(bytes)};
    errno = 0;
    q->qp_ = device.api().create_qp(device.pd(), &init);
    if (q->qp_ != nullptr) {
      q->inline_bytes_ = std::min<size_t>(init.cap.max_inline_data, static_cast<size_t>(bytes));
      break;
    }
    if (bytes == 0) {
      return Status(Code::kUnavailable, fmt::format("{}: no queue pair of {} + {} work requests: {}", device.name(),
                                                    depth.send, depth.receive, std::strerror(errno)));
    }
  }
  ibv_qp_attr a{};
  a.qp_state = IBV_QPS_INIT;
  a.pkey_index = 0;
  a.port_num = static_cast<uint8_t>(port);
  a.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
  int error =
      device.api().modify_qp(q->qp_, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  if (error == 0) {
    q->used_ = depth.receive;
    error = q->post_receives(depth.receive);
  }
  if (error != 0) {
    return Status(Code::kUnavailable,
                  fmt::format("{}: a queue pair cannot be set up: {}", device.name(), std::strerror(error)));
  }
  return q;
}

QueuePair::~QueuePair() {
  if (qp_ != nullptr) device_.api().destroy_qp(qp_);
}

Status QueuePair::connect(const Target& t, const Options& options) {
  const bool has_gid = t.route->my_gid >= 0;
  ibv_qp_attr a{};
  a.qp_state = IBV_QPS_RTR;
  a.path_mtu = mtu_code(t.route->mtu);
  a.dest_qp_num = t.number;
  a.rq_psn = t.their_psn;
  a.max_dest_rd_atomic = 1;
  a.min_rnr_timer = 12;  // 0.64 ms; receives never run out, so this is never waited for
  a.ah_attr.port_num = static_cast<uint8_t>(port_);
  a.ah_attr.dlid = t.there->lid;
  a.ah_attr.sl = static_cast<uint8_t>(options.service_level);
  if (has_gid) {
    const Gid &mine = t.here->gids[static_cast<size_t>(t.route->my_gid)],
              &theirs = t.there->gids[static_cast<size_t>(t.route->their_gid)];
    const bool one_subnet = std::equal(mine.bytes.begin(), mine.bytes.begin() + 8, theirs.bytes.begin());
    a.ah_attr.is_global = t.here->ethernet || !one_subnet;
    std::memcpy(a.ah_attr.grh.dgid.raw, theirs.bytes.data(), 16);
    a.ah_attr.grh.sgid_index = static_cast<uint8_t>(mine.index);
    a.ah_attr.grh.hop_limit = 64;
    a.ah_attr.grh.traffic_class = static_cast<uint8_t>(options.traffic_class);
  }
  auto modify = [&](int mask, const char* state) -> Status {
    const int error = device_.api().modify_qp(qp_, &a, mask);
    if (error == 0) return {};
    return {Code::kUnavailable,
            fmt::format("the queue pair does not get {} ({}): {}", state, t.route->why, std::strerror(error))};
  };
  RINGFOLD_TRY(modify(IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
                      "ready to receive"));
  a.qp_state = IBV_QPS_RTS;
  a.timeout = static_cast<uint8_t>(options.ack_timeout);
  a.retry_cnt = static_cast<uint8_t>(options.retries);
  a.rnr_retry = 6;  // some, so that a fault of ours shows as one; 7 would be for ever
  a.sq_psn = t.my_psn;
  a.max_rd_atomic = 1;
  return modify(
      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
      "ready to send");
}

void QueuePair::flush() {
  ibv_qp_attr a{};
  a.qp_state = IBV_QPS_ERR;
  device_.api().modify_qp(qp_, &a, IBV_QP_STATE);  // fails on a device that is gone, where nothing moves either
}

int QueuePair::post(const Write& w) {
  ibv_send_wr wr{};
  wr.wr_id = uint64_t{tag_} << 32 | static_cast<uint32_t>(posted_ + 1);
  wr.sg_list = const_cast<ibv_sge*>(w.parts.data());
  wr.num_sge = w.count;
  wr.opcode = w.silent ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_WRITE_WITH_IMM;
  wr.imm_data = htonl(w.immediate);
  wr.wr.rdma.remote_addr = w.to;
  wr.wr.rdma.rkey = w.key;
  // Solicited is what wakes a peer that asks for solicited events only; ours asks for all, others may read along.
  wr.send_flags = w.inlined ? IBV_SEND_INLINE : 0;
  const bool signaled = w.signaled || unsignaled_ + 1 >= depth_.send / kSignalParts;
  if (signaled) wr.send_flags |= IBV_SEND_SIGNALED;
  ibv_send_wr* bad = nullptr;
  if (const int error = ibv_post_send(qp_, &wr, &bad); error != 0) return error;
  ++posted_;
  unsignaled_ = signaled ? 0 : unsignaled_ + 1;
  ++counters_.work_requests;
  ++counters_.doorbells;
  return 0;
}

int QueuePair::received() {
  if (++used_ < kReceiveBatch) return 0;
  return post_receives(used_);
}

int QueuePair::post_receives(int count) {
  std::array<ibv_recv_wr, kReceiveBatch> wrs{};
  while (count > 0) {
    const int n = std::min(count, kReceiveBatch);
    for (int i = 0; i < n; ++i) {
      auto& wr = wrs[static_cast<size_t>(i)];
      wr.wr_id = kReceive | uint64_t{tag_} << 32;
      wr.next = i + 1 < n ? &wrs[static_cast<size_t>(i) + 1] : nullptr;
    }
    ibv_recv_wr* bad = nullptr;
    const int error = ibv_post_recv(qp_, wrs.data(), &bad);
    const int done = error == 0 ? n : bad != nullptr ? static_cast<int>(bad - wrs.data()) : 0;
    used_ -= done;
    count -= done;
    ++counters_.doorbells;
    counters_.work_requests += static_cast<uint64_t>(done);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace ringfold::verbs
