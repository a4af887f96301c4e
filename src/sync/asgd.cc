#include "sync/asgd.h"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace ringfold::sync {
namespace {

double asgd_now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The server that finds a worker holding up the others says who it is: workers give it the time to.
constexpr double kPatience = 1.25;

}  // namespace

Result<std::unique_ptr<Strategy>> Asgd::make(Communicator& comm, std::span<const size_t> counts,
                                             const ServerOptions& options) {
  Sequencer::Options order = options.order;
  order.workers = comm.size();
  if (auto checked = Sequencer::make(std::move(order)); !checked.ok()) return checked.status();
  if (options.replicas < 0 || options.replicas >= comm.size()) {
    return Status(Code::kInvalid, std::to_string(options.replicas) + " replicas of each shard, on " +
                                      std::to_string(comm.size()) + " ranks: at most one fewer than ranks");
  }
  auto messages = comm.split(0, comm.rank());
  if (!messages.ok()) return messages.status();
  std::unique_ptr<Asgd> asgd(new Asgd(comm, options));
  asgd->messages_ = std::move(*messages);
  RINGFOLD_TRY(asgd->lay_out(counts));
  auto memory = allocate_buffer<float>(std::max<size_t>(asgd->elems_, 1));
  if (!memory.ok()) return memory.status();
  asgd->own_gradients_ = std::move(*memory);
  asgd->gradients_ = asgd->own_gradients_.get();
  return std::unique_ptr<Strategy>(std::move(asgd));
}

Asgd::~Asgd() { server_.reset(); }

Status Asgd::serve() {
  server_.reset();
  auto server = ParameterServer::make(messages_, all_parameters(), options_);
  if (!server.ok()) return server.status();
  server_ = std::move(*server);
  return {};
}

Status Asgd::start() {
  RINGFOLD_TRY(broadcast_parameters());
  return serve();
}

Status Asgd::begin_epoch(size_t steps, size_t from) {
  ++round_;
  steps_ = steps;
  done_ = from;
  std::vector<uint64_t> items = items_;
  if (rest_ && rest_->from != from) {
    items.clear();  // what is left is of the next epoch
  } else if (rest_ && !items.empty()) {
    rest_.reset();
  } else {
    rest_.reset();  // if there was one, nothing of its round was left
    const auto n = static_cast<size_t>(comm_.size());
    parts_ = comm_.size();
    finished_ = from * n;
    items.resize((steps - from) * n);
    std::iota(items.begin(), items.end(), from * n);
    for (ServerShard& s : server_->shards()) s.clear_items();
    items_ = items;
  }
  first_ticket_ = server_->tickets();
  item_.reset();
  if (static_cast<size_t>(comm_.rank()) < items.size()) item_ = items[static_cast<size_t>(comm_.rank())];
  server_->begin(std::move(items));
  return comm_.barrier().wait();  // nobody asks before rank 0 knows the items
}

Result<std::optional<Task>> Asgd::next() {
  if (!item_) return std::optional<Task>();
  std::fill_n(gradients_, elems_, 0.0F);
  const auto n = static_cast<size_t>(parts_);
  return std::optional<Task>(Task{*item_ / n, static_cast<int>(*item_ % n), parts_});
}

Status Asgd::step(const StepInfo& info) {
  const double begin_s = asgd_now_s();
  Status status = exchange(info);
  exposed_s_ += asgd_now_s() - begin_s;
  // The server may know better why.
  if (!status.ok() && !status.verdict() && !server_->status().ok()) return server_->status();
  return status;
}

