// Mesh: the ranks of a job as data x pipeline x tensor, and the communicators along its axes.
//
//   data      replicas of the model, which sum their gradients
//   pipeline  stages, each with some of the layers
//   tensor    parts of each layer, which exchange activations within every layer
//
// The tensor coordinate varies fastest with the rank, then data, then pipeline: ranks lie host by host, so what talks
// most (several times a layer) shares a host, and what talks least (activations of a micro-batch, once a stage)
// crosses hosts. rank = (pipeline * D + data) * T + tensor.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "ringfold/communicator.h"

namespace ringfold::sync {

enum class Axis { kData, kPipeline, kTensor };
inline constexpr std::array kAxes = {Axis::kData, Axis::kPipeline, Axis::kTensor};

// Position along each axis, or length of each.
struct MeshPoint {
  int data = 0, pipeline = 0, tensor = 0;
  int at(Axis axis) const { return axis == Axis::kData ? data : axis == Axis::kPipeline ? pipeline : tensor; }
  friend bool operator==(const MeshPoint&, const MeshPoint&) = default;
};

// A value; any thread may read.
class Mesh {
 public:
  Mesh() = default;  // of one rank
  // `ranks` cut into pipeline x tensor; what remains is data. kInvalid where that does not divide, with the reason.
  static Result<Mesh> make(int ranks, int pipeline, int tensor);

  const MeshPoint& lengths() const { return lengths_; }
  int ranks() const { return lengths_.data * lengths_.pipeline * lengths_.tensor; }
  MeshPoint point_of(int rank) const;
  int rank_of(const MeshPoint& point) const;
  // The ranks that differ from `rank` along `axis` only, it among them, in the order of that coordinate.
  std::vector<int> line_of(int rank, Axis axis) const;
  // What tells these lines apart: the lowest rank of each. For Communicator::split.
  int color_of(int rank, Axis axis) const { return line_of(rank, axis).front(); }
  std::string to_string() const;  // "2 x 1 x 4 (data x pipeline x tensor)"

 private:
  explicit Mesh(MeshPoint lengths) : lengths_(lengths) {}
  MeshPoint lengths_ = {.data = 1, .pipeline = 1, .tensor = 1};
};

// One rank's communicators along the axes: in each, its rank is its coordinate. All axes have one, of size 1 where
// the mesh is that short.
struct MeshCommunicators {
  Mesh mesh;
  Communicator data, pipeline, tensor;
};

// Collective over `comm`, whose size is mesh.ranks()..
Result<MeshCommunicators> split(Communicator& comm, const Mesh& mesh);

}  // namespace ringfold::sync
