// The inside of the double, for its own sources.
#pragma once

#include <atomic>
#include <bit>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/device/cuda_double.h"

namespace ringfold::test::cuda {

inline constexpr int kInvalidValue = 1, kNotInitialized = 3, kInvalidContext = 201, kInvalidHandle = 400,
                     kNotReady = 600, kAlreadyRegistered = 712, kNotRegistered = 713, kNotSupported = 801;

struct Context {
  int ordinal = 0;
};

// What an event says; outlives it, as streams may still wait for it.
struct Marks {
  std::atomic<uint64_t> recorded{0}, reached{0};
};
struct Event {
  std::shared_ptr<Marks> marks = std::make_shared<Marks>();
};

struct Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  bool busy = false, closed = false;
};
struct OwnStream {
  Context* context = nullptr;
  bool non_blocking = false;
  std::shared_ptr<Queue> queue;
  Graph recording = nullptr;  // what is put on the stream goes there; guarded by the queue's mutex
};

// A multicast object, in a file that processes share: which devices it has, and what memory they gave it.
struct Team {
  struct Bound {
    std::atomic<int> process;  // 0: none is bound
    std::atomic<int> fd;       // in that process
  };
  unsigned devices;
  size_t bytes;
  std::atomic<unsigned> added;  // devices, as bits
  Bound bound[kDevices];

  bool complete() const { return static_cast<unsigned>(std::popcount(added.load())) == devices; }
};

// Memory at an address: of an allocation, or of a mapping of shared memory.
struct Allocation {
  size_t bytes = 0;
  std::byte* alias = nullptr;
  Context* context = nullptr;  // null: of shared memory, which belongs to a device but to no context
  int ordinal = 0;
  unsigned allowed = 0;                  // the devices that may touch it, as bits
  int fd = -1;                           // of cuMemAlloc's: its file
  uint64_t id = 0;                       // never given again
  std::shared_ptr<Team> team = nullptr;  // of a mapped multicast object, which has no bytes of its own
};

// What cuMemCreate gives and others import: device memory without an address.
struct Shared {
  int fd = -1;
  size_t bytes = 0;
  int ordinal = 0;
  std::shared_ptr<Team> team = nullptr;  // of a multicast object
};

struct State {
  std::mutex mutex;
  std::atomic<bool> started{false};
  Context contexts[kDevices];
  std::map<uint64_t, Allocation> allocations;
  std::map<uint64_t, size_t> registered;
  std::map<unsigned long long, Shared> shared;
  std::map<uint64_t, size_t> ranges;  // reserved addresses
  unsigned long long last_shared = 0;
  std::atomic<bool> peers_reach{true}, shares{true}, fabric{false}, fabric_allocates{false};
  std::set<uint64_t> opened;
  std::atomic<bool> multicasts{false};
  std::map<std::pair<const Team*, int>, int> bound;  // by this process, of a device: files
  std::atomic<bool> exports{true}, orders_writes{true}, flushes{true};
  uint64_t last_id = 0;
  std::set<OwnStream*> streams;
  std::set<Event*> events;
  std::map<Context*, OwnStream*> default_streams;
  std::vector<std::string> complaints;
  std::map<std::string, int> calls;
  std::map<std::string, std::pair<int, int>> failures;  // function: calls before it, error
  std::atomic<int> most_lag_us{0}, copies_left{-1}, broken{0};
  int copy_error = 0;
  std::atomic<bool> waits_allowed{true}, capturing{false}, copies_held{false};
  std::minstd_rand random{1};

  State() {
    for (int d = 0; d < kDevices; ++d) contexts[d].ordinal = d;
  }
  void complain(const std::string& what) {
    const std::lock_guard lock(mutex);
    complaints.push_back(what);
  }
  int lag() {
    const int most = most_lag_us;
    if (most <= 0) return 0;
    const std::lock_guard lock(mutex);
    return static_cast<int>(random() % static_cast<unsigned>(most + 1));
  }
};

State& state();
extern thread_local std::vector<Context*> current;

// At the beginning of every function: 0, or what it is to return.
int enter(const char* function, bool needs_context = true);
// The stream behind a handle; null: none. Handles 0 to 2 are the default streams.
OwnStream* find(void* handle);
void put(OwnStream* stream, std::function<void()> work);
// Bytes of device memory as the double sees them; null: not all of them are, or that device may not touch them.
std::byte* device_bytes(uint64_t address, size_t bytes, int device = -1);
bool pinned(const void* memory, size_t bytes);
// Points an argument of a kernel at what the double sees behind it. False: the device may not touch that.
template <typename T>
bool see(T*& pointer, size_t bytes, int device) {
  std::byte* seen = device_bytes(reinterpret_cast<uint64_t>(pointer), bytes, device);
  if (seen == nullptr) state().complain("a kernel was given memory that its device cannot touch");
  pointer = reinterpret_cast<T*>(seen);
  return seen != nullptr;
}
// Of the copies that may be made to fail: false, this one does.
bool may_copy();
// A word is written as one, as a device does: others may look at it meanwhile.
void copy_bytes(void* target, const void* source, size_t bytes);

// The object in a file; null: there is none in it.
std::shared_ptr<Team> team_of(int fd);
// Memory of a device: a file that has no other name, and mappings of it.
int make_file(int ordinal, size_t bytes);
void* map_file(int fd, size_t bytes, void* at, bool visible);

}  // namespace ringfold::test::cuda