Status Asgd::exchange(const StepInfo& info) {
  const int n = comm_.size(), me = comm_.rank();
  const CallOptions patient{.timeout_s = options_.timeout_s * kPatience};
  Group arrivals;
  for (int k = 0; k < n; ++k) {
    const Part part = server_->part(k);
    const auto elems = part.size();
    for (int i = 0; i <= options_.replicas; ++i) {
      const int server = ParameterServer::server_of(k, i, n);
      arrivals.add(i == 0 ? messages_.recv(parameters_.get() + part.begin, elems, DataType::kF32, server,
                                           wire::kParameters + k, patient)
                          : messages_.recv(nullptr, 0, DataType::kU8, server, wire::kApplied + k, patient));
      arrivals.add(messages_.send(gradients_ + part.begin, elems, DataType::kF32, server, wire::kSlice + k, patient));
      bytes_ += elems * sizeof(float) * (i == 0 ? 2 : 1);
      if (server != me) sent_bytes_ += elems * sizeof(float);
    }
  }
  wire::Header ask{.kind = wire::kAsk, .loss = info.loss, .samples = static_cast<double>(info.samples)};
  wire::Reply grant;
  Group asking;
  asking.add(messages_.recv(&grant, sizeof grant, DataType::kU8, 0, wire::kGrant, patient));
  asking.add(messages_.send(&ask, sizeof ask, DataType::kU8, 0, wire::kHeader, patient));
  Status asked = asking.wait();
  std::vector<wire::Header> pushes;
  if (asked.ok()) {
    for (int k = 0; k < n; ++k) {
      pushes.push_back({.kind = wire::kPush,
                        .shard = static_cast<uint32_t>(k),
                        .push = {.ticket = grant.ticket,
                                 .item = *item_,
                                 .lr = info.lr,
                                 .parts = static_cast<double>(parts_),
                                 .worker = me,
                                 .closes = grant.closes}});
    }
    for (int k = 0; k < n; ++k) {
      for (int i = 0; i <= options_.replicas; ++i) {
        arrivals.add(messages_.send(&pushes[static_cast<size_t>(k)], sizeof(wire::Header), DataType::kU8,
                                    ParameterServer::server_of(k, i, n), wire::kHeader, patient));
      }
    }
  }
  Status arrived = arrivals.wait();  // also after an error: the calls use the memory until they are done
  if (!asked.ok()) return asked;
  RINGFOLD_TRY(std::move(arrived));
  item_.reset();
  if (grant.more != 0) item_ = grant.item;
  done_ = static_cast<size_t>(finished_ + grant.ticket + 1 - first_ticket_) / static_cast<size_t>(parts_);
  return {};
}

Status Asgd::merge(bool last) {
  // All have their last parameters, so all servers have applied all that there is.
  RINGFOLD_TRY(comm_.barrier().wait());
  ServerShard& own = server_->shards().front();
  for (ServerShard& s : server_->shards()) s.read_by_all();
  std::vector<size_t> counts;
  for (int k = 0; k < comm_.size(); ++k) counts.push_back(server_->part(k).size());
  RINGFOLD_TRY(
      comm_.all_gather_v(own.parameters().data(), parameters_.get(), counts, DataType::kF32, {.codec = Codec()})
          .wait());
  done_ = steps_;
  if (!last) return {};
  RINGFOLD_TRY(comm_.barrier().wait());
  server_->stop();
  return {};
}

void Asgd::set_staleness(uint64_t steps) {
  options_.order.bound = steps;  // a server that is made later, too
  server_->set_bound(steps);
}

Result<Strategy::Losses> Asgd::losses() {
  const auto [loss, samples] = server_->take_losses();
  return Losses{loss, samples};
}

StrategyStats Asgd::stats() const {
  return {.exposed_s = exposed_s_,
          .in_flight_s = exposed_s_,
          .bytes = bytes_,
          .sent_bytes = sent_bytes_ + server_->sent_bytes(),
          .staleness = server_->histogram()};
}

void Asgd::save(State& state) {
  server_->shards().front().save(state);
  state.numbers["tickets"] = server_->tickets();
}

Status Asgd::load(const State& state) {
  RINGFOLD_TRY(state.get("parameters", 0, all_parameters()));
  RINGFOLD_TRY(serve());
  for (ServerShard& s : server_->shards()) RINGFOLD_TRY(s.load(state));
  if (const auto t = state.numbers.find("tickets"); t != state.numbers.end()) server_->set_tickets(t->second);
  return load_rest(state);
}

}  // namespace ringfold::sync
