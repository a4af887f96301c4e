#include "sync/parameter_server.h"

#include <algorithm>
#include <chrono>
#include <string>

namespace ringfold::sync {
namespace {

constexpr double kForEver_s = 1e8;  // a server waits for messages as long as the job lasts

double server_now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Result<std::unique_ptr<ParameterServer>> ParameterServer::make(Communicator& comm, std::span<const float> initial,
                                                               const ServerOptions& options) {
  std::unique_ptr<ParameterServer> server(new ParameterServer(comm, options, initial.size()));
  if (comm.rank() == 0) {
    Sequencer::Options order = options.order;
    order.workers = comm.size();
    auto sequencer = Sequencer::make(std::move(order));
    if (!sequencer.ok()) return sequencer.status();
    server->sequencer_ = std::make_unique<Sequencer>(std::move(*sequencer));
  }
  const auto n = static_cast<size_t>(comm.size());
  for (int i = 0; i <= options.replicas; ++i) {
    const Part part = server->part((comm.rank() - i + comm.size()) % comm.size());
    server->shards_.emplace_back(part.begin, initial.subspan(part.begin, part.size()), comm.size(), options.optimizer,
                                 options.compensation);
  }
  server->incoming_.resize(server->shards_.size());
  server->replies_.assign(server->shards_.size(), std::vector<Work>(n));
  for (size_t s = 0; s < server->shards_.size(); ++s) {
    server->incoming_[s].resize(n);
    for (size_t w = 0; w < n; ++w) {
      auto memory = allocate_buffer<float>(std::max<size_t>(server->shards_[s].elems(), 1));
      if (!memory.ok()) return memory.status();
      server->incoming_[s][w].slice = std::move(*memory);
    }
  }
  for (size_t s = 0; s < server->shards_.size(); ++s) {
    for (size_t w = 0; w < n; ++w) server->post(s, w);
  }
  server->thread_ = std::thread([raw = server.get()] { raw->serve(); });
  return server;
}

ParameterServer::ParameterServer(Communicator& comm, const ServerOptions& options, size_t elems)
    : comm_(comm),
      options_(options),
      elems_(elems),
      grants_(static_cast<size_t>(comm.size())),
      grant_works_(static_cast<size_t>(comm.size())) {}

ParameterServer::~ParameterServer() { stop(); }

void ParameterServer::stop() {
  if (!thread_.joinable()) return;
  wire::Header header{.kind = wire::kStop};
  // On a dead communicator the thread has ended, or is about to.
  (void)comm_.send(&header, sizeof header, DataType::kU8, comm_.rank(), wire::kHeader).wait();
  thread_.join();
}

void ParameterServer::post(size_t shard, size_t worker) {
  Incoming& in = incoming_[shard][worker];
  in.receive = comm_.recv(in.slice.get(), shards_[shard].elems(), DataType::kF32, static_cast<int>(worker),
                          wire::kSlice + number_of(shard), {.timeout_s = kForEver_s});
}

void ParameterServer::serve() {
  const double look_s = std::clamp(options_.timeout_s / 8, 0.01, 1.0);
  Status status;
  while (status.ok()) {
    wire::Header header;
    Work work = comm_.recv(&header, sizeof header, DataType::kU8, Communicator::kAnySource, wire::kHeader,
                           {.timeout_s = kForEver_s});
    while (status.ok() && !work.test()) {
      (void)work.wait_for(look_s);
      std::lock_guard lock(mutex_);
      status = watch();
    }
    if (!status.ok()) comm_.abort(status.message());  // ends the receive, in whose hands `header` is
    if (Status received = work.wait(); !received.ok()) status = received;
    if (!status.ok()) break;
    if (header.kind == wire::kStop && work.source() == comm_.rank()) break;
    std::lock_guard lock(mutex_);
    status = serve_one(header, work.source());
  }
  if (status.ok()) return;
  {
    std::lock_guard lock(mutex_);
    status_ = status;
  }
  if (!status.verdict()) comm_.abort("parameter server: " + status.message());
}

Status ParameterServer::serve_one(const wire::Header& header, int source) {
  const auto bad = [&](const std::string& what) {
    return Status(Code::kProtocol, "rank " + std::to_string(source) + " sent " + what);
  };
  if (header.kind == wire::kAsk) {
    if (!sequencer_) return bad("a request for a ticket to rank " + std::to_string(comm_.rank()));
    loss_ += header.loss;
    samples_ += header.samples;
    RINGFOLD_TRY(sequencer_->ask(source));
    return grant();
  }
  if (header.kind != wire::kPush || header.push.worker != source) return bad("a header that nobody sends");
  for (size_t s = 0; s < shards_.size(); ++s) {
    if (number_of(s) != static_cast<int>(header.shard)) continue;
    Incoming& in = incoming_[s][static_cast<size_t>(source)];
    if (in.held || header.push.ticket < shards_[s].next_ticket())
      return bad("ticket " + std::to_string(header.push.ticket) + " again");
    in.held = true;
    in.push = header.push;
    return apply_in_order(s);
  }
  return bad("a gradient of shard " + std::to_string(header.shard) + ", which is not here");
}

// Tickets for all who may go.
Status ParameterServer::grant() {
  for (;;) {
    auto granted = sequencer_->grant();
    if (!granted.ok()) return granted.status();
    if (!granted->has_value()) break;
    const Grant& g = **granted;
    if (g.staleness > sequencer_->most()) {
      return Status(Code::kInternal, "an update of staleness " + std::to_string(g.staleness) +
                                         " was let through, and the bound is " + std::to_string(sequencer_->most()));
    }
    const auto w = static_cast<size_t>(g.worker);
    RINGFOLD_TRY(grant_works_[w].wait());  // the one before has been read long since
    grants_[w] = {.ticket = g.ticket, .item = g.item, .closes = g.closes, .more = g.more};
    grant_works_[w] = comm_.send(&grants_[w], sizeof(wire::Reply), DataType::kU8, g.worker, wire::kGrant);
    if (g.worker != comm_.rank()) sent_bytes_ += sizeof(wire::Reply);
  }
  waiting_since_s_ = server_now_s();
  return {};
}

Status ParameterServer::apply_in_order(size_t shard) {
  ServerShard& target = shards_[shard];
  for (bool again = true; again;) {
    again = false;
    for (size_t w = 0; w < incoming_[shard].size(); ++w) {
      Incoming& in = incoming_[shard][w];
      if (!in.held || in.push.ticket != target.next_ticket()) continue;
      RINGFOLD_TRY(in.receive.wait());  // sent before its header
      const bool closed = target.apply(in.push, {in.slice.get(), target.elems()});
      in.held = false;
      post(shard, w);
      again = true;
      if (!closed) continue;
      for (int worker : target.closed()) RINGFOLD_TRY(reply(shard, worker));
    }
  }
  return {};
}

Status ParameterServer::reply(size_t shard, int worker) {
  Work& work = replies_[shard][static_cast<size_t>(worker)];
  RINGFOLD_TRY(work.wait());  // the worker has pushed since, so it has it
  const auto number = int64_t{number_of(shard)};
  const std::span<const float> parameters = shards_[shard].read(worker);
  if (shard > 0) {  // a replica
    work = comm_.send(nullptr, 0, DataType::kU8, worker, wire::kApplied + number);
    return {};
  }
  work = comm_.send(parameters.data(), parameters.size(), DataType::kF32, worker, wire::kParameters + number);
  if (worker != comm_.rank()) sent_bytes_ += parameters.size() * sizeof(float);
  return {};
}

// Does a worker hold up the others for too long?
Status ParameterServer::watch() {
  if (!sequencer_) return {};
  const int worker = sequencer_->holds_up();
  if (worker < 0 || server_now_s() - waiting_since_s_ < options_.timeout_s) return {};
  return Status(Code::kTimeout, "rank " + std::to_string(worker) + " has not finished its gradient for " +
                                    std::to_string(static_cast<int>(options_.timeout_s)) +
                                    " s, and the bound of staleness lets nobody go on without it");
}

void ParameterServer::begin(std::vector<uint64_t> items) {
  std::lock_guard lock(mutex_);
  if (sequencer_) sequencer_->begin(std::move(items));
  waiting_since_s_ = server_now_s();
}

void ParameterServer::set_bound(uint64_t steps) {
  std::lock_guard lock(mutex_);
  if (sequencer_) sequencer_->set_bound(steps);
}

std::pair<double, double> ParameterServer::take_losses() {
  std::lock_guard lock(mutex_);
  return {std::exchange(loss_, 0), std::exchange(samples_, 0)};
}

std::vector<uint64_t> ParameterServer::histogram() const {
  std::lock_guard lock(mutex_);
  return sequencer_ ? sequencer_->histogram() : std::vector<uint64_t>();
}

std::vector<int> ParameterServer::order() const {
  std::lock_guard lock(mutex_);
  return sequencer_ ? sequencer_->order() : std::vector<int>();
}

uint64_t ParameterServer::tickets() const {
  std::lock_guard lock(mutex_);
  return shards_.front().next_ticket();
}

void ParameterServer::set_tickets(uint64_t tickets) {
  std::lock_guard lock(mutex_);
  if (sequencer_) sequencer_->set_tickets(tickets, tickets);
  for (ServerShard& s : shards_) s.set_next_ticket(tickets);
}

Status ParameterServer::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

}  // namespace ringfold::sync
