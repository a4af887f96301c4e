// What nccl-tests' programs do, with an exact check of every result: some ranks of a job, driven by one thread.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nccl/nccl.h"
#include "tests/device/cuda_double.h"

namespace ringfold::test {

#define NCCL_OK(call) ASSERT_EQ(call, ncclSuccess) << #call << ": " << ncclGetLastError(nullptr)

struct NcclRank {
  ncclComm_t comm = nullptr;
  cuda::Stream stream = nullptr;  // null: the default stream
  int device = 0;
  void *send = nullptr, *receive = nullptr;  // of kMostBytes each
};
inline constexpr size_t kMostElems = 5003, kMostBytes = kMostElems * 8 * 8;

// Buffers and streams for ranks first .. first + count - 1, whose communicators are there.
std::vector<NcclRank> make_ranks(std::vector<ncclComm_t> comms, int first, bool default_stream = false);
void give_back(std::vector<NcclRank>& ranks);  // and destroys the communicators

// Plays every collective with every type and operation, in and out of place, at several sizes, with what other
// threads and processes do for the other ranks, and checks what the ranks here get.
void play_everything(std::vector<NcclRank>& ranks, int size);

// Waits for the stream as nccl-tests does: asks for errors meanwhile, and aborts the communicator if there is one.
void synchronize(NcclRank& rank);

}  // namespace ringfold::test
