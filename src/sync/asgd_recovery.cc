// What becomes of an asynchronous run when ranks are lost: asgd.h says how.
#include <algorithm>
#include <cstring>
#include <map>

#include "sync/asgd.h"

namespace ringfold::sync {
namespace {

std::string of_shard(const char* what, int shard) { return std::string(what) + " of shard " + std::to_string(shard); }

template <typename Value>
std::string bytes_of(std::span<const Value> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

template <typename Value>
std::vector<Value> values_in(const std::string& bytes) {
  std::vector<Value> values(bytes.size() / sizeof(Value));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(Value));
  return values;
}

uint64_t number_in(const State& state, const std::string& name) {
  const auto found = state.numbers.find(name);
  return found == state.numbers.end() ? 0 : found->second;
}

Result<std::vector<State>> parse_all(const Result<std::vector<std::string>>& gathered) {
  if (!gathered.ok()) return gathered.status();
  std::vector<State> states;
  for (const std::string& bytes : *gathered) {
    auto state = State::parse(bytes);
    if (!state.ok()) return state.status();
    states.push_back(std::move(*state));
  }
  return states;
}

}  // namespace

// What this rank knows and serves.
State Asgd::index(uint64_t steps) const {
  State mine;
  mine.numbers["shards"] = static_cast<uint64_t>(messages_.size());
  mine.numbers["parts"] = static_cast<uint64_t>(parts_);
  mine.numbers["finished"] = finished_;
  mine.numbers["begun at"] = rest_ ? rest_->begun_at : steps - done_;
  mine.numbers["round"] = round_;
  mine.blobs["items"] = bytes_of(std::span<const uint64_t>(items_));
  for (size_t s = 0; s < server_->shards().size(); ++s) {
    const int k = server_->number_of(s);
    mine.numbers[of_shard("updates", k)] = server_->shards()[s].applied() + 1;
    if (s == 0) mine.numbers[of_shard("first server", k)] = 1;
  }
  return mine;
}

Result<State> Asgd::collect(Communicator& comm, bool has, uint64_t* steps) {
  const bool serves = has && server_ != nullptr;
  if (serves) server_->stop();
  auto all = parse_all(gather(comm, serves ? index(*steps).serialise() : State().serialise()));
  if (!all.ok()) return all.status();
  const auto most = [&](const std::string& name) {
    return std::max_element(all->begin(), all->end(),
                            [&](const State& a, const State& b) { return number_in(a, name) < number_in(b, name); });
  };
  const State& newest = *most("round");
  const int shards = static_cast<int>(number_in(newest, "shards"));
  const uint64_t parts = number_in(newest, "parts");
  if (shards == 0) return Status(Code::kPeerLost, "of the ranks that are left none has the run's state");

  // Each shard comes from the server that has applied most.
  State share;
  std::vector<ServerShard::Held> held;
  std::string taken_over;
  for (int k = 0; k < shards; ++k) {
    const auto best = most(of_shard("updates", k));
    if (number_in(*best, of_shard("updates", k)) == 0) {
      return Status(Code::kUnavailable,
                    "shard " + std::to_string(k) + " of " + std::to_string(shards) +
                        " is lost with all of its servers. With more replicas of each (--shard-replicas) it would "
                        "have outlived them; --resume goes on from a checkpoint");
    }
    if (number_in(*most(of_shard("first server", k)), of_shard("first server", k)) == 0)
      taken_over += (taken_over.empty() ? "" : ", ") + std::to_string(k);
    if (best - all->begin() != comm.rank()) continue;
    for (size_t s = 0; s < server_->shards().size(); ++s) {
      if (server_->number_of(s) != k) continue;
      const ServerShard& shard = server_->shards()[s];
      shard.save(share);
      share.numbers["tickets"] = std::max(share.numbers["tickets"], shard.next_ticket());
      // A rank that has not begun the newest round holds all of the one before, and nothing of this one.
      const auto of_round = shard.held(round_ != number_in(newest, "round"));
      held.insert(held.end(), of_round.begin(), of_round.end());
    }
  }
  share.blobs["held"] = bytes_of(std::span<const ServerShard::Held>(held));
  auto shares = parse_all(gather(comm, share.serialise()));
  if (!shares.ok()) return shares.status();
  State state;
  uint64_t tickets = 0;
  held.clear();
  for (State& s : *shares) {
    tickets = std::max(tickets, number_in(s, "tickets"));
    const auto theirs = values_in<ServerShard::Held>(s.blobs["held"]);
    held.insert(held.end(), theirs.begin(), theirs.end());
    state.merge(std::move(s));
  }

  // Which items all shards hold, which some, and which none.
  std::map<uint64_t, uint64_t> elems;  // by item, that hold it
  for (const auto& h : held) elems[h.item] += h.end - h.begin;
  std::vector<uint64_t> rest;
  uint64_t finished = number_in(newest, "finished"), in_part = 0;
  for (const uint64_t item : values_in<uint64_t>(newest.blobs.at("items"))) {
    const auto found = elems.find(item);
    if (found != elems.end() && found->second == elems_) {
      ++finished;
      continue;
    }
    rest.push_back(item);
    in_part += found != elems.end() ? 1 : 0;
  }
  std::erase_if(held, [&](const auto& h) { return elems[h.item] == elems_; });
  *steps = number_in(newest, "begun at") + (parts > 0 ? finished / parts : 0);
  state.numbers["tickets"] = tickets;
  state.numbers["parts"] = parts;
  state.numbers["finished"] = finished;
  state.numbers["from"] = parts > 0 ? finished / parts : 0;
  state.numbers["begun at"] = number_in(newest, "begun at");
  state.numbers["round"] = number_in(newest, "round");
  state.blobs["rest"] = bytes_of(std::span<const uint64_t>(rest));
  state.blobs["held"] = bytes_of(std::span<const ServerShard::Held>(held));
  std::string& account = state.blobs["account"];
  if (!taken_over.empty()) account = "replicas take over shard " + taken_over;
  if (in_part > 0) {
    account +=
        (account.empty() ? "" : "; ") + std::to_string(in_part) +
        (in_part == 1 ? " update that had reached some shards is" : " updates that had reached some shards are") +
        " made again for the others";
  }
  return state;
}

Status Asgd::load_rest(const State& state) {
  const auto rest = state.blobs.find("rest");
  if (rest == state.blobs.end()) return {};  // a checkpoint
  parts_ = static_cast<int>(number_in(state, "parts"));
  round_ = number_in(state, "round");
  account_ = state.blobs.at("account");
  finished_ = number_in(state, "finished");
  items_ = values_in<uint64_t>(rest->second);
  rest_ = Rest{.begun_at = number_in(state, "begun at"), .from = number_in(state, "from")};
  if (parts_ == 0) rest_.reset();  // nothing had begun
  for (const auto& h : values_in<ServerShard::Held>(state.blobs.at("held"))) {
    for (ServerShard& s : server_->shards()) s.skip(h);
  }
  return {};
}

}  // namespace ringfold::sync
