#include "sync/mesh.h"

namespace ringfold::sync {

Result<Mesh> Mesh::make(int ranks, int pipeline, int tensor) {
  const std::string asked = std::to_string(pipeline) + " stages x " + std::to_string(tensor) + " parts of a layer";
  if (ranks < 1 || pipeline < 1 || tensor < 1)
    return Status(Code::kInvalid, "a mesh of " + std::to_string(ranks) + " ranks, " + asked + ": each is at least 1");
  if (pipeline > ranks || tensor > ranks / pipeline || ranks % (pipeline * tensor) != 0) {
    return Status(Code::kInvalid, std::to_string(ranks) + " ranks cannot be cut into " + asked +
                                      ": the number of ranks must be a multiple of their product");
  }
  return Mesh({.data = ranks / (pipeline * tensor), .pipeline = pipeline, .tensor = tensor});
}

MeshPoint Mesh::point_of(int rank) const {
  const int line = rank / lengths_.tensor;
  return {.data = line % lengths_.data, .pipeline = line / lengths_.data, .tensor = rank % lengths_.tensor};
}

int Mesh::rank_of(const MeshPoint& point) const {
  return (point.pipeline * lengths_.data + point.data) * lengths_.tensor + point.tensor;
}

std::vector<int> Mesh::line_of(int rank, Axis axis) const {
  MeshPoint point = point_of(rank);
  int& moving = axis == Axis::kData ? point.data : axis == Axis::kPipeline ? point.pipeline : point.tensor;
  std::vector<int> ranks;
  for (moving = 0; moving < lengths_.at(axis); ++moving) ranks.push_back(rank_of(point));
  return ranks;
}

std::string Mesh::to_string() const {
  return std::to_string(lengths_.data) + " x " + std::to_string(lengths_.pipeline) + " x " +
         std::to_string(lengths_.tensor) + " (data x pipeline x tensor)";
}

Result<MeshCommunicators> split(Communicator& comm, const Mesh& mesh) {
  if (comm.size() != mesh.ranks()) {
    return Status(Code::kInvalid, "a mesh of " + std::to_string(mesh.ranks()) + " ranks on a communicator of " +
                                      std::to_string(comm.size()));
  }
  MeshCommunicators all{.mesh = mesh, .data = {}, .pipeline = {}, .tensor = {}};
  Communicator* const parts[] = {&all.data, &all.pipeline, &all.tensor};
  for (const Axis axis : kAxes) {
    auto part = comm.split(mesh.color_of(comm.rank(), axis), mesh.point_of(comm.rank()).at(axis));
    if (!part.ok()) return part.status();
    *parts[static_cast<size_t>(axis)] = std::move(*part);
  }
  return all;
}

}  // namespace ringfold::sync
