// The part of PMIx's binary interface that pmix.cc uses (the same from version 3 on, libpmix.so.2), so that it builds
// without PMIx's headers. tests/comm/pmix_test.cc compares it with them where they are installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringfold::comm::pmix {

using Status = int;
constexpr Status kSuccess = 0;
constexpr uint32_t kWholeJob = UINT32_MAX - 1;  // in place of a rank: PMIX_RANK_WILDCARD

struct Process {
  char job[256];
  uint32_t rank;
};

struct Value {
  enum Type : uint16_t { kBool = 1, kUint16 = 13, kUint32 = 14, kBytes = 27 };
  uint16_t type;
  union {
    bool flag;
    uint16_t uint16;
    uint32_t uint32;
    struct {
      char* data;
      size_t size;
    } bytes;
    uint64_t room[3];
  };
};

struct Info {
  char key[512];
  uint32_t flags;
  Value value;
};

constexpr uint8_t kToEverybody = 3;  // PMIX_GLOBAL
constexpr char kJobSize[] = "pmix.job.size", kLocalSize[] = "pmix.local.size", kLocalRank[] = "pmix.lrank",
               kCollectData[] = "pmix.collect";

struct Library {
  Status (*init)(Process* me, Info* info, size_t count);
  Status (*finalize)(const Info* info, size_t count);
  Status (*get)(const Process* of, const char* key, const Info* info, size_t count, Value** value);
  Status (*put)(uint8_t scope, const char* key, Value* value);
  Status (*commit)();
  Status (*fence)(const Process* processes, size_t count, const Info* info, size_t infos);
  const char* (*error_string)(Status status);
};

}  // namespace ringfold::comm::pmix
