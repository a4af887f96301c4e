// A program played on a GPU: its moves become work on one stream, all of it at once. Where the executor looks whether
// a tile has arrived and a link has credit, the stream waits for it (transports/nvlink/mesh.h); what a move copies
// and folds is copied and folded by the GPU. So there is one definition of every algorithm, wherever the buffers are.
#pragma once

#include <cstddef>

#include "comm/device_coder.h"
#include "comm/device_reducer.h"
#include "program/program.h"
#include "transports/nvlink/mesh.h"

namespace ringfold::comm {

// Memory of the mesh's device.
struct PlayedOn {
  const std::byte* input = nullptr;
  std::byte* output = nullptr;
  std::byte* scratch = nullptr;  // as large as the program's
  std::byte* bounce = nullptr;   // of one tile, and another for a code
  std::byte* code_bounce = nullptr;
  float* missed = nullptr;  // error feedback, for each element of the input; null: what codes miss is dropped
  uint64_t draw = 0;        // key of random numbers
};

// `program` has one lane, tiles of the mesh's slots at most, and folds of no more inputs than the kernels take. What
// a failure leaves on the stream may wait for peers: Mesh::let_go().
Status play(const program::Program& program, const DeviceReducer& reducer, const DeviceCoder& coder,
            const PlayedOn& memory, nvlink::Mesh& mesh);

}  // namespace ringfold::comm
