#include "sync/mesh_recovery.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

namespace ringfold::sync {
namespace {

// Places of a replica, whatever their number in the data axis.
int place_of(const Mesh& mesh, const MeshPoint& point) {
  return point.pipeline * mesh.lengths().tensor + point.tensor;
}
int places_of(const Mesh& mesh) { return mesh.lengths().pipeline * mesh.lengths().tensor; }
MeshPoint point_at(const Mesh& mesh, int place, int data) {
  return {.data = data, .pipeline = place / mesh.lengths().tensor, .tensor = place % mesh.lengths().tensor};
}

struct Survivor {
  int32_t job_rank = 0, data = 0, pipeline = 0, tensor = 0;
  uint64_t steps = 0;
};

Result<std::vector<Survivor>> gather_survivors(Communicator& job, const Survivor& mine) {
  std::vector<Survivor> all(static_cast<size_t>(job.size()));
  RINGFOLD_TRY(job.all_gather(&mine, all.data(), sizeof mine, DataType::kU8).wait());
  return all;
}

// A failure that the ranks along one axis know of is one for all.
void end_all(Communicator& job, MeshCommunicators& parts, const std::string& cause) {
  for (Communicator* c : {&parts.tensor, &parts.pipeline, &parts.data}) c->abort(cause);
  if (job.status().ok()) {
    job.abort(cause);
    (void)job.barrier().wait();
  }
}

}  // namespace

Result<Seats> seats_of(const Mesh& before, std::span<const MeshPoint> held) {
  const int places = places_of(before), survivors = static_cast<int>(held.size()), replicas = survivors / places;
  if (replicas == 0) {
    return Status(Code::kPeerLost, std::to_string(survivors) + " of " + std::to_string(before.ranks()) +
                                       " ranks are left, and a replica of the model takes " + std::to_string(places) +
                                       ": the run can go on from a checkpoint, with more");
  }
  auto mesh = Mesh::make(replicas * places, before.lengths().pipeline, before.lengths().tensor);
  if (!mesh.ok()) return mesh.status();
  Seats seats{.mesh = *mesh, .rank_of = std::vector<int>(held.size(), -1)};
  std::vector<int> taken(static_cast<size_t>(places), 0);
  const auto seat = [&](size_t survivor, int place) {
    int& data = taken[static_cast<size_t>(place)];
    if (data == replicas) return;
    seats.rank_of[survivor] = mesh->rank_of(point_at(*mesh, place, data++));
  };
  for (size_t s = 0; s < held.size(); ++s) seat(s, place_of(before, held[s]));
  for (int place = 0; place < places; ++place) {
    if (taken[static_cast<size_t>(place)] > 0) continue;
    const MeshPoint point = point_at(before, place, 0);
    return Status(Code::kPeerLost, "all ranks that held stage " + std::to_string(point.pipeline + 1) + ", part " +
                                       std::to_string(point.tensor + 1) +
                                       " of the model are lost: what they held is only in checkpoints");
  }
  int place = 0;
  for (size_t s = 0; s < held.size() && place < places; ++s) {
    if (seats.rank_of[s] >= 0) continue;
    while (place < places && taken[static_cast<size_t>(place)] == replicas) ++place;
    if (place < places) seat(s, place);
  }
  return seats;
}

Result<MeshRecovery> recover(Communicator& job, MeshCommunicators& parts, std::unique_ptr<Strategy>& strategy,
                             const Remake& remake, uint64_t steps) {
  const Mesh before = parts.mesh;
  const MeshPoint held = before.point_of(job.rank());
  // What codes missed is kept with the communicator, and goes with it.
  const std::string missed = parts.data.error_feedback().names().empty() ? "" : parts.data.error_feedback().save();
  for (;;) {
    end_all(job, parts, "a communicator of its ranks has failed");
    remake.drop();
    auto next = job.reconfigure(/*admit=*/false);  // who has come back has no place in a mesh
    if (!next.ok()) return next.status();
    job = std::move(*next);

    MeshRecovery recovered;
    std::unique_ptr<Strategy> loaded;
    bool hopeless = false;
    const auto begin = [&]() -> Status {
      auto survivors = gather_survivors(job, {.job_rank = job.job_rank(),
                                              .data = held.data,
                                              .pipeline = held.pipeline,
                                              .tensor = held.tensor,
                                              .steps = steps});
      if (!survivors.ok()) return survivors.status();
      std::vector<MeshPoint> points;
      uint64_t newest = 0;
      for (const Survivor& s : *survivors) {
        points.push_back({.data = s.data, .pipeline = s.pipeline, .tensor = s.tensor});
        newest = std::max(newest, s.steps);
      }
      // Who has made a step knows that all others can.
      while (steps < newest) {
        if (!strategy->catch_up()) return Status(Code::kInternal, "ranks of a mesh are not in step");
        ++steps;
      }
      const auto seats = seats_of(before, points);
      hopeless = !seats.ok();
      if (hopeless) return seats.status();
      const int seat = seats->rank_of[static_cast<size_t>(job.rank())];
      for (size_t s = 0; s < survivors->size(); ++s)
        if (seats->rank_of[s] < 0) recovered.left_over.push_back((*survivors)[s].job_rank);
      recovered.member = seat >= 0;
      recovered.steps = newest;
      // All who go on get it, or none does; so from here on they stand on the same one, whoever is lost now.
      auto crew = job.split(recovered.member ? 0 : -1, seat);
      if (!crew.ok()) return crew.status();
      if (!recovered.member) return {};
      job = std::move(*crew);
      auto axes = split(job, seats->mesh);
      if (!axes.ok()) return axes.status();
      parts = std::move(*axes);
      auto made = remake.make();
      if (!made.ok()) return made.status();
      loaded = std::move(*made);
      const bool stays = place_of(before, held) == place_of(seats->mesh, seats->mesh.point_of(seat));
      if (stays && !missed.empty()) RINGFOLD_TRY(parts.data.error_feedback().add(missed));
      auto state = (stays ? *strategy : *loaded).collect(parts.data, stays, &newest);
      if (!state.ok()) return state.status();
      RINGFOLD_TRY(loaded->load(*state));
      // Who does not see its end keeps what it had, of the same step: nobody makes another without it.
      return job.barrier().wait();
    };
    const Status begun = begin();
    if (begun.ok()) {
      if (recovered.member) strategy = std::move(loaded);
      return recovered;
    }
    // Where communicators are made of others, a loss is not a verdict yet.
    if (hopeless || (!begun.verdict() && begun.code() != Code::kPeerLost)) return begun;
  }
}

}  // namespace ringfold::sync
