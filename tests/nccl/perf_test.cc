#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <thread>

#include "tests/nccl/perf.h"

namespace ringfold::test {
namespace {

constexpr ncclDataType_t kTypes[] = {ncclInt8,   ncclUint8,   ncclInt32,   ncclUint32,  ncclInt64,
                                     ncclUint64, ncclFloat16, ncclFloat32, ncclFloat64, ncclBfloat16};
enum Operation { kSumOp, kProdOp, kMaxOp, kMinOp, kAvgOp, kPreMulOp, kOperations };

size_t size_of(ncclDataType_t type) {
  constexpr size_t kSizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return kSizes[type];
}

// A number that all of its type hold exactly, as bytes.
void store(std::byte* to, ncclDataType_t type, double value) {
  auto put = [&](auto v) { std::memcpy(to, &v, sizeof v); };
  switch (type) {
    case ncclInt8:
    case ncclUint8: return put(static_cast<uint8_t>(static_cast<int64_t>(value)));
    case ncclInt32:
    case ncclUint32: return put(static_cast<uint32_t>(static_cast<int64_t>(value)));
    case ncclInt64:
    case ncclUint64: return put(static_cast<int64_t>(value));
    case ncclFloat32: return put(static_cast<float>(value));
    case ncclFloat64: return put(value);
    case ncclBfloat16: {
      const auto wide = static_cast<float>(value);
      uint32_t bits;
      std::memcpy(&bits, &wide, 4);
      return put(static_cast<uint16_t>(bits >> 16));
    }
    case ncclFloat16: {
      if (value == 0) return put(uint16_t{0});
      int exponent;
      const double fraction = std::frexp(std::abs(value), &exponent);  // [0.5, 1)
      const auto bits = static_cast<uint16_t>((exponent + 14) << 10 | (static_cast<int>(fraction * 2048) & 1023));
      return put(static_cast<uint16_t>(bits | (value < 0 ? 0x8000 : 0)));
    }
    default: FAIL() << type;
  }
}

bool is_float(ncclDataType_t type) { return type >= ncclFloat16; }

double contribution(int rank, size_t i, int operation) {
  const size_t x = (static_cast<size_t>(rank) * 3 + i) % 5;
  return operation == kProdOp ? (x % 2 == 0 ? 2 : 1) : static_cast<double>(x + 1);
}

double reduced(int size, size_t i, int operation, ncclDataType_t type) {
  double sum = 0, product = 1, most = 0, least = 1e9, weighted = 0;
  for (int r = 0; r < size; ++r) {
    const double v = contribution(r, i, operation);
    sum += v;
    product *= v;
    most = std::max(most, v);
    least = std::min(least, v);
    weighted += v * (r + 1);
  }
  switch (operation) {
    case kSumOp: return sum;
    case kProdOp: return product;
    case kMaxOp: return most;
    case kMinOp: return least;
    case kAvgOp: return is_float(type) ? sum / size : std::trunc(sum / size);
    default: return weighted;
  }
}

using Values = std::function<double(size_t)>;

void fill(NcclRank& rank, void* memory, size_t elems, ncclDataType_t type, const Values& value) {
  cuda::launch(rank.stream, [=, seen = cuda::alias(memory)] {
    for (size_t i = 0; i < elems; ++i) store(seen + i * size_of(type), type, value(i));
  });
}

// One collective: what a rank brings (`input` elements, of global index base + i), what it gets, and where the two
// lie when they share memory.
struct Played {
  const char* name;
  size_t input, output;        // elements
  size_t input_at, output_at;  // in place: elements into the shared memory
  Values brings, gets;         // by element
  std::function<ncclResult_t(const void*, void*, NcclRank&)> call;
};

// Calls it on all ranks here, in a group, out of place and in place, and checks.
void play(std::vector<NcclRank>& ranks, int size, ncclDataType_t type,
          const std::function<Played(int rank)>& played_by) {
  const size_t elem = size_of(type);
  for (const bool in_place : {false, true}) {
    std::vector<std::byte*> results;
    std::vector<Played> all;
    for (auto& rank : ranks) {
      cuda::set_device(rank.device);
      int number = -1;
      NCCL_OK(ncclCommUserRank(rank.comm, &number));
      const Played& p = all.emplace_back(played_by(number));
      auto* shared = static_cast<std::byte*>(rank.receive);
      std::byte* in = in_place ? shared + p.input_at * elem : static_cast<std::byte*>(rank.send);
      std::byte* out = in_place ? shared + p.output_at * elem : shared;
      const auto canary = [](size_t) { return 99.0; };
      fill(rank, rank.receive, std::max(p.input, p.output) + 1, type, canary);
      fill(rank, in, p.input, type, p.brings);
      results.push_back(out);
    }
    NCCL_OK(ncclGroupStart());
    for (size_t r = 0; r < ranks.size(); ++r) {
      const Played& p = all[r];
      auto* shared = static_cast<std::byte*>(ranks[r].receive);
      std::byte* in = in_place ? shared + p.input_at * elem : static_cast<std::byte*>(ranks[r].send);
      NCCL_OK(p.call(in, results[r], ranks[r]));
    }
    NCCL_OK(ncclGroupEnd());
    for (size_t r = 0; r < ranks.size(); ++r) {
      cuda::set_device(ranks[r].device);
      synchronize(ranks[r]);
      const std::byte* seen = cuda::alias(results[r]);
      for (size_t i = 0; i < all[r].output; ++i) {
        std::byte expected[8];
        store(expected, type, all[r].gets(i));
        ASSERT_EQ(std::memcmp(expected, seen + i * elem, elem), 0)
            << all[r].name << " of type " << type << " over " << size << (in_place ? " in place" : "") << ": element "
            << i << " of " << all[r].output;
      }
    }
  }
}

struct Op {
  ncclRedOp_t number;
  std::vector<ncclRedOp_t> own;  // one for each rank here
};

void play_reductions(std::vector<NcclRank>& ranks, int size, ncclDataType_t type, int operation, size_t count) {
  constexpr ncclRedOp_t kNumbers[] = {ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg};
  std::map<ncclComm_t, ncclRedOp_t> ops;
  for (auto& rank : ranks) {
    ops[rank.comm] = operation < kPreMulOp ? kNumbers[operation] : ncclSum;
    if (operation != kPreMulOp) continue;
    int number = 0;
    NCCL_OK(ncclCommUserRank(rank.comm, &number));
    std::byte scalar[8];
    store(scalar, type, number + 1);
    NCCL_OK(ncclRedOpCreatePreMulSum(&ops[rank.comm], scalar, type, ncclScalarHostImmediate, rank.comm));
  }
  const auto n = static_cast<size_t>(size);
  const Values all = [=](size_t i) { return reduced(size, i, operation, type); };
  play(ranks, size, type, [&](int r) {
    const Values mine = [=](size_t i) { return contribution(r, i, operation); };
    return Played{
        "AllReduce", count, count, 0, 0, mine, all, [&, count, type](const void* in, void* out, NcclRank& k) {
          return ncclAllReduce(in, out, count, type, ops[k.comm], k.comm, reinterpret_cast<cudaStream_t>(k.stream));
        }};
  });
  const int root = static_cast<int>(count) % size;
  play(ranks, size, type, [&](int r) {
    const Values mine = [=](size_t i) { return contribution(r, i, operation); };
    return Played{"Reduce",
                  count,
                  r == root ? count : 0,
                  0,
                  0,
                  mine,
                  all,
                  [&, count, type, root](const void* in, void* out, NcclRank& k) {
                    return ncclReduce(in, out, count, type, ops[k.comm], root, k.comm,
                                      reinterpret_cast<cudaStream_t>(k.stream));
                  }};
  });
  play(ranks, size, type, [&](int r) {
    const Values mine = [=](size_t i) { return contribution(r, i, operation); };
    const size_t block = static_cast<size_t>(r) * count;
    return Played{"ReduceScatter",
                  n * count,
                  count,
                  0,
                  block,
                  mine,
                  [=](size_t i) { return all(block + i); },
                  [&, count, type](const void* in, void* out, NcclRank& k) {
                    return ncclReduceScatter(in, out, count, type, ops[k.comm], k.comm,
                                             reinterpret_cast<cudaStream_t>(k.stream));
                  }};
  });
  if (operation != kPreMulOp) return;
  for (auto& rank : ranks) NCCL_OK(ncclRedOpDestroy(ops[rank.comm], rank.comm));
}

void play_moves(std::vector<NcclRank>& ranks, int size, ncclDataType_t type, size_t count) {
  const auto n = static_cast<size_t>(size);
  const int root = static_cast<int>(count + 1) % size;
  auto value = [](int rank, size_t i) { return contribution(rank, i, kSumOp); };
  auto mine = [=](int r) { return Values([=](size_t i) { return value(r, i); }); };
  // Element i of a buffer of blocks, block b from rank b.
  const Values of_all = [=](size_t i) { return value(static_cast<int>(i / count), i % count); };
  auto stream = [](NcclRank& k) { return reinterpret_cast<cudaStream_t>(k.stream); };
  play(ranks, size, type, [&](int r) {
    return Played{"AllGather",
                  count,
                  n * count,
                  static_cast<size_t>(r) * count,
                  0,
                  mine(r),
                  of_all,
                  [=](const void* in, void* out, NcclRank& k) {
                    return ncclAllGather(in, out, count, type, k.comm, stream(k));
                  }};
  });
  play(ranks, size, type, [&](int r) {
    return Played{"Broadcast", count, count, 0, 0, mine(r), mine(root), [=](const void* in, void* out, NcclRank& k) {
                    return in == out ? ncclBcast(out, count, type, root, k.comm, stream(k))
                                     : ncclBroadcast(in, out, count, type, root, k.comm, stream(k));
                  }};
  });
  play(ranks, size, type, [&](int r) {
    return Played{"Gather",
                  count,
                  r == root ? n * count : 0,
                  r == root ? static_cast<size_t>(r) * count : 0,
                  0,
                  mine(r),
                  of_all,
                  [=](const void* in, void* out, NcclRank& k) {
                    return ncclGather(in, out, count, type, root, k.comm, stream(k));
                  }};
  });
  play(ranks, size, type, [&](int r) {
    const size_t block = static_cast<size_t>(r) * count;
    return Played{"Scatter",
                  r == root ? n * count : 0,
                  count,
                  0,
                  r == root ? block : 0,
                  mine(root),
                  [=](size_t i) { return value(root, block + i); },
                  [=](const void* in, void* out, NcclRank& k) {
                    return ncclScatter(in, out, count, type, root, k.comm, stream(k));
                  }};
  });
  // As nccl-tests does before there was a function for it; and with it.
  for (const bool by_messages : {true, false}) {
    play(ranks, size, type, [&](int r) {
      const Values gets = [=](size_t i) {
        return value(static_cast<int>(i / count), static_cast<size_t>(r) * count + i % count);
      };
      return Played{
          "AlltoAll",
          n * count,
          n * count,
          0,
          0,
          mine(r),
          gets,
          [=](const void* in, void* out, NcclRank& k) -> ncclResult_t {
            if (!by_messages || in == out) return ncclAlltoAll(in, out, count, type, k.comm, stream(k));
            for (int p = 0; p < size; ++p) {
              const size_t at = static_cast<size_t>(p) * count * size_of(type);
              const auto sent = ncclSend(static_cast<const std::byte*>(in) + at, count, type, p, k.comm, stream(k));
              if (sent != ncclSuccess) return sent;
              const auto got = ncclRecv(static_cast<std::byte*>(out) + at, count, type, p, k.comm, stream(k));
              if (got != ncclSuccess) return got;
            }
            return ncclSuccess;
          }};
    });
  }
}

}  // namespace

std::vector<NcclRank> make_ranks(std::vector<ncclComm_t> comms, int first, bool default_stream) {
  std::vector<NcclRank> ranks;
  for (ncclComm_t comm : comms) {
    NcclRank& rank = ranks.emplace_back();
    rank.comm = comm;
    rank.device = (first + static_cast<int>(ranks.size()) - 1) % cuda::kDevices;
    cuda::set_device(rank.device);
    rank.stream = default_stream ? nullptr : cuda::make_stream();
    rank.send = cuda::allocate(kMostBytes);
    rank.receive = cuda::allocate(kMostBytes);
  }
  return ranks;
}

void give_back(std::vector<NcclRank>& ranks) {
  for (auto& rank : ranks) {
    cuda::set_device(rank.device);
    NCCL_OK(ncclCommDestroy(rank.comm));
    cuda::free(rank.send);
    cuda::free(rank.receive);
    if (rank.stream != nullptr) cuda::destroy(rank.stream);
  }
}

void synchronize(NcclRank& rank) {
  while (!cuda::synchronize(rank.stream, 0.1)) {
    ncclResult_t error = ncclSuccess;
    NCCL_OK(ncclCommGetAsyncError(rank.comm, &error));
    if (error == ncclSuccess) continue;
    ADD_FAILURE() << ncclGetErrorString(error) << ": " << ncclGetLastError(rank.comm);
    NCCL_OK(ncclCommAbort(rank.comm));
    std::abort();  // nothing that follows would say more
  }
}

void play_everything(std::vector<NcclRank>& ranks, int size) {
  for (const ncclDataType_t type : kTypes) {
    for (int operation = 0; operation < kOperations; ++operation) {
      // An average over three is not exact in a binary fraction.
      if (operation == kAvgOp && is_float(type) && (size & (size - 1)) != 0) continue;
      for (const size_t count : {size_t{1}, size_t{777}}) play_reductions(ranks, size, type, operation, count);
      if (testing::Test::HasFatalFailure()) return;
    }
    for (const size_t count : {size_t{1}, size_t{777}}) play_moves(ranks, size, type, count);
  }
  play_reductions(ranks, size, ncclFloat32, kSumOp, 0);
  play_reductions(ranks, size, ncclFloat32, kSumOp, kMostElems);
  play_moves(ranks, size, ncclUint64, kMostElems);
}

}  // namespace ringfold::test
